//! A directory of the host as a tar stream, so that every root file system is stored in the same way.
//!
//! Every file is reached from its directory's descriptor; no symbolic link is followed. Names are in byte order, so
//! the same tree gives the same bytes. A directory that is a mount point is read as an empty one; sockets are left
//! out, since a socket is nothing without its process. Owners, modes, times, hard links, devices, holes, and extended
//! attributes of files and directories are kept, but for the host's security labels. Not here: the use of the tar
//! (`layer`).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;

use rustix::fs::{AtFlags, Dev, Dir, FileType, Mode, OFlags, SeekFrom, Stat};

use crate::tar_stream::{MAX_SPARSE_EXTENTS, show};

const BLOCK: u64 = 512;
const BLOCK_LEN: usize = 512;

/// Most directories on the way to a file: each takes a descriptor.
const MAX_DEPTH: usize = 256;

/// Most bytes of names that are held at once: in the listings of the directories on the way, and of files with
/// several names.
const MAX_NAME_BYTES: usize = 64 << 20;

/// Bytes of memory for a name beside its own.
const NAME_COST: usize = 48;

/// Longest list of names, and longest value, of a file's extended attributes (Linux `XATTR_LIST_MAX`, `XATTR_SIZE_MAX`).
const MAX_XATTR_LEN: usize = 64 << 10;

/// A host's security labels, which mean nothing in a guest.
const LABELS: [&str; 3] = ["security.selinux", "security.ima", "security.evm"];

/// The tar of a directory, as it is read.
pub(crate) struct Walk {
    root: Option<OwnedFd>,
    device: Dev,
    way: Vec<Level>,
    /// The first name of each file that has several.
    links: HashMap<(Dev, u64), Vec<u8>>,
    held_bytes: usize,
    headers: Vec<u8>,
    headers_at: usize,
    data: Option<Data>,
    ended: bool,
}

/// A directory whose entries are being read.
struct Level {
    directory: OwnedFd,
    path: Vec<u8>,
    /// Last name first.
    names: Vec<Box<[u8]>>,
}

/// The contents of the file whose header was last.
struct Data {
    file: File,
    path: Vec<u8>,
    /// Start and length of the pieces that are left, last piece first.
    pieces: Vec<(u64, u64)>,
    padding: u64,
}

impl Walk {
    /// The tar of this directory, with the directory itself as the root.
    pub(crate) fn new(root: OwnedFd) -> io::Result<Self> {
        let device = rustix::fs::fstat(&root)?.st_dev;
        Ok(Self {
            root: Some(root),
            device,
            way: Vec::new(),
            links: HashMap::new(),
            held_bytes: 0,
            headers: Vec::new(),
            headers_at: 0,
            data: None,
            ended: false,
        })
    }

    /// Makes the headers of the next entry; returns whether there is one.
    fn advance(&mut self) -> io::Result<bool> {
        if let Some(root) = self.root.take() {
            self.directory(root, Vec::new())?;
            return Ok(true);
        }
        while let Some(level) = self.way.last_mut() {
            let Some(name) = level.names.pop() else {
                self.way.pop();
                continue;
            };
            self.held_bytes = self.held_bytes.saturating_sub(NAME_COST + name.len());
            let path = match level.path.is_empty() {
                true => name.to_vec(),
                false => [&level.path, b"/".as_slice(), &name].concat(),
            };
            let entry = self.entry(&name, &path);
            if entry.map_err(|error| named(&path, &error))? {
                return Ok(true);
            }
        }
        if std::mem::replace(&mut self.ended, true) {
            return Ok(false);
        }
        // POSIX.1-2017 pax: "at the end of the archive file there shall be two 512-octet logical records filled with
        // binary zeros"
        self.queue(vec![0; 2 * BLOCK_LEN]);
        Ok(true)
    }

    /// Makes an entry's headers; returns whether the entry belongs into the tar.
    fn entry(&mut self, name: &[u8], path: &[u8]) -> io::Result<bool> {
        let Some(level) = self.way.last() else { return Ok(false) };
        let stat = rustix::fs::statat(&level.directory, name, AtFlags::SYMLINK_NOFOLLOW)?;
        let kind = FileType::from_raw_mode(stat.st_mode);
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match kind {
            FileType::Directory => {
                let flags = flags | OFlags::DIRECTORY;
                let directory = rustix::fs::openat(&level.directory, name, flags, Mode::empty())?;
                self.directory(directory, path.to_vec())?;
                return Ok(true);
            }
            FileType::Socket => return Ok(false),
            _ => {}
        }
        if self.is_linked(&stat, path)? {
            return Ok(true);
        }
        let Some(level) = self.way.last() else { return Ok(false) };
        match kind {
            FileType::RegularFile => {
                // The entry may have been replaced since; opening a pipe must not wait.
                let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
                let file = rustix::fs::openat(&level.directory, name, flags, Mode::empty())?;
                self.file(file, path)?;
            }
            FileType::Symlink => {
                let target = rustix::fs::readlinkat(&level.directory, name, Vec::new())?.into_bytes();
                let mut entry = Headers::new(&stat, tar::EntryType::Symlink, path);
                entry.link(&target);
                self.queue(entry.finish(0)?);
            }
            FileType::Fifo => self.queue(Headers::new(&stat, tar::EntryType::Fifo, path).finish(0)?),
            FileType::CharacterDevice | FileType::BlockDevice => {
                let kind = match kind {
                    FileType::CharacterDevice => tar::EntryType::Char,
                    _ => tar::EntryType::Block,
                };
                let mut entry = Headers::new(&stat, kind, path);
                entry.header.set_device_major(rustix::fs::major(stat.st_rdev))?;
                entry.header.set_device_minor(rustix::fs::minor(stat.st_rdev))?;
                self.queue(entry.finish(0)?);
            }
            _ => return Err(io::Error::other("has an unknown type")),
        }
        Ok(true)
    }

    /// Whether the file was there before under another name, to which this one then becomes a link.
    fn is_linked(&mut self, stat: &Stat, path: &[u8]) -> io::Result<bool> {
        if stat.st_nlink < 2 {
            return Ok(false);
        }
        if let Some(first) = self.links.get(&(stat.st_dev, stat.st_ino)) {
            let mut entry = Headers::new(stat, tar::EntryType::Link, path);
            entry.link(first);
            let headers = entry.finish(0)?;
            self.queue(headers);
            return Ok(true);
        }
        self.hold(path.len())?;
        self.links.insert((stat.st_dev, stat.st_ino), path.to_vec());
        Ok(false)
    }

    fn directory(&mut self, directory: OwnedFd, path: Vec<u8>) -> io::Result<()> {
        let stat = rustix::fs::fstat(&directory)?;
        let mut entry = Headers::new(&stat, tar::EntryType::Directory, &[path.as_slice(), b"/"].concat());
        entry.xattrs(&directory)?;
        let headers = entry.finish(0)?;
        self.queue(headers);
        // Only directories are compared: a file of an overlay has the device of its layer.
        if stat.st_dev != self.device {
            return Ok(());
        }
        if self.way.len() == MAX_DEPTH {
            return Err(io::Error::other(format!("is below more than {MAX_DEPTH} directories")));
        }
        let mut names: Vec<Box<[u8]>> = Vec::new();
        for entry in Dir::read_from(&directory)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if !matches!(name, b"." | b"..") {
                self.hold(name.len())?;
                names.push(name.into());
            }
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        self.way.push(Level { directory, path, names });
        Ok(())
    }

    fn file(&mut self, file: OwnedFd, path: &[u8]) -> io::Result<()> {
        let stat = rustix::fs::fstat(&file)?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(io::Error::other("changed while it was read"));
        }
        let size = u64::try_from(stat.st_size).map_err(io::Error::other)?;
        let mut entry = Headers::new(&stat, tar::EntryType::Regular, path);
        entry.xattrs(&file)?;
        let file = File::from(file);
        let holes = u64::try_from(stat.st_blocks).is_ok_and(|blocks| blocks * BLOCK < size);
        let (headers, mut pieces, stored) = match if holes { extents(&file, size)? } else { None } {
            Some(pieces) => {
                let (map, stored) = sparse_map(&pieces);
                entry.sparse(path, size);
                let mut headers = entry.finish(map.len() as u64 + stored)?;
                headers.extend_from_slice(&map);
                (headers, pieces, stored)
            }
            None => (entry.finish(size)?, vec![(0, size)], size),
        };
        self.queue(headers);
        pieces.reverse();
        let padding = stored.next_multiple_of(BLOCK) - stored;
        self.data = Some(Data { file, path: path.to_vec(), pieces, padding });
        Ok(())
    }

    fn hold(&mut self, bytes: usize) -> io::Result<()> {
        self.held_bytes += NAME_COST + bytes;
        if self.held_bytes > MAX_NAME_BYTES {
            return Err(io::Error::other(format!("more than {MAX_NAME_BYTES} bytes of names at once")));
        }
        Ok(())
    }

    fn queue(&mut self, headers: Vec<u8>) {
        self.headers = headers;
        self.headers_at = 0;
    }
}

impl Read for Walk {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        loop {
            let headers = self.headers.get(self.headers_at..).unwrap_or_default();
            if !headers.is_empty() {
                let mut rest = headers;
                let len = rest.read(buffer)?;
                self.headers_at += len;
                return Ok(len);
            }
            if let Some(data) = &mut self.data {
                let len = data.read(buffer).map_err(|error| named(&data.path, &error))?;
                if len > 0 {
                    return Ok(len);
                }
                self.data = None;
            }
            if !self.advance()? {
                return Ok(0);
            }
        }
    }
}

impl Data {
    /// Returns 0 at the end.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some((at, left)) = self.pieces.last_mut() {
            let want = buffer.len().min(usize::try_from(*left).unwrap_or(usize::MAX));
            if want == 0 {
                self.pieces.pop();
                continue;
            }
            let len = self.file.read_at(buffer.get_mut(..want).unwrap_or_default(), *at)?;
            if len == 0 {
                return Err(io::Error::other("became shorter while it was read"));
            }
            *at += len as u64;
            *left -= len as u64;
            return Ok(len);
        }
        let len = buffer.len().min(usize::try_from(self.padding).unwrap_or(usize::MAX));
        buffer.get_mut(..len).unwrap_or_default().fill(0);
        self.padding -= len as u64;
        Ok(len)
    }
}

/// The headers of one entry.
struct Headers {
    header: tar::Header,
    records: Vec<(String, Vec<u8>)>,
}

impl Headers {
    fn new(stat: &Stat, kind: tar::EntryType, path: &[u8]) -> Self {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(kind);
        #[allow(clippy::useless_conversion, reason = "narrower on some systems")]
        header.set_mode(u32::from(stat.st_mode) & 0o7777);
        header.set_uid(u64::from(stat.st_uid));
        header.set_gid(u64::from(stat.st_gid));
        header.set_mtime(stat.st_mtime.cast_unsigned());
        let mut headers = Self { header, records: Vec::new() };
        headers.name(path);
        // Before 1970 fractions would count backwards, so those times are whole seconds.
        if stat.st_mtime >= 0 && stat.st_mtime_nsec != 0 {
            let time = format!("{}.{:09}", stat.st_mtime, stat.st_mtime_nsec);
            headers.records.push(("mtime".to_owned(), time.into_bytes()));
        }
        headers
    }

    fn name(&mut self, path: &[u8]) {
        match self.header.as_old_mut().name.get_mut(..path.len()) {
            Some(name) => name.copy_from_slice(path),
            None => self.records.push(("path".to_owned(), path.to_vec())),
        }
    }

    fn link(&mut self, target: &[u8]) {
        match self.header.as_old_mut().linkname.get_mut(..target.len()) {
            Some(name) => name.copy_from_slice(target),
            None => self.records.push(("linkpath".to_owned(), target.to_vec())),
        }
    }

    /// GNU tar manual, "Storing Sparse Files", PAX format version 1.0.
    fn sparse(&mut self, path: &[u8], size: u64) {
        let records = [
            ("GNU.sparse.major", b"1".to_vec()),
            ("GNU.sparse.minor", b"0".to_vec()),
            ("GNU.sparse.name", path.to_vec()),
            ("GNU.sparse.realsize", size.to_string().into_bytes()),
        ];
        self.records.extend(records.map(|(key, value)| (key.to_owned(), value)));
    }

    fn xattrs(&mut self, file: &OwnedFd) -> io::Result<()> {
        match rustix::fs::flistxattr_query(file) {
            // The file system has none.
            Ok(0) | Err(rustix::io::Errno::NOTSUP) => return Ok(()),
            other => drop(other?),
        }
        let mut list = vec![0; MAX_XATTR_LEN];
        let len = rustix::fs::flistxattr(file, &mut list)?;
        let mut names: Vec<&[u8]> = list.get(..len).unwrap_or_default().split(|byte| *byte == 0).collect();
        names.sort_unstable();
        for name in names.into_iter().filter(|name| !name.is_empty()) {
            let text = std::str::from_utf8(name).ok().filter(|name| !name.contains('='));
            let Some(text) = text else {
                let name = show(name);
                return Err(io::Error::other(format!("the name of its attribute {name:?} fits no tar")));
            };
            if LABELS.contains(&text) {
                continue;
            }
            let mut value = vec![0; MAX_XATTR_LEN];
            let len = rustix::fs::fgetxattr(file, text, &mut value)?;
            value.truncate(len);
            self.records.push((format!("SCHILY.xattr.{text}"), value));
        }
        Ok(())
    }

    /// The header of an entry with this many bytes of data, after its extended headers.
    fn finish(mut self, size: u64) -> io::Result<Vec<u8>> {
        self.header.set_size(size);
        self.header.set_cksum();
        let mut tar = tar::Builder::new(Vec::new());
        if !self.records.is_empty() {
            tar.append_pax_extensions(
                self.records.iter().map(|(key, value)| (key.as_str(), value.as_slice())),
            )?;
        }
        let mut bytes = std::mem::take(tar.get_mut());
        bytes.extend_from_slice(self.header.as_bytes());
        Ok(bytes)
    }
}

/// The extents of a file's data, unless it has no holes, or too many for a tar.
fn extents(file: &File, size: u64) -> io::Result<Option<Vec<(u64, u64)>>> {
    let mut pieces = Vec::new();
    let mut at = 0;
    while at < size {
        let start = match rustix::fs::seek(file, SeekFrom::Data(at)) {
            Ok(start) => start.min(size),
            // lseek(2): "ENXIO … there are no more data"
            Err(rustix::io::Errno::NXIO) => size,
            // The file system cannot tell.
            Err(rustix::io::Errno::INVAL) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        };
        if start < size {
            let end = rustix::fs::seek(file, SeekFrom::Hole(start))?.min(size);
            pieces.push((start, end.saturating_sub(start)));
            at = end.max(start + 1);
        } else {
            at = size;
        }
        if pieces.len() >= MAX_SPARSE_EXTENTS {
            return Ok(None);
        }
    }
    let whole = matches!(pieces.as_slice(), [(0, len)] if *len == size);
    // An empty piece at the end tells the size.
    if pieces.last().is_none_or(|(start, len)| start + len < size) {
        pieces.push((size, 0));
    }
    Ok((!whole).then_some(pieces))
}

/// The map of PAX sparse format 1.0, and the length of all pieces.
fn sparse_map(pieces: &[(u64, u64)]) -> (Vec<u8>, u64) {
    let mut map = format!("{}\n", pieces.len());
    for (start, len) in pieces {
        map.push_str(&format!("{start}\n{len}\n"));
    }
    let mut map = map.into_bytes();
    map.resize(map.len().next_multiple_of(BLOCK_LEN), 0);
    (map, pieces.iter().map(|(_, len)| len).sum())
}

/// The error with the file's name in front.
fn named(path: &[u8], error: &io::Error) -> io::Error {
    io::Error::other(format!("{}: {error}", show(path)))
}
