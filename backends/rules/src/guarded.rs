//! The layer: decides before the provider does anything, and tells of it afterwards.

use std::sync::Arc;

use fuse::{
    Access, Context, Creation, Data, Entry, Errno, Fate, FileSystem, Gone, Handle, How, Listing, Name,
    NameChange, NodeId, OpenFlags, Opened, Opening, RenameHow, Result, SetAttributes, Stat, Statistics, Sync,
    Xattr,
};
use policy::files::{Masks, Op, Rules, Seen, Verdict};

use crate::events::{Event, Events};
use crate::known::{Known, Path};

/// Special bits and permissions of `st_mode`.
const MODE_BITS: u32 = 0o7777;

/// Rules, masks and events for one share.
#[derive(Debug, Clone, Default)]
pub struct Guard {
    /// Rules for all files of a guest.
    pub rules: Arc<Rules>,
    /// Masks of a share.
    pub masks: Masks,
    /// Where operations are told.
    pub events: Option<Arc<Events>>,
}

impl Guard {
    /// Puts the layer before files whose root the guest has at `place`, unless there is nothing to be done.
    #[must_use]
    pub fn over(self, place: &str, files: Box<dyn FileSystem>) -> Box<dyn FileSystem> {
        if self.rules.is_empty() && self.masks.is_empty() && self.events.is_none() {
            return files;
        }
        Box::new(Guarded::new(self, place, files))
    }
}

/// See the module.
pub struct Guarded {
    guard: Guard,
    known: Known,
    files: Box<dyn FileSystem>,
}

impl std::fmt::Debug for Guarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guarded").field("guard", &self.guard).field("known", &self.known).finish()
    }
}

/// A thing that is made under a name, as far as masks care.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Made {
    Directory,
    File,
    /// A name by which one may come to another place.
    Link,
}

impl Guarded {
    /// Files whose root the guest has at `place`.
    #[must_use]
    pub fn new(guard: Guard, place: &str, files: Box<dyn FileSystem>) -> Self {
        Self { guard, known: Known::new(place), files }
    }

    /// Refuses what a rule blocks.
    fn allow(&self, op: Op, path: &Path) -> Result<()> {
        if self.guard.rules.forbid(op, path.as_bytes()) { Err(Errno::EPERM) } else { Ok(()) }
    }

    /// Whether it matters at which path one of these is done, where no mask is asked.
    fn watches(&self, ops: &[Op]) -> bool {
        self.guard.events.is_some() || ops.iter().any(|op| self.guard.rules.are_about(*op))
    }

    fn look(&self, path: &Path) -> Seen {
        if self.guard.masks.is_empty() { Seen::default() } else { self.guard.masks.look(path.below_root()) }
    }

    /// Refuses a change of what is there, but of a file's contents.
    fn may_change(&self, path: &Path) -> Result<()> {
        match self.look(path).verdict {
            Verdict::Hidden => Err(Errno::ENOENT),
            Verdict::ReadOnly => Err(Errno::EROFS),
            Verdict::Open | Verdict::OnlyDirectory => Ok(()),
        }
    }

    /// Refuses a change of a file's contents, also by a name that it would have besides. A name that is a directory's
    /// alone has a file only if the host made it.
    fn may_write(&self, path: &Path) -> Result<()> {
        match self.look(path).verdict {
            Verdict::Hidden => Err(Errno::ENOENT),
            Verdict::ReadOnly | Verdict::OnlyDirectory => Err(Errno::EROFS),
            Verdict::Open => Ok(()),
        }
    }

    /// Refuses a new name.
    fn may_make(&self, path: &Path, made: Made) -> Result<()> {
        let seen = self.look(path);
        match seen.verdict {
            Verdict::Hidden => Err(Errno::EPERM),
            Verdict::ReadOnly => Err(Errno::EROFS),
            Verdict::OnlyDirectory if made != Made::Directory => Err(Errno::EPERM),
            // By way of the link, what is masked would be the host's path of something that is not.
            _ if made == Made::Link && seen.is_on_the_way() => Err(Errno::EPERM),
            Verdict::Open | Verdict::OnlyDirectory => Ok(()),
        }
    }

    /// Refuses to give a name away, or to exchange two. Two directories whose contents are masked differently are told
    /// to be on different file systems: programs then copy, file by file.
    fn may_rename(&self, old: &Path, new: &Path, how: RenameHow) -> Result<()> {
        let (seen, target) = (self.look(old), self.look(new));
        match (seen.verdict, target.verdict) {
            (Verdict::Hidden, _) => Err(Errno::ENOENT),
            (_, Verdict::Hidden) if how == RenameHow::Exchange => Err(Errno::ENOENT),
            (_, Verdict::Hidden) => Err(Errno::EPERM),
            (Verdict::ReadOnly, _) | (_, Verdict::ReadOnly) => Err(Errno::EROFS),
            _ if self.guard.masks.is_empty() || seen.is_as_good_as(&target) => Ok(()),
            _ => Err(Errno::EXDEV),
        }
    }

    /// Notes that the kernel is about to be told of a node. If that cannot be noted, the kernel is not told.
    fn learn(&self, parent: NodeId, name: &[u8], node: NodeId) -> Result<()> {
        if self.known.learn(node, parent, name) {
            return Ok(());
        }
        self.files.let_go(node, Gone::Lookups(1));
        Err(Errno::ENOSPC)
    }

    /// Notes which file has a name now that another one had, or none.
    fn find_again(&self, context: &Context<'_>, parent: NodeId, name: Name<'_>) {
        // The host may have taken the name again.
        let Ok(entry) = self.files.entry(context, parent, name, How::Existing) else { return };
        self.known.moved(entry.node, parent, name.as_bytes());
        self.files.let_go(entry.node, Gone::Lookups(1));
    }

    fn tell(&self, context: &Context<'_>, op: Op, path: Path, size: u64, mode: u32) {
        let Some(events) = &self.guard.events else { return };
        let (uid, gid) = (context.uid, context.gid);
        events.push(Event { op, path: path.into_bytes(), size, mode, uid, gid });
    }

    /// Tells of a write, with what the file is like after it.
    fn tell_written(&self, context: &Context<'_>, path: Path, node: NodeId, handle: Handle, size: u64) {
        let Some(events) = &self.guard.events else { return };
        let file = self.files.attributes(context, node, Some(handle), None).map(|stat| stat.attributes);
        let (mode, uid, gid) =
            file.map_or((0, context.uid, context.gid), |file| (file.mode, file.uid, file.gid));
        events.push(Event { op: Op::Write, path: path.into_bytes(), size, mode, uid, gid });
    }

    /// The fate of a listed name: one that is looked up for a list is looked up all the same.
    fn fate(&self, directory: &Path, seen: &Seen, node: NodeId, name: &[u8], found: Option<NodeId>) -> Fate {
        if matches!(name, b"." | b"..") {
            return Fate::Stays;
        }
        let fate = if self.guard.masks.below(seen, name).verdict == Verdict::Hidden {
            Fate::Goes
        } else if self.guard.rules.are_about(Op::Stat)
            && self.allow(Op::Stat, &directory.child(name)).is_err()
        {
            Fate::WithoutNode
        } else {
            Fate::Stays
        };
        match found {
            Some(found) if fate != Fate::Stays => {
                self.files.let_go(found, Gone::Lookups(1));
                fate
            }
            Some(found) if self.learn(node, name, found).is_err() => Fate::WithoutNode,
            _ => fate,
        }
    }

    /// Makes a file, or opens the one that is there if a rule does not block that.
    fn create_or_open(
        &self,
        context: &Context<'_>,
        parent: NodeId,
        name: Name<'_>,
        path: &Path,
        creation: Creation,
    ) -> Result<(Entry, Opened)> {
        let Creation { access, flags, exclusive, .. } = creation;
        let opening = openings(Opening::File { access, flags });
        let refused = opening.iter().try_for_each(|op| self.allow(*op, path)).err();
        // Only the provider knows, without a race, whether the file is there.
        let creation = Creation { exclusive: exclusive || refused.is_some(), ..creation };
        let done = self.files.create(context, parent, Some(name), creation);
        done.map_err(|error| match refused {
            Some(refused) if error == Errno::EEXIST && !exclusive => refused,
            _ => error,
        })
    }

    fn rename(
        &self,
        context: &Context<'_>,
        (parent, from): (NodeId, Name<'_>),
        (to_parent, to): (NodeId, Name<'_>),
        how: RenameHow,
    ) -> Result<()> {
        let (old, new) = (self.known.named(parent, from)?, self.known.named(to_parent, to)?);
        self.may_rename(&old, &new, how)?;
        self.allow(Op::Rename, &old)?;
        self.allow(Op::Rename, &new)?;
        let done = self.files.names(context, parent, NameChange::Rename { from, to_parent, to, how });
        if done.is_ok() {
            self.find_again(context, to_parent, to);
            if how == RenameHow::Exchange {
                self.find_again(context, parent, from);
            }
        }
        self.tell(context, Op::Rename, old, 0, 0);
        done
    }

    fn copy(
        &self,
        context: &Context<'_>,
        from: (NodeId, Handle),
        to: (NodeId, Handle),
        act: Data<'_>,
    ) -> Result<u64> {
        let (old, new) = (self.known.path(from.0)?, self.known.path(to.0)?);
        self.allow(Op::Read, &old)?;
        self.allow(Op::Write, &new)?;
        let done = self.files.data(context, from.0, from.1, act);
        let size = done.unwrap_or_default();
        self.tell(context, Op::Read, old, size, 0);
        self.tell_written(context, new, to.0, to.1, size);
        done
    }
}

/// The operations that a change of attributes is.
fn changes(change: &SetAttributes) -> impl Iterator<Item = Op> + use<> {
    let (mode, size) = (change.mode.is_some(), change.size.is_some());
    let of = [(mode, Op::Chmod), (size, Op::Truncate), (!mode && !size, Op::Other)];
    of.into_iter().filter(|(is, _)| *is).map(|(_, op)| op)
}

/// The operations that an opening is.
fn openings(opening: Opening) -> &'static [Op] {
    match opening {
        Opening::File { flags, .. } if flags.contains(OpenFlags::TRUNCATE) => &[Op::Open, Op::Truncate],
        Opening::File { .. } => &[Op::Open],
        Opening::Directory => &[Op::ReadDir],
    }
}

impl FileSystem for Guarded {
    fn entry(&self, context: &Context<'_>, parent: NodeId, name: Name<'_>, how: How<'_>) -> Result<Entry> {
        let path = self.known.named(parent, name)?;
        let (op, made, mode) = match how {
            How::Existing => (Op::Stat, None, 0),
            How::Directory { mode } => (Op::Mkdir, Some(Made::Directory), mode),
            How::Node { mode, .. } => (Op::Create, Some(Made::File), mode & MODE_BITS),
            How::SymbolicLink { .. } => (Op::Symlink, Some(Made::Link), 0),
            How::HardLink { node } => {
                // The file could be changed by its other name.
                self.may_write(&self.known.path(node)?)?;
                (Op::Create, Some(Made::Link), 0)
            }
        };
        match made {
            Some(made) => self.may_make(&path, made)?,
            None if self.look(&path).verdict == Verdict::Hidden => return Err(Errno::ENOENT),
            None => {}
        }
        self.allow(op, &path)?;
        if made.is_some() && !self.known.has_room() {
            return Err(Errno::ENOSPC);
        }
        let done = self.files.entry(context, parent, name, how);
        let done = done.and_then(|entry| self.learn(parent, name.as_bytes(), entry.node).map(|()| entry));
        self.tell(context, op, path, 0, mode);
        done
    }

    fn names(&self, context: &Context<'_>, parent: NodeId, change: NameChange<'_>) -> Result<()> {
        match change {
            NameChange::Unlink(name) | NameChange::RemoveDirectory(name) => {
                let path = self.known.named(parent, name)?;
                self.may_change(&path)?;
                self.allow(Op::Remove, &path)?;
                let done = self.files.names(context, parent, change);
                self.tell(context, Op::Remove, path, 0, 0);
                done
            }
            NameChange::Rename { from, to_parent, to, how } => {
                self.rename(context, (parent, from), (to_parent, to), how)
            }
        }
    }

    fn attributes(
        &self,
        context: &Context<'_>,
        node: NodeId,
        handle: Option<Handle>,
        change: Option<&SetAttributes>,
    ) -> Result<Stat> {
        let path = self.known.path(node)?;
        let Some(change) = change else {
            self.allow(Op::Stat, &path)?;
            let done = self.files.attributes(context, node, handle, None);
            self.tell(context, Op::Stat, path, 0, 0);
            return done;
        };
        if change.size.is_some() {
            self.may_write(&path)?;
        } else {
            self.may_change(&path)?;
        }
        changes(change).try_for_each(|op| self.allow(op, &path))?;
        let done = self.files.attributes(context, node, handle, Some(change));
        for op in changes(change).filter(|op| *op != Op::Other) {
            let mode = if op == Op::Chmod { change.mode.unwrap_or_default() } else { 0 };
            self.tell(context, op, path.clone(), 0, mode);
        }
        done
    }

    fn open(&self, context: &Context<'_>, node: NodeId, opening: Opening) -> Result<Opened> {
        let path = self.known.path(node)?;
        if let Opening::File { access, flags } = opening
            && (access != Access::Read || flags.contains(OpenFlags::TRUNCATE))
        {
            self.may_write(&path)?;
        }
        openings(opening).iter().try_for_each(|op| self.allow(*op, &path))?;
        let done = self.files.open(context, node, opening);
        // A directory's list is told when it is read.
        for op in openings(opening).iter().filter(|op| **op != Op::ReadDir) {
            self.tell(context, *op, path.clone(), 0, 0);
        }
        done
    }

    fn create(
        &self,
        context: &Context<'_>,
        parent: NodeId,
        name: Option<Name<'_>>,
        creation: Creation,
    ) -> Result<(Entry, Opened)> {
        // A file without a name has no path to decide by. Programs then take a name for it.
        let name = name.ok_or(Errno::EOPNOTSUPP)?;
        let path = self.known.named(parent, name)?;
        self.may_make(&path, Made::File)?;
        self.allow(Op::Create, &path)?;
        if !self.known.has_room() {
            return Err(Errno::ENOSPC);
        }
        let done = self.create_or_open(context, parent, name, &path, creation);
        let done = done.and_then(|(entry, opened)| {
            self.learn(parent, name.as_bytes(), entry.node).inspect_err(|_| {
                self.files.let_go(entry.node, Gone::File(opened.handle));
            })?;
            Ok((entry, opened))
        });
        self.tell(context, Op::Create, path, 0, creation.mode);
        done
    }

    fn data(&self, context: &Context<'_>, node: NodeId, handle: Handle, act: Data<'_>) -> Result<u64> {
        // A file that may not be changed was not opened for it.
        let (op, written) = match act {
            Data::Read { .. } => (Op::Read, false),
            Data::Write { .. } | Data::Allocate { .. } => (Op::Write, true),
            Data::Seek { .. } => (Op::Other, false),
            Data::Copy { to_node, to, .. } if self.watches(&[Op::Read, Op::Write]) => {
                return self.copy(context, (node, handle), (to_node, to), act);
            }
            Data::Copy { .. } => return self.files.data(context, node, handle, act),
        };
        if !self.watches(&[op]) {
            return self.files.data(context, node, handle, act);
        }
        let path = self.known.path(node)?;
        self.allow(op, &path)?;
        let done = self.files.data(context, node, handle, act);
        let size = done.unwrap_or_default();
        match op {
            Op::Other => {}
            _ if written && done.is_ok() => self.tell_written(context, path, node, handle, size),
            op => self.tell(context, op, path, size, 0),
        }
        done
    }

    fn list(
        &self,
        context: &Context<'_>,
        node: NodeId,
        handle: Handle,
        cookie: u64,
        listing: &mut Listing<'_>,
    ) -> Result<()> {
        let path = self.known.path(node)?;
        self.allow(Op::ReadDir, &path)?;
        let seen = self.look(&path);
        let mut behind = cookie;
        let done = loop {
            let done = self.files.list(context, node, handle, behind, listing);
            let mut last = None;
            listing.sift(|listed, found| {
                last = Some(listed.cookie);
                self.fate(&path, &seen, node, listed.name, found)
            });
            // An empty list is a directory's end: what is hidden alone is none.
            match last {
                Some(last) if done.is_ok() && listing.is_empty() && last != behind => behind = last,
                _ => break done,
            }
        };
        if cookie == 0 {
            self.tell(context, Op::ReadDir, path, 0, 0);
        }
        done
    }

    fn read_link(&self, context: &Context<'_>, node: NodeId) -> Result<Vec<u8>> {
        let path = self.known.path(node)?;
        self.allow(Op::ReadLink, &path)?;
        let done = self.files.read_link(context, node);
        self.tell(context, Op::ReadLink, path, 0, 0);
        done
    }

    fn xattr(&self, context: &Context<'_>, node: NodeId, act: Xattr<'_>) -> Result<Vec<u8>> {
        let path = self.known.path(node)?;
        if matches!(act, Xattr::Set { .. } | Xattr::Remove(_)) {
            self.may_change(&path)?;
        }
        self.allow(Op::Other, &path)?;
        self.files.xattr(context, node, act)
    }

    fn statistics(&self, context: &Context<'_>, node: NodeId) -> Result<Statistics> {
        self.files.statistics(context, node)
    }

    fn sync(&self, context: &Context<'_>, node: NodeId, what: Sync) -> Result<()> {
        if matches!(what, Sync::All) {
            return self.files.sync(context, node, what);
        }
        let path = self.known.path(node)?;
        self.allow(Op::Sync, &path)?;
        let done = self.files.sync(context, node, what);
        self.tell(context, Op::Sync, path, 0, 0);
        done
    }

    fn let_go(&self, node: NodeId, gone: Gone) {
        // A rule cannot keep a file open: the kernel would not ask again.
        if let Gone::File(_) = gone
            && self.guard.events.is_some()
            && let Ok(path) = self.known.path(node)
        {
            self.tell(&Context::default(), Op::Close, path, 0, 0);
        }
        self.files.let_go(node, gone);
        match gone {
            Gone::Lookups(count) => self.known.forget(node, count),
            Gone::Everything => self.known.forget_all(),
            Gone::File(_) | Gone::Directory(_) => {}
        }
    }
}
