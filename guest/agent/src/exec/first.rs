//! Programs that are PID 1 of their namespace, when the guest ends.
//!
//! To such a program a signal that it has no handler for does nothing, so that most would let the time pass which they
//! have to end in. One that cannot hear SIGTERM, and has nobody beside it who could, needs no time.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::process::Pid;

use crate::{files, signals};

/// Longest of the files that are read.
const READ_LIMIT: usize = 64 << 10;

/// The ones that run.
#[derive(Debug, Default)]
pub(crate) struct Firsts(Mutex<BTreeSet<i32>>);

/// One that runs, until dropped.
pub(crate) struct First<'a> {
    firsts: &'a Firsts,
    pid: i32,
}

impl Firsts {
    /// Notes one.
    pub(super) fn enter(&self, pid: Pid) -> First<'_> {
        let pid = pid.as_raw_nonzero().get();
        self.lock().insert(pid);
        First { firsts: self, pid }
    }

    /// Kills those that only SIGKILL can end.
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

/// Whether SIGTERM does nothing to this PID 1: it neither catches it nor has it blocked, as those do that wait for it.
fn is_deaf(pid: i32) -> bool {
    let Ok(status) = files::read_regular(&format!("/proc/{pid}/status"), READ_LIMIT) else { return false };
    let status = String::from_utf8_lossy(&status);
    !heeds(&status, libc::SIGTERM)
}

/// Whether a process with this /proc/pid/status notices the signal, if no default action ends it.
fn heeds(status: &str, signal: i32) -> bool {
    let mask = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        line.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(u64::MAX)
    };
    (mask("SigCgt:") | mask("SigBlk:")) & 1 << (signal - 1) != 0
}

/// Whether nothing but this PID 1 lives in its namespace: all others there are its descendants.
fn is_alone(pid: i32) -> bool {
    let Ok(threads) = std::fs::read_dir(format!("/proc/{pid}/task")) else { return false };
    threads.flatten().all(|thread| {
        // A kernel that does not tell counts as one with children.
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
