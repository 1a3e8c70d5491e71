//! The file system that an overlay is over: it is read, and never changed.

use std::sync::Arc;

use fuse::{
    Access, Attributes, Context, Data, Errno, FileSystem, Held, HeldOpen, Listing, Name, NodeId, OpenFlags,
    Opening, Result, Seek, Sink, Source, Xattr, XattrName,
};
use vm_memory::VolatileSlice;

use crate::bytes::{Bytes, Home};

/// Bytes that are copied at once.
const COPY_LEN: usize = 256 << 10;

/// Most bytes of a path with a name in it, for lists.
const LIST_LEN: usize = 16 << 10;

/// A file there.
#[derive(Debug, Clone)]
pub(crate) struct Below(Arc<Held>);

/// A file there that is open.
#[derive(Debug)]
pub(crate) struct BelowOpen(HeldOpen);

/// A name in a directory there.
#[derive(Debug)]
pub(crate) struct BelowName {
    pub(crate) name: Vec<u8>,
    pub(crate) ino: u64,
    pub(crate) kind: u8,
    pub(crate) cookie: u64,
}

impl Below {
    pub(crate) fn root(files: Arc<dyn FileSystem>) -> Self {
        Self(Arc::new(Held::root(files)))
    }

    pub(crate) fn id(&self) -> NodeId {
        self.0.node()
    }

    /// Looks a name up.
    pub(crate) fn find(&self, name: Name<'_>) -> Result<(Self, Attributes)> {
        let (found, entry) = self.0.find(name)?;
        Ok((Self(Arc::new(found)), entry.stat.attributes))
    }

    pub(crate) fn attributes(&self) -> Result<Attributes> {
        self.0.files().attributes(&Context::default(), self.id(), None, None).map(|stat| stat.attributes)
    }

    pub(crate) fn read_link(&self) -> Result<Vec<u8>> {
        self.0.files().read_link(&Context::default(), self.id())
    }

    /// Reads extended attributes; nothing else is asked for.
    pub(crate) fn xattr(&self, act: Xattr<'_>) -> Result<Vec<u8>> {
        match act {
            Xattr::Get(_) | Xattr::List => self.0.files().xattr(&Context::default(), self.id(), act),
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

    pub(crate) fn open(&self, is_directory: bool) -> Result<BelowOpen> {
        let file = Opening::File { access: Access::Read, flags: OpenFlags::empty() };
        let opening = if is_directory { Opening::Directory } else { file };
        self.0.open(&Context::default(), opening).map(|(open, _)| BelowOpen(open))
    }

    /// Copies the contents, holes left out; returns also what the file was just before.
    pub(crate) fn copy(&self, home: &Home) -> Result<(Bytes, Attributes)> {
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
        self.0.files().data(&Context::default(), self.0.node(), self.0.handle(), act)
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
        self.0.files().list(&Context::default(), self.0.node(), self.0.handle(), cookie, &mut listing)?;
        let names = listing.entries().map(|one| BelowName {
            name: one.name.to_vec(),
            ino: one.ino,
            kind: one.kind,
            cookie: one.cookie,
        });
        Ok(names.collect())
    }
}
