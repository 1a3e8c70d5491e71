//! Namespaces for processes that are not trusted: a child, or this process itself.
//!
//! Not here: the files in a child's mount namespace (`root`), and users' namespaces for their own sake.

use rustix::io::Result;
use rustix::process::{getgid, getuid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// The namespaces that a process itself enters.
const OWN: UnshareFlags = UnshareFlags::NEWNET.union(UnshareFlags::NEWIPC).union(UnshareFlags::NEWNS);

/// The namespaces that a child enters.
const FLAGS: UnshareFlags = OWN.union(UnshareFlags::NEWPID);

/// Puts this process into empty network and System V IPC namespaces, and its next child with all the child's
/// descendants into a process namespace: the child cannot name a process outside, and all its descendants end with it.
/// From then on mounts of this process are its own.
///
/// Only a process with one thread may call this function, and it can start no others afterwards. The call takes
/// privileges; an error changes nothing.
pub fn isolate_children() -> Result<()> {
    unshare(FLAGS)
}

/// Does the same as [`isolate_children`], without privileges; an error means that the host does not let this user have
/// namespaces.
///
/// A process of root's should first give up being root: afterwards it cannot.
pub fn isolate_children_as_user() -> Result<()> {
    unshare_as_user(FLAGS)
}

/// Puts this process into empty network and System V IPC namespaces, and makes its mounts its own, by privilege or
/// without. The process may start threads afterwards, and still sees the processes that it saw before.
///
/// Only a process with one thread may call this function. An error changes nothing, and means that the host does not
/// let this user have namespaces.
pub fn isolate() -> Result<()> {
    unshare(OWN).or_else(|_| unshare_as_user(OWN))
}

fn unshare_as_user(flags: UnshareFlags) -> Result<()> {
    // user_namespaces(7): without privileges, other namespaces may be created together with a user namespace. A user
    // namespace changes what this process's capabilities allow it to do to files, and contains no other user to become,
    // so it is the second choice.
    let (user, group) = (getuid().as_raw(), getgid().as_raw());
    unshare(flags | UnshareFlags::NEWUSER)?;
    // A file that the process makes needs an owner who exists in the new namespace. user_namespaces(7): groups cannot
    // be mapped before setgroups(2) is given up. Without /proc, or in a process that is not dumpable, no user is
    // mapped, and the process makes no files.
    let written = std::fs::write("/proc/self/setgroups", "deny")
        .and_then(|()| std::fs::write("/proc/self/uid_map", format!("{user} {user} 1")))
        .and_then(|()| std::fs::write("/proc/self/gid_map", format!("{group} {group} 1")));
    drop(written);
    Ok(())
}

fn unshare(flags: UnshareFlags) -> Result<()> {
    // SAFETY: descriptors stay shared (no CLONE_FILES).
    unsafe { unshare_unsafe(flags) }
}
