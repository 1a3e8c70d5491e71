//! Directories of the host that are watched, as programs of the guest may watch them: those that the guest has looked into.
//!
//! Events of the host's kernel come without their author. Each act of the guest is therefore noted, by name or by file, from
//! before the act until all events that it can have caused are read. Not here: what an event means for the guest
//! (`host_fs::changes`), and who tells it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};

use fuse::NodeId;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};

use crate::nodes::{Node, lock};

/// Most directories that are watched at a time, of all folders. Each takes about a kilobyte of the host's kernel, and is one
/// of its user's watches (`fs.inotify.max_user_watches`).
const MAX_WATCHES: usize = 8192;

/// Most names on which the guest's acts are noted at a time.
const MAX_ACTS: usize = 1 << 16;

/// Most events that are taken at once.
const MAX_EVENTS: usize = 1024;

/// Bytes that are read at once: the longest event has 272.
const READ_LEN: usize = 16 << 10;

/// An act of the guest's causes no event that is read in a later batch than this many after the one of its end.
const ECHO_BATCHES: u64 = 1;

/// The things that are watched for, in directories only.
const WANTED: WatchFlags = WatchFlags::MODIFY
    .union(WatchFlags::ATTRIB)
    .union(WatchFlags::CREATE)
    .union(WatchFlags::DELETE)
    .union(WatchFlags::MOVE)
    .union(WatchFlags::ONLYDIR)
    .union(WatchFlags::EXCL_UNLINK);

/// See the module. One serves all folders of a process, as a user has few instances of inotify.
#[derive(Debug)]
pub struct Watches {
    events: OwnedFd,
    /// The place of `/proc/self/fd`: with a slash at its end, or empty if the working directory is that.
    own_files: &'static str,
    table: Mutex<Table>,
    acts: Mutex<Acts>,
    /// The number of the batch that was read last: it goes up once there was nothing more to read.
    batch: AtomicU64,
    drained: AtomicBool,
    /// Somebody is told of changes, or will be.
    live: AtomicBool,
    /// Directories that the host's kernel refused to watch.
    refused: AtomicU64,
}

#[derive(Debug, Default)]
struct Table {
    /// A directory that is in two folders has one watch.
    directories: HashMap<i32, Vec<Watched>>,
    /// The watches by age, and some that are no more.
    order: VecDeque<i32>,
}

impl Table {
    /// A watch that is to go, if there are too many.
    fn too_many(&mut self) -> Option<(i32, Vec<Watched>)> {
        if self.order.len() > 2 * MAX_WATCHES {
            self.order.retain(|watch| self.directories.contains_key(watch));
        }
        while self.directories.len() > MAX_WATCHES {
            let oldest = self.order.pop_front()?;
            if let Some(watched) = self.directories.remove(&oldest) {
                return Some((oldest, watched));
            }
        }
        None
    }
}

/// A directory's watch.
#[derive(Debug, Default)]
pub(crate) struct DirectoryWatch(AtomicI32);

/// In place of a watch's number: nothing is watched, or that cannot be said yet, or the host's kernel refuses.
const UNWATCHED: i32 = 0;
const UNKNOWN: i32 = -1;

impl DirectoryWatch {
    fn is_wanted(&self) -> bool {
        self.0.load(Ordering::Acquire) != UNWATCHED
    }

    /// Whether the caller is the one to begin the watch.
    fn want(&self) -> bool {
        self.0.compare_exchange(UNWATCHED, UNKNOWN, Ordering::AcqRel, Ordering::Acquire).is_ok()
    }

    fn set(&self, watch: i32) -> i32 {
        self.0.swap(watch, Ordering::AcqRel)
    }
}

/// A directory of a folder.
#[derive(Debug, Clone)]
struct Watched {
    folder: usize,
    node: Weak<Node>,
}

/// Names on which the guest acts, or did a moment ago.
#[derive(Debug, Default)]
struct Acts {
    names: HashMap<(usize, NodeId, CString), Act>,
    /// There were too many: up to this batch, everything may be the guest's.
    all_until: u64,
}

#[derive(Debug, Default)]
struct Act {
    under_way: u32,
    /// The batch that was read last when an act ended.
    ended: u64,
}

/// The guest's acts on a file.
#[derive(Debug, Default)]
pub(crate) struct FileActs {
    under_way: AtomicU32,
    ended: AtomicU64,
}

/// An event of a name in a directory.
#[derive(Debug)]
pub(crate) struct Event {
    pub(crate) directory: Arc<Node>,
    pub(crate) name: CString,
    pub(crate) what: What,
    pub(crate) is_directory: bool,
}

/// The kinds of events; the two halves of a move have the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum What {
    Appeared,
    Vanished,
    MovedFrom(u32),
    MovedTo(u32),
    Written,
    Changed,
}

/// Events that were read at once, each with its folder.
#[derive(Debug, Default)]
pub struct Batch {
    pub(crate) number: u64,
    pub(crate) events: VecDeque<(usize, Event)>,
    /// Names that were gone again before anybody could be told of them.
    pub(crate) passed: HashSet<(usize, NodeId, CString)>,
    /// Files that were told of as written or changed.
    pub(crate) told: HashSet<(usize, NodeId, CString, What)>,
    /// The host's kernel dropped events.
    pub overflow: bool,
}

impl Batch {
    /// The folder of the next event.
    #[must_use]
    pub fn folder(&self) -> Option<usize> {
        self.events.front().map(|(folder, _)| *folder)
    }
}

impl Watches {
    /// Nothing is watched yet. `own_files` is the place of `/proc/self/fd`, with a slash at its end, or empty if the working
    /// directory of this process is that.
    pub fn new(own_files: &'static str) -> std::io::Result<Self> {
        Ok(Self {
            events: inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?,
            own_files,
            table: Mutex::default(),
            acts: Mutex::default(),
            batch: AtomicU64::new(ECHO_BATCHES + 1),
            drained: AtomicBool::new(true),
            live: AtomicBool::new(true),
            refused: AtomicU64::new(0),
        })
    }

    /// Watches nothing any more.
    pub fn end(&self) {
        self.live.store(false, Ordering::Release);
        let table = std::mem::take(&mut *lock(&self.table));
        table.directories.into_iter().for_each(|(watch, watched)| self.drop_watch(watch, &watched));
        *lock(&self.acts) = Acts::default();
    }

    /// Directories that could not be watched since the last call: the user has no watches left.
    pub fn refused(&self) -> u64 {
        self.refused.swap(0, Ordering::Relaxed)
    }

    fn is_live(&self) -> bool {
        self.live.load(Ordering::Acquire)
    }

    /// Watches a directory, unless it is watched already. `file` opens it.
    pub(crate) fn watch<F: AsFd>(&self, folder: usize, node: &Arc<Node>, file: impl FnOnce() -> Option<F>) {
        // Most directories are watched already, and several threads look names up in one: they only read.
        if !self.is_live() || node.watch.is_wanted() || !node.watch.want() {
            return;
        }
        let Some(file) = file() else {
            node.watch.set(UNWATCHED);
            return;
        };
        node.note_children();
        let path = format!("{}{}", self.own_files, raw(file.as_fd()));
        let mut table = lock(&self.table);
        // Without a watch, the directory stays marked, so that nobody asks again with each name.
        let Ok(watch) = inotify::add_watch(&self.events, path, WANTED) else {
            self.refused.fetch_add(1, Ordering::Relaxed);
            return;
        };
        node.watch.set(watch);
        let Table { directories, order } = &mut *table;
        let watched = directories.entry(watch).or_insert_with(|| {
            order.push_back(watch);
            Vec::new()
        });
        watched.retain(|other| other.node.strong_count() > 0);
        watched.push(Watched { folder, node: Arc::downgrade(node) });
        // The directory that was looked into first has its turn; if it is looked into again, it is watched again.
        if let Some((oldest, watched)) = table.too_many() {
            self.drop_watch(oldest, &watched);
        }
    }

    /// The kernel has forgotten a directory.
    pub(crate) fn forget(&self, node: &Arc<Node>) {
        let watch = node.watch.set(UNWATCHED);
        if watch == UNWATCHED {
            return;
        }
        let mut table = lock(&self.table);
        let Some(watched) = table.directories.get_mut(&watch) else { return };
        watched.retain(|other| other.node.as_ptr() != Arc::as_ptr(node));
        if watched.is_empty() {
            table.directories.remove(&watch);
            self.drop_watch(watch, &[]);
        }
    }

    fn drop_watch(&self, watch: i32, watched: &[Watched]) {
        // The kernel has dropped the watch of a directory that is gone.
        let _ = inotify::remove_watch(&self.events, watch);
        for node in watched.iter().filter_map(|watched| watched.node.upgrade()) {
            node.watch.set(UNWATCHED);
        }
    }

    /// Notes that the guest is about to act on a name, until the result is dropped.
    pub(crate) fn acting(self: &Arc<Self>, folder: usize, directory: &Node, name: &CStr) -> Option<Acting> {
        if !self.is_live() || !directory.watch.is_wanted() {
            return None;
        }
        let mut acts = lock(&self.acts);
        if acts.names.len() >= MAX_ACTS {
            acts.all_until = self.batch.load(Ordering::Acquire) + ECHO_BATCHES + 1;
            return None;
        }
        let key = (folder, directory.id, name.to_owned());
        acts.names.entry(key.clone()).or_default().under_way += 1;
        Some(Acting { watches: Arc::clone(self), key })
    }

    /// Notes that the guest is about to change a file, until the result is dropped.
    pub(crate) fn changing<'a>(&'a self, node: &'a Node) -> Option<Changing<'a>> {
        if !self.is_live() {
            return None;
        }
        node.acts.under_way.fetch_add(1, Ordering::AcqRel);
        Some(Changing { watches: self, node })
    }

    /// Whether the guest may have caused an event of this batch.
    pub(crate) fn is_own(&self, batch: u64, folder: usize, directory: &Node, name: &CStr) -> bool {
        let acts = lock(&self.acts);
        let act = acts.names.get(&(folder, directory.id, name.to_owned()));
        acts.all_until >= batch || act.is_some_and(|act| act.is_recent(batch))
    }

    /// Readable when there are events.
    #[must_use]
    pub fn readable(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }

    /// The events that are there.
    pub fn read(&self) -> Batch {
        let more = u64::from(self.drained.load(Ordering::Acquire));
        let number = self.batch.fetch_add(more, Ordering::AcqRel) + more;
        lock(&self.acts).names.retain(|_, act| act.is_recent(number));
        let mut batch = Batch { number, ..Batch::default() };
        let mut buffer = [MaybeUninit::uninit(); READ_LEN];
        let mut reader = Reader::new(&self.events, &mut buffer);
        self.drained.store(false, Ordering::Release);
        while batch.events.len() < MAX_EVENTS || !reader.is_buffer_empty() {
            let Ok(event) = reader.next() else {
                self.drained.store(true, Ordering::Release);
                break;
            };
            let flags = event.events();
            if flags.contains(ReadFlags::QUEUE_OVERFLOW) {
                batch.overflow = true;
            } else if flags.contains(ReadFlags::IGNORED) {
                self.ended(event.wd());
            } else if let (Some(what), Some(name)) = (what(flags, event.cookie()), event.file_name()) {
                let is_directory = flags.contains(ReadFlags::ISDIR);
                let watched = lock(&self.table).directories.get(&event.wd()).cloned().unwrap_or_default();
                let directories = watched.into_iter().filter_map(|it| Some((it.folder, it.node.upgrade()?)));
                batch.events.extend(directories.map(|(folder, directory)| {
                    (folder, Event { directory, name: name.to_owned(), what, is_directory })
                }));
            }
        }
        batch
    }

    /// The host's kernel has dropped a watch: the directory is gone, or this process wanted it.
    fn ended(&self, watch: i32) {
        lock(&self.table).directories.remove(&watch);
    }
}

fn raw(file: BorrowedFd<'_>) -> i32 {
    use std::os::fd::AsRawFd;
    file.as_raw_fd()
}

fn what(flags: ReadFlags, cookie: u32) -> Option<What> {
    [
        (ReadFlags::CREATE, What::Appeared),
        (ReadFlags::DELETE, What::Vanished),
        (ReadFlags::MOVED_FROM, What::MovedFrom(cookie)),
        (ReadFlags::MOVED_TO, What::MovedTo(cookie)),
        (ReadFlags::MODIFY, What::Written),
        (ReadFlags::ATTRIB, What::Changed),
    ]
    .into_iter()
    .find(|(flag, _)| flags.contains(*flag))
    .map(|(_, what)| what)
}

impl Act {
    fn is_recent(&self, batch: u64) -> bool {
        self.under_way > 0 || self.ended + ECHO_BATCHES >= batch
    }
}

impl FileActs {
    /// Whether the guest may have caused an event of this batch.
    pub(crate) fn is_own(&self, batch: u64) -> bool {
        // In this order: an act that ends meanwhile has ended by the time of the second.
        self.under_way.load(Ordering::Acquire) > 0
            || self.ended.load(Ordering::Acquire) + ECHO_BATCHES >= batch
    }
}

/// The guest acts on a name.
#[derive(Debug)]
pub(crate) struct Acting {
    watches: Arc<Watches>,
    key: (usize, NodeId, CString),
}

impl Drop for Acting {
    fn drop(&mut self) {
        let mut acts = lock(&self.watches.acts);
        let batch = self.watches.batch.load(Ordering::Acquire);
        if let Some(act) = acts.names.get_mut(&self.key) {
            act.under_way = act.under_way.saturating_sub(1);
            act.ended = batch;
        }
    }
}

/// The guest changes a file.
#[derive(Debug)]
pub(crate) struct Changing<'a> {
    watches: &'a Watches,
    node: &'a Node,
}

impl Drop for Changing<'_> {
    fn drop(&mut self) {
        let batch = self.watches.batch.load(Ordering::Acquire);
        self.node.acts.ended.fetch_max(batch, Ordering::AcqRel);
        self.node.acts.under_way.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use fuse::{Context, FileSystem, How, Name};

    use super::*;
    use crate::{HostFs, Options};

    fn look_up(files: &HostFs, parent: NodeId, name: &str) -> fuse::Result<NodeId> {
        let name = CString::new(name).unwrap();
        let name = Name::new(&name).unwrap();
        files.entry(&Context::default(), parent, name, How::Existing).map(|entry| entry.node)
    }

    fn watched(path: &std::path::Path) -> (HostFs, Arc<Watches>) {
        let watches = Arc::new(Watches::new("/proc/self/fd/").unwrap());
        let files = HostFs::new(path, Options::default()).unwrap();
        files.watch(0, &watches);
        (files, watches)
    }

    #[test]
    fn a_guest_that_looks_everywhere_has_so_many_watches() {
        let shared = tempfile::tempdir().unwrap();
        let (files, watches) = watched(shared.path());
        for number in 0..MAX_WATCHES + 10 {
            fs::create_dir(shared.path().join(number.to_string())).unwrap();
            let node = look_up(&files, NodeId::ROOT, &number.to_string()).unwrap();
            assert!(look_up(&files, node, "no such").is_err());
            // A directory that is looked into again is not watched twice.
            assert!(look_up(&files, node, "no such").is_err());
        }
        let count = |watches: &Watches| lock(&watches.table).directories.len();
        assert_eq!((count(&watches), watches.refused()), (MAX_WATCHES, 0));
        // A directory that the kernel forgets is no longer watched.
        let last = look_up(&files, NodeId::ROOT, &MAX_WATCHES.to_string()).unwrap();
        files.let_go(last, fuse::Gone::Lookups(2));
        assert_eq!(count(&watches), MAX_WATCHES - 1);
        watches.end();
        assert_eq!(count(&watches), 0);
        assert!(look_up(&files, NodeId::ROOT, "no such").is_err());
        assert_eq!(count(&watches), 0);
    }

    #[test]
    fn acts_are_counted_until_nobody_asks_for_them_any_more() {
        let shared = tempfile::tempdir().unwrap();
        let (files, watches) = watched(shared.path());
        files.watch_root();
        let make = |name: String| {
            let name = CString::new(name).unwrap();
            let how = How::Directory { mode: 0o755 };
            files.entry(&Context::default(), NodeId::ROOT, Name::new(&name).unwrap(), how).unwrap();
        };
        (0..100).for_each(|number| make(number.to_string()));
        let count = || lock(&watches.acts).names.len();
        assert_eq!(count(), 100);
        // The events are read in this batch; the host's kernel may have held them back until the next.
        assert_eq!(watches.read().events.len(), 100);
        assert_eq!(count(), 100);
        watches.read();
        assert_eq!(count(), 0);
    }

    #[test]
    fn with_too_many_acts_everything_may_be_the_guests() {
        let shared = tempfile::tempdir().unwrap();
        let (files, watches) = watched(shared.path());
        files.watch_root();
        let root = lock(&watches.table).directories.values().flatten().next().unwrap().node.upgrade();
        let root = root.unwrap();
        let names = |number: usize| CString::new(number.to_string()).unwrap();
        let acts: Vec<_> =
            (0..MAX_ACTS).map(|number| watches.acting(0, &root, &names(number)).unwrap()).collect();
        let batch = watches.read().number;
        assert!(!watches.is_own(batch, 0, &root, c"other"));
        assert!(watches.acting(0, &root, c"other").is_none());
        let batch = watches.read().number;
        assert!(watches.is_own(batch, 0, &root, c"another"));
        drop(acts);
        let mut last = 0;
        for _ in 0..4 {
            last = watches.read().number;
        }
        assert!(!watches.is_own(last, 0, &root, c"other"));
        assert_eq!(lock(&watches.acts).names.len(), 0);
    }
}
