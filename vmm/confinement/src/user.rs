//! The user of a process that handles a guest's bytes: by default, a user and a group that no other process has.
//!
//! Their number is the process's own id plus a constant. As long as the process lives, the kernel gives that id to no
//! other process, so no list of these users is needed, and none has to be given back. ADR 10 says why no other way was
//! taken. Not here: which process needs such a user, and its capabilities (each program gives up its own).
//!
//! A process that reads and writes a user's files for the guest runs as that user instead ([`take_user`]).

use rustix::io::{Errno, Result};
use rustix::process::{Gid, Resource, Uid, geteuid, getpid, getuid};
use rustix::thread::{
    CapabilitySet, capabilities, remove_capability_from_bounding_set, set_thread_groups, set_thread_res_gid,
    set_thread_res_uid,
};

use crate::limits;

/// Comes before the first of these users. The kernel's highest process id is 2²² (proc(5), `pid_max`).
const BASE: u32 = 0x7800_0000;

/// Most threads of such a user: what a machine of 255 vCPUs takes, and far from all that the host can have.
const MAX_THREADS: u64 = 1024;

/// If this process is root's, makes it that of a user and a group of its own, and of no other group. Root's
/// capabilities are gone then, also from what it may execute.
///
/// To be called by a process with one thread. After an error it is still root's: not every root may do this, nor do
/// such users exist in every container.
pub fn take_own_user() -> Result<()> {
    if !getuid().is_root() && !geteuid().is_root() {
        return Ok(());
    }
    // kill(2): the parent, which has the same capabilities, could not end it otherwise.
    if !capabilities(None)?.effective.contains(CapabilitySet::KILL) {
        return Err(Errno::PERM);
    }
    drop_bounds();
    let id = BASE + getpid().as_raw_nonzero().get().unsigned_abs();
    let (user, group) = (Uid::from_raw(id), Gid::from_raw(id));
    set_thread_groups(&[])?;
    set_thread_res_gid(group, group, group)?;
    set_thread_res_uid(user, user, user)?;
    limits::lower(Resource::Nproc, MAX_THREADS)
}

/// A user of the host, with all of its groups.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// The user's number.
    pub uid: u32,
    /// Its group.
    pub gid: u32,
    /// The groups that it is in besides.
    pub groups: Vec<u32>,
}

/// Makes this process, which is root's, that of `user`, with the user's groups and no other.
///
/// To be called by a process with one thread.
pub fn take_user(user: &User) -> Result<()> {
    drop_bounds();
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let groups: Vec<_> = user.groups.iter().copied().map(Gid::from_raw).collect();
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

/// Has no program that this process executes get a capability.
fn drop_bounds() {
    for capability in CapabilitySet::all() {
        // A kernel may be too old to know the capability. Only root could have the remaining ones.
        let _ = remove_capability_from_bounding_set(capability);
    }
}
