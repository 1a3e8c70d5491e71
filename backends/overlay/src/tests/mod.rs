//! Tests of the providers, through the seam that guests reach.

mod memory;
mod over;

use std::ffi::CString;

use fuse::{
    Access, Attributes, Context, Creation, Data, Entry, FileSystem, Gone, Handle, How, LinkTarget, Listing,
    Name, NameChange, NodeId, OpenFlags, Opening, RenameHow, Result, SetAttributes, Sink, Source, WriteHow,
    Xattr, XattrName, XattrSet,
};
use vm_memory::VolatileSlice;

/// The calls of a guest's kernel, in short words.
pub(crate) struct Guest<'a>(pub(crate) &'a dyn FileSystem);

/// A name as it is listed: with number and place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) name: String,
    pub(crate) ino: u64,
    pub(crate) cookie: u64,
}

pub(crate) const ROOT: NodeId = NodeId::ROOT;

impl Guest<'_> {
    pub(crate) fn entry(&self, parent: NodeId, name: &str, how: How<'_>) -> Result<Entry> {
        let name = CString::new(name).unwrap();
        self.0.entry(&Context::default(), parent, Name::new(&name).unwrap(), how)
    }

    pub(crate) fn look_up(&self, parent: NodeId, name: &str) -> Result<Entry> {
        self.entry(parent, name, How::Existing)
    }

    pub(crate) fn make_directory(&self, parent: NodeId, name: &str) -> Result<NodeId> {
        self.entry(parent, name, How::Directory { mode: 0o755 }).map(|entry| entry.node)
    }

    pub(crate) fn symlink(&self, parent: NodeId, name: &str, target: &str) -> Result<NodeId> {
        let target = CString::new(target).unwrap();
        let target = LinkTarget::new(&target).unwrap();
        self.entry(parent, name, How::SymbolicLink { target }).map(|entry| entry.node)
    }

    /// A file, open for reading and writing.
    pub(crate) fn create(&self, parent: NodeId, name: Option<&str>) -> Result<(NodeId, Handle)> {
        let creation =
            Creation { mode: 0o644, access: Access::ReadWrite, flags: OpenFlags::empty(), exclusive: false };
        let name = name.map(|name| CString::new(name).unwrap());
        let name = name.as_ref().map(|name| Name::new(name).unwrap());
        let (entry, opened) = self.0.create(&Context::default(), parent, name, creation)?;
        Ok((entry.node, opened.handle))
    }

    /// A file with contents, closed again.
    pub(crate) fn file(&self, parent: NodeId, name: &str, contents: &[u8]) -> Result<NodeId> {
        let (node, handle) = self.create(parent, Some(name))?;
        let count = self.write(node, handle, 0, contents);
        self.0.let_go(node, Gone::File(handle));
        count.map(|_| node)
    }

    pub(crate) fn unlink(&self, parent: NodeId, name: &str) -> Result<()> {
        let name = CString::new(name).unwrap();
        self.0.names(&Context::default(), parent, NameChange::Unlink(Name::new(&name).unwrap()))
    }

    pub(crate) fn remove_directory(&self, parent: NodeId, name: &str) -> Result<()> {
        let name = CString::new(name).unwrap();
        self.0.names(&Context::default(), parent, NameChange::RemoveDirectory(Name::new(&name).unwrap()))
    }

    pub(crate) fn rename(&self, from: (NodeId, &str), to: (NodeId, &str), how: RenameHow) -> Result<()> {
        let (from_name, to_name) = (CString::new(from.1).unwrap(), CString::new(to.1).unwrap());
        let (from_name, to_name) = (Name::new(&from_name).unwrap(), Name::new(&to_name).unwrap());
        let change = NameChange::Rename { from: from_name, to_parent: to.0, to: to_name, how };
        self.0.names(&Context::default(), from.0, change)
    }

    pub(crate) fn open(&self, node: NodeId, access: Access, flags: OpenFlags) -> Result<Handle> {
        let opening = Opening::File { access, flags };
        self.0.open(&Context::default(), node, opening).map(|opened| opened.handle)
    }

    pub(crate) fn write(&self, node: NodeId, handle: Handle, offset: u64, data: &[u8]) -> Result<u64> {
        self.write_how(node, handle, offset, data, WriteHow::empty())
    }

    pub(crate) fn write_how(
        &self,
        node: NodeId,
        handle: Handle,
        offset: u64,
        data: &[u8],
        how: WriteHow,
    ) -> Result<u64> {
        let mut data = data.to_vec();
        let slices = [VolatileSlice::from(&mut data[..])];
        let from = Source::new(&slices, 0, usize::MAX);
        self.0.data(&Context::default(), node, handle, Data::Write { offset, from, how })
    }

    pub(crate) fn read(&self, node: NodeId, handle: Handle, offset: u64, len: usize) -> Result<Vec<u8>> {
        let mut buffer = vec![0xaa; len];
        let slices = [VolatileSlice::from(&mut buffer[..])];
        let into = Sink::new(&slices, 0, usize::MAX);
        let count = self.0.data(&Context::default(), node, handle, Data::Read { offset, into })?;
        buffer.truncate(usize::try_from(count).unwrap());
        Ok(buffer)
    }

    /// All of a file, opened for it.
    pub(crate) fn contents(&self, node: NodeId) -> Result<Vec<u8>> {
        let handle = self.open(node, Access::Read, OpenFlags::empty())?;
        let contents = self.read(node, handle, 0, 1 << 20);
        self.0.let_go(node, Gone::File(handle));
        contents
    }

    pub(crate) fn stat(&self, node: NodeId) -> Result<Attributes> {
        self.0.attributes(&Context::default(), node, None, None).map(|stat| stat.attributes)
    }

    pub(crate) fn change(&self, node: NodeId, change: SetAttributes) -> Result<Attributes> {
        self.0.attributes(&Context::default(), node, None, Some(&change)).map(|stat| stat.attributes)
    }

    pub(crate) fn xattr(&self, node: NodeId, name: &str) -> Result<Vec<u8>> {
        let name = CString::new(name).unwrap();
        self.0.xattr(&Context::default(), node, Xattr::Get(XattrName::new(&name).unwrap()))
    }

    pub(crate) fn set_xattr(&self, node: NodeId, name: &str, value: &[u8]) -> Result<()> {
        let name = CString::new(name).unwrap();
        let act = Xattr::Set { name: XattrName::new(&name).unwrap(), value, how: XattrSet::Any };
        self.0.xattr(&Context::default(), node, act).map(drop)
    }

    pub(crate) fn open_directory(&self, node: NodeId) -> Result<Handle> {
        self.0.open(&Context::default(), node, Opening::Directory).map(|opened| opened.handle)
    }

    /// Names behind a place, as many as fit into `room` bytes, without `.` and `..`.
    pub(crate) fn list(&self, node: NodeId, handle: Handle, cookie: u64, room: usize) -> Result<Vec<Seen>> {
        let mut bytes = Vec::new();
        let mut listing = Listing::new(&mut bytes, room, false);
        self.0.list(&Context::default(), node, handle, cookie, &mut listing)?;
        let seen = listing.entries().map(|listed| {
            let name = String::from_utf8_lossy(listed.name).into_owned();
            Seen { name, ino: listed.ino, cookie: listed.cookie }
        });
        Ok(seen.filter(|seen| seen.name != "." && seen.name != "..").collect())
    }

    /// All names in a directory.
    pub(crate) fn names(&self, node: NodeId) -> Vec<String> {
        let handle = self.open_directory(node).unwrap();
        let mut all = Vec::new();
        let mut cookie = 0;
        loop {
            let some = self.list(node, handle, cookie, 200).unwrap();
            match some.last() {
                Some(last) => cookie = last.cookie,
                None if cookie == 0 => cookie = 2,
                None => break,
            }
            all.extend(some.into_iter().map(|seen| seen.name));
        }
        self.0.let_go(node, Gone::Directory(handle));
        all
    }
}
