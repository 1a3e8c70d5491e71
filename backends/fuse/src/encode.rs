//! Encodes the answers of a file system into the bytes of a reply.

use std::time::Duration;

use fuse_abi::linux as abi;
use vm_memory::VolatileSlice;
use zerocopy::{Immutable, IntoBytes};

use crate::request::{Act, Operation, StatForm};
use crate::{Attributes, Data, Entry, Errno, Opened, Sink, Stat, Statistics, Time};

/// Bytes of the header of a reply.
pub(crate) const HEADER_LEN: usize = size_of::<abi::fuse_out_header>();

/// The least number of bytes that a reply to `operation` needs behind its header.
pub(crate) fn least_len(operation: &Operation<'_>) -> usize {
    match operation {
        Operation::Init(_) => size_of::<abi::fuse_init_out>(),
        Operation::Entry { .. } => size_of::<abi::fuse_entry_out>(),
        Operation::Stat { form: StatForm::Extended, .. } => size_of::<abi::fuse_statx_out>(),
        Operation::Stat { form: StatForm::Plain, .. } | Operation::Change { .. } => {
            size_of::<abi::fuse_attr_out>()
        }
        Operation::Open(_) => size_of::<abi::fuse_open_out>(),
        Operation::Create { .. } => size_of::<abi::fuse_entry_out>() + size_of::<abi::fuse_open_out>(),
        Operation::Use { act: Act::Write { .. } | Act::Contents(Data::Copy { .. }), .. } => {
            size_of::<abi::fuse_write_out>()
        }
        Operation::Use { act: Act::Contents(Data::Seek { .. }), .. } => size_of::<abi::fuse_lseek_out>(),
        Operation::Statistics => size_of::<abi::fuse_statfs_out>(),
        Operation::GetXattr { room: 0, .. } => size_of::<abi::fuse_getxattr_out>(),
        Operation::GetXattr { .. }
        | Operation::Destroy
        | Operation::ForgetMany(_)
        | Operation::Names(_)
        | Operation::Use { .. }
        | Operation::ReadLink
        | Operation::SetXattr(_)
        | Operation::Sync(_)
        | Operation::LetGo(_)
        | Operation::NotifyReply
        | Operation::Unserved(_) => 0,
    }
}

/// Bits of `stx_mask` (linux/stat.h).
mod statx_mask {
    pub(super) const BASIC: u32 = 0x7ff;
    pub(super) const BTIME: u32 = 0x800;
}

/// The place for a reply. Its header is written last, when the rest of the reply is there.
pub(crate) struct Reply<'a> {
    slices: &'a [VolatileSlice<'a>],
    unique: u64,
}

impl<'a> Reply<'a> {
    pub(crate) fn new(slices: &'a [VolatileSlice<'a>], unique: u64) -> Self {
        Self { slices, unique }
    }

    /// Most bytes of a reply, its header included.
    pub(crate) fn room(&self) -> usize {
        Sink::new(self.slices, 0, usize::MAX).len()
    }

    /// Room for at most `len` bytes behind the header.
    pub(crate) fn body(&self, len: usize) -> Sink<'a> {
        Sink::new(self.slices, HEADER_LEN, len)
    }

    /// Puts `value` behind the header; returns the number of its bytes.
    pub(crate) fn put(&self, value: &(impl IntoBytes + Immutable + ?Sized)) -> usize {
        self.put_at(0, value)
    }

    /// Puts `value` behind the header and `at` bytes; returns the number of its bytes.
    fn put_at(&self, at: usize, value: &(impl IntoBytes + Immutable + ?Sized)) -> usize {
        Sink::new(self.slices, HEADER_LEN + at, usize::MAX).copy_from(value.as_bytes())
    }

    /// Puts the answer to CREATE and TMPFILE.
    pub(crate) fn put_created(&self, made: &Entry, handle: &Opened) -> usize {
        let len = self.put(&entry(made));
        len + self.put_at(len, &opened(handle))
    }

    /// Puts `bytes`, if all of them fit.
    pub(crate) fn put_all(&self, bytes: &[u8], room: usize) -> Result<usize, Errno> {
        let body = self.body(room);
        if bytes.len() > body.len() { Err(Errno::ERANGE) } else { Ok(body.copy_from(bytes)) }
    }

    /// Ends the reply: `len` bytes are behind the header, or there is an error. Returns the whole reply's length.
    pub(crate) fn finish(&self, result: Result<usize, Errno>) -> usize {
        let (error, len) = match result {
            Ok(len) => (0, HEADER_LEN + len),
            Err(errno) => (-errno.number(), HEADER_LEN),
        };
        let header =
            abi::fuse_out_header { len: u32::try_from(len).unwrap_or(u32::MAX), error, unique: self.unique };
        Sink::new(self.slices, 0, HEADER_LEN).copy_from(header.as_bytes());
        len
    }
}

pub(crate) fn entry(entry: &Entry) -> abi::fuse_entry_out {
    let (entry_valid, entry_valid_nsec) = parts(entry.valid);
    let (attr_valid, attr_valid_nsec) = parts(entry.stat.valid);
    abi::fuse_entry_out {
        nodeid: entry.node.0,
        generation: entry.generation,
        entry_valid,
        attr_valid,
        entry_valid_nsec,
        attr_valid_nsec,
        attr: attr(&entry.stat.attributes),
    }
}

pub(crate) fn stat(stat: &Stat) -> abi::fuse_attr_out {
    let (attr_valid, attr_valid_nsec) = parts(stat.valid);
    abi::fuse_attr_out { attr_valid, attr_valid_nsec, dummy: 0, attr: attr(&stat.attributes) }
}

pub(crate) fn statx(stat: &Stat) -> abi::fuse_statx_out {
    let attributes = &stat.attributes;
    let (attr_valid, attr_valid_nsec) = parts(stat.valid);
    let time =
        |time: Time| abi::fuse_sx_time { tv_sec: time.seconds, tv_nsec: time.nanoseconds, __reserved: 0 };
    let btime = if attributes.btime.is_some() { statx_mask::BTIME } else { 0 };
    abi::fuse_statx_out {
        attr_valid,
        attr_valid_nsec,
        stat: abi::fuse_statx {
            mask: statx_mask::BASIC | btime,
            blksize: attributes.block_size,
            nlink: attributes.links,
            uid: attributes.uid,
            gid: attributes.gid,
            mode: (attributes.mode & 0xffff) as u16,
            ino: attributes.ino,
            size: attributes.size,
            blocks: attributes.blocks,
            atime: time(attributes.atime),
            btime: time(attributes.btime.unwrap_or_default()),
            ctime: time(attributes.ctime),
            mtime: time(attributes.mtime),
            rdev_major: attributes.device.major,
            rdev_minor: attributes.device.minor,
            ..Default::default()
        },
        ..Default::default()
    }
}

pub(crate) fn opened(opened: &Opened) -> abi::fuse_open_out {
    abi::fuse_open_out { fh: opened.handle.0, open_flags: opened.cache.bits(), backing_id: 0 }
}

pub(crate) fn statistics(statistics: &Statistics) -> abi::fuse_statfs_out {
    abi::fuse_statfs_out {
        st: abi::fuse_kstatfs {
            blocks: statistics.blocks,
            bfree: statistics.free,
            bavail: statistics.available,
            files: statistics.files,
            ffree: statistics.free_files,
            bsize: statistics.block_size,
            namelen: statistics.name_len,
            frsize: statistics.block_size,
            ..Default::default()
        },
    }
}

fn attr(attributes: &Attributes) -> abi::fuse_attr {
    abi::fuse_attr {
        ino: attributes.ino,
        size: attributes.size,
        blocks: attributes.blocks,
        atime: attributes.atime.seconds.cast_unsigned(),
        mtime: attributes.mtime.seconds.cast_unsigned(),
        ctime: attributes.ctime.seconds.cast_unsigned(),
        atimensec: attributes.atime.nanoseconds,
        mtimensec: attributes.mtime.nanoseconds,
        ctimensec: attributes.ctime.nanoseconds,
        mode: attributes.mode,
        nlink: attributes.links,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.device.packed(),
        blksize: attributes.block_size,
        flags: if attributes.submount { abi::FUSE_ATTR_SUBMOUNT } else { 0 },
    }
}

fn parts(duration: Duration) -> (u64, u32) {
    (duration.as_secs(), duration.subsec_nanos())
}
