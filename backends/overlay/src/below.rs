//! The file system that an overlay is over: it is read, and never changed.

use std::sync::Arc;

use fuse::{
    Access, Attributes, Context, Data, Errno, FileSystem, Gone, Handle, How, Listing, Name, NodeId,
    OpenFlags, Opening, Result, Seek, Sink, Source, Xattr, XattrName,
};
use vm_memory::VolatileSlice;

use crate::bytes::{Bytes, Home};

/// Bytes that are copied at once.
const COPY_LEN: usize = 256 << 10;

/// Most bytes of a path with a name in it, for lists.
const LIST_LEN: usize = 16 << 10;

/// A file there, with one reference to it.
pub(crate) struct Below {
    files: Arc<dyn FileSystem>,
    id: NodeId,
}

/// A file there that is open.
pub(crate) struct BelowOpen {
    of: Arc<Below>,
    handle: Handle,
    is_directory: bool,
}

/// A name in a directory there.
#[derive(Debug)]
pub(crate) struct BelowName {
    pub(crate) name: Vec<u8>,
    pub(crate) ino: u64,
    pub(crate) kind: u8,
    pub(crate) cookie: u64,
}

impl Below {
    pub(crate) fn root(files: Arc<dyn FileSystem>) -> Arc<Self> {
        Arc::new(Self { files, id: NodeId::ROOT })
    }

    pub(crate) fn id(&self) -> NodeId {
        self.id
    }

    /// Looks a name up.
    pub(crate) fn find(&self, name: Name<'_>) -> Result<(Arc<Self>, Attributes)> {
        let entry = self.files.entry(&Context::default(), self.id, name, How::Existing)?;
        let found = Self { files: self.files.clone(), id: entry.node };
        Ok((Arc::new(found), entry.stat.attributes))
    }

    pub(crate) fn attributes(&self) -> Result<Attributes> {
        self.files.attributes(&Context::default(), self.id, None, None).map(|stat| stat.attributes)
    }

    pub(crate) fn read_link(&self) -> Result<Vec<u8>> {
        self.files.read_link(&Context::default(), self.id)
    }

    /// Reads extended attributes; nothing else is asked for.
    pub(crate) fn xattr(&self, act: Xattr<'_>) -> Result<Vec<u8>> {
        match act {
            Xattr::Get(_) | Xattr::List => self.files.xattr(&Context::default(), self.id, act),
            Xattr::Set { .. } | Xattr::Remove(_) => Err(Errno::EROFS),
        }
    }

    /// All extended attributes.
    pub(crate) fn xattrs(&self) -> Result<Vec<(Vec<u8>, Vec<u8>)>> {
        let names = match self.xattr(Xattr::List) {
            Ok(names) => names,
            Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => return Ok(Vec::new()),
            Err(errno) => return Err(errno),
        };
        let mut all = Vec::new();
        for name in names.split_inclusive(|byte| *byte == 0) {
            let name = std::ffi::CStr::from_bytes_with_nul(name).map_err(|_| Errno::EIO)?;
            match self.xattr(Xattr::Get(XattrName::new(name)?)) {
                Ok(value) => all.push((name.to_bytes().to_vec(), value)),
                // It went meanwhile.
                Err(Errno::ENODATA) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(all)
    }

    pub(crate) fn open(self: &Arc<Self>, is_directory: bool) -> Result<BelowOpen> {
        let file = Opening::File { access: Access::Read, flags: OpenFlags::empty() };
        let opening = if is_directory { Opening::Directory } else { file };
        let opened = self.files.open(&Context::default(), self.id, opening)?;
        Ok(BelowOpen { of: self.clone(), handle: opened.handle, is_directory })
    }

    /// Copies the contents, holes left out; returns also what the file was just before.
    pub(crate) fn copy(self: &Arc<Self>, home: &Home) -> Result<(Bytes, Attributes)> {
        let (open, told) = (self.open(false)?, self.attributes()?);
        let size = told.size;
        let mut bytes = home.empty()?;
        let mut buffer = vec![0; usize::try_from(size).map_or(COPY_LEN, |size| size.min(COPY_LEN))];
        let slices = [VolatileSlice::from(&mut buffer[..])];
        let (mut at, mut end) = (0, 0);
        while at < size {
            if at >= end {
                match open.seek(at, Seek::Data) {
                    Ok(data) => at = data,
                    Err(Errno::ENXIO) => break,
                    Err(_) => {}
                }
                end = open.seek(at, Seek::Hole).unwrap_or(size).max(at + 1);
            }
            let wanted = usize::try_from(end - at).map_or(COPY_LEN, |left| left.min(COPY_LEN));
            let count = open.read(at, &Sink::new(&slices, 0, wanted))?;
            if count == 0 {
                break;
            }
            let found = Source::new(&slices, 0, usize::try_from(count).map_err(|_| Errno::EIO)?);
            if bytes.write(at, &found)? < count {
                return Err(Errno::ENOSPC);
            }
            at += count;
        }
        bytes.set_len(size)?;
        Ok((bytes, told))
    }
}

impl BelowOpen {
    fn data(&self, act: Data<'_>) -> Result<u64> {
        self.of.files.data(&Context::default(), self.of.id, self.handle, act)
    }

    pub(crate) fn read(&self, offset: u64, into: &Sink<'_>) -> Result<u64> {
        self.data(Data::Read { offset, into: *into })
    }

    pub(crate) fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        self.data(Data::Seek { offset, what })
    }

    /// Some names behind `cookie`, and none if there are no more.
    pub(crate) fn list(&self, cookie: u64) -> Result<Vec<BelowName>> {
        let mut bytes = Vec::new();
        let mut listing = Listing::new(&mut bytes, LIST_LEN, false);
        self.of.files.list(&Context::default(), self.of.id, self.handle, cookie, &mut listing)?;
        let names = listing.entries().map(|one| BelowName {
            name: one.name.to_vec(),
            ino: one.ino,
            kind: one.kind,
            cookie: one.cookie,
        });
        Ok(names.collect())
    }
}

impl Drop for Below {
    fn drop(&mut self) {
        if self.id != NodeId::ROOT {
            self.files.let_go(self.id, Gone::Lookups(1));
        }
    }
}

impl Drop for BelowOpen {
    fn drop(&mut self) {
        let gone = if self.is_directory { Gone::Directory(self.handle) } else { Gone::File(self.handle) };
        self.of.files.let_go(self.of.id, gone);
    }
}

impl std::fmt::Debug for Below {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Below").field(&self.id).finish()
    }
}

impl std::fmt::Debug for BelowOpen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("BelowOpen").field(&self.of).field(&self.handle).finish()
    }
}
