//! The files that the guest's kernel has been told of.
//!
//! A node is a place (parent and name) and the identity of the file found there. Its descriptor is opened when it is
//! first needed, closed when others need theirs, and opened again by the place, where the identity must be the same.
//! A file that loses its place while the kernel still has it keeps its descriptor.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, Weak};

use fuse::{Errno, Handle, NodeId, Result};

use crate::sys::{self, Found, Identity, Kind, Version};
use crate::watches::{DirectoryWatch, FileActs};

/// Most nodes that the kernel can be told of; each takes some 350 bytes.
const MAX_NODES: usize = 1 << 20;

/// Most directories, one in the other, that are walked to open a file again.
pub(crate) const MAX_DEPTH: usize = 4096;

/// A table whose keys are numbers of this process' or of the host's. A guest that could make them collide would slow down
/// its own requests, and nobody else's.
pub(crate) type Numbered<K, V> = HashMap<K, V, foldhash::fast::RandomState>;

/// Takes a lock, whatever happened to a thread that had it.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a lock with others.
pub(crate) fn shared<T>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// Takes a lock alone.
pub(crate) fn alone<T>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// The place of a file.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) parent: Arc<Node>,
    pub(crate) name: CString,
}

/// A directory and a name in it.
pub(crate) type At<'a> = (&'a Arc<Node>, &'a CStr);

impl Place {
    fn new((parent, name): At<'_>) -> Arc<Self> {
        Arc::new(Self { parent: parent.clone(), name: name.to_owned() })
    }

    fn is(&self, (parent, name): At<'_>) -> bool {
        Arc::ptr_eq(&self.parent, parent) && *self.name == *name
    }
}

/// A node's own descriptor.
#[derive(Debug, Default)]
enum Slot {
    #[default]
    Closed,
    /// The file can be opened again.
    Cached(Arc<OwnedFd>),
    /// The file cannot be opened again.
    Pinned(Pin),
    /// The file lost its last name while nobody had it open: its attributes just before.
    Remembered(Box<Found>),
}

/// The way to a file's attributes.
pub(crate) enum Way {
    /// By a descriptor of the file.
    File(Arc<OwnedFd>),
    /// By the file's place, where another file may be by now.
    Place(Arc<Place>),
    /// None: the host has no such file any more.
    Remembered(Box<Found>),
    /// None, and nothing is remembered.
    Lost,
}

/// A descriptor that has to be kept, and is counted for as long as it is.
#[derive(Debug)]
struct Pin {
    file: Arc<OwnedFd>,
    count: Arc<AtomicUsize>,
}

impl Pin {
    fn new(file: Arc<OwnedFd>, count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self { file, count: count.clone() }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        self.count.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A file.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    pub(crate) identity: Identity,
    pub(crate) kind: Kind,
    /// Most requests look at more than one part of it, under one lock. Nothing that was in it is dropped under that lock.
    state: Mutex<State>,
    /// References that the kernel has.
    lookups: AtomicU64,
    /// The file has no name, and never will again.
    gone: AtomicBool,
    /// The descriptor was used since the cache last looked.
    used: AtomicBool,
    /// Mode and group, in half of the bits each, as the kernel was last told: what is made in a directory depends on them.
    told: AtomicU64,
    pub(crate) watch: DirectoryWatch,
    pub(crate) acts: FileActs,
    /// Files that have places in this directory, if it is one that was ever watched.
    children: Mutex<Option<HashMap<CString, Weak<Node>>>>,
}

/// How a file is reached, and what the kernel has of the file.
#[derive(Debug, Default)]
struct State {
    /// Nothing for the root and for a file without a name.
    place: Option<Arc<Place>>,
    slot: Slot,
    /// Descriptors of the file that the guest has open.
    open: BTreeMap<Handle, Weak<OwnedFd>>,
    /// The version of the contents that all pages are of which the kernel may have.
    kept: Option<Version>,
}

impl State {
    /// A descriptor that is open already.
    fn at_hand(&self) -> Option<Arc<OwnedFd>> {
        match &self.slot {
            Slot::Cached(file) | Slot::Pinned(Pin { file, .. }) => Some(file.clone()),
            Slot::Closed | Slot::Remembered(_) => self.open.values().find_map(Weak::upgrade),
        }
    }
}

impl Node {
    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(crate) fn place(&self) -> Option<Arc<Place>> {
        self.state().place.clone()
    }

    /// Notes that the last name is taken.
    pub(crate) fn lost_name(&self) {
        self.gone.store(true, Ordering::Relaxed);
    }

    /// Whether the file is no more once the kernel has forgotten it.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Notes attributes that the kernel is told.
    pub(crate) fn tell(&self, mode: u32, gid: u32) {
        self.told.store(u64::from(mode) << 32 | u64::from(gid), Ordering::Relaxed);
    }

    /// Mode and group that the kernel was last told.
    pub(crate) fn told(&self) -> (u32, u32) {
        let told = self.told.load(Ordering::Relaxed);
        ((told >> 32) as u32, (told & 0xffff_ffff) as u32)
    }

    /// Notes the version of the contents that are opened, if it can be told from all later ones. Whether pages that the kernel
    /// has are of this very version.
    pub(crate) fn keeps(&self, version: Option<Version>) -> bool {
        let mut state = self.state();
        let same = version.is_some() && state.kept == version;
        state.kept = version;
        same
    }

    /// Notes a descriptor that the guest has open.
    pub(crate) fn opened(&self, handle: Handle, file: &Arc<OwnedFd>) {
        self.state().open.insert(handle, Arc::downgrade(file));
    }

    /// Notes that the guest no longer has a descriptor open. Whether that was the last one.
    pub(crate) fn closed(&self, handle: Handle) -> bool {
        let mut state = self.state();
        state.open.remove(&handle);
        state.open.is_empty()
    }

    /// Notes from now on which files have places in this directory.
    pub(crate) fn note_children(&self) {
        lock(&self.children).get_or_insert_default();
    }

    /// The file that was last found at a name of this directory, if that is noted.
    pub(crate) fn child(&self, name: &CStr) -> Option<Arc<Node>> {
        let child = lock(&self.children).as_ref()?.get(name)?.upgrade()?;
        let here = |place: Arc<Place>| std::ptr::eq(&*place.parent, self) && *place.name == *name;
        Some(child).filter(|child| !child.is_gone() && child.place().is_some_and(here))
    }

    fn note_child(self: &Arc<Self>, (parent, name): At<'_>) {
        if let Some(children) = lock(&parent.children).as_mut() {
            children.insert(name.to_owned(), Arc::downgrade(self));
        }
    }

    /// The file is no longer at that place.
    fn leave(&self, former: Option<Arc<Place>>) {
        let Some(former) = former else { return };
        if let Some(children) = lock(&former.parent.children).as_mut()
            && children.get(&former.name).is_some_and(|child| std::ptr::eq(child.as_ptr(), self))
        {
            children.remove(&former.name);
        }
    }

    /// How many handles are noted.
    #[cfg(test)]
    pub(crate) fn handles(&self) -> usize {
        self.state().open.len()
    }

    /// Whether the host can be asked without its name.
    pub(crate) fn has_descriptor(&self) -> bool {
        self.at_hand().is_some()
    }

    /// A descriptor that is open already.
    fn at_hand(&self) -> Option<Arc<OwnedFd>> {
        self.used.store(true, Ordering::Relaxed);
        self.state().at_hand()
    }

    /// The way to the file's attributes.
    pub(crate) fn way(&self) -> Way {
        self.used.store(true, Ordering::Relaxed);
        let state = self.state();
        match (state.at_hand(), &state.slot, &state.place) {
            (Some(file), ..) => Way::File(file),
            (None, Slot::Remembered(found), _) => Way::Remembered(found.clone()),
            (None, _, Some(place)) => Way::Place(place.clone()),
            (None, _, None) => Way::Lost,
        }
    }
}

impl Drop for Node {
    /// A node may be the last to refer to its parent, and that to its own, deeper than a stack is.
    fn drop(&mut self) {
        let mut next = self.state.get_mut().unwrap_or_else(PoisonError::into_inner).place.take();
        let parent =
            |place: Arc<Place>| Arc::into_inner(place).and_then(|place| Arc::into_inner(place.parent));
        while let Some(mut parent) = next.and_then(parent) {
            next = parent.state.get_mut().unwrap_or_else(PoisonError::into_inner).place.take();
        }
    }
}

/// All nodes.
#[derive(Debug)]
pub(crate) struct Nodes {
    root: Arc<Node>,
    tables: RwLock<Tables>,
    next: AtomicU64,
    cached: Mutex<VecDeque<Weak<Node>>>,
    pinned: Arc<AtomicUsize>,
    /// Most descriptors that are kept because they may be of use again, and most that have to be kept.
    budget: usize,
}

#[derive(Debug, Default)]
struct Tables {
    by_id: Numbered<NodeId, Arc<Node>>,
    by_identity: Numbered<Identity, Arc<Node>>,
}

impl Nodes {
    /// Just the root.
    pub(crate) fn new(root: OwnedFd, identity: Identity, budget: usize) -> Self {
        let root = Arc::new(Node {
            id: NodeId::ROOT,
            identity,
            kind: Kind::Directory,
            // One that nobody else may need is not among those that are counted.
            state: Mutex::new(State {
                slot: Slot::Pinned(Pin::new(Arc::new(root), &Arc::default())),
                ..State::default()
            }),
            lookups: AtomicU64::new(1),
            gone: AtomicBool::new(false),
            used: AtomicBool::new(true),
            told: AtomicU64::default(),
            watch: DirectoryWatch::default(),
            acts: FileActs::default(),
            children: Mutex::default(),
        });
        let nodes = Self {
            root: root.clone(),
            tables: RwLock::default(),
            next: AtomicU64::new(NodeId::ROOT.0 + 1),
            cached: Mutex::default(),
            pinned: Arc::default(),
            budget,
        };
        nodes.forget_all();
        nodes
    }

    /// How many descriptors have to be kept.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(crate) fn pinned(&self) -> usize {
        self.pinned.load(Ordering::Relaxed)
    }

    pub(crate) fn root(&self) -> &Arc<Node> {
        &self.root
    }

    pub(crate) fn get(&self, id: NodeId) -> Result<Arc<Node>> {
        shared(&self.tables).by_id.get(&id).cloned().ok_or(Errno::ESTALE)
    }

    /// The node of a file that the kernel has been told of.
    pub(crate) fn known(&self, identity: Identity) -> Option<Arc<Node>> {
        shared(&self.tables).by_identity.get(&identity).cloned()
    }

    /// The node of what was found at a place, with one reference more for the kernel.
    pub(crate) fn learn(&self, place: Option<At<'_>>, identity: Identity, kind: Kind) -> Result<Arc<Node>> {
        // The reference is counted under the lock, so that nobody forgets the node meanwhile.
        let count = |tables: &Tables| {
            let node = tables.by_identity.get(&identity).filter(|node| node.kind == kind)?;
            node.lookups.fetch_add(1, Ordering::Relaxed);
            Some(node.clone())
        };
        let known = count(&shared(&self.tables));
        if let Some(node) = known {
            self.found_at(&node, place);
            return Ok(node);
        }
        let mut tables = alone(&self.tables);
        if let Some(node) = count(&tables) {
            drop(tables);
            self.found_at(&node, place);
            return Ok(node);
        }
        if tables.by_id.len() >= MAX_NODES {
            return Err(Errno::ENOSPC);
        }
        let node = Arc::new(Node {
            id: NodeId(self.next.fetch_add(1, Ordering::Relaxed)),
            identity,
            kind,
            gone: AtomicBool::new(place.is_none()),
            state: Mutex::new(State { place: place.map(Place::new), ..State::default() }),
            lookups: AtomicU64::new(1),
            used: AtomicBool::new(false),
            told: AtomicU64::default(),
            watch: DirectoryWatch::default(),
            acts: FileActs::default(),
            children: Mutex::default(),
        });
        tables.by_id.insert(node.id, node.clone());
        tables.by_identity.insert(identity, node.clone());
        drop(tables);
        place.iter().for_each(|place| node.note_child(*place));
        Ok(node)
    }

    /// Gives the kernel one reference more to a node that it has. Whether it has the node.
    pub(crate) fn again(&self, node: &Arc<Node>) -> bool {
        let tables = shared(&self.tables);
        let known = tables.by_id.contains_key(&node.id);
        if known {
            node.lookups.fetch_add(1, Ordering::Relaxed);
        }
        known
    }

    /// Takes references back; what the kernel never had is not missed. Returns a node that it no longer has, which is to
    /// be [closed](Self::close).
    pub(crate) fn forget(&self, id: NodeId, count: u64) -> Option<Arc<Node>> {
        let node = self.get(id).ok()?;
        let less = |lookups: u64| Some(lookups.saturating_sub(count));
        let before = node.lookups.fetch_update(Ordering::AcqRel, Ordering::Acquire, less).unwrap_or_default();
        if before > count || id == NodeId::ROOT {
            return None;
        }
        let mut tables = alone(&self.tables);
        // The node may have been found again meanwhile, or forgotten by another thread.
        let forgotten = node.lookups.load(Ordering::Acquire) == 0 && tables.by_id.contains_key(&id);
        if forgotten {
            tables.by_id.remove(&id);
            if tables.by_identity.get(&node.identity).is_some_and(|other| Arc::ptr_eq(other, &node)) {
                tables.by_identity.remove(&node.identity);
            }
        }
        drop(tables);
        forgotten.then_some(node)
    }

    /// Lets go of what a forgotten node keeps open.
    pub(crate) fn close(&self, node: &Arc<Node>) {
        self.unpin(node, false);
        // The kernel forgets a directory after what is in it: nobody needs the way there.
        let place = node.state().place.take();
        node.leave(place);
    }

    /// Forgets all but the root; returns what it forgot.
    pub(crate) fn forget_all(&self) -> Vec<Arc<Node>> {
        let mut tables = alone(&self.tables);
        let forgotten = std::mem::take(&mut *tables).by_id.into_values().collect();
        tables.by_id.insert(NodeId::ROOT, self.root.clone());
        tables.by_identity.insert(self.root.identity, self.root.clone());
        drop(tables);
        lock(&self.cached).clear();
        lock(&self.root.children).as_mut().into_iter().for_each(HashMap::clear);
        forgotten
    }

    /// Notes a file's place, by which its descriptor may be opened again.
    fn found_at(&self, node: &Arc<Node>, place: Option<At<'_>>) {
        let Some(place) = place.filter(|_| node.id != NodeId::ROOT) else { return };
        if self.is_nameless(node, place) {
            // The file was found just before it lost that name.
            return node.lost_name();
        }
        let mut state = node.state();
        let is_there = state.place.as_ref().is_some_and(|old| old.is(place));
        let former = if is_there { None } else { state.place.replace(Place::new(place)) };
        drop(state);
        if !is_there {
            node.leave(former);
            node.note_child(place);
        }
        node.gone.store(false, Ordering::Relaxed);
        self.unpin(node, true);
    }

    /// Whether a file that had lost its last name is still without one, although it was found at a place.
    fn is_nameless(&self, node: &Node, (parent, name): At<'_>) -> bool {
        let kept = match &node.state().slot {
            Slot::Pinned(pin) => Some(pin.file.clone()),
            Slot::Remembered(_) => None,
            Slot::Closed | Slot::Cached(_) => return false,
        };
        match kept {
            Some(kept) => sys::stat(kept.as_fd()).is_ok_and(|found| found.attributes.links == 0),
            None => {
                let found = self.descriptor(parent).and_then(|parent| sys::stat_at(parent.as_fd(), name));
                !found.is_ok_and(|found| found.identity == node.identity)
            }
        }
    }

    /// Notes that a file is at another place.
    pub(crate) fn moved(&self, identity: Identity, parent: &Arc<Node>, name: &CStr) {
        if let Some(node) = self.known(identity) {
            self.found_at(&node, Some((parent, name)));
        }
    }

    /// Notes that a file is no longer at a place, but at another one.
    pub(crate) fn lost_place(&self, node: &Arc<Node>, place: At<'_>) {
        let former = node.state().place.take_if(|old| old.is(place));
        node.leave(former);
        self.unpin(node, true);
    }

    /// A descriptor of the file, which may only name it.
    pub(crate) fn descriptor(&self, node: &Arc<Node>) -> Result<Arc<OwnedFd>> {
        if let Some(file) = node.at_hand() {
            return Ok(file);
        }
        // From the node up to a directory that is open, and down again.
        let mut closed = vec![node.clone()];
        let mut file = loop {
            let place = closed.last().and_then(|last| last.place()).ok_or(Errno::ESTALE)?;
            if let Some(file) = place.parent.at_hand() {
                break file;
            }
            if closed.len() == MAX_DEPTH {
                return Err(Errno::ENAMETOOLONG);
            }
            closed.push(place.parent.clone());
        };
        for node in closed.iter().rev() {
            let place = node.place().ok_or(Errno::ESTALE)?;
            file = match open(&file, &place.name, node) {
                Ok(file) => Arc::new(file),
                // Its name may be another file's since a moment ago, and then a descriptor was kept.
                Err(errno) => node.at_hand().ok_or(errno)?,
            };
            self.cache(node, file.clone());
        }
        Ok(file)
    }

    /// Keeps a descriptor for later, and closes one that was not used for the longest time.
    fn cache(&self, node: &Arc<Node>, file: Arc<OwnedFd>) {
        match &mut node.state().slot {
            slot @ Slot::Closed => *slot = Slot::Cached(file),
            _ => return,
        }
        let mut cached = lock(&self.cached);
        cached.push_back(Arc::downgrade(node));
        let mut closed = Vec::new();
        for _ in 0..cached.len() {
            if cached.len() <= self.budget {
                break;
            }
            let Some(oldest) = cached.pop_front().and_then(|node| node.upgrade()) else { continue };
            if oldest.used.swap(false, Ordering::Relaxed) && !Arc::ptr_eq(&oldest, node) {
                cached.push_back(Arc::downgrade(&oldest));
                continue;
            }
            let mut state = oldest.state();
            if matches!(state.slot, Slot::Cached(_)) {
                closed.push(std::mem::take(&mut state.slot));
            }
        }
    }

    /// Keeps the descriptor of a file that is about to lose its place, for as long as the kernel has the file: `file`,
    /// unless there is one already.
    pub(crate) fn pin(&self, node: &Node, file: &Arc<OwnedFd>) -> Result<()> {
        let mut state = node.state();
        let kept = match &state.slot {
            Slot::Pinned(_) => return Ok(()),
            Slot::Cached(kept) => kept.clone(),
            Slot::Closed | Slot::Remembered(_) => file.clone(),
        };
        let pin = Pin::new(kept, &self.pinned);
        if self.pinned.load(Ordering::Relaxed) > self.budget {
            return Err(Errno::EMFILE);
        }
        state.slot = Slot::Pinned(pin);
        Ok(())
    }

    /// Remembers a file that is about to lose its last name, for as long as the kernel has the file. A program that has the
    /// file open still reaches the file itself.
    pub(crate) fn remember(&self, node: &Node, found: &Found) {
        let mut state = node.state();
        let former = match &state.slot {
            Slot::Pinned(_) => return,
            Slot::Cached(file) if self.pinned.load(Ordering::Relaxed) < self.budget => {
                let pin = Pin::new(file.clone(), &self.pinned);
                std::mem::replace(&mut state.slot, Slot::Pinned(pin))
            }
            _ => {
                let mut found = Box::new(*found);
                found.attributes.links = 0;
                std::mem::replace(&mut state.slot, Slot::Remembered(found))
            }
        };
        drop(state);
        drop(former);
    }

    /// The file has a place, or the kernel no longer has the file: neither a descriptor nor a memory of the file need be kept.
    fn unpin(&self, node: &Arc<Node>, keep: bool) {
        if node.id == NodeId::ROOT {
            return;
        }
        let mut state = node.state();
        if !matches!(state.slot, Slot::Pinned(_) | Slot::Remembered(_)) {
            return;
        }
        let former = std::mem::take(&mut state.slot);
        drop(state);
        if let Slot::Pinned(pin) = former
            && keep
        {
            self.cache(node, pin.file.clone());
        }
    }
}

/// Opens what a name in a directory leads to, if that is still the node.
fn open(directory: &OwnedFd, name: &CStr, node: &Node) -> Result<OwnedFd> {
    let file = sys::open_beneath(directory.as_fd(), name).map_err(|errno| match errno {
        Errno::ENOENT | Errno::ENOTDIR => Errno::ESTALE,
        other => other,
    })?;
    let found = sys::stat(file.as_fd())?;
    if found.identity == node.identity && found.kind() == node.kind { Ok(file) } else { Err(Errno::ESTALE) }
}
