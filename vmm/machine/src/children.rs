//! A machine's processes, as the machine's handle uses them: found, waited for, and blamed. Not here: the messages to
//! them.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rustix::event::epoll;

use crate::MachineError;

/// The path of a program, which is one of this project's or of the host's.
pub(crate) fn find(program: &str) -> Result<PathBuf, MachineError> {
    process::find_program(program).ok_or_else(|| MachineError::Program { program: program.to_owned() })
}

/// A descriptor that is readable when one of `members` is.
pub(crate) fn any_of(members: &[BorrowedFd<'_>]) -> io::Result<OwnedFd> {
    let set = epoll::create(epoll::CreateFlags::CLOEXEC)?;
    for member in members {
        epoll::add(&set, member, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
    }
    Ok(set)
}

pub(crate) fn wait_readable(descriptor: BorrowedFd<'_>) {
    // There is no error of a valid descriptor.
    let _ = process::wait_readable(descriptor, None);
}

pub(crate) fn is_readable(descriptor: BorrowedFd<'_>) -> bool {
    wait_readable_for(descriptor, Duration::ZERO)
}

/// Waits for at most `patience`; returns whether the descriptor is readable.
pub(crate) fn wait_readable_for(descriptor: BorrowedFd<'_>, patience: Duration) -> bool {
    process::wait_readable(descriptor, Some(Instant::now() + patience)).unwrap_or(false)
}

pub(crate) fn in_process(what: &'static str) -> impl Fn(process::Error) -> MachineError {
    move |error| {
        let source = match error {
            process::Error::Start { source, .. } | process::Error::Channel(source) => source,
            other => io::Error::other(other),
        };
        MachineError::Process { what, source }
    }
}

pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Process { what, source }
}
