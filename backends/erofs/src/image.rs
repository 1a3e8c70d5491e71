//! Reads this crate's images: names, inodes and contents, one at a time, from images of any length.
//!
//! An image may have been damaged since it was written, so every place and length is checked against the image's end,
//! and no order is taken for granted. Only the parts of the format that [`crate::Writer`] writes are understood. Not
//! here: several images as one tree, and whole images in memory (`reader`).

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;

use crate::directory::TYPE_DIR;
use crate::format::{self, DIRENT_SIZE, INODE_SIZE, NID_UNIT, NULL_BLOCK, SUPER_OFFSET};
use crate::writer::MAX_FILE_SIZE;
use crate::{Attributes, BLOCK_SIZE, Extent, MAX_SYMLINK_LEN, Special, Timestamp, xattr};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Why an image cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReadError {
    /// The system refused to read the image.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// The image is damaged, or this crate did not write it.
    #[error("a damaged image: {0}")]
    Damaged(&'static str),
}

type Result<T> = std::result::Result<T, ReadError>;

/// A source of bytes with a fixed length.
pub trait Input {
    /// Fills `buffer` from `offset` on.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
}

impl Input for File {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
}

impl<I: Input + ?Sized> Input for &I {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        (**self).read_exact_at(buffer, offset)
    }
}

impl Input for [u8] {
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).ok().and_then(|offset| self.get(offset..));
        let bytes = start.and_then(|rest| rest.get(..buffer.len())).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

/// An open image.
#[derive(Debug)]
pub struct Image<I> {
    input: I,
    len: u64,
    root: u64,
}

/// The kind of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum InodeKind {
    /// Directory.
    Dir,
    /// Regular file.
    File,
    /// Symbolic link.
    Symlink,
    /// Device, pipe or socket.
    Special(Special),
}

/// An inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// The inode's number: the same for all names of one file.
    pub nid: u64,
    /// The inode's kind.
    pub kind: InodeKind,
    /// Mode, owner, time, extended attributes.
    pub attributes: Attributes,
    /// Length of the contents in bytes.
    pub size: u64,
    layout: Layout,
    /// The end of the extended attributes, where the inode's tail or block map starts.
    tail: u64,
}

/// A name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DirEntry {
    /// The name.
    pub name: Vec<u8>,
    /// Number of the name's inode.
    pub nid: u64,
    /// Whether the inode is a directory.
    pub is_dir: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Layout {
    Plain(u64),
    Inline(u64),
    Chunks(u32),
}

impl<I: Input> Image<I> {
    /// Opens an image of `len` bytes.
    pub fn open(input: I, len: u64) -> Result<Self> {
        let mut block = [0; BLOCK_SIZE];
        input.read_exact_at(&mut block, 0)?;
        let at = |offset: usize| u32_at(&block, SUPER_OFFSET + offset);
        if at(0) != format::MAGIC || block.get(SUPER_OFFSET + 12) != Some(&format::BLOCK_BITS) {
            return Err(ReadError::Damaged("no superblock"));
        }
        let mut covered = block;
        covered[SUPER_OFFSET + 4..SUPER_OFFSET + 8].fill(0);
        if format::crc32c(&covered[SUPER_OFFSET..]) != at(4) || at(80) & !format::INCOMPAT_CHUNKED_FILE != 0 {
            return Err(ReadError::Damaged("its superblock"));
        }
        if u64::from(at(36)) * BLOCK > len {
            return Err(ReadError::Damaged("it is cut short"));
        }
        Ok(Self { input, len, root: u64::from(u16_at(&block, SUPER_OFFSET + 14)) })
    }

    /// The root directory.
    pub fn root(&self) -> Result<Inode> {
        let root = self.inode(self.root)?;
        if root.kind == InodeKind::Dir { Ok(root) } else { Err(ReadError::Damaged("its root")) }
    }

    /// The inode whose number a directory contains.
    pub fn inode(&self, nid: u64) -> Result<Inode> {
        let start = nid.checked_mul(NID_UNIT).ok_or(ReadError::Damaged("an inode's number"))?;
        let mut inode = [0; INODE_SIZE];
        self.read(&mut inode, start)?;
        let (format, union) = (u16_at(&inode, 0), u32_at(&inode, 16));
        let (attributes, tail) = self.attributes(&inode, start)?;
        let size = u64_at(&inode, 8);
        if size > MAX_FILE_SIZE {
            return Err(ReadError::Damaged("an inode's size"));
        }
        let st_mode = u16_at(&inode, 4);
        let device = || {
            let (major, minor) = (union >> 8 & 0xfff, union & 0xff | union >> 12 & !0xff);
            (major, minor)
        };
        let kind = match st_mode & 0o170_000 {
            format::S_IFDIR => InodeKind::Dir,
            format::S_IFREG => InodeKind::File,
            format::S_IFLNK => InodeKind::Symlink,
            format::S_IFCHR => {
                let (major, minor) = device();
                InodeKind::Special(Special::CharDevice { major, minor })
            }
            format::S_IFBLK => {
                let (major, minor) = device();
                InodeKind::Special(Special::BlockDevice { major, minor })
            }
            format::S_IFIFO => InodeKind::Special(Special::Fifo),
            format::S_IFSOCK => InodeKind::Special(Special::Socket),
            _ => return Err(ReadError::Damaged("an inode's type")),
        };
        let layout = match format {
            1 => Layout::Plain(u64::from(union)),
            5 => Layout::Inline(u64::from(union)),
            9 => Layout::Chunks(union & 0x1f),
            _ => return Err(ReadError::Damaged("an inode's layout")),
        };
        Ok(Inode { nid, kind, attributes, size, layout, tail })
    }

    /// The inode that has `name` in a directory; `None` if there is no such name.
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Option<Inode>> {
        if dir.kind != InodeKind::Dir {
            return Err(ReadError::Damaged("a directory"));
        }
        // Names are in order over all blocks: the right block is the last one that does not start with a later name.
        let blocks = dir.size.div_ceil(BLOCK);
        let (mut low, mut high) = (0, blocks);
        while low + 1 < high {
            let middle = low + (high - low) / 2;
            let block = self.directory_block(dir, middle)?;
            match names(&block)?.first() {
                Some((first, ..)) if *first <= name => low = middle,
                _ => high = middle,
            }
        }
        if blocks == 0 {
            return Ok(None);
        }
        let block = self.directory_block(dir, low)?;
        let found = names(&block)?.into_iter().find(|(found, ..)| *found == name);
        found.map(|(_, nid, _)| self.inode(nid)).transpose()
    }

    /// The entries in a block of a directory, except the directory itself and its parent; `None` if there is no such
    /// block.
    pub fn entries(&self, dir: &Inode, block: u64) -> Result<Option<Vec<DirEntry>>> {
        if block >= dir.size.div_ceil(BLOCK) {
            return Ok(None);
        }
        let block = self.directory_block(dir, block)?;
        let names = names(&block)?.into_iter().filter(|(name, ..)| !matches!(*name, b"." | b".."));
        Ok(Some(names.map(|(name, nid, is_dir)| DirEntry { name: name.to_vec(), nid, is_dir }).collect()))
    }

    /// The target of a symbolic link.
    pub fn target(&self, link: &Inode) -> Result<Vec<u8>> {
        if link.size > MAX_SYMLINK_LEN as u64 {
            return Err(ReadError::Damaged("a symbolic link"));
        }
        let mut target = Vec::new();
        self.data(link).read_to_end(&mut target)?;
        Ok(target)
    }

    /// The parts of a file that have data; `None` if the whole file has.
    pub fn extents(&self, file: &Inode) -> Result<Option<Vec<Extent>>> {
        let Layout::Chunks(bits) = file.layout else { return Ok(None) };
        let chunk = BLOCK << bits;
        let mut extents: Vec<Extent> = Vec::new();
        for index in 0..file.size.div_ceil(chunk) {
            if self.chunk(file, index)? == NULL_BLOCK {
                continue;
            }
            let offset = index * chunk;
            let len = chunk.min(file.size - offset);
            match extents.last_mut() {
                Some(last) if last.offset + last.len == offset => last.len += len,
                _ => extents.push(Extent { offset, len }),
            }
        }
        Ok(Some(extents))
    }

    /// A file's contents, with zeroes for its holes.
    pub fn data<'a>(&'a self, file: &'a Inode) -> Data<'a, I> {
        Data { image: self, file, at: 0 }
    }

    fn directory_block(&self, dir: &Inode, index: u64) -> Result<Vec<u8>> {
        if dir.kind != InodeKind::Dir || matches!(dir.layout, Layout::Chunks(_)) || dir.size > self.len {
            return Err(ReadError::Damaged("a directory"));
        }
        let start = index * BLOCK;
        let len = usize::try_from(dir.size.saturating_sub(start).min(BLOCK)).unwrap_or(BLOCK_SIZE);
        let mut block = vec![0; len];
        self.contents(dir, start, &mut block)?;
        Ok(block)
    }

    /// Fills a buffer with an inode's contents from `at` on; the buffer must not cross a chunk.
    fn contents(&self, inode: &Inode, at: u64, buffer: &mut [u8]) -> Result<()> {
        let place = match inode.layout {
            Layout::Plain(block) => block * BLOCK + at,
            Layout::Inline(_) if at >= inode.size / BLOCK * BLOCK => inode.tail + at % BLOCK,
            Layout::Inline(block) => block * BLOCK + at,
            Layout::Chunks(bits) => {
                let chunk = BLOCK << bits;
                let block = self.chunk(inode, at / chunk)?;
                if block == NULL_BLOCK {
                    buffer.fill(0);
                    return Ok(());
                }
                u64::from(block) * BLOCK + at % chunk
            }
        };
        self.read(buffer, place)
    }

    fn chunk(&self, file: &Inode, index: u64) -> Result<u32> {
        let mut entry = [0; 4];
        self.read(&mut entry, file.tail + index * 4)?;
        Ok(u32::from_le_bytes(entry))
    }

    /// Mode, owner, time and extended attributes of the inode at `start`, and the end of the attributes.
    fn attributes(&self, inode: &[u8; INODE_SIZE], start: u64) -> Result<(Attributes, u64)> {
        let units = usize::from(u16_at(inode, 2));
        let len = if units == 0 { 0 } else { xattr::HEADER_SIZE + 4 * (units - 1) };
        let mut bytes = vec![0; len];
        let begin = start + INODE_SIZE as u64;
        self.read(&mut bytes, begin)?;
        let attributes = Attributes {
            mode: u16_at(inode, 4) & 0o7777,
            uid: u32_at(inode, 24),
            gid: u32_at(inode, 28),
            mtime: Timestamp { seconds: u64_at(inode, 32).cast_signed(), nanoseconds: u32_at(inode, 40) },
            xattrs: xattrs(bytes.get(xattr::HEADER_SIZE..).unwrap_or_default())?,
        };
        Ok((attributes, begin + len as u64))
    }

    fn read(&self, buffer: &mut [u8], offset: u64) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len) {
            return Err(ReadError::Damaged("something past its end"));
        }
        Ok(self.input.read_exact_at(buffer, offset)?)
    }
}

/// A file's contents, from some byte on.
#[derive(Debug)]
pub struct Data<'a, I> {
    image: &'a Image<I>,
    file: &'a Inode,
    at: u64,
}

impl<I> Data<'_, I> {
    /// Continues at this byte.
    pub fn seek(&mut self, at: u64) {
        self.at = at;
    }
}

impl<I: Input> Read for Data<'_, I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // One read ends at the file's end, at the end of the whole blocks of a file with a tail, and at the end of a
        // chunk.
        let left = self.file.size.saturating_sub(self.at);
        let run = match self.file.layout {
            Layout::Plain(_) => left,
            Layout::Inline(_) => match (self.file.size / BLOCK * BLOCK).checked_sub(self.at) {
                None | Some(0) => left,
                Some(whole) => whole,
            },
            Layout::Chunks(bits) => left.min((BLOCK << bits) - self.at % (BLOCK << bits)),
        };
        let len = usize::try_from(run).unwrap_or(usize::MAX).min(buffer.len());
        let Some(part) = buffer.get_mut(..len).filter(|part| !part.is_empty()) else { return Ok(0) };
        self.image.contents(self.file, self.at, part).map_err(|error| match error {
            ReadError::Io(error) => error,
            damaged => io::Error::new(io::ErrorKind::InvalidData, damaged.to_string()),
        })?;
        self.at += len as u64;
        Ok(len)
    }
}

/// The names in a block of a directory, their inodes' numbers, and whether they are directories.
fn names(block: &[u8]) -> Result<Vec<(&[u8], u64, bool)>> {
    let damaged = || ReadError::Damaged("a directory");
    let offset_of = |index: usize| {
        let offset = block.get(index * DIRENT_SIZE + 8..)?.first_chunk().copied();
        offset.map(|bytes| usize::from(u16::from_le_bytes(bytes)))
    };
    let first = offset_of(0).ok_or_else(damaged)?;
    if first == 0 || !first.is_multiple_of(DIRENT_SIZE) || first > block.len() {
        return Err(damaged());
    }
    let count = first / DIRENT_SIZE;
    let mut names = Vec::with_capacity(count);
    for index in 0..count {
        let end = if index + 1 < count { offset_of(index + 1).ok_or_else(damaged)? } else { block.len() };
        let name = block.get(offset_of(index).ok_or_else(damaged)?..end).ok_or_else(damaged)?;
        let name = name.split(|byte| *byte == 0).next().unwrap_or_default();
        if name.is_empty() || name.contains(&b'/') {
            return Err(damaged());
        }
        let is_dir = block.get(index * DIRENT_SIZE + 10) == Some(&TYPE_DIR);
        names.push((name, u64_at(block, index * DIRENT_SIZE), is_dir));
    }
    Ok(names)
}

/// The extended attributes after their header.
fn xattrs(mut bytes: &[u8]) -> Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut all = BTreeMap::new();
    let damaged = || ReadError::Damaged("an extended attribute");
    while let Some((&[name_len, index, low, high], rest)) = bytes.split_first_chunk() {
        let value_len = usize::from(u16::from_le_bytes([low, high]));
        let (name, rest) = rest.split_at_checked(usize::from(name_len)).ok_or_else(damaged)?;
        let (value, _) = rest.split_at_checked(value_len).ok_or_else(damaged)?;
        let prefix = xattr::prefix(index).ok_or_else(damaged)?;
        all.insert([prefix, name].concat(), value.to_vec());
        let used = (4 + usize::from(name_len) + value_len).next_multiple_of(4);
        bytes = bytes.get(used..).unwrap_or_default();
    }
    Ok(all)
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk().copied());
    u16::from_le_bytes(bytes.unwrap_or_default())
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk().copied());
    u32::from_le_bytes(bytes.unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|rest| rest.first_chunk().copied());
    u64::from_le_bytes(bytes.unwrap_or_default())
}
