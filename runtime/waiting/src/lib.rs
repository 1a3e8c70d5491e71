//! Waits that end at once when nobody wants any more what is waited for.
//!
//! One token tells all of them. Who only blocks, on a lock of a file or on a program, does so on a thread that is left
//! behind or ended; so nothing here looks again and again. A wait that was given up is an [`io::Error`] with [`GivenUp`] in
//! it: so it passes through whatever reads and copies, and [`is_given_up`] knows it again. Not here: who gives up, and when.

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

/// Whoever wanted it does not any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it was given up")]
pub struct GivenUp;

impl From<GivenUp> for io::Error {
    fn from(given_up: GivenUp) -> Self {
        Self::other(given_up)
    }
}

/// Whether this is [`GivenUp`], whatever has been said of it on the way.
#[must_use]
pub fn is_given_up(error: &io::Error) -> bool {
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = next {
        if error.is::<GivenUp>() {
            return true;
        }
        next = match error.downcast_ref::<io::Error>() {
            // Its source would be that of the error in it.
            Some(outer) => outer.get_ref().map(|inner| inner as &(dyn Error + 'static)),
            None => error.source(),
        };
    }
    false
}

/// For work of many steps: whether there is to be another one.
pub fn check(given_up: &CancellationToken) -> Result<(), GivenUp> {
    if given_up.is_cancelled() { Err(GivenUp) } else { Ok(()) }
}

/// Waits for the outcome of `what`. It may wait for other threads, not for time or descriptors: nothing here watches them.
pub fn wait_for<T>(given_up: &CancellationToken, what: impl Future<Output = T>) -> io::Result<T> {
    let runtime = Builder::new_current_thread().build()?;
    runtime.block_on(given_up.run_until_cancelled(what)).ok_or_else(|| GivenUp.into())
}

/// Waits for the lock of a file (flock(2)), held alone for as long as the file is open.
pub fn lock(file: File, given_up: &CancellationToken) -> io::Result<File> {
    check(given_up)?;
    match file.try_lock() {
        Err(TryLockError::WouldBlock) => wait_for_lock(file, File::lock, given_up),
        other => Ok(other.map(|()| file)?),
    }
}

/// The same, held together with others.
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
    // Given up meanwhile, nobody takes the file: then it is closed, which unlocks it.
    on_thread(given_up, move || lock(&file).map(|()| file))?
}

/// Does what blocks on a thread of its own, which is left behind when it is given up.
pub fn on_thread<T: Send + 'static>(
    given_up: &CancellationToken,
    act: impl FnOnce() -> T + Send + 'static,
) -> io::Result<T> {
    let (sender, outcome) = oneshot::channel();
    thread::Builder::new().name("waiting".to_owned()).spawn(move || drop(sender.send(act())))?;
    wait_for(given_up, outcome)?.map_err(io::Error::other)
}

/// Runs a program to its end, as [`Command::output`] does. Then, or when it is given up, or when this process ends, nothing of
/// it is left.
pub fn output(command: &mut Command, given_up: &CancellationToken) -> io::Result<Output> {
    check(given_up)?;
    let group = Group::start()?;
    let child = group.place(command)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let (sender, output) = oneshot::channel();
    let wait = move || drop(sender.send(child.wait_with_output()));
    thread::scope(|scope| {
        // An error of the spawning drops the group as well.
        thread::Builder::new().name("program".to_owned()).spawn_scoped(scope, wait)?;
        let output = wait_for(given_up, output);
        // Ends what there is of it, and so the thread, for which the scope waits.
        drop(group);
        output?.map_err(io::Error::other)?
    })
}

/// What can be read as long as somebody wants it.
#[derive(Debug)]
pub struct Wanted<'a, R> {
    inner: R,
    given_up: &'a CancellationToken,
}

impl<'a, R> Wanted<'a, R> {
    /// Looks at the token before each read.
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
