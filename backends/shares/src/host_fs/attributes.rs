//! Attributes that the guest sets, and extended ones.

use std::os::fd::AsFd;
use std::sync::Arc;

use fuse::{Access, Attributes, Errno, Handle, OpenFlags, Result, SetAttributes, SetTime, Time, Xattr};

use super::HostFs;
use super::names::host_mode;
use crate::guest_attributes::MODE_BITS;
use crate::nodes::{Node, alone};
use crate::specials::is_special;
use crate::sys::{self, Kind};

impl HostFs {
    pub(super) fn set_attributes(
        &self,
        node: &Arc<Node>,
        handle: Option<Handle>,
        change: &SetAttributes,
    ) -> Result<()> {
        let gives_away = change.uid.is_some() || change.gid.is_some();
        let kills = change.kill_privileges || gives_away && node.kind != Kind::Directory;
        if is_special(node.identity) {
            if change.size.is_some() {
                return Err(Errno::EINVAL);
            }
            alone(&self.specials).change(node.identity, |file| change_special(file, change, kills))?;
            if kills {
                self.drop_capabilities(node);
            }
            return Ok(());
        }
        if gives_away {
            self.table.has_room(node.identity)?;
        }
        let sets_times = change.atime.is_some() || change.mtime.is_some();
        if sets_times && node.kind == Kind::Special {
            return Err(Errno::EPERM);
        }
        if let Some(size) = change.size {
            self.truncate(node, handle, size)?;
        }
        if let Some(mode) = change.mode {
            self.set_mode(node, mode)?;
        } else if kills {
            self.kill_special_bits(node)?;
        }
        if kills || change.size.is_some() {
            self.drop_capabilities(node);
        }
        // All calls that the host may refuse come before this point.
        if gives_away {
            self.table.change(node.identity, |file| {
                file.uid = change.uid.or(file.uid);
                file.gid = change.gid.or(file.gid);
                file.ctime = Some(sys::current_time());
            })?;
        }
        if sets_times {
            sys::set_times(self.nodes.descriptor(node)?.as_fd(), change.atime, change.mtime)?;
        }
        Ok(())
    }

    fn truncate(&self, node: &Arc<Node>, handle: Option<Handle>, size: u64) -> Result<()> {
        match node.kind {
            Kind::File => {}
            Kind::Directory => return Err(Errno::EISDIR),
            Kind::SymbolicLink | Kind::Special => return Err(Errno::EINVAL),
        }
        match handle {
            Some(handle) => sys::truncate(self.file(node.id, handle)?.as_fd(), size),
            None => {
                let file = self.nodes.descriptor(node)?;
                let file = self.proc.open(file.as_fd(), Access::Write, OpenFlags::empty())?;
                sys::truncate(file.as_fd(), size)
            }
        }
    }

    /// Sets the mode that the guest sees, and of it what the host may have. A device, FIFO or socket of the host's stays as
    /// it is there.
    pub(super) fn set_mode(&self, node: &Arc<Node>, mode: u32) -> Result<()> {
        self.table.has_room(node.identity)?;
        let host = match node.kind {
            Kind::SymbolicLink => return Err(Errno::EOPNOTSUPP),
            Kind::Special => self.found(node)?.attributes.mode & MODE_BITS,
            Kind::File | Kind::Directory => {
                let host = host_mode(mode, node.kind);
                self.proc.set_mode(self.nodes.descriptor(node)?.as_fd(), host)?;
                host
            }
        };
        self.table.change(node.identity, |file| file.mode = (mode != host).then_some((mode, host)))
    }

    /// Takes from a file what would give whoever runs it more than their own rights.
    pub(super) fn kill_privileges(&self, node: &Arc<Node>) -> Result<()> {
        self.kill_special_bits(node)?;
        self.drop_capabilities(node);
        Ok(())
    }

    /// Takes capabilities from a file whose contents change. Linux leaves this to the file system whoever makes the change, root
    /// included.
    pub(super) fn drop_capabilities(&self, node: &Node) {
        self.table.drop_capabilities(node.identity, sys::current_time);
    }

    fn kill_special_bits(&self, node: &Arc<Node>) -> Result<()> {
        // A kernel that asks for this at each write has been told a mode without any.
        if without_privileges(node.told().0) != node.told().0 {
            let mode = self.attributes_of(node)?.mode;
            self.set_mode(node, without_privileges(mode) & MODE_BITS)?;
        }
        Ok(())
    }

    pub(super) fn extended_attribute(&self, node: &Arc<Node>, act: Xattr<'_>) -> Result<Vec<u8>> {
        let (table, now) = (&self.table, sys::current_time());
        match act {
            Xattr::Get(name) => table.xattr(node.identity, name.as_bytes()),
            Xattr::List => Ok(table.xattr_names(node.identity)),
            Xattr::Set { name, value, how } => {
                self.writable()?;
                if name.as_bytes().starts_with(b"system.") {
                    return Err(Errno::EOPNOTSUPP);
                }
                table.set_xattr(node.identity, name.as_bytes(), value, how, now).map(|()| Vec::new())
            }
            Xattr::Remove(name) => {
                self.writable()?;
                table.remove_xattr(node.identity, name.as_bytes(), now).map(|()| Vec::new())
            }
        }
    }
}

/// A mode without the set-user-ID bit, and without the set-group-ID bit where it is one.
fn without_privileges(mode: u32) -> u32 {
    let lock_only = mode & 0o2010 == 0o2000;
    if lock_only { mode & !0o4000 } else { mode & !0o6000 }
}

fn change_special(file: &mut Attributes, change: &SetAttributes, kills: bool) {
    let now = sys::current_time();
    let time = |set: Option<SetTime>, old: Time| match set {
        None => old,
        Some(SetTime::Now) => now,
        Some(SetTime::At(time)) => time,
    };
    if kills {
        file.mode = without_privileges(file.mode);
    }
    file.mode = change.mode.map_or(file.mode, |mode| file.mode & !MODE_BITS | mode);
    file.uid = change.uid.unwrap_or(file.uid);
    file.gid = change.gid.unwrap_or(file.gid);
    file.atime = time(change.atime, file.atime);
    file.mtime = time(change.mtime, file.mtime);
    file.ctime = now;
}
