//! Namespaces for children that are not trusted.
//!
//! Not here: users' and mount namespaces for their own sake. A child that may open and connect to nothing (Landlock,
//! seccomp) needs neither.

use rustix::io::Result;
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// What a child is put into.
const FLAGS: UnshareFlags = UnshareFlags::NEWNET.union(UnshareFlags::NEWIPC).union(UnshareFlags::NEWPID);

/// Puts this process into a network and a System V IPC namespace with nothing in them, and its next child with all its
/// descendants into a process namespace: it cannot name a process outside, and ends as one.
///
/// To be called by a process with one thread, which can start no others afterwards. Takes privileges; an error changes
/// nothing.
pub fn isolate_children() -> Result<()> {
    unshare(FLAGS)
}

/// As [`isolate_children`], without privileges; an error means that the host does not let this user have namespaces.
///
/// A process of root's should first cease to be: afterwards it cannot.
pub fn isolate_children_as_user() -> Result<()> {
    // user_namespaces(7): without privileges, others may be created together with a user namespace. It changes what
    // this process may do to files by its capabilities, and there is no user in it to become, so it is not the first
    // choice.
    unshare(FLAGS | UnshareFlags::NEWUSER)
}

fn unshare(flags: UnshareFlags) -> Result<()> {
    // SAFETY: descriptors stay shared (no CLONE_FILES).
    unsafe { unshare_unsafe(flags) }
}
