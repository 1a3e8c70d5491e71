//! Namespaces for what is not trusted: a child, or this process itself.
//!
//! Not here: what is in a child's mount namespace (`root`), and users' namespaces for their own sake.

use rustix::io::Result;
use rustix::process::{getgid, getuid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// The namespaces that a process itself enters.
const OWN: UnshareFlags = UnshareFlags::NEWNET.union(UnshareFlags::NEWIPC).union(UnshareFlags::NEWNS);

/// The namespaces that a child enters.
const FLAGS: UnshareFlags = OWN.union(UnshareFlags::NEWPID);

/// Puts this process into a network and a System V IPC namespace with nothing in them, and its next child with all its
/// descendants into a process namespace: it cannot name a process outside, and ends as one. Mounts of this process are its
/// own from then on.
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
    unshare_as_user(FLAGS)
}

/// Puts this process into a network and a System V IPC namespace with nothing in them, and makes its mounts its own: by
/// privilege, or without. It may start threads afterwards, and sees the processes that it saw.
///
/// To be called by a process with one thread. An error changes nothing, and means that the host does not let this user
/// have namespaces.
pub fn isolate() -> Result<()> {
    unshare(OWN).or_else(|_| unshare_as_user(OWN))
}

fn unshare_as_user(flags: UnshareFlags) -> Result<()> {
    // user_namespaces(7): without privileges, others may be created together with a user namespace. It changes what
    // this process may do to files by its capabilities, and there is no user in it to become, so it is not the first
    // choice.
    let (user, group) = (getuid().as_raw(), getgid().as_raw());
    unshare(flags | UnshareFlags::NEWUSER)?;
    // A file that it makes needs an owner who exists in there. user_namespaces(7): groups cannot be mapped before
    // setgroups(2) is given up. Without /proc, or in a process that may not be looked into, it makes none.
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
