//! The writer: inodes and data in the order of the calls, directories at the end.

use std::io::Read;

use crate::finish;
use crate::format::{self, INODE_SIZE, Inode, Layout, NID_UNIT, NULL_BLOCK, Superblock};
use crate::sink::{self, Output, Sink};
use crate::tree::Tree;
use crate::{Attributes, BLOCK_SIZE, Error, MAX_SYMLINK_LEN, NodeId, NodeKind, Result, Special, xattr};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// Most blocks of metadata gathered before they are written, so that inodes lie together.
const METADATA_RUN_BLOCKS: u64 = 16;

/// Largest file whose rest, the part after the last whole block, is stored with its inode. Larger files have whole
/// blocks only: they lose 3% at most, and can be mapped directly.
const MAX_INLINE_FILE: u64 = 64 << 10;

/// Most entries of a sparse file's block map; for longer files the chunks are larger instead.
const MAX_CHUNKS: u64 = 1 << 16;

/// Largest file.
pub(crate) const MAX_FILE_SIZE: u64 = 1 << 44;

/// The choices for an image.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The volume's UUID; equal inputs should have equal ones.
    pub uuid: [u8; 16],
    /// Largest image, in bytes.
    pub max_len: u64,
}

/// The measures of a finished image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// Length of the image, a multiple of [`BLOCK_SIZE`].
    pub len: u64,
    /// Inodes that have a name, and the root.
    pub inodes: u64,
}

/// A part of a sparse file that has data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset of the part's first byte in the file.
    pub offset: u64,
    /// Length of the part.
    pub len: u64,
}

/// Writes one image.
///
/// Each inode that is no directory is written by one call, in any order, and then given names in the [`Tree`]; an inode
/// that gets no name, or loses it, leaves dead space.
pub struct Writer<O> {
    sink: Sink<O>,
    tree: Tree,
    options: Options,
    metadata: Metadata,
    chunked: bool,
    serial: u32,
}

/// The metadata run that is being filled.
#[derive(Default)]
struct Metadata {
    start: u64,
    /// The length that the run may reach.
    capacity: usize,
    bytes: Vec<u8>,
}

impl<O: Output> Writer<O> {
    /// Starts an image on an empty output.
    pub fn new(output: O, options: Options) -> Self {
        Self {
            sink: Sink::new(output, 1, options.max_len),
            tree: Tree::new(),
            options,
            metadata: Metadata::default(),
            chunked: false,
            serial: 0,
        }
    }

    /// The names so far.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// The names so far, for changes.
    pub fn tree_mut(&mut self) -> &mut Tree {
        &mut self.tree
    }

    /// Writes a regular file of `size` bytes, which are read from `data`.
    pub fn file(&mut self, attributes: &Attributes, size: u64, data: &mut dyn Read) -> Result<NodeId> {
        if size > MAX_FILE_SIZE {
            return Err(Error::FileSize(size));
        }
        let mut tail = [0; BLOCK_SIZE];
        let tail_len = (size % BLOCK) as usize;
        let xattrs = xattr::encode(&attributes.xattrs)?;
        let inline = size <= MAX_INLINE_FILE && fits_inline(&xattrs, tail_len);
        let blocks = if inline { size / BLOCK } else { size.div_ceil(BLOCK) };
        let first = self.sink.allocate(blocks)?;
        if blocks > 0 {
            self.sink.seek(u64::from(first) * BLOCK)?;
            self.sink.copy(data, if inline { blocks * BLOCK } else { size })?;
            self.sink.pad()?;
        }
        let tail = tail.get_mut(..if inline { tail_len } else { 0 }).unwrap_or_default();
        read_exact(data, tail)?;
        let layout = if inline { Layout::Inline(first) } else { Layout::Plain(first) };
        self.node(NodeKind::File, format::S_IFREG, attributes, &xattrs, layout, size, tail)
    }

    /// Writes a regular file of `size` bytes of which only `extents` have data; `data` yields the data of all extents,
    /// one after the other.
    pub fn sparse_file(
        &mut self,
        attributes: &Attributes,
        size: u64,
        extents: &[Extent],
        data: &mut dyn Read,
    ) -> Result<NodeId> {
        if size > MAX_FILE_SIZE {
            return Err(Error::FileSize(size));
        }
        check_extents(extents, size)?;
        let xattrs = xattr::encode(&attributes.xattrs)?;
        let mut bits = 0u16;
        while size.div_ceil(BLOCK << bits) > MAX_CHUNKS {
            bits += 1;
        }
        let map = self.chunks(size, BLOCK << bits, extents, data)?;
        self.chunked = true;
        let layout = Layout::Chunks(bits);
        self.node(NodeKind::File, format::S_IFREG, attributes, &xattrs, layout, size, &map)
    }

    /// Writes a symbolic link.
    pub fn symlink(&mut self, attributes: &Attributes, target: &[u8]) -> Result<NodeId> {
        if target.is_empty() || target.len() > MAX_SYMLINK_LEN || target.contains(&0) {
            return Err(Error::SymlinkTarget(target.len()));
        }
        let xattrs = xattr::encode(&attributes.xattrs)?;
        let size = target.len() as u64;
        let (layout, tail) = if fits_inline(&xattrs, target.len()) {
            (Layout::Inline(0), target)
        } else {
            let block = self.sink.allocate(1)?;
            self.sink.seek(u64::from(block) * BLOCK)?;
            self.sink.write(target)?;
            self.sink.pad()?;
            (Layout::Plain(block), [].as_slice())
        };
        self.node(NodeKind::Symlink, format::S_IFLNK, attributes, &xattrs, layout, size, tail)
    }

    /// Writes a device, pipe or socket.
    pub fn special(&mut self, attributes: &Attributes, special: Special) -> Result<NodeId> {
        let kind = match special {
            Special::CharDevice { .. } => NodeKind::CharDevice,
            Special::BlockDevice { .. } => NodeKind::BlockDevice,
            Special::Fifo => NodeKind::Fifo,
            Special::Socket => NodeKind::Socket,
        };
        let (file_type, number) = format::special(special)?;
        let xattrs = xattr::encode(&attributes.xattrs)?;
        self.node(kind, file_type, attributes, &xattrs, Layout::Device(number), 0, &[])
    }

    /// Writes the directories and the superblock, and gives the output back. Nothing is synced.
    pub fn finish(mut self) -> Result<(O, Summary)> {
        self.flush_metadata()?;
        let (block0, inodes) = finish::directories(&self.tree, &mut self.sink, self.serial)?;
        let blocks = self.sink.allocated();
        let superblock = Superblock { uuid: self.options.uuid, inodes, blocks, chunked: self.chunked };
        let mut block0 = block0;
        superblock.encode_into(&mut block0);
        self.sink.write_at(block0.as_slice(), 0)?;
        let output = self.sink.finish()?;
        Ok((output, Summary { len: u64::from(blocks) * BLOCK, inodes }))
    }

    /// Writes the chunks that have data, and returns the block map.
    fn chunks(&mut self, size: u64, chunk: u64, extents: &[Extent], data: &mut dyn Read) -> Result<Vec<u8>> {
        let mut map = Vec::new();
        let mut extents = extents.iter().copied().filter(|extent| extent.len > 0).peekable();
        let mut start = 0;
        while start < size {
            let end = size.min(start + chunk);
            let mut block = NULL_BLOCK;
            let mut at = start;
            while let Some(extent) = extents.peek_mut().filter(|extent| extent.offset < end) {
                if block == NULL_BLOCK {
                    block = self.sink.allocate((end - start).div_ceil(BLOCK))?;
                    self.sink.seek(u64::from(block) * BLOCK)?;
                }
                self.sink.zeroes(extent.offset - at)?;
                let len = extent.len.min(end - extent.offset);
                self.sink.copy(data, len)?;
                at = extent.offset + len;
                *extent = Extent { offset: at, len: extent.len - len };
                if extent.len > 0 {
                    break;
                }
                extents.next();
            }
            if block != NULL_BLOCK {
                self.sink.zeroes(end - at)?;
                self.sink.pad()?;
            }
            map.extend_from_slice(&block.to_le_bytes());
            start = end;
        }
        Ok(map)
    }

    /// Puts an inode and the bytes that follow it into the metadata run.
    #[expect(
        clippy::too_many_arguments,
        reason = "one caller for each kind of inode, every argument differs"
    )]
    fn node(
        &mut self,
        kind: NodeKind,
        file_type: u16,
        attributes: &Attributes,
        xattrs: &[u8],
        layout: Layout,
        size: u64,
        after: &[u8],
    ) -> Result<NodeId> {
        let whole = INODE_SIZE + xattrs.len() + after.len();
        let unbroken = if matches!(layout, Layout::Inline(_)) { whole } else { INODE_SIZE };
        let mut at = place(self.metadata.bytes.len(), unbroken);
        if at + whole > self.metadata.capacity {
            self.flush_metadata()?;
            let blocks = METADATA_RUN_BLOCKS.max((whole as u64).div_ceil(BLOCK));
            self.metadata.start = u64::from(self.sink.allocate(blocks)?) * BLOCK;
            self.metadata.capacity = usize::try_from(blocks * BLOCK).unwrap_or(usize::MAX);
            at = 0;
        }
        let nid = (self.metadata.start + at as u64) / NID_UNIT;
        let node = self.tree.add_node(nid, kind)?;
        self.serial += 1;
        self.metadata.bytes.resize(at, 0);
        Inode { file_type, attributes, xattrs, layout, size, links: 1, serial: self.serial }
            .encode(&mut self.metadata.bytes);
        self.metadata.bytes.extend_from_slice(after);
        Ok(node)
    }

    fn flush_metadata(&mut self) -> Result<()> {
        let Metadata { start, capacity, bytes } = std::mem::take(&mut self.metadata);
        if bytes.is_empty() {
            return Ok(());
        }
        self.sink.write_at(&bytes, start)?;
        let block =
            |len: usize| u32::try_from(start / BLOCK + len.div_ceil(BLOCK_SIZE) as u64).unwrap_or(u32::MAX);
        self.sink.trim(block(capacity), block(bytes.len()));
        Ok(())
    }
}

/// The first place for an inode at or after `at` such that its first `unbroken` bytes lie in one block: the kernel
/// requires that of an inode's short tail, and reads the inode itself faster.
pub(crate) fn place(at: usize, unbroken: usize) -> usize {
    let at = at.next_multiple_of(32);
    if at % BLOCK_SIZE + unbroken > BLOCK_SIZE { at.next_multiple_of(BLOCK_SIZE) } else { at }
}

/// Whether an inode with these attributes and this number of data bytes fits in one block.
pub(crate) fn fits_inline(xattrs: &[u8], len: usize) -> bool {
    len > 0 && INODE_SIZE + xattrs.len() + len <= BLOCK_SIZE
}

fn check_extents(extents: &[Extent], size: u64) -> Result<()> {
    let mut at = 0;
    for extent in extents {
        let end = extent.offset.checked_add(extent.len).filter(|end| extent.offset >= at && *end <= size);
        at = end.ok_or(Error::Extents)?;
    }
    Ok(())
}

fn read_exact(data: &mut dyn Read, buffer: &mut [u8]) -> Result<()> {
    let mut rest = buffer;
    while !rest.is_empty() {
        let missing = rest.len() as u64;
        match sink::read_some(data, rest).map_err(Error::Read)? {
            0 => return Err(Error::ShortData { missing }),
            got => rest = rest.get_mut(got..).unwrap_or_default(),
        }
    }
    Ok(())
}
