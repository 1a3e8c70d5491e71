//! Signal masks and dispositions, as safe calls. All of them may be used between clone and execve.

use std::ffi::c_int;
use std::mem::MaybeUninit;

/// A set of signals.
pub(crate) type Set = libc::sigset_t;

/// No signal.
pub(crate) fn none() -> Set {
    let mut set = MaybeUninit::uninit();
    // SAFETY: valid for writes.
    unsafe { libc::sigemptyset(set.as_mut_ptr()) };
    // SAFETY: sigemptyset cannot fail and has initialized it.
    unsafe { set.assume_init() }
}

/// Every signal.
pub(crate) fn all() -> Set {
    let mut set = none();
    // SAFETY: a valid set.
    unsafe { libc::sigfillset(&raw mut set) };
    set
}

/// SIGCHLD alone.
pub(crate) fn child_ended() -> Set {
    let mut set = none();
    // SAFETY: a valid set and signal.
    unsafe { libc::sigaddset(&raw mut set, libc::SIGCHLD) };
    set
}

/// Blocks exactly these signals in this thread, and returns the former set.
pub(crate) fn block(set: &Set) -> Set {
    let mut before = none();
    // SAFETY: both sets are valid.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, std::ptr::from_ref(set), &raw mut before) };
    before
}

/// Ignores a signal.
pub(crate) fn ignore(signal: c_int) {
    // SAFETY: SIG_IGN installs no code.
    unsafe { libc::signal(signal, libc::SIG_IGN) };
}

/// Gives a signal its default action.
pub(crate) fn reset(signal: c_int) {
    // SAFETY: SIG_DFL installs no code.
    unsafe { libc::signal(signal, libc::SIG_DFL) };
}

/// Sends a signal: to a process; to a group if `target` is negative; to everything if it is -1.
pub(crate) fn send(target: c_int, signal: c_int) {
    // SAFETY: no memory is involved. (rustix has no type for real-time signals, and none for -1.)
    unsafe { libc::kill(target, signal) };
}
