//! The composite disk: N read-only files as GPT partitions 1..=N of one disk.
//!
//! The layout is pure computation (UEFI 2.10 §5): no file is opened, and equal lengths give an equal disk, byte for
//! byte.
//!
//! ```text
//! LBA 0            protective MBR
//! LBA 1            header
//! LBA 2..          entries, 128 bytes each
//! 4 KiB boundary   partition 1, zeroes to the next 4 KiB boundary
//! …                partition N, zeroes to the next 4 KiB boundary
//! last - entries   entries again
//! last             header again
//! ```

use std::os::fd::OwnedFd;

use crate::Segment;

/// Most files of one disk: Linux looks at no more partitions (`DISK_MAX_PARTS` less the disk itself).
pub const MAX_FILES: usize = 255;

/// Partitions start and end at multiples of this length, so that file system blocks of one page stay page-aligned.
pub const ALIGNMENT: u64 = 4096;

const SECTOR: u64 = 512;
const ENTRY_SIZE: u32 = 128;
const ENTRY: usize = ENTRY_SIZE as usize;
/// UEFI 2.10 §5.3.1: "A minimum of 16,384 bytes of space must be reserved for the GPT Partition Entry Array."
const MIN_ENTRIES: usize = 16_384 / ENTRY;
const HEADER: u32 = 92;

/// "Linux filesystem data", 0FC63DAF-8483-4772-8E79-3D69D8477DE4, in the mixed-endian order of GPT.
const LINUX_DATA: [u8; 16] =
    [0xAF, 0x3D, 0xC6, 0x0F, 0x83, 0x84, 0x72, 0x47, 0x8E, 0x79, 0x3D, 0x69, 0xD8, 0x47, 0x7D, 0xE4];

/// The prefix of every GUID made here; version 8 of RFC 9562 ("custom"). The rest of a GUID is an index.
const GUID_PREFIX: [u8; 10] = [0x6C, 0x74, 0x61, 0x6D, 0x68, 0x63, 0x6C, 0x80, 0x80, 0x6B];

/// Why files do not make a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// There is no file at all: a partition table needs room for a partition.
    #[error("no files for a disk")]
    NoFiles,
    /// There are more than [`MAX_FILES`] files.
    #[error("{0} files are too many for one disk, which has at most {MAX_FILES}")]
    TooMany(usize),
    /// A file is empty, and a partition cannot be.
    #[error("file {0} is empty")]
    Empty(usize),
    /// The disk would be over 2^63 bytes.
    #[error("disk is over 2^63 bytes")]
    TooLarge,
}

/// A run of the disk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Part {
    /// Literal bytes.
    Bytes(Vec<u8>),
    /// The whole of file `index`.
    File {
        /// Index in the lengths from which the disk was planned.
        index: usize,
        /// The file's length.
        len: u64,
    },
    /// A number of zeroes.
    Zeroes(u64),
}

/// The layout of a disk, without its files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    parts: Vec<Part>,
    len: u64,
}

impl Plan {
    /// The runs of the disk, in order.
    #[must_use]
    pub fn parts(&self) -> &[Part] {
        &self.parts
    }

    /// Size of the disk in bytes, a multiple of 512.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Whether the disk is empty, which it never is: a partition table is always there.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        false
    }

    /// The disk with its files, in the order of the planned lengths; `None` if there are fewer or more files than
    /// lengths.
    #[must_use]
    pub fn with_files(self, files: Vec<OwnedFd>) -> Option<Vec<Segment>> {
        let mut files = files.into_iter();
        let mut segments = Vec::with_capacity(self.parts.len());
        for part in self.parts {
            segments.push(match part {
                Part::Bytes(bytes) => Segment::Bytes(bytes),
                Part::Zeroes(len) => Segment::Zeroes(len),
                Part::File { len, .. } => Segment::File { file: files.next()?, offset: 0, len },
            });
        }
        files.next().is_none().then_some(segments)
    }
}

/// Lays out a disk whose partition `i + 1` starts with the file of `lengths[i]` bytes.
pub fn plan(lengths: &[u64]) -> Result<Plan, PlanError> {
    if lengths.is_empty() {
        return Err(PlanError::NoFiles);
    }
    if lengths.len() > MAX_FILES {
        return Err(PlanError::TooMany(lengths.len()));
    }
    let entry_count = lengths.len().next_multiple_of(MIN_ENTRIES).max(MIN_ENTRIES);
    let table = (entry_count * ENTRY) as u64;
    let first = (2 * SECTOR + table).next_multiple_of(ALIGNMENT);

    let mut entries = vec![0; entry_count * ENTRY];
    let mut files = Vec::with_capacity(2 * lengths.len());
    let mut position = first;
    for (index, &len) in lengths.iter().enumerate() {
        if len == 0 {
            return Err(PlanError::Empty(index));
        }
        let end = position
            .checked_add(len)
            .and_then(|end| end.checked_next_multiple_of(ALIGNMENT))
            .ok_or(PlanError::TooLarge)?;
        write_entry(&mut entries[index * ENTRY..][..ENTRY], index + 1, position / SECTOR, end / SECTOR - 1);
        files.push(Part::File { index, len });
        if end - position > len {
            files.push(Part::Zeroes(end - position - len));
        }
        position = end;
    }
    let disk = position.checked_add(table + SECTOR).filter(|len| *len <= i64::MAX as u64);
    let disk = Geometry {
        sectors: disk.ok_or(PlanError::TooLarge)? / SECTOR,
        first_usable: first / SECTOR,
        last_usable: position / SECTOR - 1,
        entry_count,
        entries_crc: crc32fast::hash(&entries),
    };

    let mut head = protective_mbr(disk.sectors);
    head.extend(disk.header(1, disk.sectors - 1, 2));
    head.extend(&entries);
    // The first part reaches up to partition 1, so no zeroes of their own follow it.
    head.resize(usize::try_from(first).map_err(|_| PlanError::TooLarge)?, 0);
    let mut tail = entries;
    tail.extend(disk.header(disk.sectors - 1, 1, disk.last_usable + 1));

    let mut parts = vec![Part::Bytes(head)];
    parts.append(&mut files);
    parts.push(Part::Bytes(tail));
    Ok(Plan { parts, len: disk.sectors * SECTOR })
}

/// The fields that both headers share.
struct Geometry {
    sectors: u64,
    first_usable: u64,
    last_usable: u64,
    entry_count: usize,
    entries_crc: u32,
}

impl Geometry {
    /// UEFI 2.10 §5.3.2, table 5.5: the header at `own`, its copy at `other`, the entries from `entries` on.
    fn header(&self, own: u64, other: u64, entries: u64) -> Vec<u8> {
        let mut header = Vec::with_capacity(512);
        header.extend(b"EFI PART");
        header.extend(0x0001_0000u32.to_le_bytes());
        header.extend(HEADER.to_le_bytes());
        header.extend([0; 8]); // CRC, filled in below; reserved
        header.extend(own.to_le_bytes());
        header.extend(other.to_le_bytes());
        header.extend(self.first_usable.to_le_bytes());
        header.extend(self.last_usable.to_le_bytes());
        header.extend(guid(0));
        header.extend(entries.to_le_bytes());
        // The count is at most MAX_FILES rounded up.
        header.extend(u32::try_from(self.entry_count).unwrap_or(u32::MAX).to_le_bytes());
        header.extend(ENTRY_SIZE.to_le_bytes());
        header.extend(self.entries_crc.to_le_bytes());
        let crc = crc32fast::hash(&header);
        header[16..20].copy_from_slice(&crc.to_le_bytes());
        header.resize(512, 0);
        header
    }
}

/// UEFI 2.10 §5.3.3, table 5.6.
fn write_entry(entry: &mut [u8], number: usize, first: u64, last: u64) {
    entry[..16].copy_from_slice(&LINUX_DATA);
    entry[16..32].copy_from_slice(&guid(number));
    entry[32..40].copy_from_slice(&first.to_le_bytes());
    entry[40..48].copy_from_slice(&last.to_le_bytes());
}

/// The disk's GUID (0) or a partition's: unique within the disk, equal for equal layouts.
fn guid(number: usize) -> [u8; 16] {
    let mut guid = [0; 16];
    guid[..10].copy_from_slice(&GUID_PREFIX);
    guid[12..].copy_from_slice(&u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes());
    guid
}

/// UEFI 2.10 §5.2.3: one partition of type 0xEE over the whole disk.
fn protective_mbr(sectors: u64) -> Vec<u8> {
    let mut mbr = vec![0; 512];
    mbr[446..462].copy_from_slice(&[0, 0x00, 0x02, 0x00, 0xEE, 0xFF, 0xFF, 0xFF, 1, 0, 0, 0, 0, 0, 0, 0]);
    // "Set to the size of the disk minus one. Set to 0xFFFFFFFF if the size of the disk is too large".
    let size = u32::try_from(sectors - 1).unwrap_or(u32::MAX);
    mbr[458..462].copy_from_slice(&size.to_le_bytes());
    mbr[510..].copy_from_slice(&[0x55, 0xAA]);
    mbr
}
