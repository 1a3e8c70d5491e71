//! Namespaces for children that are not trusted.
//!
//! Not here: users' and mount namespaces for their own sake. A child that may open and connect to nothing (Landlock,
//! seccomp) needs neither.

use rustix::io::{Errno, Result};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Puts this process into a network and a System V IPC namespace with nothing in them, and its next child with all its
/// descendants into a process namespace: it cannot name a process outside, and ends as one.
///
/// To be called by a process with one thread, which can start no others afterwards. An error changes nothing: the host
/// does not let this user have namespaces.
pub fn isolate_children() -> Result<()> {
    let flags = UnshareFlags::NEWNET | UnshareFlags::NEWIPC | UnshareFlags::NEWPID;
    // user_namespaces(7): without privileges, others may be created together with a user namespace. It changes what
    // this process may do to files by its capabilities, so it is not the first choice.
    match unshare(flags) {
        Err(Errno::PERM) => unshare(flags | UnshareFlags::NEWUSER),
        result => result,
    }
}

fn unshare(flags: UnshareFlags) -> Result<()> {
    // SAFETY: descriptors stay shared (no CLONE_FILES).
    unsafe { unshare_unsafe(flags) }
}
