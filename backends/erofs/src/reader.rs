//! Reads a whole image back, for tests: every inode by its path, with checks of the format's invariants.
//!
//! The reader panics at any fault, so it is for this crate's own images only. Not here: speed, and parts of the format
//! that the writer never writes.

use std::collections::BTreeMap;

use crate::format::{self, INODE_SIZE, NULL_BLOCK, ROOT_OFFSET, SUPER_OFFSET};
use crate::{Attributes, BLOCK_SIZE, Timestamp, xattr};

/// An inode, as the reader finds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// The inode's number.
    pub nid: u64,
    /// `st_mode` with the file type.
    pub st_mode: u16,
    /// Mode, owner, time, extended attributes.
    pub attributes: Attributes,
    /// Number of names.
    pub links: u32,
    /// Contents of a file, target of a symbolic link.
    pub data: Vec<u8>,
    /// Device number as stored.
    pub device: u32,
    /// How many blocks of a file are in the image; 0 if the contents are stored with the inode.
    pub blocks: u64,
}

/// Every inode of `image` by its path; the root's path is empty, others have no leading slash.
pub fn read(image: &[u8]) -> BTreeMap<Vec<u8>, Inode> {
    let reader = Reader { image };
    let root_nid = reader.superblock();
    let mut found = BTreeMap::new();
    let mut pending = vec![(Vec::new(), root_nid, root_nid)];
    while let Some((path, nid, parent)) = pending.pop() {
        let (inode, contents) = reader.inode(nid);
        if inode.st_mode & 0o170_000 == format::S_IFDIR {
            for (name, child) in reader.directory(&contents, nid, parent) {
                let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                pending.push(([&path, slash, &name].concat(), child, nid));
            }
        }
        assert!(found.insert(path, inode).is_none(), "a path occurs twice");
    }
    check_links(&found);
    found
}

struct Reader<'a> {
    image: &'a [u8],
}

impl Reader<'_> {
    fn u16(&self, at: usize) -> u16 {
        u16::from_le_bytes(self.image[at..at + 2].try_into().expect("two bytes"))
    }

    fn u32(&self, at: usize) -> u32 {
        u32::from_le_bytes(self.image[at..at + 4].try_into().expect("four bytes"))
    }

    fn u64(&self, at: usize) -> u64 {
        u64::from_le_bytes(self.image[at..at + 8].try_into().expect("eight bytes"))
    }

    fn superblock(&self) -> u64 {
        assert_eq!(self.u32(SUPER_OFFSET), format::MAGIC);
        let mut covered = self.image[SUPER_OFFSET..BLOCK_SIZE].to_vec();
        covered[4..8].fill(0);
        assert_eq!(self.u32(SUPER_OFFSET + 4), format::crc32c(&covered), "superblock checksum");
        assert_eq!(self.u32(SUPER_OFFSET + 36) as usize * BLOCK_SIZE, self.image.len(), "length");
        let root = u64::from(self.u16(SUPER_OFFSET + 14));
        assert_eq!(root * 32, ROOT_OFFSET as u64);
        root
    }

    fn inode(&self, nid: u64) -> (Inode, Vec<u8>) {
        let at = usize::try_from(nid * 32).expect("in memory");
        assert!(at % BLOCK_SIZE + INODE_SIZE <= BLOCK_SIZE, "an inode over two blocks");
        let (format, union) = (self.u16(at), self.u32(at + 16));
        assert_eq!(format & 1, 1, "extended");
        let (xattrs, after) = self.xattrs(at);
        let st_mode = self.u16(at + 4);
        let attributes = Attributes {
            mode: st_mode & 0o7777,
            uid: self.u32(at + 24),
            gid: self.u32(at + 28),
            mtime: Timestamp { seconds: self.u64(at + 32).cast_signed(), nanoseconds: self.u32(at + 40) },
            xattrs,
        };
        let size = usize::try_from(self.u64(at + 8)).expect("in memory");
        let is_device = matches!(st_mode & 0o170_000, format::S_IFCHR | format::S_IFBLK);
        let (data, blocks) = match format >> 1 {
            _ if is_device => (Vec::new(), 0),
            0 => self.plain(union, size),
            2 => self.inline(union, size, after),
            4 => self.chunks(union, size, after),
            other => panic!("layout {other}"),
        };
        let is_dir = st_mode & 0o170_000 == format::S_IFDIR;
        let inode = Inode {
            nid,
            st_mode,
            attributes,
            links: self.u32(at + 44),
            data: if is_dir { Vec::new() } else { data.clone() },
            device: if is_device { union } else { 0 },
            blocks,
        };
        (inode, data)
    }

    fn plain(&self, block: u32, size: usize) -> (Vec<u8>, u64) {
        let start = block as usize * BLOCK_SIZE;
        (self.image[start..start + size].to_vec(), size.div_ceil(BLOCK_SIZE) as u64)
    }

    fn inline(&self, block: u32, size: usize, after: usize) -> (Vec<u8>, u64) {
        let whole = size / BLOCK_SIZE * BLOCK_SIZE;
        let (mut data, blocks) = self.plain(block, whole);
        assert!(after % BLOCK_SIZE + (size - whole) <= BLOCK_SIZE, "inline data over two blocks");
        assert!(size > whole, "empty inline data");
        data.extend_from_slice(&self.image[after..after + size - whole]);
        (data, blocks)
    }

    fn chunks(&self, union: u32, size: usize, after: usize) -> (Vec<u8>, u64) {
        let chunk = BLOCK_SIZE << (union & 0x1f);
        let (mut data, mut blocks) = (vec![0; size], 0);
        for (index, part) in data.chunks_mut(chunk).enumerate() {
            let block = self.u32(after + 4 * index);
            if block != NULL_BLOCK {
                let start = block as usize * BLOCK_SIZE;
                part.copy_from_slice(&self.image[start..start + part.len()]);
                blocks += part.len().div_ceil(BLOCK_SIZE) as u64;
            }
        }
        (data, blocks)
    }

    /// The extended attributes of the inode at `at`, and the end of the attributes.
    fn xattrs(&self, at: usize) -> (BTreeMap<Vec<u8>, Vec<u8>>, usize) {
        let mut found = BTreeMap::new();
        let mut entry = at + INODE_SIZE;
        let units = usize::from(self.u16(at + 2));
        if units == 0 {
            return (found, entry);
        }
        let end = entry + xattr::HEADER_SIZE + 4 * (units - 1);
        entry += xattr::HEADER_SIZE;
        while entry < end {
            let (name_len, index) = (usize::from(self.image[entry]), self.image[entry + 1]);
            let value_len = usize::from(self.u16(entry + 2));
            let name = entry + 4;
            let value = name + name_len;
            let prefix = xattr::prefix(index).expect("a known prefix");
            let name = [prefix, &self.image[name..value]].concat();
            found.insert(name, self.image[value..value + value_len].to_vec());
            entry = (value + value_len).next_multiple_of(4);
        }
        assert_eq!(entry, end);
        (found, end)
    }

    fn directory(&self, contents: &[u8], own: u64, parent: u64) -> Vec<(Vec<u8>, u64)> {
        let (mut found, mut last, mut dots) = (Vec::new(), Vec::new(), 0);
        for block in contents.chunks(BLOCK_SIZE) {
            let offset_of =
                |index: usize| usize::from(block[12 * index + 8]) | usize::from(block[12 * index + 9]) << 8;
            let count = offset_of(0) / 12;
            for index in 0..count {
                let end = if index + 1 < count { offset_of(index + 1) } else { block.len() };
                let name: Vec<u8> =
                    block[offset_of(index)..end].iter().copied().take_while(|byte| *byte != 0).collect();
                let nid =
                    u64::from_le_bytes(block[12 * index..12 * index + 8].try_into().expect("eight bytes"));
                assert!(last < name, "names out of order");
                let st_mode = self.u16(usize::try_from(nid * 32).expect("in memory") + 4);
                assert_eq!(block[12 * index + 10], file_type(st_mode), "file type");
                last.clone_from(&name);
                match name.as_slice() {
                    b"." => assert_eq!(nid, own),
                    b".." => assert_eq!(nid, parent),
                    _ => {
                        found.push((name, nid));
                        continue;
                    }
                }
                dots += 1;
            }
        }
        assert_eq!(dots, 2);
        found
    }
}

fn file_type(st_mode: u16) -> u8 {
    match st_mode & 0o170_000 {
        format::S_IFREG => 1,
        format::S_IFDIR => 2,
        format::S_IFCHR => 3,
        format::S_IFBLK => 4,
        format::S_IFIFO => 5,
        format::S_IFSOCK => 6,
        format::S_IFLNK => 7,
        other => panic!("file type {other:o}"),
    }
}

fn check_links(found: &BTreeMap<Vec<u8>, Inode>) {
    let mut names: BTreeMap<u64, u32> = BTreeMap::new();
    for (path, inode) in found {
        if inode.st_mode & 0o170_000 != format::S_IFDIR {
            *names.entry(inode.nid).or_default() += 1;
            continue;
        }
        // A directory is named by its entry and by its dot (the root by two dots), and by each subdirectory.
        *names.entry(inode.nid).or_default() += 2;
        let parent = path.iter().rposition(|byte| *byte == b'/').map_or(&[][..], |at| &path[..at]);
        if !path.is_empty() {
            *names.entry(found[parent].nid).or_default() += 1;
        }
    }
    for inode in found.values() {
        assert_eq!(inode.links, names[&inode.nid], "links of inode {}", inode.nid);
    }
}
