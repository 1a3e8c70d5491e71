//! Names: found, made, taken and given away.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use fuse::{Access, Attributes, Context, Device, Entry, Errno, How, Name, OpenFlags, RenameHow, Result};

use super::{HostFs, Spot};
use crate::guest_attributes::MODE_BITS;
use crate::nodes::{MAX_DEPTH, Node, alone, shared};
use crate::specials::{Specials, is_special};
use crate::sys::{self, Found, Identity, Kind};

/// The set-group-ID bit.
const SET_GROUP: u32 = 0o2000;

/// How a file loses a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loss {
    /// A file's name is removed.
    Unlinked,
    /// A directory's name is removed.
    DirectoryRemoved,
    /// The name becomes another file's.
    Replaced,
}

/// A file that is about to lose a name.
struct Victim {
    found: Found,
    /// A descriptor of the file, where something may be left of the file without it.
    file: Option<Arc<OwnedFd>>,
}

impl Victim {
    /// Whether the name was its last one when it was found.
    fn is_last(&self) -> bool {
        self.found.kind() == Kind::Directory || self.found.attributes.links <= 1
    }
}

/// The file that has a name.
enum Has {
    /// One that the host does not have.
    Special(u64),
    /// One of the host's.
    Host(Found),
}

impl Spot<'_> {
    /// The name as those are kept that only the guest has.
    fn place(&self) -> (Identity, &[u8]) {
        (self.node.identity, self.name.as_bytes())
    }
}

impl HostFs {
    pub(super) fn look_up(
        &self,
        parent: &Arc<Node>,
        directory: BorrowedFd<'_>,
        name: Name<'_>,
    ) -> Result<Entry> {
        // The lock is taken again below, which waits for ever if somebody wants it alone in between.
        let special = shared(&self.specials).find(parent.identity, name.as_bytes());
        if let Some(ino) = special {
            return self.learn_special(ino);
        }
        self.look_into(parent);
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
    pub(super) fn make(&self, context: &Context<'_>, spot: &Spot<'_>, how: How<'_>) -> Result<Entry> {
        let Spot { node: parent, directory, name } = *spot;
        if let How::HardLink { node } = how {
            return self.link(&self.nodes.get(node)?, spot);
        }
        self.is_free(parent, name)?;
        let c_name = name.as_c_str();
        match how {
            How::Existing | How::HardLink { .. } => self.look_up(parent, directory, name),
            How::Directory { mode } => {
                // A directory gets its parent's group, and makes those in it do so.
                let mode = mode | parent.told().0 & SET_GROUP;
                sys::make_directory(directory, c_name, host_mode(mode, Kind::Directory))?;
                self.tell_made(context, spot, &sys::stat_at(directory, c_name)?, Some(mode))
            }
            How::Node { mode, .. } if Kind::of_mode(mode) == Kind::File => {
                let host = host_mode(mode, Kind::File);
                let file = sys::create(directory, c_name, host, Access::Write, OpenFlags::empty())?;
                self.tell_made(context, spot, &sys::stat(file.as_fd())?, Some(mode & MODE_BITS))
            }
            How::Node { mode, device } => self.make_special(context, spot, mode, device),
            How::SymbolicLink { target } => {
                sys::make_symbolic_link(directory, c_name, target.as_c_str())?;
                self.tell_made(context, spot, &sys::stat_at(directory, c_name)?, None)
            }
        }
    }

    fn make_special(
        &self,
        context: &Context<'_>,
        spot: &Spot<'_>,
        mode: u32,
        device: Device,
    ) -> Result<Entry> {
        if sys::stat_at(spot.directory, spot.name.as_c_str()).is_ok() {
            return Err(Errno::EEXIST);
        }
        is_living(spot.directory)?;
        let now = sys::current_time();
        let (uid, gid) = owner(context, spot.node);
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
        let name = spot.name.as_bytes();
        let ino = alone(&self.specials).make(spot.node.identity, name, attributes)?;
        self.tell_special(spot, ino)
    }

    /// Tells the kernel of a new name of a file that the host does not have. If it cannot be told, the name goes again.
    fn tell_special(&self, spot: &Spot<'_>, ino: u64) -> Result<Entry> {
        let told = self.learn_special(ino);
        if told.is_err() {
            self.unlink_special(spot.node.identity, spot.name.as_bytes());
        } else {
            self.touch(spot.node);
        }
        told
    }

    /// Tells the kernel of a file that has just been made under a name. If it cannot be told, nothing stays of the file.
    pub(super) fn tell_made(
        &self,
        context: &Context<'_>,
        spot: &Spot<'_>,
        found: &Found,
        mode: Option<u32>,
    ) -> Result<Entry> {
        let told = self.made(context, spot.node, found, mode);
        let told = told.and_then(|()| self.learn(spot.node, spot.name.as_c_str(), found));
        if told.is_err() {
            self.unmake(spot, found);
            self.table.remove(found.identity);
        }
        told
    }

    /// Takes a name back that has just been made, unless the host has put another file there.
    pub(super) fn unmake(&self, spot: &Spot<'_>, made: &Found) {
        let name = spot.name.as_c_str();
        if sys::stat_at(spot.directory, name).is_ok_and(|found| found.identity == made.identity) {
            // The error that is told is the one before.
            let _ = sys::remove(spot.directory, name, made.kind() == Kind::Directory);
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
    ) -> Result<()> {
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
        Ok(())
    }

    fn link(&self, node: &Arc<Node>, spot: &Spot<'_>) -> Result<Entry> {
        let Spot { node: parent, directory, name } = *spot;
        if node.kind == Kind::Directory {
            return Err(Errno::EPERM);
        }
        self.is_free(parent, name)?;
        if is_special(node.identity) {
            if sys::stat_at(directory, name.as_c_str()).is_ok() {
                return Err(Errno::EEXIST);
            }
            is_living(directory)?;
            let now = sys::current_time();
            alone(&self.specials).link(parent.identity, name.as_bytes(), node.identity, now)?;
            return self.tell_special(spot, node.identity.ino);
        }
        if node.kind == Kind::Special {
            return Err(Errno::EPERM);
        }
        let file = self.nodes.descriptor(node)?;
        self.proc.link(file.as_fd(), directory, name.as_c_str())?;
        let found = sys::stat_at(directory, name.as_c_str())?;
        let told = self.learn(parent, name.as_c_str(), &found);
        if told.is_err() {
            self.unmake(spot, &found);
        }
        told
    }

    /// Takes a name.
    pub(super) fn remove(&self, spot: &Spot<'_>, is_directory: bool) -> Result<()> {
        let Spot { node: parent, name, .. } = *spot;
        if self.is_free(parent, name).is_ok() {
            return self.remove_from_host(spot, is_directory);
        }
        if is_directory {
            return Err(Errno::ENOTDIR);
        }
        if !self.unlink_special(parent.identity, name.as_bytes()) {
            return Err(Errno::ENOENT);
        }
        self.touch(parent);
        Ok(())
    }

    fn remove_from_host(&self, spot: &Spot<'_>, is_directory: bool) -> Result<()> {
        let name = spot.name.as_c_str();
        let loss = if is_directory { Loss::DirectoryRemoved } else { Loss::Unlinked };
        let victim = self.victim(spot, loss)?;
        let removed = if is_directory && shared(&self.specials).any_in(victim.found.identity) {
            Err(Errno::ENOTEMPTY)
        } else {
            sys::remove(spot.directory, name, is_directory)
        };
        match removed {
            Ok(()) => self.lost_name(&victim, spot),
            Err(_) => self.nodes.moved(victim.found.identity, spot.node, name),
        }
        removed
    }

    /// Takes a name that the host does not have. Whether it was there.
    pub(super) fn unlink_special(&self, directory: Identity, name: &[u8]) -> bool {
        let mut specials = alone(&self.specials);
        let Some(file) = specials.unlink(directory, name, sys::current_time()) else {
            return false;
        };
        // A file that the kernel has goes when the kernel forgets it.
        let gone = self.nodes.known(file).is_none() && specials.forget(file);
        drop(specials);
        if gone {
            self.table.remove(file);
        }
        true
    }

    /// The file that is about to lose a name. If the kernel has the file, its descriptor is kept, as the file goes on without
    /// a name. A file whose only name is removed needs none: a program that has the file open keeps a descriptor of it anyway,
    /// nobody else comes to the file any more, and its attributes are remembered. One whose name becomes another file's may
    /// be about to be opened by a program that has found it by that name.
    fn victim(&self, spot: &Spot<'_>, loss: Loss) -> Result<Victim> {
        let name = spot.name.as_c_str();
        if loss == Loss::Unlinked {
            let victim = Victim { found: sys::stat_at(spot.directory, name)?, file: None };
            if victim.found.kind() != Kind::Directory && victim.is_last() {
                if let Some(node) = self.nodes.known(victim.found.identity) {
                    self.nodes.remember(&node, &victim.found);
                }
                return Ok(victim);
            }
        }
        let file = Arc::new(sys::open_beneath(spot.directory, name)?);
        let victim = Victim { found: sys::stat(file.as_fd())?, file: Some(file.clone()) };
        if let Some(node) = self.nodes.known(victim.found.identity) {
            match self.nodes.pin(&node, &file) {
                Err(errno) if victim.found.kind() == Kind::Directory => return Err(errno),
                Err(_) if victim.is_last() => self.nodes.remember(&node, &victim.found),
                // A file with another name can do without.
                Ok(()) | Err(_) => {}
            }
        }
        Ok(victim)
    }

    /// A file has one name less. Attributes that the guest gave it go with the last name, once the kernel forgets the
    /// file.
    fn lost_name(&self, victim: &Victim, spot: &Spot<'_>) {
        // Others may have taken names of the file meanwhile.
        let left = |file: &Arc<OwnedFd>| sys::stat(file.as_fd()).map(|found| found.attributes.links);
        let last = victim.is_last() || victim.file.as_ref().map(left) == Some(Ok(0));
        match self.nodes.known(victim.found.identity) {
            Some(node) if last => {
                node.lost_name();
                // The file may have been found by that name meanwhile. There was room for it a moment ago.
                match &victim.file {
                    Some(file) => drop(self.nodes.pin(&node, file)),
                    None => self.nodes.remember(&node, &victim.found),
                }
                self.settle(&node);
            }
            Some(node) => self.nodes.lost_place(&node, (spot.node, spot.name.as_c_str())),
            None if last => self.table.remove(victim.found.identity),
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
            return self.rename_special(from, to, how);
        }
        let victim = match how {
            RenameHow::Keep => None,
            RenameHow::Replace | RenameHow::Exchange => match self.victim(to, Loss::Replaced) {
                Ok(victim) => Some(victim),
                Err(Errno::ENOENT) => None,
                Err(errno) => return Err(errno),
            },
        };
        let (old, new) = (from.name.as_c_str(), to.name.as_c_str());
        let hides = victim.as_ref().filter(|_| how == RenameHow::Replace);
        let renamed = match hides.map(|victim| self.would_lose_specials(from, to, victim)) {
            Some(Err(errno)) => Err(errno),
            Some(Ok(true)) => Err(Errno::ENOTEMPTY),
            Some(Ok(false)) | None => sys::rename((from.directory, old), (to.directory, new), how),
        };
        if let (Err(errno), Some(victim)) = (renamed, &victim) {
            self.nodes.moved(victim.found.identity, to.node, new);
            return Err(errno);
        }
        renamed?;
        let moved = sys::stat_at(to.directory, new)?;
        match victim {
            Some(victim) if how == RenameHow::Exchange => {
                self.nodes.moved(victim.found.identity, from.node, old);
            }
            // Of two names of one file, both stay.
            Some(victim) if victim.found.identity != moved.identity => self.lost_name(&victim, to),
            _ => {}
        }
        self.nodes.moved(moved.identity, to.node, new);
        Ok(())
    }

    /// Whether the host would let a directory have the name of one that is empty there, but not for the guest.
    fn would_lose_specials(&self, from: &Spot<'_>, to: &Spot<'_>, victim: &Victim) -> Result<bool> {
        if !shared(&self.specials).any_in(victim.found.identity) {
            return Ok(false);
        }
        let moved = sys::stat_at(from.directory, from.name.as_c_str())?;
        let itself = moved.identity == victim.found.identity;
        Ok(moved.kind() == Kind::Directory && !itself && !is_within(to.node, moved.identity))
    }

    /// The type of the file that has a name, whichever of the host and the guest has the name.
    fn kind_of(&self, spot: &Spot<'_>) -> Result<Has> {
        match shared(&self.specials).find(spot.node.identity, spot.name.as_bytes()) {
            Some(ino) => Ok(Has::Special(ino)),
            None => sys::stat_at(spot.directory, spot.name.as_c_str()).map(Has::Host),
        }
    }

    /// Gives away a name, where the host does not have one of the two files.
    fn rename_special(&self, from: &Spot<'_>, to: &Spot<'_>, how: RenameHow) -> Result<()> {
        let moved = self.kind_of(from)?;
        let other = match self.kind_of(to) {
            Ok(other) => Some(other),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(errno),
        };
        match (how, &moved, &other) {
            (RenameHow::Keep, _, Some(_)) => Err(Errno::EEXIST),
            (RenameHow::Exchange, _, None) => Err(Errno::ENOENT),
            (RenameHow::Exchange, Has::Special(_), Some(Has::Special(_))) => self.exchange_specials(from, to),
            (RenameHow::Exchange, Has::Special(_), Some(Has::Host(found))) => {
                self.change_places(from, to, found)
            }
            (RenameHow::Exchange, Has::Host(found), _) => self.change_places(to, from, found),
            (_, Has::Special(one), Some(Has::Special(other))) if one == other => Ok(()),
            (_, Has::Host(found), _) => self.take_name_of_special(from, to, found),
            (_, Has::Special(_), other) => self.move_special(from, to, other.as_ref()),
        }
    }

    fn exchange_specials(&self, from: &Spot<'_>, to: &Spot<'_>) -> Result<()> {
        alone(&self.specials).exchange(from.place(), to.place(), sys::current_time())?;
        self.touch(from.node);
        self.touch(to.node);
        Ok(())
    }

    /// Gives a file that the host does not have and one of the host's each other's name.
    fn change_places(&self, special: &Spot<'_>, host: &Spot<'_>, found: &Found) -> Result<()> {
        let (new, old) = (special.name.as_c_str(), host.name.as_c_str());
        sys::rename((host.directory, old), (special.directory, new), RenameHow::Keep)?;
        self.nodes.moved(found.identity, special.node, new);
        alone(&self.specials).rename(special.place(), host.place(), sys::current_time())
    }

    /// Gives a file of the host's the name of one that the host does not have.
    fn take_name_of_special(&self, from: &Spot<'_>, to: &Spot<'_>, found: &Found) -> Result<()> {
        if found.kind() == Kind::Directory {
            return Err(if is_within(to.node, found.identity) { Errno::EINVAL } else { Errno::ENOTDIR });
        }
        let new = to.name.as_c_str();
        sys::rename((from.directory, from.name.as_c_str()), (to.directory, new), RenameHow::Replace)?;
        self.unlink_special(to.node.identity, to.name.as_bytes());
        let moved = sys::stat_at(to.directory, new)?;
        self.nodes.moved(moved.identity, to.node, new);
        Ok(())
    }

    /// Gives a file that the host does not have another name, which `other` may have.
    fn move_special(&self, from: &Spot<'_>, to: &Spot<'_>, other: Option<&Has>) -> Result<()> {
        match other {
            None => is_living(to.directory)?,
            Some(Has::Special(_)) => drop(self.unlink_special(to.node.identity, to.name.as_bytes())),
            Some(Has::Host(found)) if found.kind() != Kind::Directory => self.remove_from_host(to, false)?,
            Some(Has::Host(found)) if is_within(from.node, found.identity) => return Err(Errno::ENOTEMPTY),
            Some(Has::Host(_)) => return Err(Errno::EISDIR),
        }
        alone(&self.specials).rename(from.place(), to.place(), sys::current_time())?;
        self.touch(from.node);
        self.touch(to.node);
        Ok(())
    }

    /// Gives a directory the times of one that has just got a name or lost one, which is done: no error is told.
    fn touch(&self, directory: &Arc<Node>) {
        // A user who may make names in another user's directory may set both of its times to now, and nothing else.
        let now = Some(fuse::SetTime::Now);
        let _change = self.changing(directory);
        let _ = self.nodes.descriptor(directory).and_then(|file| sys::set_times(file.as_fd(), now, now));
    }
}

/// Refuses a directory that has no name any more. The host refuses to make its own files in one.
fn is_living(directory: BorrowedFd<'_>) -> Result<()> {
    if sys::stat(directory)?.attributes.links == 0 { Err(Errno::ENOENT) } else { Ok(()) }
}

/// Whether a directory has this identity, or is somewhere in one that has.
fn is_within(directory: &Arc<Node>, above: Identity) -> bool {
    let mut node = directory.clone();
    // Directories that are moved meanwhile may seem to be in each other.
    for _ in 0..MAX_DEPTH {
        if node.identity == above {
            return true;
        }
        let Some(place) = node.place() else { return false };
        node = place.parent.clone();
    }
    false
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
