//! The user of a process that handles a guest's bytes: by default, a user and a group that no other process has.
//!
//! Their number is the process's own id plus a constant. As long as the process lives, the kernel gives that id to no
//! other process, so no list of these users is needed, and none has to be given back. ADR 10 says why no other way was
//! taken. Not here: which process needs such a user, and its capabilities (each program gives up its own).
//!
//! A process that reads and writes a user's files for the guest runs as that user instead ([`take_user`]), and so does a
//! process that the user has started as root ([`become_user`]).

use std::ffi::OsString;

use rustix::io::{Errno, Result};
use rustix::process::{DumpableBehavior, Gid, Resource, Uid, geteuid, getpid, getuid, set_dumpable_behavior};
use rustix::thread::{
    CapabilitySet, CapabilitySets, capabilities, remove_capability_from_bounding_set, set_capabilities,
    set_no_new_privs, set_thread_groups, set_thread_res_gid, set_thread_res_uid,
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
    drop_bounds(CapabilitySet::all());
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

impl User {
    /// The user as a program's arguments.
    #[must_use]
    pub fn arguments(&self) -> Vec<OsString> {
        [self.uid, self.gid].iter().chain(&self.groups).map(|id| id.to_string().into()).collect()
    }

    /// The user that a program's arguments tell of; `None` if they tell of none.
    #[must_use]
    pub fn from_arguments(arguments: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let ids = arguments.into_iter().map(|id| id.to_str()?.parse().ok());
        let ids = ids.collect::<Option<Vec<u32>>>()?;
        let ([uid, gid], groups) = ids.split_first_chunk()?;
        Some(Self { uid: *uid, gid: *gid, groups: groups.to_vec() })
    }
}

/// Makes this process, which is root's, that of `user`, with the user's groups and no other. No program
/// that this process executes gets a capability.
///
/// To be called by a process with one thread.
pub fn take_user(user: &User) -> Result<()> {
    drop_bounds(CapabilitySet::all());
    change_to(user)
}

/// Makes this process, which is root's, one as the user's own processes are, with the user's groups and no other. It has
/// no capability and no way back. As it has been root's, none of the user's other processes may look into it.
///
/// To be called by a process with one thread.
pub fn become_user(user: &User) -> Result<()> {
    change_to(user)?;
    have_only(CapabilitySet::empty())?;
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    match set_thread_res_uid(Uid::ROOT, Uid::ROOT, Uid::ROOT) {
        Err(_) if getuid().as_raw() == user.uid && geteuid().as_raw() == user.uid => Ok(()),
        _ => Err(Errno::PERM),
    }
}

fn change_to(user: &User) -> Result<()> {
    let (uid, gid) = (Uid::from_raw(user.uid), Gid::from_raw(user.gid));
    let groups: Vec<_> = user.groups.iter().copied().map(Gid::from_raw).collect();
    set_thread_groups(&groups)?;
    set_thread_res_gid(gid, gid, gid)?;
    set_thread_res_uid(uid, uid, uid)
}

/// Leaves this process, and all that it executes, at most these capabilities.
///
/// To be called by a process with one thread.
pub fn keep_capabilities(kept: CapabilitySet) -> Result<()> {
    drop_bounds(CapabilitySet::all().difference(kept));
    have_only(kept.intersection(capabilities(None)?.permitted))?;
    set_no_new_privs(true)
}

/// Leaves the calling thread these capabilities, none of which a program that it executes inherits.
pub(crate) fn have_only(kept: CapabilitySet) -> Result<()> {
    let sets = CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() };
    set_capabilities(None, sets)
}

/// Has no program that this process executes get one of these capabilities.
fn drop_bounds(dropped: CapabilitySet) {
    for capability in dropped {
        // A kernel may be too old to know the capability. Only root could have the remaining ones.
        let _ = remove_capability_from_bounding_set(capability);
    }
}
