//! The descriptors that came with the spec, each taken once. Not here: what they are for.

use std::os::fd::OwnedFd;

use machine::native::protocol::Fd;

/// The spec names a descriptor that did not come, or names it twice.
#[derive(Debug, thiserror::Error)]
#[error("descriptor {0} did not come with the spec")]
pub struct MissingDescriptor(u16);

/// Descriptors by index.
#[derive(Debug)]
pub struct Descriptors(Vec<Option<OwnedFd>>);

impl Descriptors {
    /// In the order they came.
    #[must_use]
    pub fn new(descriptors: Vec<OwnedFd>) -> Self {
        Self(descriptors.into_iter().map(Some).collect())
    }

    /// Takes one out.
    pub fn take(&mut self, index: Fd) -> Result<OwnedFd, MissingDescriptor> {
        self.0.get_mut(usize::from(index.0)).and_then(Option::take).ok_or(MissingDescriptor(index.0))
    }
}
