//! The on-disk structures, little-endian, as plain values that encode themselves to bytes.

use crate::{Attributes, BLOCK_SIZE, Error, Result, Special};

/// Offset of the superblock.
pub(crate) const SUPER_OFFSET: usize = 1024;
/// Offset of the root inode, which follows the superblock.
pub(crate) const ROOT_OFFSET: usize = SUPER_OFFSET + 128;
/// The root's inode number.
pub(crate) const ROOT_NID: u16 = 36;
/// Size of the extended inode.
pub(crate) const INODE_SIZE: usize = 64;
/// Inode numbers count in units of this many bytes.
pub(crate) const NID_UNIT: u64 = 32;
/// "No block": a hole in a block map.
pub(crate) const NULL_BLOCK: u32 = u32::MAX;
/// Size of a directory entry without its name.
pub(crate) const DIRENT_SIZE: usize = 12;

pub(crate) const MAGIC: u32 = 0xE0F5_E1E2;
pub(crate) const BLOCK_BITS: u8 = 12;
pub(crate) const COMPAT_CHECKSUM: u32 = 0x1;
pub(crate) const COMPAT_MTIME: u32 = 0x2;
pub(crate) const INCOMPAT_CHUNKED_FILE: u32 = 0x4;

pub(crate) const S_IFIFO: u16 = 0o010_000;
pub(crate) const S_IFCHR: u16 = 0o020_000;
pub(crate) const S_IFDIR: u16 = 0o040_000;
pub(crate) const S_IFBLK: u16 = 0o060_000;
pub(crate) const S_IFREG: u16 = 0o100_000;
pub(crate) const S_IFLNK: u16 = 0o120_000;
pub(crate) const S_IFSOCK: u16 = 0o140_000;

/// The place of an inode's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Layout {
    /// All data in whole blocks, from this block on.
    Plain(u32),
    /// Whole blocks from this block on, and the rest right after the inode.
    Inline(u32),
    /// A block map after the inode, each entry for `2^bits` blocks.
    Chunks(u16),
    /// No data, but a device number.
    Device(u32),
}

/// An extended inode.
pub(crate) struct Inode<'a> {
    pub(crate) file_type: u16,
    pub(crate) attributes: &'a Attributes,
    /// The extended attributes, encoded by `xattr::encode`.
    pub(crate) xattrs: &'a [u8],
    pub(crate) layout: Layout,
    pub(crate) size: u64,
    pub(crate) links: u32,
    /// A serial number, which 32-bit `stat` shows.
    pub(crate) serial: u32,
}

/// Offset of `i_nlink` in an inode.
pub(crate) const NLINK_OFFSET: u64 = 44;

impl Inode<'_> {
    /// Appends the inode and its extended attributes.
    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let (kind, union) = match self.layout {
            Layout::Plain(block) => (0u16, block),
            Layout::Inline(block) => (2, block),
            Layout::Chunks(bits) => (4, u32::from(bits)),
            Layout::Device(number) => (0, number),
        };
        // erofs_fs.h: "1 header + n-1 * 4 bytes inline xattr to keep continuity"; `xattr::encode` bounds the length.
        let units = match self.xattrs.len() {
            0 => 0,
            len => u16::try_from((len - crate::xattr::HEADER_SIZE) / 4 + 1).unwrap_or(u16::MAX),
        };
        let at = self.attributes;
        out.extend_from_slice(&(kind << 1 | 1).to_le_bytes());
        out.extend_from_slice(&units.to_le_bytes());
        out.extend_from_slice(&(self.file_type | at.mode & 0o7777).to_le_bytes());
        out.extend_from_slice(&[0; 2]);
        out.extend_from_slice(&self.size.to_le_bytes());
        out.extend_from_slice(&union.to_le_bytes());
        out.extend_from_slice(&self.serial.to_le_bytes());
        out.extend_from_slice(&at.uid.to_le_bytes());
        out.extend_from_slice(&at.gid.to_le_bytes());
        out.extend_from_slice(&at.mtime.seconds.to_le_bytes());
        out.extend_from_slice(&at.mtime.nanoseconds.to_le_bytes());
        out.extend_from_slice(&self.links.to_le_bytes());
        out.extend_from_slice(&[0; 16]);
        out.extend_from_slice(self.xattrs);
    }
}

/// The superblock's fields that vary.
pub(crate) struct Superblock {
    pub(crate) uuid: [u8; 16],
    pub(crate) inodes: u64,
    pub(crate) blocks: u32,
    pub(crate) chunked: bool,
}

impl Superblock {
    /// Puts the superblock into block 0, which already has everything else, and its checksum.
    pub(crate) fn encode_into(&self, block: &mut [u8; BLOCK_SIZE]) {
        let mut bytes = Vec::with_capacity(128);
        let incompat = if self.chunked { INCOMPAT_CHUNKED_FILE } else { 0 };
        bytes.extend_from_slice(&MAGIC.to_le_bytes());
        bytes.extend_from_slice(&[0; 4]); // checksum, below
        bytes.extend_from_slice(&(COMPAT_CHECKSUM | COMPAT_MTIME).to_le_bytes());
        bytes.extend_from_slice(&[BLOCK_BITS, 0]);
        bytes.extend_from_slice(&ROOT_NID.to_le_bytes());
        bytes.extend_from_slice(&self.inodes.to_le_bytes());
        bytes.extend_from_slice(&[0; 12]); // build time: every inode has its own
        bytes.extend_from_slice(&self.blocks.to_le_bytes());
        bytes.extend_from_slice(&[0; 8]); // metadata is addressed from block 0; no shared attributes
        bytes.extend_from_slice(&self.uuid);
        bytes.extend_from_slice(&[0; 16]); // volume name
        bytes.extend_from_slice(&incompat.to_le_bytes());
        bytes.resize(ROOT_OFFSET - SUPER_OFFSET, 0);
        block[SUPER_OFFSET..ROOT_OFFSET].copy_from_slice(&bytes);
        // The checksum covers block 0 from the superblock on, with the checksum's own field set to zero.
        let checksum = crc32c(&block[SUPER_OFFSET..]);
        block[SUPER_OFFSET + 4..SUPER_OFFSET + 8].copy_from_slice(&checksum.to_le_bytes());
    }
}

/// CRC-32C (Castagnoli) without the final inversion, as the kernel's `crc32c(~0, …)`. It runs once for each image, over
/// 3 KiB.
pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(!0, |mut crc, byte| {
        crc ^= u32::from(*byte);
        for _ in 0..8 {
            crc = crc >> 1 ^ if crc & 1 == 1 { 0x82F6_3B78 } else { 0 };
        }
        crc
    })
}

/// File type and device number of a special inode, as `new_encode_dev` of the kernel encodes them.
pub(crate) fn special(special: Special) -> Result<(u16, u32)> {
    let device = |major: u32, minor: u32| {
        let valid = major < 1 << 12 && minor < 1 << 20;
        let number = minor & 0xff | major << 8 | (minor & !0xff) << 12;
        if valid { Ok(number) } else { Err(Error::Device { major, minor }) }
    };
    match special {
        Special::CharDevice { major, minor } => Ok((S_IFCHR, device(major, minor)?)),
        Special::BlockDevice { major, minor } => Ok((S_IFBLK, device(major, minor)?)),
        Special::Fifo => Ok((S_IFIFO, 0)),
        Special::Socket => Ok((S_IFSOCK, 0)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_check_value() {
        // The catalogue's check value of CRC-32C is taken with the final inversion.
        assert_eq!(!crc32c(b"123456789"), 0xE306_9283);
    }

    #[test]
    fn root_number_is_its_place() {
        assert_eq!(u64::from(ROOT_NID) * NID_UNIT, ROOT_OFFSET as u64);
    }

    #[test]
    fn device_numbers() {
        let last = Special::BlockDevice { major: 0xfff, minor: 0xfffff };
        assert_eq!(special(Special::CharDevice { major: 1, minor: 3 }).unwrap(), (S_IFCHR, 0x103));
        assert_eq!(special(last).unwrap(), (S_IFBLK, u32::MAX));
        for (major, minor) in [(0x1000, 0), (0, 0x10_0000)] {
            let refused = special(Special::CharDevice { major, minor }).unwrap_err();
            assert!(matches!(refused, Error::Device { major: m, minor: n } if (m, n) == (major, minor)));
        }
    }
}
