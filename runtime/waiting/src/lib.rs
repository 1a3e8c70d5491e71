//! Waits that end at once when their work is given up.
//!
//! One token ends all waits of some work. A wait for a file's lock or for a program blocks a thread of its own, which
//! is left behind or ended, so nothing here polls. A wait that was given up returns an [`io::Error`] with [`GivenUp`]
//! inside, which passes through any code that reads and copies; [`is_given_up`] recognizes it. Not here: the decision
//! to give up.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

#[cfg(feature = "testing")]
pub mod testing;

use std::error::Error;
use std::fs::{File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::process::{Command, Output, Stdio};
use std::thread;

use process::Group;
use tokio::runtime::Builder;
use tokio::sync::oneshot;
pub use tokio_util::sync::{CancellationToken, DropGuard};

/// The work was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it was given up")]
pub struct GivenUp;

impl From<GivenUp> for io::Error {
    fn from(given_up: GivenUp) -> Self {
        Self::other(given_up)
    }
}

/// Whether an error is [`GivenUp`], inside any other errors.
#[must_use]
pub fn is_given_up(error: &io::Error) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if error.is::<GivenUp>() {
            return true;
        }
        next = match error.downcast_ref::<io::Error>() {
            // The source of an `io::Error` would be that of the error inside.
            Some(outer) => outer.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    false
}

/// Checks between two steps of work whether it was given up.
pub fn check(given_up: &CancellationToken) -> Result<(), GivenUp> {
    if given_up.is_cancelled() { Err(GivenUp) } else { Ok(()) }
}

/// Waits for the outcome of `what`, which may wait for other threads, but not for time or descriptors: the runtime
/// here drives neither.
pub fn wait_for<T>(given_up: &CancellationToken, what: impl Future<Output = T>) -> io::Result<T> {
    let runtime = Builder::new_current_thread().build()?;
    runtime.block_on(given_up.run_until_cancelled(what)).ok_or_else(|| GivenUp.into())
}

/// Takes the exclusive lock of a file (flock(2)), for as long as the file is open.
pub fn lock(file: File, given_up: &CancellationToken) -> io::Result<File> {
    check(given_up)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => wait_for_lock(file, File::lock, given_up),
        other => Ok(other.map(|()| file)?),
    }
}

/// Takes the shared lock of a file.
pub fn lock_shared(file: File, given_up: &CancellationToken) -> io::Result<File> {
    check(given_up)?;
    match file.try_lock_shared() {
        Err(TryLockError::WouldBlock) => wait_for_lock(file, File::lock_shared, given_up),
        other => Ok(other.map(|()| file)?),
    }
}

fn wait_for_lock(
    file: File,
    lock: fn(&File) -> io::Result<()>,
    given_up: &CancellationToken,
) -> io::Result<File> {
    // If the wait is given up, the thread's result is dropped, which closes and so unlocks the file.
    on_thread(given_up, move || lock(&file).map(|()| file))?
}

/// Runs `act`, which blocks, on a thread of its own, which is left behind if the wait is given up.
pub fn on_thread<T: Send + 'static>(
    given_up: &CancellationToken,
    act: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, outcome) = oneshot::channel();
    thread::Builder::new().name("waiting".to_owned()).spawn(move || drop(sender.send(act())))?;
    wait_for(given_up, outcome)?.map_err(io::Error::other)
}

/// Runs a program to its end, as [`Command::output`] does. No process of it is left afterwards, nor when the wait is
/// given up or this process ends.
pub fn output(command: &mut Command, given_up: &CancellationToken) -> io::Result<Output> {
    check(given_up)?;
    let group = Group::start()?;
    let child = group.place(command)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (sender, output) = oneshot::channel();
    let wait = move || drop(sender.send(child.wait_with_output()));
    thread::scope(|scope| {
        // If the thread cannot be spawned, the group is dropped as well.
        thread::Builder::new().name("program".to_owned()).spawn_scoped(scope, wait)?;
        let output = wait_for(given_up, output);
        // Ends the program's processes, and so the thread that the scope waits for.
        drop(group);
        output?.map_err(io::Error::other)?
    })
}

/// A reader that fails once the work is given up.
#[derive(Debug)]
pub struct Wanted<'a, R> {
    inner: R,
    given_up: &'a CancellationToken,
}

impl<'a, R> Wanted<'a, R> {
    /// Checks the token before each read.
    pub fn new(inner: R, given_up: &'a CancellationToken) -> Self {
        Self { inner, given_up }
    }
}

impl<R: Read> Read for Wanted<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        check(self.given_up)?;
        self.inner.read(buffer)
    }
}

impl<R: Seek> Seek for Wanted<'_, R> {
    fn seek(&mut self, position: SeekFrom) -> io::Result<u64> {
        self.inner.seek(position)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_known_again_in_other_errors() {
        #[derive(Debug, thiserror::Error)]
        #[error("said on the way: {0}")]
        struct Outer(#[source] io::Error);

        let error: io::Error = GivenUp.into();
        assert!(is_given_up(&error));
        assert!(is_given_up(&io::Error::other(Outer(io::Error::other(Outer(error))))));
        for other in [io::ErrorKind::Other.into(), io::Error::other("it was given up")] {
            assert!(!is_given_up(&other));
            assert!(!is_given_up(&io::Error::other(Outer(other))));
        }
    }
}
