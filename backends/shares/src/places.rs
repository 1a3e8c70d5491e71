//! Places in a file system where others are mounted: they are there whatever the file system has, and nothing is made
//! for them on the host.
//!
//! ```text
//! root ─── a ─── b        b is a place: an empty directory or file that nobody changes, or hides
//!           └─── …        a is on the way: the directory that the file system has there, as long as it has one
//! ```
//!
//! A kernel forgets what is mounted on a name as soon as the name leads to another node than before. So what is on the way
//! to a place has a node of its own, which stands for the name; and none of these names is removed or given away (EBUSY).

use std::collections::{BTreeMap, HashMap};
use std::ffi::CString;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use fuse::{
    Attributes, Cache, Context, Creation, Data, Entry, Errno, FileSystem, Gone, Handle, Held, HeldOpen, How,
    Listed, Listing, Name, NameChange, NodeId, Opened, Opening, RenameHow, Result, SetAttributes, Stat,
    Statistics, Sync, Time, Xattr,
};

use crate::nodes::{alone, shared};
use crate::sys::{self, Kind};

/// Marks the nodes that are the names' own; no file system has as many nodes.
const OWN: u64 = 1 << 47;

/// Types and permissions of files that the file system does not have.
pub(crate) const DIRECTORY_MODE: u32 = 0o040_755;
pub(crate) const FILE_MODE: u32 = 0o100_644;

/// Where the names' own entries are in a list. No file system gives so large a cookie, save for an end (ext4) or past its
/// four thousand millionth name (`overlay`).
const LISTED: u64 = 0x7fff_ffff_ffff_0000;

/// Most names, so that their cookies fit.
const MAX_NAMES: usize = 4096;

/// Most bytes of a list of the file system that are looked at at once.
const LIST_LEN: usize = 16 << 10;

/// The handle of a directory that the file system does not have.
const NOTHING: Handle = Handle(u64::MAX);

/// How long the kernel may believe that a name leads where it always does, and the facts of a place.
const VALID: Duration = Duration::from_secs(3600);

/// How long the kernel may believe that the file system has no directory somewhere.
const MISSING_VALID: Duration = Duration::from_secs(1);

/// A place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The names that lead there from the root, the place's own last.
    pub path: Vec<CString>,
    /// A file is mounted there, and no directory.
    pub is_file: bool,
}

/// See the module.
pub struct Places {
    files: Arc<dyn FileSystem>,
    /// All names with nodes of their own. The first is the root.
    own: Vec<Own>,
    way: RwLock<Way>,
    /// Directories of the file system that were opened by a name's own node, with the number of that name.
    open: RwLock<HashMap<Handle, (usize, Arc<HeldOpen>)>>,
    made: Time,
}

/// A name with a node of its own.
#[derive(Debug, Default)]
struct Own {
    /// Nothing for the root.
    above: Option<(usize, CString)>,
    below: BTreeMap<Box<[u8]>, usize>,
    /// The mode of a place; none if this is on the way.
    place: Option<u32>,
}

/// Directories that were on the way when somebody last looked. The kernel may know files in them, so each is held as long as
/// the name leads there.
#[derive(Default)]
struct Way {
    by_number: HashMap<usize, Arc<Held>>,
    /// How many names lead to each node.
    nodes: HashMap<NodeId, usize>,
}

impl Way {
    /// Notes the directory that a name leads to, or that there is none. Returns the one before.
    fn lead(&mut self, number: usize, found: Option<Arc<Held>>) -> Option<Arc<Held>> {
        let before = self.by_number.remove(&number);
        if let Some(before) = &before
            && let Some(count) = self.nodes.get_mut(&before.node())
        {
            *count -= 1;
            if *count == 0 {
                self.nodes.remove(&before.node());
            }
        }
        if let Some(found) = found {
            *self.nodes.entry(found.node()).or_default() += 1;
            self.by_number.insert(number, found);
        }
        before
    }

    /// Forgets that names lead to a node.
    fn let_go(&mut self, node: NodeId) -> Vec<Arc<Held>> {
        let numbers = self.by_number.iter().filter(|(_, held)| held.node() == node);
        let numbers: Vec<usize> = numbers.map(|(number, _)| *number).collect();
        numbers.into_iter().filter_map(|number| self.lead(number, None)).collect()
    }
}

/// A node of the file system, and a reference to it where the kernel has none.
struct Reached {
    node: NodeId,
    _held: Option<Arc<Held>>,
}

impl std::fmt::Debug for Places {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Places").field("own", &self.own).finish_non_exhaustive()
    }
}

impl Places {
    /// `files` with these places in it. Directories on the way are made in `files` if `makes` says so.
    pub fn new(files: Box<dyn FileSystem>, places: &[Place], makes: bool) -> Result<Self> {
        let mut all = Self {
            files: files.into(),
            own: vec![Own::default()],
            way: RwLock::default(),
            open: RwLock::default(),
            made: sys::current_time(),
        };
        for place in places {
            all.add(place)?;
        }
        if makes {
            all.own.iter().try_for_each(|own| all.make(own))?;
        }
        Ok(all)
    }

    fn add(&mut self, place: &Place) -> Result<()> {
        let mut at = 0;
        for name in &place.path {
            Name::new(name)?;
            let next = self.own.len();
            let above = self.own.get_mut(at).filter(|own| own.place.is_none()).ok_or(Errno::EINVAL)?;
            let found = *above.below.entry(name.to_bytes().into()).or_insert(next);
            if found == next {
                let above = Some((at, name.clone()));
                self.own.push(Own { above, ..Own::default() });
            }
            at = found;
        }
        let own = self.own.get_mut(at).filter(|own| own.above.is_some() && own.place.is_none());
        let own = own.filter(|own| own.below.is_empty()).ok_or(Errno::EINVAL)?;
        own.place = Some(if place.is_file { FILE_MODE } else { DIRECTORY_MODE });
        if self.own.len() > MAX_NAMES { Err(Errno::EINVAL) } else { Ok(()) }
    }

    /// Makes the directory that is on the way, unless there is something.
    fn make(&self, own: &Own) -> Result<()> {
        let Some((above, name)) = own.above.as_ref().filter(|_| own.place.is_none()) else { return Ok(()) };
        let Some(above) = self.real(*above) else { return Ok(()) };
        let how = How::Directory { mode: DIRECTORY_MODE & 0o7777 };
        match self.files.entry(&Context::default(), above.node(), Name::new(name)?, how) {
            Ok(entry) => self.files.let_go(entry.node, Gone::Lookups(1)),
            Err(Errno::EEXIST) => {}
            Err(errno) => return Err(errno),
        }
        Ok(())
    }

    /// The number of the name that has this node of its own. A directory on the way is reached by such nodes alone: in the file
    /// system's own directory, names are not hidden.
    fn number(&self, node: NodeId) -> Result<Option<usize>> {
        let number = match node {
            NodeId::ROOT => 0,
            _ if self.is_on_the_way(node) => return Err(Errno::ESTALE),
            NodeId(node) if node & OWN == 0 => return Ok(None),
            NodeId(node) => usize::try_from(node & !OWN).map_err(|_| Errno::ESTALE)?,
        };
        if number < self.own.len() { Ok(Some(number)) } else { Err(Errno::ESTALE) }
    }

    /// Whether the file system's node is a directory on the way.
    fn is_on_the_way(&self, node: NodeId) -> bool {
        shared(&self.way).nodes.contains_key(&node)
    }

    fn own(&self, node: NodeId) -> Result<Option<&Own>> {
        Ok(self.number(node)?.and_then(|number| self.own.get(number)))
    }

    /// The number of a name in a directory, if it has a node of its own.
    fn child(&self, parent: NodeId, name: Name<'_>) -> Result<Option<usize>> {
        Ok(self.own(parent)?.and_then(|own| own.below.get(name.as_bytes()).copied()))
    }

    /// The directory that the file system has on the way.
    fn real(&self, number: usize) -> Option<Arc<Held>> {
        let own = self.own.get(number).filter(|own| own.place.is_none())?;
        let Some((above, name)) = &own.above else { return Some(Arc::new(Held::root(self.files.clone()))) };
        let above = self.real(*above)?;
        let found = match above.find(Name::new(name).ok()?) {
            Ok((found, entry)) if Kind::of_mode(entry.stat.attributes.mode) == Kind::Directory => {
                Some(Arc::new(found))
            }
            Ok(_) | Err(Errno::ENOENT | Errno::ENOTDIR) => None,
            Err(_) => return None,
        };
        self.lead(number, found)
    }

    /// Notes the directory that a name leads to, which is returned, or that there is none.
    fn lead(&self, number: usize, found: Option<Arc<Held>>) -> Option<Arc<Held>> {
        let same = shared(&self.way).by_number.get(&number).cloned();
        if let (Some(same), Some(found)) = (&same, &found)
            && same.node() == found.node()
        {
            return Some(same.clone());
        }
        let before = alone(&self.way).lead(number, found.clone());
        drop(before);
        found
    }

    /// The node of the file system that a node stands for; if there is none, the answer is `missing`.
    fn reach(&self, node: NodeId, missing: Errno) -> Result<Reached> {
        match self.number(node)? {
            None => Ok(Reached { node, _held: None }),
            Some(number) => {
                let held = self.real(number).ok_or(missing)?;
                Ok(Reached { node: held.node(), _held: Some(held) })
            }
        }
    }

    /// The directory of a handle, if this name's node opened it: another name hides other places in its lists.
    fn opened(&self, number: usize, handle: Handle) -> Result<Arc<HeldOpen>> {
        let open = shared(&self.open);
        let by_itself = open.get(&handle).filter(|(opener, _)| *opener == number);
        by_itself.map(|(_, open)| open.clone()).ok_or(Errno::EBADF)
    }

    /// An entry as the kernel is told of it.
    fn told(&self, entry: Entry) -> Result<Entry> {
        if entry.node.0 & OWN == 0 {
            // The host has moved a directory that was on the way.
            if self.is_on_the_way(entry.node) {
                let moved = alone(&self.way).let_go(entry.node);
                drop(moved);
            }
            return Ok(entry);
        }
        self.files.let_go(entry.node, Gone::Lookups(1));
        Err(Errno::ENOSPC)
    }

    fn stat(&self, context: &Context<'_>, number: usize) -> Result<Stat> {
        let own = self.own.get(number).ok_or(Errno::ESTALE)?;
        if let Some(real) = self.real(number)
            && let Ok(mut stat) = self.files.attributes(context, real.node(), None, None)
        {
            stat.attributes.submount = false;
            return Ok(stat);
        }
        let attributes = Attributes {
            ino: ino(number),
            mode: own.place.unwrap_or(DIRECTORY_MODE),
            links: if own.place == Some(FILE_MODE) { 1 } else { 2 },
            block_size: 4096,
            atime: self.made,
            mtime: self.made,
            ctime: self.made,
            ..Attributes::default()
        };
        Ok(Stat { attributes, valid: if own.place.is_some() { VALID } else { MISSING_VALID } })
    }

    fn entry_of(&self, context: &Context<'_>, number: usize) -> Result<Entry> {
        let node = NodeId(OWN | u64::try_from(number).map_err(|_| Errno::ESTALE)?);
        Ok(Entry { node, generation: 0, valid: VALID, stat: self.stat(context, number)? })
    }

    /// Lists the names below that have nodes of their own, behind `cookie`; returns whether those are all.
    fn list_own(&self, own: &Own, cookie: u64, listing: &mut Listing<'_>) -> bool {
        let behind = usize::try_from(cookie.saturating_sub(LISTED)).unwrap_or(usize::MAX);
        own.below.iter().enumerate().skip(behind).all(|(place, (name, number))| {
            let mode = self.own.get(*number).and_then(|own| own.place).unwrap_or(DIRECTORY_MODE);
            let cookie = LISTED.saturating_add(u64::try_from(place + 1).unwrap_or(u64::MAX));
            let kind = Attributes { mode, ..Attributes::default() }.kind();
            listing.add(&Listed { ino: ino(*number), cookie, kind, name }, None)
        })
    }

    /// Lists the file system's names, without those that lead elsewhere.
    fn list_real(
        &self,
        context: &Context<'_>,
        own: &Own,
        open: &HeldOpen,
        mut cookie: u64,
        listing: &mut Listing<'_>,
    ) -> Result<()> {
        let mut bytes = Vec::new();
        loop {
            let mut some = Listing::new(&mut bytes, listing.room().min(LIST_LEN), false);
            match self.files.list(context, open.node(), open.handle(), cookie, &mut some) {
                Ok(()) => {}
                // The list so far has been told: the error comes next time.
                Err(_) if !listing.is_empty() => return Ok(()),
                Err(errno) => return Err(errno),
            }
            let before = cookie;
            for one in some.entries() {
                if !own.below.contains_key(one.name) && !listing.add(&one, None) {
                    return Ok(());
                }
                cookie = one.cookie;
            }
            if cookie == before {
                return Ok(());
            }
        }
    }
}

/// Numbers of files that the file system does not have, as programs see them.
fn ino(number: usize) -> u64 {
    u64::MAX - u64::try_from(number).unwrap_or_default()
}

/// Whether a list goes on among the names with nodes of their own.
fn is_own_cookie(cookie: u64) -> bool {
    let most = u64::try_from(MAX_NAMES).unwrap_or(u64::MAX);
    cookie == 0 || (LISTED..=LISTED.saturating_add(most)).contains(&cookie)
}

impl FileSystem for Places {
    fn entry(&self, context: &Context<'_>, parent: NodeId, name: Name<'_>, how: How<'_>) -> Result<Entry> {
        match (self.child(parent, name)?, how) {
            (Some(child), How::Existing) => self.entry_of(context, child),
            (Some(_), _) => Err(Errno::EEXIST),
            (None, How::HardLink { node }) if self.number(node)?.is_some() => Err(Errno::EPERM),
            (None, how) => {
                let missing = if let How::Existing = how { Errno::ENOENT } else { Errno::EROFS };
                let parent = self.reach(parent, missing)?;
                self.told(self.files.entry(context, parent.node, name, how)?)
            }
        }
    }

    fn names(&self, context: &Context<'_>, parent: NodeId, change: NameChange<'_>) -> Result<()> {
        let (NameChange::Unlink(name)
        | NameChange::RemoveDirectory(name)
        | NameChange::Rename { from: name, .. }) = change;
        if self.child(parent, name)?.is_some() {
            return Err(Errno::EBUSY);
        }
        let real = self.reach(parent, Errno::ENOENT)?;
        let NameChange::Rename { from, to_parent, to, how } = change else {
            return self.files.names(context, real.node, change);
        };
        match (self.child(to_parent, to)?, how) {
            (Some(_), RenameHow::Keep) => return Err(Errno::EEXIST),
            (Some(_), _) => return Err(Errno::EBUSY),
            (None, _) => {}
        }
        let to_real = self.reach(to_parent, Errno::EROFS)?;
        let change = NameChange::Rename { from, to_parent: to_real.node, to, how };
        self.files.names(context, real.node, change)
    }

    fn attributes(
        &self,
        context: &Context<'_>,
        node: NodeId,
        handle: Option<Handle>,
        change: Option<&SetAttributes>,
    ) -> Result<Stat> {
        let Some(number) = self.number(node)? else {
            return self.files.attributes(context, node, handle, change);
        };
        if change.is_some() {
            let real = self.real(number).ok_or(Errno::EROFS)?;
            self.files.attributes(context, real.node(), None, change)?;
        }
        self.stat(context, number)
    }

    fn open(&self, context: &Context<'_>, node: NodeId, opening: Opening) -> Result<Opened> {
        let Some(number) = self.number(node)? else { return self.files.open(context, node, opening) };
        let is_file = self.own.get(number).is_some_and(|own| own.place == Some(FILE_MODE));
        match (opening, is_file) {
            (Opening::File { .. }, true) => return Err(Errno::ENXIO),
            (Opening::File { .. }, false) => return Err(Errno::EISDIR),
            (Opening::Directory, true) => return Err(Errno::ENOTDIR),
            (Opening::Directory, false) => {}
        }
        let Some(real) = self.real(number) else {
            return Ok(Opened { handle: NOTHING, cache: Cache::empty() });
        };
        let (open, opened) = real.open(context, opening)?;
        alone(&self.open).insert(opened.handle, (number, Arc::new(open)));
        Ok(opened)
    }

    fn create(
        &self,
        context: &Context<'_>,
        parent: NodeId,
        name: Option<Name<'_>>,
        creation: Creation,
    ) -> Result<(Entry, Opened)> {
        if let Some(name) = name
            && self.child(parent, name)?.is_some()
        {
            return Err(Errno::EEXIST);
        }
        let parent = self.reach(parent, Errno::EROFS)?;
        let (entry, opened) = self.files.create(context, parent.node, name, creation)?;
        let told =
            self.told(entry).inspect_err(|_| self.files.let_go(entry.node, Gone::File(opened.handle)))?;
        Ok((told, opened))
    }

    fn data(&self, context: &Context<'_>, node: NodeId, handle: Handle, act: Data<'_>) -> Result<u64> {
        if self.number(node)?.is_some() {
            return Err(Errno::EBADF);
        }
        if let Data::Copy { to_node, .. } = act
            && self.number(to_node)?.is_some()
        {
            return Err(Errno::EBADF);
        }
        self.files.data(context, node, handle, act)
    }

    fn list(
        &self,
        context: &Context<'_>,
        node: NodeId,
        handle: Handle,
        cookie: u64,
        listing: &mut Listing<'_>,
    ) -> Result<()> {
        let Some(number) = self.number(node)? else {
            return self.files.list(context, node, handle, cookie, listing);
        };
        let own = self.own.get(number).ok_or(Errno::ESTALE)?;
        let open = if handle == NOTHING { None } else { Some(self.opened(number, handle)?) };
        let mut behind = cookie;
        if is_own_cookie(cookie) {
            if !self.list_own(own, cookie, listing) {
                return Ok(());
            }
            behind = 0;
        }
        open.map_or(Ok(()), |open| self.list_real(context, own, &open, behind, listing))
    }

    fn read_link(&self, context: &Context<'_>, node: NodeId) -> Result<Vec<u8>> {
        match self.number(node)? {
            None => self.files.read_link(context, node),
            Some(_) => Err(Errno::EINVAL),
        }
    }

    fn xattr(&self, context: &Context<'_>, node: NodeId, act: Xattr<'_>) -> Result<Vec<u8>> {
        let missing = match act {
            Xattr::Get(_) => Errno::ENODATA,
            Xattr::List | Xattr::Set { .. } | Xattr::Remove(_) => Errno::EROFS,
        };
        match (self.reach(node, missing), act) {
            (Ok(real), act) => self.files.xattr(context, real.node, act),
            (Err(Errno::EROFS), Xattr::List) => Ok(Vec::new()),
            (Err(errno), _) => Err(errno),
        }
    }

    fn statistics(&self, context: &Context<'_>, node: NodeId) -> Result<Statistics> {
        let node = if self.number(node)?.is_some() { NodeId::ROOT } else { node };
        self.files.statistics(context, node)
    }

    fn sync(&self, context: &Context<'_>, node: NodeId, what: Sync) -> Result<()> {
        match (self.number(node)?, what) {
            (None, _) => self.files.sync(context, node, what),
            (Some(_), Sync::All) => self.files.sync(context, NodeId::ROOT, what),
            (Some(_), Sync::File { .. }) => Err(Errno::EBADF),
            (Some(_), Sync::Directory { handle: NOTHING }) => Ok(()),
            (Some(number), Sync::Directory { handle }) => {
                let open = self.opened(number, handle)?;
                self.files.sync(context, open.node(), Sync::Directory { handle: open.handle() })
            }
        }
    }

    fn let_go(&self, node: NodeId, gone: Gone) {
        match (self.number(node), gone) {
            (_, Gone::Everything) => {
                let open = std::mem::take(&mut *alone(&self.open));
                drop(open);
                let way = std::mem::take(&mut *alone(&self.way));
                drop(way);
                self.files.let_go(NodeId::ROOT, gone);
            }
            (Ok(None), gone) => self.files.let_go(node, gone),
            // The kernel may have had it open before it was on the way.
            (Err(_), Gone::File(_) | Gone::Directory(_)) => self.files.let_go(node, gone),
            (Ok(Some(number)), Gone::Directory(handle)) if self.opened(number, handle).is_ok() => {
                let open = alone(&self.open).remove(&handle);
                drop(open);
            }
            (Ok(Some(_)) | Err(_), _) => {}
        }
    }
}

#[cfg(test)]
mod tests;
