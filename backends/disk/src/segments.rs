//! [`Disk`]: segments, in order, as the blocks of one disk. Not here: caching, and the meaning of the contents.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{FallocateFlags, FileType, OFlags};
use rustix::io::Errno;
use virtio::blk::Blocks;
use vm_memory::VolatileSlice;

use crate::Segment;

/// The unit of a disk's length.
const SECTOR: u64 = 512;

/// Length of the hole by which the disk tries whether a file can have holes.
const PROBED: u64 = 4096;

/// Zeroes, copied in large pieces to where a disk has no data.
static ZEROES: [u8; 64 << 10] = [0; 64 << 10];

/// Why segments do not make a disk.
#[derive(Debug, thiserror::Error)]
pub enum DiskError {
    /// The size is no multiple of the sector size.
    #[error("disk of {0} bytes is not a multiple of 512")]
    Size(u64),
    /// The size is beyond what an offset can express.
    #[error("disk is over 2^63 bytes")]
    TooLarge,
    /// The disk is writable, but this segment is not.
    #[error("segment {0} cannot be written")]
    NotWritable(usize),
    /// The file ends before the segment.
    #[error("file of segment {index} has {size} bytes, the segment ends at {end}")]
    FileTooShort {
        /// Index of the segment.
        index: usize,
        /// Size of the segment's file.
        size: u64,
        /// End of the segment in the file.
        end: u64,
    },
    /// The host refused to describe the file.
    #[error("file of segment {index}: {source}")]
    File {
        /// Index of the segment.
        index: usize,
        /// The system's error.
        source: io::Error,
    },
}

/// A disk made of segments.
#[derive(Debug)]
pub struct Disk {
    /// The segments, none of which is empty.
    segments: Vec<Segment>,
    /// `ends[i]` is the disk offset where `segments[i]` ends; strictly rising.
    ends: Vec<u64>,
    readonly: bool,
    /// Whether holes can be punched in every file.
    punches: bool,
}

impl Disk {
    /// Checks the segments and joins them. Every segment of a writable disk must be a file that is open for writing.
    pub fn new(segments: Vec<Segment>, readonly: bool) -> Result<Self, DiskError> {
        let mut disk =
            Self { segments: Vec::with_capacity(segments.len()), ends: Vec::new(), readonly, punches: false };
        let mut end = 0u64;
        for (index, segment) in segments.into_iter().enumerate() {
            match &segment {
                Segment::File { file, offset, len } => check_file(index, file, *offset, *len, readonly)?,
                Segment::Bytes(_) | Segment::Zeroes(_) if !readonly => {
                    return Err(DiskError::NotWritable(index));
                }
                Segment::Bytes(_) | Segment::Zeroes(_) => {}
            }
            if segment.is_empty() {
                continue;
            }
            end = end
                .checked_add(segment.len())
                .filter(|end| *end <= i64::MAX as u64)
                .ok_or(DiskError::TooLarge)?;
            disk.segments.push(segment);
            disk.ends.push(end);
        }
        if !end.is_multiple_of(SECTOR) {
            return Err(DiskError::Size(end));
        }
        disk.punches = !readonly && disk.segments.iter().all(can_punch);
        Ok(disk)
    }

    /// The segment that holds disk offset `position`, and the part of the segment from there on.
    fn at(&self, position: u64) -> io::Result<(&Segment, Part)> {
        let index = self.ends.partition_point(|end| *end <= position);
        let (Some(segment), Some(end)) = (self.segments.get(index), self.ends.get(index)) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let room = end - position;
        Ok((segment, Part { offset: segment.len() - room, room }))
    }

    /// Refuses a range that is not within the disk.
    fn check(&self, offset: u64, len: u64) -> io::Result<()> {
        match offset.checked_add(len) {
            Some(end) if end <= self.len() => Ok(()),
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn check_writable(&self) -> io::Result<()> {
        if self.readonly { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }
}

/// The rest of a segment from some position on.
#[derive(Clone, Copy)]
struct Part {
    /// The position, within the segment.
    offset: u64,
    /// Bytes from there to the segment's end; never 0.
    room: u64,
}

impl Blocks for Disk {
    fn len(&self) -> u64 {
        self.ends.last().copied().unwrap_or(0)
    }

    fn readonly(&self) -> bool {
        self.readonly
    }

    fn read(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.each_run(offset, buffers, |segment, at, run| match segment {
            Segment::File { file, offset, .. } => guest_memory::read_exact_at(file.as_fd(), run, offset + at),
            Segment::Bytes(bytes) => {
                let mut rest = usize::try_from(at).ok().and_then(|at| bytes.get(at..)).unwrap_or_default();
                for buffer in run {
                    let (now, later) =
                        rest.split_at_checked(buffer.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
                    buffer.copy_from(now);
                    rest = later;
                }
                Ok(())
            }
            Segment::Zeroes(_) => {
                for buffer in run {
                    for start in (0..buffer.len()).step_by(ZEROES.len()) {
                        buffer.offset(start).map_err(io::Error::other)?.copy_from(&ZEROES);
                    }
                }
                Ok(())
            }
        })
    }

    fn write(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.check_writable()?;
        self.each_run(offset, buffers, |segment, at, run| match segment {
            Segment::File { file, offset, .. } => guest_memory::write_all_at(file.as_fd(), run, offset + at),
            Segment::Bytes(_) | Segment::Zeroes(_) => Err(io::ErrorKind::ReadOnlyFilesystem.into()),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.readonly {
            return Ok(());
        }
        for segment in &self.segments {
            if let Segment::File { file, .. } = segment {
                rustix::fs::fdatasync(file)?;
            }
        }
        Ok(())
    }

    fn gives_back(&self) -> bool {
        self.punches
    }

    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        self.check_writable()?;
        self.check(offset, len)?;
        let end = offset + len;
        let mut position = offset;
        while position < end {
            let (segment, part) = self.at(position)?;
            let len = part.room.min(end - position);
            if let Segment::File { file, offset, .. } = segment {
                punch(file.as_fd(), offset + part.offset, len)?;
            }
            position += len;
        }
        Ok(())
    }
}

impl Disk {
    /// Splits `buffers`, which start at disk offset `offset`, at the boundaries of segments, and calls `act` once for
    /// each segment, with the offset in the segment.
    fn each_run(
        &self,
        offset: u64,
        buffers: &[VolatileSlice<'_>],
        mut act: impl FnMut(&Segment, u64, &[VolatileSlice<'_>]) -> io::Result<()>,
    ) -> io::Result<()> {
        let total = buffers.iter().map(|buffer| buffer.len() as u64).sum();
        self.check(offset, total)?;
        if total == 0 {
            return Ok(());
        }
        let (mut segment, mut part) = self.at(offset)?;
        if total <= part.room {
            return act(segment, part.offset, buffers);
        }
        let end = offset + total;
        let mut position = offset;
        let mut room = part.room;
        let mut run = Vec::with_capacity(buffers.len());
        for buffer in buffers {
            let mut rest = *buffer;
            while !rest.is_empty() {
                let now = usize::try_from(room).map_or(rest.len(), |room| room.min(rest.len()));
                run.push(rest.subslice(0, now).map_err(io::Error::other)?);
                rest = rest.offset(now).map_err(io::Error::other)?;
                room -= now as u64;
                position += now as u64;
                if room == 0 || position == end {
                    act(segment, part.offset, &run)?;
                    run.clear();
                    if position < end {
                        (segment, part) = self.at(position)?;
                        room = part.room;
                    }
                }
            }
        }
        Ok(())
    }
}

/// Makes a range of a file read as zeroes, and gives back its space. No zeroes are written in place of a hole: a range
/// may have gigabytes.
fn punch(file: BorrowedFd<'_>, offset: u64, len: u64) -> rustix::io::Result<()> {
    rustix::fs::fallocate(file, FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE, offset, len)
}

/// Whether the file system of a segment's file can punch holes. The attempt is made behind the end of the file, where
/// there are no data.
fn can_punch(segment: &Segment) -> bool {
    let Segment::File { file, .. } = segment else { return false };
    let end = rustix::fs::fstat(file).ok().and_then(|stat| u64::try_from(stat.st_size).ok());
    end.is_some_and(|end| punch(file.as_fd(), end.next_multiple_of(PROBED), PROBED).is_ok())
}

/// Checks that a segment's file is long enough, and open for the operations that the disk allows.
fn check_file(index: usize, file: &OwnedFd, offset: u64, len: u64, readonly: bool) -> Result<(), DiskError> {
    let refused = |errno: Errno| DiskError::File { index, source: errno.into() };
    let end = offset.checked_add(len).filter(|end| *end <= i64::MAX as u64).ok_or(DiskError::TooLarge)?;
    let stat = rustix::fs::fstat(file).map_err(refused)?;
    // A block device reports 0 here, and by itself refuses accesses past its end.
    let size = u64::try_from(stat.st_size).unwrap_or(0);
    if FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile && size < end {
        return Err(DiskError::FileTooShort { index, size, end });
    }
    let mode = rustix::fs::fcntl_getfl(file).map_err(refused)? & OFlags::RWMODE;
    if !readonly && mode != OFlags::RDWR {
        return Err(DiskError::NotWritable(index));
    }
    Ok(())
}
