//! Programs that are PID 1 of their namespace, at the end of the guest.
//!
//! A PID 1 ignores signals that it has no handler for, so most of these programs would use up their whole grace. A
//! program that cannot receive SIGTERM, and has no other process beside it that could, needs no grace.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::Pid;

use crate::{files, signals};

/// Longest file that is read.
const READ_LIMIT: usize = 64 << 10;

/// The programs that run.
#[derive(Debug, Default)]
pub(crate) struct Firsts(Mutex<BTreeSet<i32>>);

/// A program that runs, until this is dropped.
pub(crate) struct First<'a> {
    firsts: &'a Firsts,
    pid: i32,
}

impl Firsts {
    /// Notes a program.
    pub(super) fn enter(&self, pid: Pid) -> First<'_> {
        let pid = pid.as_raw_nonzero().get();
        self.lock().insert(pid);
        First { firsts: self, pid }
    }

    /// Kills the programs that only SIGKILL can end.
    pub(crate) fn kill_deaf(&self) {
        let deaf = |pid: &i32| is_deaf(*pid) && is_alone(*pid);
        self.lock().iter().filter(|pid| deaf(pid)).for_each(|pid| signals::send(*pid, libc::SIGKILL));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeSet<i32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for First<'_> {
    fn drop(&mut self) {
        self.firsts.lock().remove(&self.pid);
    }
}

/// Whether this PID 1 ignores SIGTERM: it neither catches the signal nor blocks it, as a program does that waits for
/// it.
fn is_deaf(pid: i32) -> bool {
    let Ok(status) = files::read_regular(&format!("/proc/{pid}/status"), READ_LIMIT) else { return false };
    let status = String::from_utf8_lossy(&status);
    !heeds(&status, libc::SIGTERM)
}

/// Whether a process with this /proc/pid/status notices the signal, apart from a default action that ends it.
fn heeds(status: &str, signal: i32) -> bool {
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(u64::MAX)
    };
    (mask("SigCgt:") | mask("SigBlk:")) & 1 << (signal - 1) != 0
}

/// Whether this PID 1 is alone in its namespace: all others there are its descendants.
fn is_alone(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| {
        // A kernel that cannot tell counts as saying that there are children.
        std::fs::read(thread.path().join("children")).is_ok_and(|children| children.is_empty())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_heeds_a_signal() {
        let status = |blocked: &str, ignored: &str, caught: &str| {
            format!("Name:\tx\nSigQ:\t0/1\nSigBlk:\t{blocked}\nSigIgn:\t{ignored}\nSigCgt:\t{caught}\n")
        };
        let (none, term) = ("0000000000000000", "0000000000004000");
        assert!(!heeds(&status(none, none, none), 15));
        assert!(!heeds(&status(none, term, "0000000000000002"), 15));
        assert!(heeds(&status(none, none, term), 15));
        assert!(heeds(&status(term, none, none), 15));
        assert!(heeds("", 15), "an unknown one is given its time");
    }
}
