//! Descriptors that travel beside a message, which names each by its index. Not here: the purpose of a descriptor.

use std::os::fd::{AsFd, OwnedFd};

use process::Channel;
use serde::{Deserialize, Serialize};

/// The index of a descriptor that comes with the message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fd(pub u16);

/// Descriptors on their way to a process.
#[derive(Debug, Default)]
pub struct Outgoing(Vec<OwnedFd>);

impl Outgoing {
    /// Adds a descriptor, and returns the index by which the message names it.
    pub fn add(&mut self, descriptor: impl Into<OwnedFd>) -> Fd {
        // A message has far fewer descriptors (`process`); the receiver notices an index that has none.
        let index = Fd(u16::try_from(self.0.len()).unwrap_or(u16::MAX));
        self.0.push(descriptor.into());
        index
    }

    /// Sends the descriptors beside the message that names them.
    pub fn send<T: Serialize>(&self, channel: &Channel, message: &T) -> process::Result<()> {
        channel.send(message, &self.0.iter().map(AsFd::as_fd).collect::<Vec<_>>())
    }
}

/// A message names a descriptor that did not come with it, or names one twice.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("descriptor {0} did not come")]
pub struct MissingDescriptor(u16);

/// Descriptors that came with a message.
#[derive(Debug, Default)]
pub struct Incoming(Vec<Option<OwnedFd>>);

impl Incoming {
    /// The descriptors in the order in which they came.
    #[must_use]
    pub fn new(descriptors: Vec<OwnedFd>) -> Self {
        Self(descriptors.into_iter().map(Some).collect())
    }

    /// Takes one descriptor out.
    pub fn take(&mut self, index: Fd) -> Result<OwnedFd, MissingDescriptor> {
        self.0.get_mut(usize::from(index.0)).and_then(Option::take).ok_or(MissingDescriptor(index.0))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::fs::File;
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn each_arrives_under_its_index_and_is_taken_once() {
        let (ours, theirs) = Channel::pair().unwrap();
        let mut outgoing = Outgoing::default();
        let names = ["/dev/null", "/dev/zero"].map(|path| outgoing.add(File::open(path).unwrap()));
        outgoing.send(&ours, &names).unwrap();
        let (names, descriptors) = theirs.recv::<[Fd; 2]>().unwrap().unwrap();
        let mut incoming = Incoming::new(descriptors);
        let zero = File::from(incoming.take(names[1]).unwrap());
        assert_eq!(
            zero.metadata().unwrap().rdev(),
            File::open("/dev/zero").unwrap().metadata().unwrap().rdev()
        );
        assert_eq!(incoming.take(names[1]).unwrap_err(), MissingDescriptor(1));
        assert_eq!(incoming.take(Fd(9)).unwrap_err().to_string(), "descriptor 9 did not come");
        incoming.take(names[0]).unwrap();
    }
}
