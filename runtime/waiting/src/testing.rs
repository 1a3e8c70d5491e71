//! For tests: checks that a wait ends at once when it is given up.

use std::fmt::Display;
use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::thread;
use std::time::{Duration, Instant};

use crate::CancellationToken;

/// Far below any limit counted in seconds, far above the time that a busy host takes to wake a thread.
pub const AT_ONCE: Duration = Duration::from_millis(500);

/// Runs `act` until `begun`, then gives it up, and returns its error.
///
/// # Panics
///
/// If `act` then takes its time, or succeeds.
#[track_caller]
pub fn given_up_at_once<T: Send, E: Display + Send>(
    begun: impl Fn() -> bool,
    act: impl FnOnce(&CancellationToken) -> Result<T, E> + Send,
) -> E {
    let token = CancellationToken::new();
    let (outcome, after) = thread::scope(|scope| {
        let acting = scope.spawn(|| act(&token));
        while !begun() {
            assert!(!acting.is_finished(), "it has not waited");
            thread::yield_now();
        }
        let given_up = Instant::now();
        token.cancel();
        let outcome = acting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        (outcome, given_up.elapsed())
    });
    let Err(error) = outcome else { panic!("it was not given up") };
    assert!(after < AT_ONCE, "{error} after {after:?}");
    error
}

/// Whether another process or thread waits for the lock of this file, according to the kernel.
#[must_use]
pub fn is_waited_for(file: &File) -> bool {
    let inode = file.metadata().map(|metadata| format!(":{} ", metadata.ino())).unwrap_or_default();
    let locks = fs::read_to_string("/proc/locks").unwrap_or_default();
    locks.lines().any(|line| line.contains("->") && line.contains(&inode))
}
