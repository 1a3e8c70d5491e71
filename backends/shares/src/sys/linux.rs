//! Linux: each name is walked by itself below a directory's descriptor, and no link is followed.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use fuse::{
    Access, Allocation, Attributes, Device, Errno, OpenFlags, RenameHow, Result, SetTime, Source, Statistics,
    Time,
};
use rustix::fs::{
    AtFlags, FallocateFlags, Mode, OFlags, RawDir, RenameFlags, ResolveFlags, SeekFrom, StatVfsMountFlags,
    Statx, StatxAttributes, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
};
use rustix::io::ReadWriteFlags;
use rustix::path::DecInt;

/// Answers with Linux's own number.
fn told<T>(result: rustix::io::Result<T>) -> Result<T> {
    result.map_err(|error| Errno::from_number(error.raw_os_error()))
}

/// The file that a name leads to, beyond renames: numbers are used again within milliseconds, but not for a file that
/// was made at the same moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Identity {
    /// Number of the file system.
    pub(crate) device: u64,
    /// Number of the file in it.
    pub(crate) ino: u64,
    /// When it was made, where the file system knows.
    pub(crate) btime: (i64, u32),
}

/// Tells the contents of a file from earlier and later ones: each change moves one of these. Two changes in one moment of the
/// file system's clock move them once, and writes to a mapped file need not move them at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    size: u64,
    mtime: Time,
    ctime: Time,
}

/// No file system's moment is longer: FAT has the longest, of two seconds.
const MOMENT_SECONDS: i64 = 2;

/// Type of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Directory,
    SymbolicLink,
    /// A device, a FIFO, a socket: never opened here.
    Special,
}

impl Kind {
    /// The kind of a file with this `st_mode`.
    pub(crate) fn of_mode(mode: u32) -> Self {
        match mode & 0o170_000 {
            0o100_000 => Self::File,
            0o040_000 => Self::Directory,
            0o120_000 => Self::SymbolicLink,
            _ => Self::Special,
        }
    }

    /// The bits of `st_mode` that say the kind; of devices, FIFOs and sockets those of a FIFO.
    pub(crate) fn type_bits(self) -> u32 {
        match self {
            Self::File => 0o100_000,
            Self::Directory => 0o040_000,
            Self::SymbolicLink => 0o120_000,
            Self::Special => 0o010_000,
        }
    }
}

/// A file as the host tells of it.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Found {
    pub(crate) identity: Identity,
    /// As the host has them; no submount.
    pub(crate) attributes: Attributes,
    /// Something is mounted there.
    pub(crate) is_mount: bool,
}

impl Found {
    fn new(found: &Statx) -> Self {
        let device = u64::from(found.stx_dev_major) << 32 | u64::from(found.stx_dev_minor);
        let time =
            |time: rustix::fs::StatxTimestamp| Time { seconds: time.tv_sec, nanoseconds: time.tv_nsec };
        let has_btime = found.stx_mask & StatxFlags::BTIME.bits() != 0;
        let btime = has_btime.then(|| time(found.stx_btime));
        let born = btime.unwrap_or_default();
        Self {
            identity: Identity { device, ino: found.stx_ino, btime: (born.seconds, born.nanoseconds) },
            attributes: Attributes {
                ino: found.stx_ino,
                size: found.stx_size,
                blocks: found.stx_blocks,
                atime: time(found.stx_atime),
                mtime: time(found.stx_mtime),
                ctime: time(found.stx_ctime),
                btime,
                mode: found.stx_mode.into(),
                links: found.stx_nlink,
                uid: found.stx_uid,
                gid: found.stx_gid,
                device: Device { major: found.stx_rdev_major, minor: found.stx_rdev_minor },
                block_size: found.stx_blksize,
                submount: false,
            },
            is_mount: found.stx_attributes.contains(StatxAttributes::MOUNT_ROOT),
        }
    }

    pub(crate) fn kind(&self) -> Kind {
        Kind::of_mode(self.attributes.mode)
    }

    /// The version of the contents, found after `then`; nothing if a change after that might not show.
    pub(crate) fn version(&self, then: Time) -> Option<Version> {
        let Attributes { size, mtime, ctime, .. } = self.attributes;
        let settled = ctime.seconds.saturating_add(MOMENT_SECONDS) < then.seconds;
        settled.then_some(Version { size, mtime, ctime })
    }
}

fn asked() -> StatxFlags {
    StatxFlags::BASIC_STATS | StatxFlags::BTIME
}

/// The file that a name in a directory leads to; of a link, the link.
pub(crate) fn stat_at(directory: BorrowedFd<'_>, name: &CStr) -> Result<Found> {
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
    told(rustix::fs::statx(directory, name, flags, asked())).map(|found| Found::new(&found))
}

/// The file that a descriptor is of.
pub(crate) fn stat(file: BorrowedFd<'_>) -> Result<Found> {
    told(rustix::fs::statx(file, c"", AtFlags::EMPTY_PATH, asked())).map(|found| Found::new(&found))
}

/// A descriptor that only names what it is of.
fn names_only() -> OFlags {
    OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC
}

/// The directory at a path of the host's.
pub(crate) fn open_root(path: &Path) -> Result<OwnedFd> {
    told(rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty()))
}

/// A descriptor that only names the file that a name in a directory leads to; of a link, the link.
pub(crate) fn open_beneath(directory: BorrowedFd<'_>, name: &CStr) -> Result<OwnedFd> {
    open_with(directory, name, names_only(), Mode::empty())
}

/// Opens the file that a name in a directory leads to, without waiting for anybody.
pub(crate) fn open_at(
    directory: BorrowedFd<'_>,
    name: &CStr,
    access: Access,
    flags: OpenFlags,
) -> Result<OwnedFd> {
    let flags = open_flags(access, flags) | OFlags::NOFOLLOW;
    open_with(directory, name, flags, Mode::empty()).map_err(|errno| match errno {
        // Something else has the name.
        Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO => Errno::ESTALE,
        other => other,
    })
}

fn open_with(directory: BorrowedFd<'_>, name: &CStr, flags: OFlags, mode: Mode) -> Result<OwnedFd> {
    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    told(rustix::fs::openat2(directory, name, flags, mode, resolve))
}

fn open_flags(access: Access, flags: OpenFlags) -> OFlags {
    let access = match access {
        Access::Read => OFlags::RDONLY,
        Access::Write => OFlags::WRONLY,
        Access::ReadWrite => OFlags::RDWR,
    };
    let given = |flag, host| if flags.contains(flag) { host } else { OFlags::empty() };
    access
        | given(OpenFlags::TRUNCATE, OFlags::TRUNC)
        | given(OpenFlags::SYNC, OFlags::SYNC)
        | given(OpenFlags::DATA_SYNC, OFlags::DSYNC)
        | OFlags::CLOEXEC
        | OFlags::NOCTTY
        | OFlags::NONBLOCK
}

/// A new file, opened.
pub(crate) fn create(
    directory: BorrowedFd<'_>,
    name: &CStr,
    mode: u32,
    access: Access,
    flags: OpenFlags,
) -> Result<OwnedFd> {
    let new = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    open_with(directory, name, open_flags(access, flags) | new, Mode::from_raw_mode(mode))
}

/// A new file without a name, opened; for ever without one, if it is told to be.
pub(crate) fn create_nameless(
    directory: BorrowedFd<'_>,
    mode: u32,
    access: Access,
    flags: OpenFlags,
    for_ever: bool,
) -> Result<OwnedFd> {
    // Linux wants one that can be written.
    let access = if access == Access::Read { Access::ReadWrite } else { access };
    let for_ever = if for_ever { OFlags::EXCL } else { OFlags::empty() };
    let flags = open_flags(access, flags - OpenFlags::TRUNCATE) | OFlags::TMPFILE | for_ever;
    told(rustix::fs::openat(directory, c".", flags, Mode::from_raw_mode(mode)))
}

pub(crate) fn make_directory(directory: BorrowedFd<'_>, name: &CStr, mode: u32) -> Result<()> {
    told(rustix::fs::mkdirat(directory, name, Mode::from_raw_mode(mode)))
}

pub(crate) fn make_symbolic_link(directory: BorrowedFd<'_>, name: &CStr, target: &CStr) -> Result<()> {
    told(rustix::fs::symlinkat(target, directory, name))
}

pub(crate) fn read_link(link: BorrowedFd<'_>) -> Result<Vec<u8>> {
    told(rustix::fs::readlinkat(link, c"", Vec::new())).map(std::ffi::CString::into_bytes)
}

/// Takes a name: of a directory, or of anything else.
pub(crate) fn remove(directory: BorrowedFd<'_>, name: &CStr, is_directory: bool) -> Result<()> {
    let flags = if is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
    told(rustix::fs::unlinkat(directory, name, flags))
}

pub(crate) fn rename(
    from: (BorrowedFd<'_>, &CStr),
    to: (BorrowedFd<'_>, &CStr),
    how: RenameHow,
) -> Result<()> {
    let flags = match how {
        RenameHow::Replace => RenameFlags::empty(),
        RenameHow::Keep => RenameFlags::NOREPLACE,
        RenameHow::Exchange => RenameFlags::EXCHANGE,
    };
    told(rustix::fs::renameat_with(from.0, from.1, to.0, to.1, flags))
}

/// `/proc/self/fd`: what a descriptor is of can be opened and changed by the descriptor's number, wherever it is by now.
#[derive(Debug)]
pub struct OwnFiles(OwnedFd);

impl OwnFiles {
    /// The directory as it is mounted.
    pub fn new() -> Result<Self> {
        open_root(Path::new("/proc/self/fd")).map(Self)
    }

    /// The directory by a descriptor of it, for a process that has no `/proc` by then.
    #[must_use]
    pub fn of(directory: OwnedFd) -> Self {
        Self(directory)
    }

    /// Opens a file by a descriptor that only names it.
    pub(crate) fn open(&self, file: BorrowedFd<'_>, access: Access, flags: OpenFlags) -> Result<OwnedFd> {
        told(rustix::fs::openat(&self.0, DecInt::from_fd(file), open_flags(access, flags), Mode::empty()))
    }

    /// Opens a directory to be listed.
    pub(crate) fn open_directory(&self, directory: BorrowedFd<'_>) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        told(rustix::fs::openat(&self.0, DecInt::from_fd(directory), flags, Mode::empty()))
    }

    /// A further descriptor that only names the file.
    pub(crate) fn open_name(&self, file: BorrowedFd<'_>) -> Result<OwnedFd> {
        told(rustix::fs::openat(
            &self.0,
            DecInt::from_fd(file),
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
        ))
    }

    /// Sets permission bits; not of a symbolic link.
    pub(crate) fn set_mode(&self, file: BorrowedFd<'_>, mode: u32) -> Result<()> {
        let mode = Mode::from_raw_mode(mode);
        told(rustix::fs::chmodat(&self.0, DecInt::from_fd(file), mode, AtFlags::empty()))
    }

    /// Gives a file one more name.
    pub(crate) fn link(&self, file: BorrowedFd<'_>, directory: BorrowedFd<'_>, name: &CStr) -> Result<()> {
        told(rustix::fs::linkat(&self.0, DecInt::from_fd(file), directory, name, AtFlags::SYMLINK_FOLLOW))
    }
}

/// Sets times of whatever a descriptor is of, a symbolic link too.
pub(crate) fn set_times(file: BorrowedFd<'_>, atime: Option<SetTime>, mtime: Option<SetTime>) -> Result<()> {
    let time = |time| {
        let special = |nanoseconds| Timespec { tv_sec: 0, tv_nsec: nanoseconds };
        match time {
            None => special(UTIME_OMIT),
            Some(SetTime::Now) => special(UTIME_NOW),
            Some(SetTime::At(time)) => Timespec { tv_sec: time.seconds, tv_nsec: time.nanoseconds.into() },
        }
    };
    let times = Timestamps { last_access: time(atime), last_modification: time(mtime) };
    told(rustix::fs::utimensat(file, c"", &times, AtFlags::EMPTY_PATH))
}

pub(crate) fn truncate(file: BorrowedFd<'_>, size: u64) -> Result<()> {
    told(rustix::fs::ftruncate(file, size))
}

/// Writes at the file's end, wherever that is at this moment; what the guest changes meanwhile is not written twice.
pub(crate) fn append(file: BorrowedFd<'_>, from: &Source<'_>) -> Result<usize> {
    let mut data = vec![0; from.len()];
    from.copy_to(&mut data);
    told(rustix::io::pwritev2(file, &[std::io::IoSlice::new(&data)], 0, ReadWriteFlags::APPEND))
}

pub(crate) fn reserve(file: BorrowedFd<'_>, offset: u64, len: u64, how: Allocation) -> Result<()> {
    let keep = |keep| if keep { FallocateFlags::KEEP_SIZE } else { FallocateFlags::empty() };
    let flags = match how {
        Allocation::Reserve { keep_size } => keep(keep_size),
        Allocation::Punch => FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE,
        Allocation::Zero { keep_size } => FallocateFlags::ZERO_RANGE | keep(keep_size),
    };
    told(rustix::fs::fallocate(file, flags, offset, len))
}

pub(crate) fn seek(file: BorrowedFd<'_>, offset: u64, what: fuse::Seek) -> Result<u64> {
    let from = match what {
        fuse::Seek::Data => SeekFrom::Data(offset),
        fuse::Seek::Hole => SeekFrom::Hole(offset),
    };
    told(rustix::fs::seek(file, from))
}

pub(crate) fn copy(from: (BorrowedFd<'_>, u64), to: (BorrowedFd<'_>, u64), len: u64) -> Result<u64> {
    let (mut offset, mut to_offset) = (from.1, to.1);
    let len = usize::try_from(len).map_err(|_| Errno::EINVAL)?;
    let copied =
        told(rustix::fs::copy_file_range(from.0, Some(&mut offset), to.0, Some(&mut to_offset), len))?;
    u64::try_from(copied).map_err(|_| Errno::EIO)
}

pub(crate) fn sync(file: BorrowedFd<'_>, data_only: bool) -> Result<()> {
    told(if data_only { rustix::fs::fdatasync(file) } else { rustix::fs::fsync(file) })
}

/// Has everything of a directory's file system stored.
pub(crate) fn sync_all(directory: BorrowedFd<'_>) -> Result<()> {
    told(rustix::fs::syncfs(directory))
}

/// The state of the file system of a file. Its unit is 4 KiB, whatever the host's is: programs take a large one for that
/// of memory.
pub(crate) fn statistics(file: BorrowedFd<'_>) -> Result<Statistics> {
    const UNIT: u64 = 4096;
    let found = told(rustix::fs::fstatvfs(file))?;
    let scaled = |blocks: u64| {
        let bytes = u128::from(blocks) * u128::from(found.f_frsize.max(1));
        u64::try_from(bytes / u128::from(UNIT)).unwrap_or(u64::MAX)
    };
    Ok(Statistics {
        block_size: 4096,
        blocks: scaled(found.f_blocks),
        free: scaled(found.f_bfree),
        available: scaled(found.f_bavail),
        files: found.f_files,
        free_files: found.f_ffree,
        name_len: u32::try_from(found.f_namemax).unwrap_or(255),
    })
}

/// Whether devices do nothing on the mount that a file is on.
pub(crate) fn is_without_devices(file: BorrowedFd<'_>) -> Result<bool> {
    Ok(told(rustix::fs::fstatvfs(file))?.f_flag.contains(StatVfsMountFlags::NODEV))
}

/// A directory that is listed in pieces.
#[derive(Debug)]
pub(crate) struct Directory {
    file: OwnedFd,
    /// Where the kernel goes on.
    at: u64,
}

/// Least and most bytes that are asked for at once: the longest entry has 280.
const LIST_LEN: (usize, usize) = (1 << 10, 32 << 10);

impl Directory {
    pub(crate) fn new(file: OwnedFd) -> Self {
        Self { file, at: 0 }
    }

    pub(crate) fn sync(&self) -> Result<()> {
        sync(self.file.as_fd(), false)
    }
}

/// Calls `each` with number, cookie, type and name of the entries behind `cookie`, until it says that it is full.
/// Whether the directory ended before that. `room` is roughly how many bytes of entries are wanted.
pub(crate) fn list(
    directory: &mut Directory,
    cookie: u64,
    room: usize,
    mut each: impl FnMut(BorrowedFd<'_>, u64, u64, u8, &CStr) -> bool,
) -> Result<bool> {
    let Directory { file, at } = directory;
    if *at != cookie {
        told(rustix::fs::seek(&*file, SeekFrom::Start(cookie)))?;
        *at = cookie;
    }
    let mut buffer = [MaybeUninit::uninit(); LIST_LEN.1];
    let mut entries = RawDir::new(&*file, &mut buffer[..room.clamp(LIST_LEN.0, LIST_LEN.1)]);
    while let Some(entry) = entries.next() {
        let entry = told(entry)?;
        let (next, kind) = (entry.next_entry_cookie(), entry.file_type().as_raw_mode() >> 12);
        *at = next;
        let kind = u8::try_from(kind & 0xf).unwrap_or_default();
        if !each(file.as_fd(), entry.ino(), next, kind, entry.file_name()) {
            // The kernel is past this entry.
            *at = u64::MAX;
            return Ok(false);
        }
    }
    Ok(true)
}

/// Now, as the host's file systems see it.
pub(crate) fn current_time() -> Time {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    Time { seconds: now.tv_sec, nanoseconds: u32::try_from(now.tv_nsec).unwrap_or_default() }
}

/// How many descriptors this process may have.
pub(crate) fn descriptor_limit() -> u64 {
    rustix::process::getrlimit(rustix::process::Resource::Nofile).current.unwrap_or(u64::MAX)
}
