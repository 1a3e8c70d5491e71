//! Waiting for a descriptor. Not here: what comes on it.

use std::io;
use std::os::fd::AsFd;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

/// Waits until `descriptor` is readable, or until `deadline` if there is one; returns whether it is readable. A signal
/// does not end the wait.
pub fn wait_readable(descriptor: impl AsFd, deadline: Option<Instant>) -> io::Result<bool> {
    wait_for(descriptor, PollFlags::IN, deadline)
}

/// Waits until one of these events is there for `descriptor`, or until `deadline` if there is one; returns whether one is.
/// A signal does not end the wait.
pub fn wait_for(descriptor: impl AsFd, events: PollFlags, deadline: Option<Instant>) -> io::Result<bool> {
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let left = left.map(Timespec::try_from).transpose().map_err(|_| io::ErrorKind::InvalidInput)?;
        match poll(&mut [PollFd::new(&descriptor, events)], left.as_ref()) {
            Ok(ready) => return Ok(ready > 0),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}
