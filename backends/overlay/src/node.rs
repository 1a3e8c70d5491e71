//! One file: what it is, what is told about it, and the rules by which that changes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, RwLock};
use std::time::{Duration, SystemTime};

use changes::{Base, Place, There, What};
use fuse::{
    Attributes, Device, Errno, MAX_XATTR_LEN, NodeId, Result, Seek, SetAttributes, SetTime, Sink, Time,
    XattrName, XattrSet,
};

use crate::below::{Below, BelowOpen};
use crate::bytes::{Bytes, Home};
use crate::locks::{alone, lock, shared};
use crate::origin::Origin;
use crate::space::{Charge, Space};

/// Bytes that each file is charged for, besides what it contains and its names: one with a byte in it takes some 1,400 in
/// all, which is little more than what it is charged.
pub(crate) const NODE_COST: u64 = 768;

/// Bytes that each extended attribute is charged for, besides name and value.
const XATTR_COST: u64 = 128;

/// Set-user-ID and set-group-ID bits, and the permission to run for the group.
mod mode_bit {
    pub(super) const SET_UID: u32 = 0o4000;
    pub(super) const SET_GID: u32 = 0o2000;
    pub(super) const GROUP_RUNS: u32 = 0o010;
}

/// The type in `st_mode` (linux/stat.h).
pub(crate) mod file_type {
    pub(crate) const MASK: u32 = 0o170_000;
    pub(crate) const DIRECTORY: u32 = 0o040_000;
    pub(crate) const REGULAR: u32 = 0o100_000;
    pub(crate) const LINK: u32 = 0o120_000;
}

/// Bytes best moved at once.
const BLOCK_SIZE: u32 = 4096;

/// Unit of `st_blocks`.
const SECTOR: u64 = 512;

/// A file.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) id: NodeId,
    /// Number of the file, as programs see it.
    pub(crate) ino: u64,
    pub(crate) body: Body,
    /// The file in the file system below, if this one came from there.
    pub(crate) below: Option<Below>,
    /// Its path there, unless that is too long.
    pub(crate) origin: Option<Arc<Origin>>,
    facts: Mutex<Facts>,
    space: Arc<Space>,
}

/// The contents of a file of each kind. The names in a directory are the tree's.
#[derive(Debug)]
pub(crate) enum Body {
    Directory,
    File(Contents),
    /// With its target.
    Link(Box<[u8]>),
    /// With its type in `st_mode`.
    Special(u32, Device),
}

impl Body {
    /// The type in `st_mode`.
    pub(crate) fn kind(&self) -> u32 {
        match self {
            Self::Directory => file_type::DIRECTORY,
            Self::File(_) => file_type::REGULAR,
            Self::Link(_) => file_type::LINK,
            Self::Special(kind, _) => *kind,
        }
    }
}

/// Contents, and their size, which is told while they are in use.
#[derive(Debug)]
pub(crate) struct Contents {
    stored: RwLock<Stored>,
    len: AtomicU64,
    taken: AtomicU64,
    is_below: AtomicBool,
}

/// Where contents are.
#[derive(Debug)]
enum Stored {
    /// With the file below as it was when its contents were copied.
    Here(Bytes, Option<Box<Base>>),
    /// In the file system below, until they are changed.
    Below(Below, Home),
}

/// The use that a change of contents has for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Former {
    Needed,
    Dropped,
}

impl Contents {
    pub(crate) fn new(bytes: Bytes) -> Self {
        let (len, taken) = (AtomicU64::new(bytes.len()), AtomicU64::new(bytes.taken()));
        Self { stored: RwLock::new(Stored::Here(bytes, None)), len, taken, is_below: AtomicBool::new(false) }
    }

    fn below(below: Below, home: Home) -> Self {
        Self {
            stored: RwLock::new(Stored::Below(below, home)),
            len: AtomicU64::new(0),
            taken: AtomicU64::new(0),
            is_below: AtomicBool::new(true),
        }
    }

    pub(crate) fn is_below(&self) -> bool {
        self.is_below.load(Ordering::Acquire)
    }

    /// Fills `into`; `below` is what was opened if the contents were below then.
    pub(crate) fn read(&self, below: Option<&BelowOpen>, offset: u64, into: &Sink<'_>) -> Result<u64> {
        match &*shared(&self.stored) {
            Stored::Here(bytes, _) => bytes.read(offset, into),
            Stored::Below(..) => below.ok_or(Errno::EIO)?.read(offset, into),
        }
    }

    pub(crate) fn seek(&self, below: Option<&BelowOpen>, offset: u64, what: Seek) -> Result<u64> {
        match &*shared(&self.stored) {
            Stored::Here(bytes, _) => bytes.seek(offset, what),
            Stored::Below(..) => below.ok_or(Errno::EIO)?.seek(offset, what),
        }
    }

    /// Changes the contents while nobody else looks. Those below are copied first.
    pub(crate) fn change<T>(&self, former: Former, act: impl FnOnce(&mut Bytes) -> T) -> Result<T> {
        let mut stored = alone(&self.stored);
        if let Stored::Below(below, home) = &*stored {
            let (bytes, base) = match former {
                Former::Needed => below.copy(home).map(|(bytes, told)| (bytes, Some(base_of(&told))))?,
                Former::Dropped => (home.empty()?, None),
            };
            *stored = Stored::Here(bytes, base);
        }
        let Stored::Here(bytes, _) = &mut *stored else { return Err(Errno::EIO) };
        let result = act(bytes);
        self.len.store(bytes.len(), Ordering::Relaxed);
        self.taken.store(bytes.taken(), Ordering::Relaxed);
        self.is_below.store(false, Ordering::Release);
        Ok(result)
    }
}

impl Contents {
    /// The place of the contents, as a list of changes tells it.
    fn recorded(&self) -> changes::Contents {
        match &*shared(&self.stored) {
            Stored::Below(..) => changes::Contents { len: 0, stored: changes::Stored::Below },
            Stored::Here(bytes, _) => changes::Contents { len: bytes.len(), stored: bytes.told() },
        }
    }

    /// The file below when its contents were copied.
    fn base(&self) -> Option<Base> {
        match &*shared(&self.stored) {
            Stored::Here(_, base) => base.as_deref().copied(),
            Stored::Below(..) => None,
        }
    }
}

/// The facts that are told about a file, without its contents.
#[derive(Debug)]
pub(crate) struct Facts {
    /// Special bits and permissions.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) links: u32,
    pub(crate) atime: Time,
    pub(crate) mtime: Time,
    pub(crate) ctime: Time,
    btime: Time,
    /// The facts are asked for below, as nobody has changed any of them here.
    is_live: bool,
    /// The contents' time is that of the contents below.
    mtime_is_below: bool,
    /// The file below when something was changed here first.
    base: Option<Box<Base>>,
    charge: Charge,
    /// A file that has no name may get one.
    pub(crate) nameable: bool,
    xattrs: BTreeMap<Box<[u8]>, Value>,
}

/// The value of an extended attribute.
#[derive(Debug)]
struct Value {
    bytes: Box<[u8]>,
    _charge: Charge,
}

/// The owner and permissions of a new file.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Birth {
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
}

impl Node {
    /// A new file without a name.
    pub(crate) fn new(id: NodeId, ino: u64, body: Body, birth: Birth, space: &Arc<Space>) -> Result<Self> {
        let target = if let Body::Link(target) = &body { target.len() } else { 0 };
        let charge = space.charge(NODE_COST + wide(target))?;
        let now = now();
        let links = if matches!(body, Body::Directory) { 2 } else { 0 };
        let Birth { mode, uid, gid } = birth;
        let facts = Facts {
            mode,
            uid,
            gid,
            links,
            atime: now,
            mtime: now,
            ctime: now,
            btime: now,
            is_live: false,
            mtime_is_below: false,
            base: None,
            charge,
            nameable: false,
            xattrs: BTreeMap::new(),
        };
        let space = space.clone();
        Ok(Self { id, ino, body, below: None, origin: None, facts: Mutex::new(facts), space })
    }

    /// A file of the file system below.
    pub(crate) fn found(
        id: NodeId,
        (below, origin): (Below, Option<Arc<Origin>>),
        told: &Attributes,
        target: Box<[u8]>,
        space: &Arc<Space>,
        home: &Home,
    ) -> Result<Self> {
        let body = match told.mode & file_type::MASK {
            file_type::DIRECTORY => Body::Directory,
            file_type::REGULAR => Body::File(Contents::below(below.clone(), home.clone())),
            file_type::LINK => Body::Link(target),
            kind => Body::Special(kind, told.device),
        };
        let facts = Facts {
            mode: told.mode & !file_type::MASK,
            uid: told.uid,
            gid: told.gid,
            links: told.links,
            atime: told.atime,
            mtime: told.mtime,
            ctime: told.ctime,
            btime: told.btime.unwrap_or(told.ctime),
            is_live: true,
            mtime_is_below: matches!(body, Body::File(_)),
            base: None,
            charge: space.charge(0)?,
            nameable: false,
            xattrs: BTreeMap::new(),
        };
        let (ino, space) = (told.ino, space.clone());
        Ok(Self { id, ino, body, below: Some(below), origin, facts: Mutex::new(facts), space })
    }

    /// The file below, if all that is told is asked for there.
    pub(crate) fn live(&self) -> Option<&Below> {
        self.below.as_ref().filter(|_| self.facts().is_live)
    }

    /// Whether something that is told is asked for below.
    pub(crate) fn is_asked_below(&self) -> bool {
        let has_contents_below = matches!(&self.body, Body::File(contents) if contents.is_below());
        has_contents_below || self.live().is_some()
    }

    /// Keeps the facts here from now on, beginning with those that are told below.
    pub(crate) fn settle(&self, told: &Attributes, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Result<()> {
        let mut facts = self.facts();
        if !facts.is_live {
            return Ok(());
        }
        let mut kept = BTreeMap::new();
        for (name, bytes) in xattrs {
            let charge = self.space.charge(XATTR_COST + wide(name.len() + bytes.len()))?;
            kept.insert(name.into(), Value { bytes: bytes.into(), _charge: charge });
        }
        facts.is_live = false;
        facts.base = Some(base_of(told));
        facts.xattrs = kept;
        (facts.mode, facts.uid, facts.gid) = (told.mode & !file_type::MASK, told.uid, told.gid);
        (facts.atime, facts.mtime, facts.ctime) = (told.atime, told.mtime, told.ctime);
        facts.links = told.links;
        Ok(())
    }

    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.body, Body::Directory)
    }

    /// The contents of a regular file.
    pub(crate) fn contents(&self) -> Result<&Contents> {
        match &self.body {
            Body::File(contents) => Ok(contents),
            Body::Directory => Err(Errno::EISDIR),
            Body::Link(_) | Body::Special(..) => Err(Errno::EINVAL),
        }
    }

    /// The facts that are told about the file. Nobody takes the lock of a tree while they have this one.
    pub(crate) fn facts(&self) -> MutexGuard<'_, Facts> {
        lock(&self.facts)
    }

    /// The file's attributes. They are asked for below as far as nobody has changed them here.
    pub(crate) fn attributes(&self) -> Result<Attributes> {
        if let Some(below) = self.live() {
            return Ok(Attributes { ino: self.ino, ..below.attributes()? });
        }
        let mut told = self.told();
        if let (Body::File(contents), Some(below)) = (&self.body, &self.below)
            && contents.is_below()
        {
            let beneath = below.attributes()?;
            (told.size, told.blocks) = (beneath.size, beneath.blocks);
            if self.facts().mtime_is_below {
                told.mtime = beneath.mtime;
            }
        }
        Ok(told)
    }

    fn told(&self) -> Attributes {
        let (size, taken) = match &self.body {
            Body::Directory => (u64::from(BLOCK_SIZE), 0),
            Body::File(contents) => {
                (contents.len.load(Ordering::Relaxed), contents.taken.load(Ordering::Relaxed))
            }
            Body::Link(target) => (wide(target.len()), 0),
            Body::Special(..) => (0, 0),
        };
        let facts = self.facts();
        Attributes {
            ino: self.ino,
            size,
            blocks: taken / SECTOR,
            atime: facts.atime,
            mtime: facts.mtime,
            ctime: facts.ctime,
            btime: Some(facts.btime),
            mode: self.body.kind() | facts.mode,
            links: facts.links,
            uid: facts.uid,
            gid: facts.gid,
            device: if let Body::Special(_, device) = self.body { device } else { Device::default() },
            block_size: BLOCK_SIZE,
            submount: false,
        }
    }

    /// The file below when the change of it began, if there is one.
    pub(crate) fn base(&self) -> Option<Base> {
        let copied = if let Body::File(contents) = &self.body { contents.base() } else { None };
        copied.or_else(|| self.facts().base.as_deref().copied())
    }

    /// The file as a list of changes tells it.
    pub(crate) fn record(&self, place: Place, origin: Option<Place>) -> There {
        let what = match &self.body {
            Body::Directory => What::Directory,
            Body::File(contents) => What::File(contents.recorded()),
            Body::Link(target) => What::Link(target.to_vec()),
            Body::Special(..) => What::Special,
        };
        let (was, facts) = (self.base(), self.facts());
        let mtime = changes::Time { seconds: facts.mtime.seconds, nanoseconds: facts.mtime.nanoseconds };
        let was = was.filter(|_| origin.is_some());
        There { place, origin, was, file: self.id.0, mode: facts.mode, mtime, what }
    }

    /// Changes what is told, all at once.
    pub(crate) fn change(&self, change: &SetAttributes) -> Result<()> {
        if let Some(size) = change.size {
            let former = if size == 0 { Former::Dropped } else { Former::Needed };
            self.contents()?.change(former, |bytes| bytes.set_len(size))??;
        }
        let (now, mut facts) = (now(), self.facts());
        if change.size.is_some() {
            facts.drop_capabilities();
        }
        let time = |set: SetTime| match set {
            SetTime::Now => now,
            SetTime::At(time) => time,
        };
        let is_given = change.uid.is_some() || change.gid.is_some();
        if change.kill_privileges || is_given && !self.is_directory() {
            facts.kill_privileges();
        }
        if let Some(mode) = change.mode {
            facts.mode = mode;
        }
        facts.uid = change.uid.unwrap_or(facts.uid);
        facts.gid = change.gid.unwrap_or(facts.gid);
        facts.atime = change.atime.map_or(facts.atime, time);
        let mtime = if change.size.is_some() { now } else { facts.mtime };
        facts.mtime = change.mtime.map_or(mtime, time);
        facts.mtime_is_below &= change.mtime.is_none() && change.size.is_none();
        facts.ctime = change.ctime.unwrap_or(now);
        Ok(())
    }

    /// Sets an extended attribute.
    pub(crate) fn set_xattr(&self, name: XattrName<'_>, value: &[u8], how: XattrSet) -> Result<()> {
        let name = name.as_bytes();
        // The kernel would not ask for an access control list that is only kept.
        if name.starts_with(b"system.") {
            return Err(Errno::EOPNOTSUPP);
        }
        let mut facts = self.facts();
        match (how, facts.xattrs.contains_key(name)) {
            (XattrSet::Create, true) => return Err(Errno::EEXIST),
            (XattrSet::Replace, false) => return Err(Errno::ENODATA),
            (_, false) if facts.xattr_list_len() + name.len() >= MAX_XATTR_LEN => return Err(Errno::ENOSPC),
            _ => {}
        }
        let charge = self.space.charge(XATTR_COST + wide(name.len() + value.len()))?;
        facts.xattrs.insert(name.into(), Value { bytes: value.into(), _charge: charge });
        facts.ctime = now();
        Ok(())
    }

    pub(crate) fn remove_xattr(&self, name: XattrName<'_>) -> Result<()> {
        let mut facts = self.facts();
        facts.xattrs.remove(name.as_bytes()).ok_or(Errno::ENODATA)?;
        facts.ctime = now();
        Ok(())
    }
}

impl Facts {
    /// The contents of a regular file have changed. The capabilities that it gave a program go with the former contents: the
    /// guest's kernel leaves this to the file system, no matter which user writes.
    pub(crate) fn written(&mut self) {
        self.drop_capabilities();
        self.modified();
    }

    /// The contents have changed.
    pub(crate) fn modified(&mut self) {
        self.ctime = now();
        self.mtime = self.ctime;
        self.mtime_is_below = false;
    }

    /// A file that was only below is one that is charged for.
    pub(crate) fn charge_for_keeping(&mut self) -> Result<()> {
        self.charge.grow(NODE_COST.saturating_sub(self.charge.amount()))
    }

    /// Something about the file has changed.
    pub(crate) fn changed(&mut self) {
        self.ctime = now();
    }

    /// The contents were read: noted if nobody has noted it since they changed, and else once a day, as Linux does
    /// (`relatime`).
    pub(crate) fn accessed(&mut self) {
        if self.is_live {
            return;
        }
        let now = now();
        let is_old = now.seconds.saturating_sub(self.atime.seconds) >= 24 * 60 * 60;
        if self.atime <= self.mtime || self.atime <= self.ctime || is_old {
            self.atime = now;
        }
    }

    /// Running the file gives no more rights.
    pub(crate) fn kill_privileges(&mut self) {
        self.mode &= !mode_bit::SET_UID;
        if self.mode & mode_bit::GROUP_RUNS != 0 {
            self.mode &= !mode_bit::SET_GID;
        }
        self.drop_capabilities();
    }

    fn drop_capabilities(&mut self) {
        self.xattrs.remove(&b"security.capability"[..]);
    }

    /// Owner and permissions of what is made in the directory.
    pub(crate) fn birth(&self, maker: &fuse::Context<'_>, mode: u32, is_directory: bool) -> Birth {
        let inherits = self.mode & mode_bit::SET_GID != 0;
        let bit = if inherits && is_directory { mode_bit::SET_GID } else { 0 };
        Birth { mode: mode | bit, uid: maker.uid, gid: if inherits { self.gid } else { maker.gid } }
    }

    pub(crate) fn xattr(&self, name: XattrName<'_>) -> Result<Vec<u8>> {
        self.xattrs.get(name.as_bytes()).map(|value| value.bytes.to_vec()).ok_or(Errno::ENODATA)
    }

    /// Names of the extended attributes, each with its NUL.
    pub(crate) fn xattrs(&self) -> Vec<u8> {
        self.xattrs.keys().flat_map(|name| name.iter().copied().chain([0])).collect()
    }

    fn xattr_list_len(&self) -> usize {
        self.xattrs.keys().map(|name| name.len() + 1).sum()
    }
}

/// The facts that show later whether the file below has changed.
fn base_of(told: &Attributes) -> Box<Base> {
    let time = |time: Time| changes::Time { seconds: time.seconds, nanoseconds: time.nanoseconds };
    let (mtime, ctime) = (time(told.mtime), time(told.ctime));
    Box::new(Base { mode: told.mode, ino: told.ino, size: told.size, mtime, ctime })
}

/// The host's clock.
fn now() -> Time {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or(Duration::ZERO);
    Time { seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX), nanoseconds: since.subsec_nanos() }
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}
