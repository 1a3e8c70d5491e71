//! Names: found, made, taken and given away.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;

use fuse::{Access, Attributes, Context, Entry, Errno, How, Name, OpenFlags, RenameHow, Result};

use super::{HostFs, Spot};
use crate::guest_attributes::MODE_BITS;
use crate::nodes::{Node, alone, shared};
use crate::specials::{Specials, is_special};
use crate::sys::{self, Found, Kind};

/// The set-group-ID bit.
const SET_GROUP: u32 = 0o2000;

impl HostFs {
    pub(super) fn look_up(
        &self,
        parent: &Arc<Node>,
        directory: BorrowedFd<'_>,
        name: Name<'_>,
    ) -> Result<Entry> {
        if let Some(ino) = shared(&self.specials).find(parent.identity, name.as_bytes()) {
            return self.learn_special(ino);
        }
        let found = sys::stat_at(directory, name.as_c_str())?;
        self.learn(parent, name.as_c_str(), &found)
    }

    fn learn_special(&self, ino: u64) -> Result<Entry> {
        let identity = Specials::identity(ino);
        let attributes = shared(&self.specials).attributes(identity)?;
        let node = self.nodes.learn(None, identity, Kind::Special)?;
        Ok(self.entry_of(&node, attributes))
    }

    /// Makes a name that is not there.
    pub(super) fn make(
        &self,
        context: &Context<'_>,
        parent: &Arc<Node>,
        directory: BorrowedFd<'_>,
        name: Name<'_>,
        how: How<'_>,
    ) -> Result<Entry> {
        self.is_free(parent, name)?;
        let c_name = name.as_c_str();
        match how {
            How::Existing => self.look_up(parent, directory, name),
            How::Directory { mode } => {
                // A directory gets its parent's group, and makes those in it do so.
                let mode = mode | parent.told().0 & SET_GROUP;
                sys::make_directory(directory, c_name, host_mode(mode, Kind::Directory))?;
                let found = self.made(context, parent, &sys::stat_at(directory, c_name)?, Some(mode))?;
                self.learn(parent, c_name, &found)
            }
            How::Node { mode, .. } if Kind::of_mode(mode) == Kind::File => {
                let host = host_mode(mode, Kind::File);
                let file = sys::create(directory, c_name, host, Access::Write, OpenFlags::empty())?;
                let found = self.made(context, parent, &sys::stat(file.as_fd())?, Some(mode & MODE_BITS))?;
                self.learn(parent, c_name, &found)
            }
            How::Node { mode, device } => {
                if sys::stat_at(directory, c_name).is_ok() {
                    return Err(Errno::EEXIST);
                }
                let now = sys::current_time();
                let (uid, gid) = owner(context, parent);
                let attributes = Attributes {
                    atime: now,
                    mtime: now,
                    ctime: now,
                    btime: Some(now),
                    mode,
                    uid,
                    gid,
                    device,
                    block_size: 4096,
                    ..Attributes::default()
                };
                let ino = alone(&self.specials).make(parent.identity, name.as_bytes(), attributes)?;
                // The host's directory has no such name, but its times are those of its names.
                self.touch(parent)?;
                self.learn_special(ino)
            }
            How::SymbolicLink { target } => {
                sys::make_symbolic_link(directory, c_name, target.as_c_str())?;
                let found = self.made(context, parent, &sys::stat_at(directory, c_name)?, None)?;
                self.learn(parent, c_name, &found)
            }
            How::HardLink { node } => self.link(&self.nodes.get(node)?, parent, directory, name),
        }
    }

    /// Refuses a name that the host does not know of.
    pub(super) fn is_free(&self, parent: &Node, name: Name<'_>) -> Result<()> {
        match shared(&self.specials).find(parent.identity, name.as_bytes()) {
            Some(_) => Err(Errno::EEXIST),
            None => Ok(()),
        }
    }

    /// Notes of a new file what the guest made of it: its owner, and its mode where the host's is another.
    pub(super) fn made(
        &self,
        context: &Context<'_>,
        parent: &Node,
        found: &Found,
        mode: Option<u32>,
    ) -> Result<Found> {
        let host = found.attributes;
        let (uid, gid) = owner(context, parent);
        let uid = Some(uid).filter(|uid| *uid != self.options.owner_uid.unwrap_or(host.uid));
        let gid = Some(gid).filter(|gid| *gid != self.options.owner_gid.unwrap_or(host.gid));
        let mode = mode.filter(|mode| *mode != host.mode & MODE_BITS);
        if uid.is_some() || gid.is_some() || mode.is_some() {
            self.table.change(found.identity, |file| {
                (file.uid, file.gid) = (uid, gid);
                file.mode = mode.map(|mode| (mode, host.mode & MODE_BITS));
            })?;
        }
        for label in context.extensions.labels() {
            let (name, any) = (label.name.as_bytes(), fuse::XattrSet::Any);
            self.table.set_xattr(found.identity, name, label.value, any, host.ctime)?;
        }
        Ok(*found)
    }

    fn link(
        &self,
        node: &Arc<Node>,
        parent: &Arc<Node>,
        directory: BorrowedFd<'_>,
        name: Name<'_>,
    ) -> Result<Entry> {
        if is_special(node.identity) {
            if sys::stat_at(directory, name.as_c_str()).is_ok() {
                return Err(Errno::EEXIST);
            }
            let now = sys::current_time();
            alone(&self.specials).link(parent.identity, name.as_bytes(), node.identity, now)?;
            self.touch(parent)?;
            return self.learn_special(node.identity.ino);
        }
        if node.kind == Kind::Directory {
            return Err(Errno::EPERM);
        }
        let file = self.nodes.descriptor(node)?;
        self.proc.link(file.as_fd(), directory, name.as_c_str())?;
        let found = sys::stat_at(directory, name.as_c_str())?;
        self.learn(parent, name.as_c_str(), &found)
    }

    /// Takes a name.
    pub(super) fn remove(
        &self,
        parent: &Arc<Node>,
        directory: BorrowedFd<'_>,
        name: Name<'_>,
        is_directory: bool,
    ) -> Result<()> {
        if shared(&self.specials).find(parent.identity, name.as_bytes()).is_some() {
            if is_directory {
                return Err(Errno::ENOTDIR);
            }
            alone(&self.specials).unlink(parent.identity, name.as_bytes(), sys::current_time());
            return self.touch(parent);
        }
        let spot = Spot { node: parent, directory, name };
        let victim = self.victim(&spot)?;
        let removed = if is_directory && shared(&self.specials).any_in(victim.identity) {
            Err(Errno::ENOTEMPTY)
        } else {
            sys::remove(directory, name.as_c_str(), is_directory)
        };
        match removed {
            Ok(()) => self.lost_name(victim),
            Err(_) => self.nodes.moved(victim.identity, parent, name.as_c_str()),
        }
        removed
    }

    /// The file that is about to lose a name. If the kernel has the file, its descriptor is kept: the file goes on without
    /// a name.
    fn victim(&self, spot: &Spot<'_>) -> Result<Found> {
        let file = sys::open_beneath(spot.directory, spot.name.as_c_str())?;
        let found = sys::stat(file.as_fd())?;
        if let Some(node) = self.nodes.known(found.identity) {
            self.nodes.pin(&node, Some(file))?;
        }
        Ok(found)
    }

    /// A file has one name less. Attributes that the guest gave it go with the last name, once the kernel forgets the
    /// file.
    fn lost_name(&self, victim: Found) {
        let last = victim.kind() == Kind::Directory || victim.attributes.links <= 1;
        match self.nodes.known(victim.identity) {
            Some(node) => {
                if last {
                    node.lost_name();
                }
                // The file may have been found by that name meanwhile. Its descriptor is at hand, so this cannot fail.
                let _ = self.nodes.pin(&node, None);
            }
            None if last => self.table.remove(victim.identity),
            None => {}
        }
    }

    pub(super) fn rename(&self, from: &Spot<'_>, to: &Spot<'_>, how: RenameHow) -> Result<()> {
        let (special_from, special_to) = {
            let specials = shared(&self.specials);
            let find = |spot: &Spot<'_>| specials.find(spot.node.identity, spot.name.as_bytes());
            (find(from), find(to))
        };
        if special_from.is_some() || special_to.is_some() {
            return self.rename_special(from, to, how, special_from, special_to);
        }
        let victim = match how {
            RenameHow::Keep => None,
            RenameHow::Replace | RenameHow::Exchange => match self.victim(to) {
                Ok(victim) => Some(victim),
                Err(Errno::ENOENT) => None,
                Err(errno) => return Err(errno),
            },
        };
        let (old, new) = (from.name.as_c_str(), to.name.as_c_str());
        let hides_specials = |victim: Found| shared(&self.specials).any_in(victim.identity);
        let renamed = if how == RenameHow::Replace && victim.is_some_and(hides_specials) {
            Err(Errno::ENOTEMPTY)
        } else {
            sys::rename((from.directory, old), (to.directory, new), how)
        };
        if let (Err(errno), Some(victim)) = (renamed, victim) {
            self.nodes.moved(victim.identity, to.node, new);
            return Err(errno);
        }
        renamed?;
        let moved = sys::stat_at(to.directory, new)?;
        match victim {
            Some(victim) if how == RenameHow::Exchange => {
                self.nodes.moved(victim.identity, from.node, old);
            }
            // Of two names of one file, both stay.
            Some(victim) if victim.identity != moved.identity => self.lost_name(victim),
            _ => {}
        }
        self.nodes.moved(moved.identity, to.node, new);
        Ok(())
    }

    /// Gives away a name, where the host does not have one of the two files.
    fn rename_special(
        &self,
        from: &Spot<'_>,
        to: &Spot<'_>,
        how: RenameHow,
        special_from: Option<u64>,
        special_to: Option<u64>,
    ) -> Result<()> {
        let now = sys::current_time();
        let place = |spot: &Spot<'_>| spot.node.identity;
        match (how, special_from, special_to) {
            (RenameHow::Exchange, ..) => return Err(Errno::EINVAL),
            (RenameHow::Keep, _, Some(_)) => return Err(Errno::EEXIST),
            (RenameHow::Replace, Some(one), Some(other)) if one == other => return Ok(()),
            _ => {}
        }
        if special_from.is_none() {
            if sys::stat_at(from.directory, from.name.as_c_str())?.kind() == Kind::Directory {
                return Err(Errno::ENOTDIR);
            }
            sys::rename((from.directory, from.name.as_c_str()), (to.directory, to.name.as_c_str()), how)?;
            alone(&self.specials).unlink(place(to), to.name.as_bytes(), now);
            let moved = sys::stat_at(to.directory, to.name.as_c_str())?;
            self.nodes.moved(moved.identity, to.node, to.name.as_c_str());
            return Ok(());
        }
        if special_to.is_none() {
            match self.victim(to) {
                Ok(_) if how == RenameHow::Keep => return Err(Errno::EEXIST),
                Ok(victim) if victim.kind() == Kind::Directory => return Err(Errno::EISDIR),
                Ok(victim) => {
                    sys::remove(to.directory, to.name.as_c_str(), false)?;
                    self.lost_name(victim);
                }
                Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno),
            }
        }
        let mut specials = alone(&self.specials);
        specials.unlink(place(to), to.name.as_bytes(), now);
        specials.rename((place(from), from.name.as_bytes()), (place(to), to.name.as_bytes()), now)?;
        drop(specials);
        self.touch(from.node)?;
        self.touch(to.node)
    }

    /// Gives a directory the times of one that has just got a name or lost one.
    fn touch(&self, directory: &Arc<Node>) -> Result<()> {
        let now = Some(fuse::SetTime::Now);
        sys::set_times(self.nodes.descriptor(directory)?.as_fd(), None, now)
    }
}

/// Owner and group of what is made in a directory.
fn owner(context: &Context<'_>, parent: &Node) -> (u32, u32) {
    let (mode, gid) = parent.told();
    (context.uid, if mode & SET_GROUP == 0 { context.gid } else { gid })
}

/// The mode of the host's file for a mode of the guest's: no special bits, and this process can go on working with it.
pub(super) fn host_mode(mode: u32, kind: Kind) -> u32 {
    mode & 0o777 | if kind == Kind::Directory { 0o700 } else { 0o600 }
}
