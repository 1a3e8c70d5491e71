//! Giving disk space back to the host after files are removed.
//!
//! ext4 can report each block that it frees to the disk at once. Without a journal it waits for each report, so that
//! removing many small files takes a multiple of the time. Here ext4 is told to look for all free blocks (FITRIM):
//! now and then while the guest runs, if there may be some, and at the guest's end on disks that outlive it. ext4
//! leaves out blocks that it has reported before.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;

/// How often the agent checks whether there is space to give back.
const INTERVAL: Duration = Duration::from_secs(10);

/// Bytes written or freed that make a trim worthwhile while the guest runs.
const WORTH: u64 = 16 << 20;

/// Bytes that make a trim worthwhile at the end.
const WORTH_AT_THE_END: u64 = 1 << 20;

/// How long the end may be held up.
const END_LIMIT: Duration = Duration::from_millis(500);

/// Bytes of a file system that are trimmed at a time.
const STRIDE: u64 = 16 << 30;

/// Free ranges shorter than this are not worth a request.
const SHORTEST: u64 = 64 << 10;

/// Largest block statistics that are read.
const STATISTICS_LIMIT: usize = 512;

/// A file system on a writable disk.
#[derive(Debug)]
pub(crate) struct FileSystem {
    root: OwnedFd,
    /// The kernel's statistics of its disk.
    statistics: OwnedFd,
    told: Told,
}

/// The state when the disk was last trimmed.
#[derive(Debug, Default)]
struct Told {
    /// Bytes written so far.
    written: AtomicU64,
    /// Bytes that were free.
    free: AtomicU64,
}

impl FileSystem {
    /// The file system of a mount; `None` if it is on no disk.
    pub(crate) fn open(mount: &OwnedFd) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(mount, ".", flags, Mode::empty()).ok()?;
        let device = rustix::fs::fstat(&root).ok()?.st_dev;
        let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
        let statistics = format!("/sys/dev/block/{major}:{minor}/stat");
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let statistics = rustix::fs::open(statistics, flags, Mode::empty()).ok()?;
        let file_system = Self { root, statistics, told: Told::default() };
        file_system.note();
        Some(file_system)
    }

    fn written(&self) -> u64 {
        let mut text = [0; STATISTICS_LIMIT];
        let length = rustix::io::pread(&self.statistics, &mut text, 0).unwrap_or(0);
        written(text.get(..length).unwrap_or_default())
    }

    fn free(&self) -> u64 {
        rustix::fs::fstatvfs(&self.root).map_or(0, |status| status.f_bfree.saturating_mul(status.f_frsize))
    }

    fn note(&self) {
        self.told.written.store(self.written(), Ordering::Relaxed);
        self.told.free.store(self.free(), Ordering::Relaxed);
    }

    fn is_worth(&self, bytes: u64) -> bool {
        let since = |now: u64, told: &AtomicU64| now.saturating_sub(told.load(Ordering::Relaxed)) >= bytes;
        since(self.written(), &self.told.written) || since(self.free(), &self.told.free)
    }

    /// Reports free space to the disk. The part that would take longer than until `end` is left for another time.
    fn trim(&self, end: Option<Instant>) {
        self.note();
        let Ok(status) = rustix::fs::fstatvfs(&self.root) else { return };
        let length = status.f_blocks.saturating_mul(status.f_frsize);
        let mut start = 0;
        while start < length && end.is_none_or(|end| Instant::now() < end) {
            // A disk that does not support this is not asked again this time.
            if trim(&self.root, start).is_err() {
                return;
            }
            start += STRIDE;
        }
    }
}

/// Gives back free space on these file systems again and again. Does not return.
pub(crate) fn keep_trimming(disks: &[FileSystem], upper: &[FileSystem]) -> ! {
    loop {
        std::thread::sleep(INTERVAL);
        for file_system in disks.iter().chain(upper).filter(|file_system| file_system.is_worth(WORTH)) {
            file_system.trim(None);
        }
    }
}

/// Gives back free space on these file systems, within bounds. Everything must have been written to the disks.
pub(crate) fn trim_at_the_end(file_systems: &[FileSystem]) {
    let end = Instant::now() + END_LIMIT;
    for file_system in file_systems.iter().filter(|file_system| file_system.is_worth(WORTH_AT_THE_END)) {
        file_system.trim(Some(end));
    }
}

/// The seventh number of a block device's statistics: sectors of 512 bytes written (Documentation/block/stat.rst).
fn written(statistics: &[u8]) -> u64 {
    let text = String::from_utf8_lossy(statistics);
    let sectors = text.split_ascii_whitespace().nth(6).and_then(|number| number.parse::<u64>().ok());
    sectors.unwrap_or(0).saturating_mul(512)
}

/// `_IOWR('X', 121, struct fstrim_range)` of linux/fs.h.
const FITRIM: libc::Ioctl = 0xc018_5879_u32 as libc::Ioctl;

/// `struct fstrim_range` of linux/fs.h.
#[repr(C)]
struct Range {
    start: u64,
    len: u64,
    minlen: u64,
}

fn trim(root: &OwnedFd, start: u64) -> Result<(), Errno> {
    let mut range = Range { start, len: STRIDE, minlen: SHORTEST };
    // SAFETY: FITRIM reads and writes an fstrim_range, which `range` is.
    match unsafe { libc::ioctl(root.as_raw_fd(), FITRIM, &raw mut range) } {
        -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statistics() {
        let text = b"     164        0    14074      28       12       30      336       4        0      32       33\n";
        assert_eq!(written(text), 336 * 512);
        for text in [&b""[..], b"1 2 3 4 5 6", b"1 2 3 4 5 6 x", b"\xff"] {
            assert_eq!(written(text), 0);
        }
    }

    #[test]
    fn what_is_on_no_disk() {
        let memory = rustix::fs::open("/dev/shm", OFlags::PATH | OFlags::CLOEXEC, Mode::empty());
        assert!(memory.is_ok_and(|mount| FileSystem::open(&mount).is_none()));
    }
}
