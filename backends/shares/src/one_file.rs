//! One file of a directory, whatever file has its name: a file system whose root is that file.
//!
//! A guest's kernel mounts it on a file, and from then on asks for that node alone, never again for a name. So the node
//! stands for the name here: editors write a new file and give it the name of the old one, and a program of the guest
//! that has the old one open reads on in the new one. A file that lost its name is read on only while no other has the name.

use std::collections::HashMap;
use std::ffi::CString;
use std::sync::{Arc, Mutex, RwLock};
use std::time::Duration;

use fuse::{
    Cache, Context, Creation, Data, Entry, Errno, FileSystem, Gone, Handle, Held, HeldOpen, How, Listing,
    Name, NameChange, NodeId, OpenFlags, Opened, Opening, Result, SetAttributes, Stat, Statistics, Sync,
    Xattr,
};

use crate::nodes::{alone, lock, shared};
use crate::sys::Kind;

/// Facts that hold no longer than this may be another file's by then.
const SHORT: Duration = Duration::from_secs(1);

/// See the module.
pub struct OneFile {
    files: Arc<dyn FileSystem>,
    name: CString,
    ino: u64,
    /// The file that had the name when somebody last looked.
    current: Mutex<Option<Arc<Held>>>,
    open: RwLock<HashMap<Handle, Arc<HeldOpen>>>,
    /// The file whose pages the kernel may have.
    last_opened: Mutex<Option<NodeId>>,
}

impl std::fmt::Debug for OneFile {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OneFile").field("name", &self.name).finish_non_exhaustive()
    }
}

impl OneFile {
    /// The file that `name` in the root directory of `files` leads to, which need not be there yet. Programs see it under the
    /// number `ino`: what is in that directory has numbers of another file system.
    pub fn new(files: Box<dyn FileSystem>, name: CString, ino: u64) -> Result<Self> {
        Name::new(&name)?;
        Ok(Self {
            files: files.into(),
            name,
            ino,
            current: Mutex::default(),
            open: RwLock::default(),
            last_opened: Mutex::default(),
        })
    }

    /// The file that has the name.
    fn find(&self) -> Result<Arc<Held>> {
        let (found, entry) = Held::root(self.files.clone()).find(Name::new(&self.name)?)?;
        // A kernel that is told of another type takes the node for broken, and never asks again.
        if Kind::of_mode(entry.stat.attributes.mode) != Kind::File {
            return Err(Errno::ENOENT);
        }
        let mut current = lock(&self.current);
        let same = current.as_ref().filter(|current| current.node() == found.node()).cloned();
        let file = same.unwrap_or_else(|| Arc::new(found));
        let before = current.replace(file.clone());
        drop(current);
        drop(before);
        Ok(file)
    }

    /// The open file of a handle: of the file that has the name now.
    fn opened(&self, context: &Context<'_>, handle: Handle) -> Result<Arc<HeldOpen>> {
        let open = shared(&self.open).get(&handle).cloned().ok_or(Errno::EBADF)?;
        match self.find() {
            Ok(file) if file.node() != open.node() => {
                let (again, _) = file.open(context, again(open.opening()))?;
                let again = Arc::new(again);
                let before = match alone(&self.open).get_mut(&handle) {
                    Some(open) => std::mem::replace(open, again.clone()),
                    None => return Err(Errno::EBADF),
                };
                drop(before);
                Ok(again)
            }
            Ok(_) | Err(_) => Ok(open),
        }
    }

    fn tell(&self, stat: Stat) -> Stat {
        let mut told = stat;
        (told.attributes.ino, told.attributes.submount) = (self.ino, false);
        // The kernel would cut what it reads of the next one to the size of this one.
        if told.valid <= SHORT {
            told.valid = Duration::ZERO;
        }
        told
    }

    fn is_root(node: NodeId) -> Result<()> {
        if node == NodeId::ROOT { Ok(()) } else { Err(Errno::ESTALE) }
    }
}

/// An opening once more, without its acts on the file, which are done.
fn again(opening: Opening) -> Opening {
    match opening {
        Opening::File { access, flags } => Opening::File {
            access,
            flags: flags.difference(OpenFlags::TRUNCATE | OpenFlags::KILL_PRIVILEGES),
        },
        Opening::Directory => Opening::Directory,
    }
}

impl FileSystem for OneFile {
    fn entry(&self, _: &Context<'_>, parent: NodeId, _: Name<'_>, _: How<'_>) -> Result<Entry> {
        Self::is_root(parent).and(Err(Errno::ENOTDIR))
    }

    fn names(&self, _: &Context<'_>, parent: NodeId, _: NameChange<'_>) -> Result<()> {
        Self::is_root(parent).and(Err(Errno::ENOTDIR))
    }

    fn attributes(
        &self,
        context: &Context<'_>,
        node: NodeId,
        handle: Option<Handle>,
        change: Option<&SetAttributes>,
    ) -> Result<Stat> {
        Self::is_root(node)?;
        let stat = match handle {
            Some(handle) => {
                let open = self.opened(context, handle)?;
                self.files.attributes(context, open.node(), Some(open.handle()), change)?
            }
            None => self.files.attributes(context, self.find()?.node(), None, change)?,
        };
        Ok(self.tell(stat))
    }

    fn open(&self, context: &Context<'_>, node: NodeId, opening: Opening) -> Result<Opened> {
        Self::is_root(node)?;
        if let Opening::Directory = opening {
            return Err(Errno::ENOTDIR);
        }
        let file = self.find()?;
        let (open, mut opened) = file.open(context, opening)?;
        if lock(&self.last_opened).replace(file.node()) != Some(file.node()) {
            opened.cache.remove(Cache::KEEP);
        }
        alone(&self.open).insert(opened.handle, Arc::new(open));
        Ok(opened)
    }

    fn create(
        &self,
        _: &Context<'_>,
        parent: NodeId,
        _: Option<Name<'_>>,
        _: Creation,
    ) -> Result<(Entry, Opened)> {
        Self::is_root(parent).and(Err(Errno::ENOTDIR))
    }

    fn data(&self, context: &Context<'_>, node: NodeId, handle: Handle, act: Data<'_>) -> Result<u64> {
        Self::is_root(node)?;
        let open = self.opened(context, handle)?;
        let data = |act| self.files.data(context, open.node(), open.handle(), act);
        match act {
            Data::Copy { offset, to_node, to, to_offset, len } => {
                Self::is_root(to_node)?;
                let to = self.opened(context, to)?;
                data(Data::Copy { offset, to_node: to.node(), to: to.handle(), to_offset, len })
            }
            act => data(act),
        }
    }

    fn list(&self, _: &Context<'_>, node: NodeId, _: Handle, _: u64, _: &mut Listing<'_>) -> Result<()> {
        Self::is_root(node).and(Err(Errno::ENOTDIR))
    }

    fn read_link(&self, _: &Context<'_>, node: NodeId) -> Result<Vec<u8>> {
        Self::is_root(node).and(Err(Errno::EINVAL))
    }

    fn xattr(&self, context: &Context<'_>, node: NodeId, act: Xattr<'_>) -> Result<Vec<u8>> {
        Self::is_root(node)?;
        self.files.xattr(context, self.find()?.node(), act)
    }

    fn statistics(&self, context: &Context<'_>, node: NodeId) -> Result<Statistics> {
        Self::is_root(node)?;
        self.files.statistics(context, NodeId::ROOT)
    }

    fn sync(&self, context: &Context<'_>, node: NodeId, what: Sync) -> Result<()> {
        Self::is_root(node)?;
        match what {
            Sync::File { handle, data_only } => {
                let open = self.opened(context, handle)?;
                let what = Sync::File { handle: open.handle(), data_only };
                self.files.sync(context, open.node(), what)
            }
            Sync::Directory { .. } => Err(Errno::EBADF),
            Sync::All => self.files.sync(context, NodeId::ROOT, what),
        }
    }

    fn let_go(&self, node: NodeId, gone: Gone) {
        match gone {
            Gone::File(handle) if node == NodeId::ROOT => {
                let open = alone(&self.open).remove(&handle);
                drop(open);
            }
            Gone::Everything => {
                let open = std::mem::take(&mut *alone(&self.open));
                drop(open);
                let current = lock(&self.current).take();
                drop(current);
                *lock(&self.last_opened) = None;
                self.files.let_go(NodeId::ROOT, gone);
            }
            Gone::File(_) | Gone::Directory(_) | Gone::Lookups(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use fuse::{Access, RenameHow};
    use overlay::Files;

    use super::*;

    const ASKER: Context<'static> = Context { uid: 5, gid: 6, pid: 1, extensions: fuse::Extensions::NONE };

    const READING: Opening = Opening::File { access: Access::Read, flags: OpenFlags::empty() };

    /// A file called `a`, and another called `b`.
    fn one() -> OneFile {
        let memory = Files::in_memory(overlay::Options { limit: 1 << 20, mode: 0o755, uid: 0, gid: 0 });
        let one = OneFile::new(Box::new(memory.unwrap()), c"a".to_owned(), 77).unwrap();
        for name in [c"a", c"b"] {
            let name = Name::new(name).unwrap();
            let how = How::Node { mode: 0o100_644, device: fuse::Device::default() };
            one.files.entry(&ASKER, NodeId::ROOT, name, how).unwrap();
        }
        one
    }

    /// Gives the name to the other file.
    fn replace(one: &OneFile) {
        let (from, to) = (Name::new(c"b").unwrap(), Name::new(c"a").unwrap());
        let change = NameChange::Rename { from, to_parent: NodeId::ROOT, to, how: RenameHow::Replace };
        one.files.names(&ASKER, NodeId::ROOT, change).unwrap();
    }

    #[test]
    fn pages_are_kept_as_long_as_the_name_leads_to_the_same_file() {
        let one = one();
        let keeps = || {
            let opened = one.open(&ASKER, NodeId::ROOT, READING).unwrap();
            one.let_go(NodeId::ROOT, Gone::File(opened.handle));
            opened.cache.contains(Cache::KEEP)
        };
        assert_eq!([keeps(), keeps(), keeps()], [false, true, true]);
        replace(&one);
        assert_eq!([keeps(), keeps()], [false, true]);
        one.let_go(NodeId::ROOT, Gone::Everything);
        assert_eq!([keeps(), keeps()], [false, true]);
    }

    #[test]
    fn it_is_a_file_and_nothing_else() {
        let one = one();
        let told = one.attributes(&ASKER, NodeId::ROOT, None, None).unwrap().attributes;
        assert_eq!((told.ino, told.mode, told.submount), (77, 0o100_644, false));
        let name = Name::new(c"b").unwrap();
        let asked = one.entry(&ASKER, NodeId::ROOT, name, How::Existing);
        assert_eq!(asked.err(), Some(Errno::ENOTDIR));
        let unlinked = one.names(&ASKER, NodeId::ROOT, NameChange::Unlink(name));
        assert_eq!(unlinked, Err(Errno::ENOTDIR));
        let opened = one.open(&ASKER, NodeId::ROOT, Opening::Directory);
        assert_eq!(opened.err(), Some(Errno::ENOTDIR));
        for node in [0, 2, 77, u64::MAX].map(NodeId) {
            assert_eq!(one.attributes(&ASKER, node, None, None).err(), Some(Errno::ESTALE));
            assert_eq!(one.open(&ASKER, node, READING).err(), Some(Errno::ESTALE));
            one.let_go(node, Gone::Lookups(u64::MAX));
        }
        let sync = Sync::File { handle: Handle(99), data_only: false };
        assert_eq!(one.sync(&ASKER, NodeId::ROOT, sync), Err(Errno::EBADF));
        for name in [c"..", c"a/b", c""] {
            let memory = Files::in_memory(overlay::Options { limit: 1 << 20, mode: 0o755, uid: 0, gid: 0 });
            assert!(OneFile::new(Box::new(memory.unwrap()), name.to_owned(), 2).is_err());
        }
    }
}
