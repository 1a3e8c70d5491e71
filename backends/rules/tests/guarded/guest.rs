//! A folder, the host's view of it, and a guest's through the layer.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex};

use ::rules::{Events, Guard, Guarded};
use fuse::{
    Access, Context, Creation, Data, Entry, Fate, FileSystem, Gone, Handle, How, LinkTarget, Listing, Name,
    NameChange, NodeId, OpenFlags, Opened, Opening, RenameHow, Result, SetAttributes, Sink, Source, Stat,
    Statistics, Sync, WriteHow, Xattr,
};
use overlay::{Files, Options};
use policy::files::{Masks, Rules, WantedMasks, WantedRule};
use vm_memory::VolatileSlice;

pub(crate) const ROOT: NodeId = NodeId::ROOT;

/// The asker, whom events name.
pub(crate) const USER: Context<'static> =
    Context { uid: 1000, gid: 100, pid: 1, extensions: fuse::Extensions::NONE };

/// Files in memory that count who has references to their nodes.
#[derive(Clone)]
pub(crate) struct Counted {
    files: Arc<Files>,
    lookups: Arc<Mutex<HashMap<NodeId, i64>>>,
}

impl Counted {
    fn new() -> Self {
        let options = Options { limit: 64 << 20, mode: 0o755, uid: 0, gid: 0 };
        Self { files: Arc::new(Files::in_memory(options).unwrap()), lookups: Arc::default() }
    }

    fn count(&self, node: NodeId, more: i64) {
        *self.lookups.lock().unwrap().entry(node).or_default() += more;
    }

    /// References that somebody has.
    pub(crate) fn references(&self) -> i64 {
        self.lookups.lock().unwrap().values().sum()
    }
}

impl FileSystem for Counted {
    fn entry(&self, context: &Context<'_>, parent: NodeId, name: Name<'_>, how: How<'_>) -> Result<Entry> {
        self.files.entry(context, parent, name, how).inspect(|entry| self.count(entry.node, 1))
    }

    fn names(&self, context: &Context<'_>, parent: NodeId, change: NameChange<'_>) -> Result<()> {
        self.files.names(context, parent, change)
    }

    fn attributes(
        &self,
        context: &Context<'_>,
        node: NodeId,
        handle: Option<Handle>,
        change: Option<&SetAttributes>,
    ) -> Result<Stat> {
        self.files.attributes(context, node, handle, change)
    }

    fn open(&self, context: &Context<'_>, node: NodeId, opening: Opening) -> Result<Opened> {
        self.files.open(context, node, opening)
    }

    fn create(
        &self,
        context: &Context<'_>,
        parent: NodeId,
        name: Option<Name<'_>>,
        creation: Creation,
    ) -> Result<(Entry, Opened)> {
        self.files.create(context, parent, name, creation).inspect(|(entry, _)| self.count(entry.node, 1))
    }

    fn data(&self, context: &Context<'_>, node: NodeId, handle: Handle, act: Data<'_>) -> Result<u64> {
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
        self.files.list(context, node, handle, cookie, listing)?;
        listing.sift(|_, node| {
            if let Some(node) = node {
                self.count(node, 1);
            }
            Fate::Stays
        });
        Ok(())
    }

    fn read_link(&self, context: &Context<'_>, node: NodeId) -> Result<Vec<u8>> {
        self.files.read_link(context, node)
    }

    fn xattr(&self, context: &Context<'_>, node: NodeId, act: Xattr<'_>) -> Result<Vec<u8>> {
        self.files.xattr(context, node, act)
    }

    fn statistics(&self, context: &Context<'_>, node: NodeId) -> Result<Statistics> {
        self.files.statistics(context, node)
    }

    fn sync(&self, context: &Context<'_>, node: NodeId, what: Sync) -> Result<()> {
        self.files.sync(context, node, what)
    }

    fn let_go(&self, node: NodeId, gone: Gone) {
        match gone {
            Gone::Lookups(count) => self.count(node, -i64::try_from(count).unwrap()),
            Gone::Everything => self.lookups.lock().unwrap().clear(),
            Gone::File(_) | Gone::Directory(_) => {}
        }
        self.files.let_go(node, gone);
    }
}

/// Files as somebody sees them. Each look-up takes a reference, which is kept until the end.
pub(crate) struct View<F>(pub(crate) F);

/// A folder for the host, and the same for a guest at `/w`.
pub(crate) fn folder(guard: Guard) -> (View<Counted>, View<Guarded>) {
    let files = Counted::new();
    (View(files.clone()), View(Guarded::new(guard, "/w", Box::new(files))))
}

pub(crate) fn masks(hidden: &[&str], readonly: &[&str], protect: bool) -> Guard {
    let owned = |globs: &[&str]| globs.iter().map(ToString::to_string).collect();
    let wanted = WantedMasks { hidden: owned(hidden), readonly: owned(readonly), protect };
    Guard { masks: Masks::new(&wanted).unwrap(), ..Guard::default() }
}

/// A rule that blocks operations at a path.
pub(crate) fn block(ops: &[&str], path: &str) -> WantedRule {
    let ops = ops.iter().map(ToString::to_string).collect();
    WantedRule { ops, path: path.to_owned(), action: "block".to_owned(), ..WantedRule::default() }
}

/// Rules that block operations at paths.
pub(crate) fn blocks(rules: &[(&[&str], &str)]) -> Guard {
    let wanted: Vec<_> = rules.iter().map(|(ops, path)| block(ops, path)).collect();
    Guard { rules: Arc::new(Rules::new(&wanted).unwrap()), ..Guard::default() }
}

pub(crate) fn events() -> (Guard, Arc<Events>) {
    let events = Arc::new(Events::default());
    (Guard { events: Some(events.clone()), ..Guard::default() }, events)
}

fn c_string(name: &str) -> CString {
    CString::new(name).unwrap()
}

impl<F: FileSystem> View<F> {
    fn entry(&self, parent: NodeId, name: &str, how: How<'_>) -> Result<NodeId> {
        Ok(self.0.entry(&USER, parent, Name::new(&c_string(name))?, how)?.node)
    }

    pub(crate) fn look_up(&self, parent: NodeId, name: &str) -> Result<NodeId> {
        self.entry(parent, name, How::Existing)
    }

    /// The node of a path, looked up name by name.
    pub(crate) fn walk(&self, path: &str) -> Result<NodeId> {
        path.split('/').filter(|name| !name.is_empty()).try_fold(ROOT, |node, name| self.look_up(node, name))
    }

    pub(crate) fn mkdir(&self, parent: NodeId, name: &str) -> Result<NodeId> {
        self.entry(parent, name, How::Directory { mode: 0o755 })
    }

    pub(crate) fn symlink(&self, parent: NodeId, name: &str, target: &str) -> Result<NodeId> {
        let target = c_string(target);
        self.entry(parent, name, How::SymbolicLink { target: LinkTarget::new(&target)? })
    }

    pub(crate) fn mknod(&self, parent: NodeId, name: &str) -> Result<NodeId> {
        self.entry(parent, name, How::Node { mode: 0o100_640, device: fuse::Device::default() })
    }

    pub(crate) fn link(&self, node: NodeId, parent: NodeId, name: &str) -> Result<NodeId> {
        self.entry(parent, name, How::HardLink { node })
    }

    pub(crate) fn unlink(&self, parent: NodeId, name: &str) -> Result<()> {
        self.0.names(&USER, parent, NameChange::Unlink(Name::new(&c_string(name))?))
    }

    pub(crate) fn rmdir(&self, parent: NodeId, name: &str) -> Result<()> {
        self.0.names(&USER, parent, NameChange::RemoveDirectory(Name::new(&c_string(name))?))
    }

    pub(crate) fn rename(&self, from: (NodeId, &str), to: (NodeId, &str), how: RenameHow) -> Result<()> {
        let (old, new) = (c_string(from.1), c_string(to.1));
        let change =
            NameChange::Rename { from: Name::new(&old)?, to_parent: to.0, to: Name::new(&new)?, how };
        self.0.names(&USER, from.0, change)
    }

    /// Renames from path to path, each with at most one slash.
    pub(crate) fn mv(&self, from: &str, to: &str) -> Result<()> {
        let spot = |path: &str| {
            let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
            Ok((self.walk(parent)?, name.to_owned()))
        };
        let ((old_parent, old), (new_parent, new)) = (spot(from)?, spot(to)?);
        self.rename((old_parent, &old), (new_parent, &new), RenameHow::Replace)
    }

    pub(crate) fn open(&self, node: NodeId, access: Access, flags: OpenFlags) -> Result<Handle> {
        Ok(self.0.open(&USER, node, Opening::File { access, flags })?.handle)
    }

    pub(crate) fn create(&self, parent: NodeId, name: &str) -> Result<(NodeId, Handle)> {
        let (access, flags) = (Access::ReadWrite, OpenFlags::empty());
        let creation = Creation { mode: 0o640, access, flags, exclusive: false };
        let (entry, opened) = self.0.create(&USER, parent, Some(Name::new(&c_string(name))?), creation)?;
        Ok((entry.node, opened.handle))
    }

    pub(crate) fn write_to(&self, node: NodeId, handle: Handle, data: &[u8]) -> Result<u64> {
        let mut data = data.to_vec();
        let slices = [VolatileSlice::from(&mut data[..])];
        let from = Source::new(&slices, 0, usize::MAX);
        self.0.data(&USER, node, handle, Data::Write { offset: 0, from, how: WriteHow::empty() })
    }

    pub(crate) fn read_from(&self, node: NodeId, handle: Handle) -> Result<Vec<u8>> {
        let mut data = vec![0; 100];
        let slices = [VolatileSlice::from(&mut data[..])];
        let into = Sink::new(&slices, 0, usize::MAX);
        let count = self.0.data(&USER, node, handle, Data::Read { offset: 0, into })?;
        data.truncate(usize::try_from(count).unwrap());
        Ok(data)
    }

    pub(crate) fn close(&self, node: NodeId, handle: Handle) {
        self.0.let_go(node, Gone::File(handle));
    }

    /// Makes a file with contents, or replaces them.
    pub(crate) fn write(&self, parent: NodeId, name: &str, data: &str) -> Result<NodeId> {
        let (node, handle) = match self.look_up(parent, name) {
            Ok(node) => (node, self.open(node, Access::Write, OpenFlags::TRUNCATE)?),
            Err(_) => self.create(parent, name)?,
        };
        let written = self.write_to(node, handle, data.as_bytes());
        self.close(node, handle);
        written.map(|_| node)
    }

    pub(crate) fn read(&self, node: NodeId) -> Result<String> {
        let handle = self.open(node, Access::Read, OpenFlags::empty())?;
        let data = self.read_from(node, handle);
        self.close(node, handle);
        data.map(|data| String::from_utf8(data).unwrap())
    }

    pub(crate) fn change(&self, node: NodeId, change: SetAttributes) -> Result<()> {
        self.0.attributes(&USER, node, None, Some(&change)).map(drop)
    }

    /// The names in a directory with their nodes, as READDIR or READDIRPLUS tells them, through small buffers.
    pub(crate) fn list(&self, node: NodeId, plus: bool) -> Result<Vec<(String, Option<NodeId>)>> {
        let handle = self.0.open(&USER, node, Opening::Directory)?.handle;
        let (mut names, mut cookie) = (Vec::new(), 0);
        loop {
            let mut bytes = Vec::new();
            let mut listing = Listing::new(&mut bytes, 400, plus);
            self.0.list(&USER, node, handle, cookie, &mut listing)?;
            if listing.is_empty() {
                break;
            }
            listing.sift(|listed, node| {
                cookie = listed.cookie;
                names.push((String::from_utf8(listed.name.to_vec()).unwrap(), node));
                Fate::Stays
            });
        }
        self.0.let_go(node, Gone::Directory(handle));
        names.retain(|(name, _)| name != "." && name != "..");
        names.sort();
        Ok(names)
    }

    pub(crate) fn names(&self, node: NodeId) -> Vec<String> {
        self.list(node, false).unwrap().into_iter().map(|(name, _)| name).collect()
    }

    pub(crate) fn forget(&self, node: NodeId, count: u64) {
        self.0.let_go(node, Gone::Lookups(count));
    }
}
