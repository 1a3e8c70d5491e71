//! Disk images of the user's: opened once, recognized as ext4, and locked against other sandboxes.
//!
//! The lock is a flock(2) of the open file, exclusive to write and shared to read. It goes with the descriptor, so it
//! is held until the last process that could write has let go, however that process ends. Programs that do not ask
//! for the lock are not kept out. Not here: the choice of images, and the content of their file systems.

use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::Path;

use rustix::fs::OFlags;

/// The unit of a disk's length.
const SECTOR: u64 = 512;

/// Offset and length of the superblock.
const SUPERBLOCK: u64 = 1024;
pub(crate) const SUPERBLOCK_LEN: usize = 1024;

// Linux fs/ext4/ext4.h, struct ext4_super_block: offsets and values of the fields that are checked.
const BLOCKS_LOW: usize = 0x4;
const BLOCK_SIZE_SHIFT: usize = 0x18;
const MAGIC: usize = 0x38;
const INCOMPATIBLE: usize = 0x60;
const READONLY_COMPATIBLE: usize = 0x64;
const BLOCKS_HIGH: usize = 0x150;
const MAGIC_VALUE: u16 = 0xef53;
const MAX_BLOCK_SIZE_SHIFT: u32 = 6;
const NEEDS_RECOVERY: u32 = 0x4;
const JOURNAL_DEVICE: u32 = 0x8;
const BLOCKS_64BIT: u32 = 0x80;
const VERITY: u32 = 0x8000;

/// `s_log_block_size` of blocks as large as a guest's page.
const PAGE_SHIFT: u32 = 2;

/// Features that keep a guest from mounting a file system (beyond EXT4_FEATURE_INCOMPAT_SUPP of Linux 6.1), by their
/// names in e2fsprogs. Other such features have no name.
const UNKNOWN: [(u32, &str); 2] = [(0x1, "compression"), (0x1000, "dirdata")];
const KNOWN_MASK: u32 = 0x3_e7d6;

/// Features that keep a guest from writing a file system (beyond EXT4_FEATURE_RO_COMPAT_SUPP). The first two need
/// quotas, for which a guest's kernel has no module; reading needs none.
const UNWRITABLE: [(u32, &str); 4] =
    [(0x100, "quota"), (0x2000, "project"), (0x800, "replica"), (0x4000, "shared_blocks")];
const WRITABLE_MASK: u32 = 0x1_967f;

/// An image that is open, and locked for as long as this or a copy of its descriptor exists.
#[derive(Debug)]
pub struct DiskImage {
    /// The file, open to read, or to read and write.
    pub file: File,
    /// The image's size in bytes, a multiple of 512.
    pub len: u64,
}

/// The reason why a file cannot be a sandbox's disk.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DiskImageError {
    /// The system refused to open the file.
    #[error("{}", words(.0))]
    Open(io::Error),
    /// The file is a directory, a device, a pipe, or a link where none is followed.
    #[error("not a regular file")]
    NotRegular,
    /// The file was removed while it was opened.
    #[error("it has just been removed")]
    Gone,
    /// Another process has the file: one writes it, or this one would and one reads it.
    #[error("in use: end the sandbox it is attached to first, or attach it read-only to both")]
    InUse,
    /// The file is not made of whole sectors.
    #[error("its size of {0} bytes is not a multiple of 512")]
    Size(u64),
    /// The file has no ext4 superblock.
    #[error("it has no ext4 file system; make one with matchlock volume create, or with mkfs.ext4")]
    NotExt4,
    /// The file is shorter than its file system.
    #[error("it is cut short: its file system has {expected} bytes, the file {actual}")]
    Cut {
        /// The length that the superblock gives.
        expected: u64,
        /// The file's length.
        actual: u64,
    },
    /// The guest's kernel does not know a feature of the file system.
    #[error("no guest can mount its ext4 feature {0}")]
    Feature(String),
    /// The guest's kernel cannot maintain a feature of the file system.
    #[error(
        "no guest can write an ext4 with the feature {0}: attach it read-only, or take that away (tune2fs -O ^{0})"
    )]
    WritableFeature(String),
    /// The file system was not unmounted, and cannot be repaired without being writable.
    #[error("it was not unmounted in order, so it cannot be read-only: attach it writable once")]
    Unclean,
}

/// The system's message, without the number.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}

impl DiskImage {
    /// Opens an image; symbolic links are followed.
    pub fn open(path: &Path, writable: bool) -> Result<Self, DiskImageError> {
        Self::check(open(path, writable, OFlags::empty()).map_err(DiskImageError::Open)?, writable)
    }

    /// Locks an open file, and checks whether it can be a disk.
    pub(crate) fn check(file: File, writable: bool) -> Result<Self, DiskImageError> {
        if !file.metadata().map_err(DiskImageError::Open)?.is_file() {
            return Err(DiskImageError::NotRegular);
        }
        lock(&file, writable)?;
        // Read only now, as nobody changes the locked file any more.
        let len = file.metadata().map_err(DiskImageError::Open)?.len();
        let mut superblock = [0; SUPERBLOCK_LEN];
        match file.read_exact_at(&mut superblock, SUPERBLOCK) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(DiskImageError::NotExt4);
            }
            read => read.map_err(DiskImageError::Open)?,
        }
        check_superblock(&superblock, len, writable)?;
        if !len.is_multiple_of(SECTOR) {
            return Err(DiskImageError::Size(len));
        }
        Ok(Self { file, len })
    }
}

/// Opens a file of any type without waiting for it.
pub(crate) fn open(path: &Path, writable: bool, flags: OFlags) -> io::Result<File> {
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY;
    let flags = i32::try_from(flags.bits()).unwrap_or(0);
    OpenOptions::new().read(true).write(writable).custom_flags(flags).open(path)
}

/// Locks a file that still has a name, unless another lock is in the way.
pub(crate) fn lock(file: &File, exclusive: bool) -> Result<(), DiskImageError> {
    let locked = if exclusive { file.try_lock() } else { file.try_lock_shared() };
    locked.map_err(|error| match error {
        TryLockError::WouldBlock => DiskImageError::InUse,
        TryLockError::Error(error) => DiskImageError::Open(error),
    })?;
    match file.metadata().map_err(DiskImageError::Open)?.nlink() {
        0 => Err(DiskImageError::Gone),
        _ => Ok(()),
    }
}

pub(crate) fn check_superblock(
    superblock: &[u8; SUPERBLOCK_LEN],
    actual: u64,
    writable: bool,
) -> Result<(), DiskImageError> {
    let number = |at: usize| {
        let bytes = superblock.get(at..).and_then(|rest| rest.first_chunk().copied());
        u32::from_le_bytes(bytes.unwrap_or_default())
    };
    let (shift, incompatible) = (number(BLOCK_SIZE_SHIFT), number(INCOMPATIBLE));
    let high = if incompatible & BLOCKS_64BIT == 0 { 0 } else { number(BLOCKS_HIGH) };
    let blocks = u64::from(high) << 32 | u64::from(number(BLOCKS_LOW));
    let magic = number(MAGIC).to_le_bytes()[..2] == MAGIC_VALUE.to_le_bytes();
    if !magic || shift > MAX_BLOCK_SIZE_SHIFT || incompatible & JOURNAL_DEVICE != 0 || blocks == 0 {
        return Err(DiskImageError::NotExt4);
    }
    let expected = blocks.saturating_mul(1024 << shift);
    if expected > actual {
        return Err(DiskImageError::Cut { expected, actual });
    }
    let readonly_compatible = number(READONLY_COMPATIBLE);
    if let Some(name) = feature(incompatible & !KNOWN_MASK, &UNKNOWN) {
        return Err(DiskImageError::Feature(name));
    }
    if shift > PAGE_SHIFT {
        return Err(DiskImageError::Feature(format!("blocks of {} bytes", 1024 << shift)));
    }
    // Linux before 6.3: "Unsupported blocksize for fs-verity".
    if readonly_compatible & VERITY != 0 && shift != PAGE_SHIFT {
        return Err(DiskImageError::Feature(format!("verity with blocks of {} bytes", 1024 << shift)));
    }
    if writable && let Some(name) = feature(readonly_compatible & !WRITABLE_MASK, &UNWRITABLE) {
        return Err(DiskImageError::WritableFeature(name));
    }
    if !writable && incompatible & NEEDS_RECOVERY != 0 {
        return Err(DiskImageError::Unclean);
    }
    Ok(())
}

/// The name of the first of these features that is set.
fn feature(features: u32, names: &[(u32, &str)]) -> Option<String> {
    let first = 1_u32.checked_shl(features.trailing_zeros())?;
    let name = names.iter().find(|(feature, _)| *feature == first);
    Some(name.map_or_else(|| format!("{first:#x}"), |(_, name)| (*name).to_owned()))
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;
    use std::path::PathBuf;
    use std::process::Command;

    use super::*;
    use crate::Volumes;

    struct Fixture {
        cache: tempfile::TempDir,
        volumes: Volumes,
        path: PathBuf,
    }

    fn fixture() -> Fixture {
        let cache = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(cache.path()).unwrap();
        let path = volumes.create("data", 16).unwrap().path;
        Fixture { cache, volumes, path }
    }

    /// Waits until the lock is free: a process that another test starts may hold a copy of it for a moment.
    fn settle(path: &Path) {
        let file = File::open(path).unwrap();
        file.lock().unwrap();
        file.unlock().unwrap();
    }

    fn patch(path: &Path, at: usize, bytes: &[u8]) {
        let file = File::options().write(true).open(path).unwrap();
        file.write_all_at(bytes, SUPERBLOCK + at as u64).unwrap();
    }

    #[test]
    fn one_writer_or_many_readers() {
        let Fixture { cache: _cache, path, .. } = fixture();
        let in_use = |writable| matches!(DiskImage::open(&path, writable), Err(DiskImageError::InUse));
        let writer = DiskImage::open(&path, true).unwrap();
        assert_eq!(writer.len, 16 << 20);
        assert!(in_use(true) && in_use(false));
        // The lock goes where the descriptor goes.
        let copy = writer.file.try_clone().unwrap();
        drop(writer);
        assert!(in_use(true) && in_use(false));
        drop(copy);
        settle(&path);
        let readers = [false, false].map(|writable| DiskImage::open(&path, writable).unwrap());
        assert!(in_use(true));
        drop(readers);
        settle(&path);
        DiskImage::open(&path, true).unwrap();
    }

    #[test]
    fn volumes_in_use_are_neither_removed_nor_copied() {
        let Fixture { cache: _cache, volumes, path } = fixture();
        let writer = volumes.attach("data", true).unwrap();
        for refused in [volumes.remove("data"), volumes.copy("data", "other").map(drop)] {
            let text = "volume data is in use: end the sandbox it is attached to first";
            assert_eq!(refused.unwrap_err().to_string(), text);
        }
        drop(writer);
        settle(&path);
        let reader = volumes.attach("data", false).unwrap();
        volumes.copy("data", "other").unwrap();
        assert!(matches!(volumes.remove("data"), Err(crate::Error::VolumeInUse(_))));
        drop(reader);
        settle(&path);
        volumes.remove("data").unwrap();
        let missing = volumes.attach("data", true).unwrap_err();
        assert_eq!(missing.to_string(), "named volume not found: data");
        assert!(matches!(volumes.attach("../data", true), Err(crate::Error::VolumeName(_))));
        assert_eq!(volumes.list().unwrap().len(), 1);
    }

    #[test]
    fn a_removed_image_is_not_attached() {
        let Fixture { cache: _cache, path, .. } = fixture();
        let file = open(&path, true, OFlags::empty()).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(matches!(DiskImage::check(file, true), Err(DiskImageError::Gone)));
    }

    #[test]
    fn what_is_no_disk_is_refused() {
        let Fixture { cache, path, volumes } = fixture();
        let error = |path: &Path| DiskImage::open(path, true).unwrap_err().to_string();
        let other = cache.path().join("other");
        assert_eq!(error(&other), "no such file or directory");
        let no_ext4 = "it has no ext4 file system; make one with matchlock volume create, or with mkfs.ext4";
        for content in [vec![], vec![0; 1024], vec![0; 2047], vec![0; 1 << 20]] {
            fs::write(&other, content).unwrap();
            assert_eq!(error(&other), no_ext4);
        }
        for special in ["/dev/zero", "/dev/ptmx"] {
            assert_eq!(error(Path::new(special)), "not a regular file");
        }
        assert!(matches!(DiskImage::open(cache.path(), false), Err(DiskImageError::NotRegular)));
        let fifo = cache.path().join("fifo");
        rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR)
            .unwrap();
        assert_eq!(error(&fifo), "not a regular file");
        // A user's path may be a link, a volume may not.
        let link = path.with_file_name("link.ext4");
        symlink(&path, &link).unwrap();
        DiskImage::open(&link, true).unwrap();
        assert!(volumes.attach("link", true).is_err());

        let file = File::options().write(true).open(&path).unwrap();
        file.set_len((16 << 20) + 1).unwrap();
        settle(&path);
        assert_eq!(error(&path), "its size of 16777217 bytes is not a multiple of 512");
        file.set_len((16 << 20) - 512).unwrap();
        settle(&path);
        assert_eq!(error(&path), "it is cut short: its file system has 16777216 bytes, the file 16776704");
    }

    #[test]
    fn no_superblock_is_too_strange() {
        let mut superblock = [0; SUPERBLOCK_LEN];
        let mut seed = 0x2545_f491_4f6c_dd1d_u64;
        let (mut plausible, mut featured) = (0, 0);
        for round in 0..20_000_u64 {
            for byte in &mut superblock {
                seed ^= seed << 13;
                seed ^= seed >> 7;
                seed ^= seed << 17;
                *byte = seed.to_le_bytes()[0];
            }
            superblock[MAGIC..][..2].copy_from_slice(&MAGIC_VALUE.to_le_bytes());
            let shift = u32::from(superblock[0] & 7);
            superblock[BLOCK_SIZE_SHIFT..][..4].copy_from_slice(&shift.to_le_bytes());
            // Half of the rounds have known features.
            if round % 4 > 1 {
                let masks = [(INCOMPATIBLE, KNOWN_MASK), (READONLY_COMPATIBLE, WRITABLE_MASK & !VERITY)];
                for (at, mask) in masks {
                    let known = u32::from_le_bytes(*superblock[at..].first_chunk().unwrap()) & mask;
                    superblock[at..][..4].copy_from_slice(&known.to_le_bytes());
                }
            }
            match check_superblock(&superblock, round << 40, round % 2 == 0) {
                Ok(()) => plausible += 1,
                Err(DiskImageError::Cut { expected, actual }) => assert!(expected > actual),
                Err(DiskImageError::Feature(_) | DiskImageError::WritableFeature(_)) => featured += 1,
                Err(DiskImageError::NotExt4 | DiskImageError::Unclean) => {}
                Err(other) => panic!("{other:?}"),
            }
        }
        assert!(plausible > 1000 && featured > 1000, "{plausible} and {featured} were looked at to the end");
    }

    /// Compares the features that mke2fs sets with those that Linux 6.1 mounts.
    #[test]
    fn features_that_no_guest_can_mount_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        let made = |features: &[&str]| {
            fs::write(&path, "").unwrap();
            File::options().write(true).open(&path).unwrap().set_len(64 << 20).unwrap();
            let mut mke2fs = Command::new("/sbin/mke2fs");
            let output = mke2fs.args(["-q", "-F", "-t", "ext4"]).args(features).arg(&path).output().unwrap();
            assert!(output.status.success(), "{output:?}");
            [true, false].map(|writable| match DiskImage::open(&path, writable) {
                Ok(_) => String::new(),
                Err(error) => error.to_string(),
            })
        };
        let fine = [String::new(), String::new()];
        let all = "metadata_csum,64bit,bigalloc,ea_inode,encrypt,casefold,inline_data,large_dir,mmp,metadata_csum_seed";
        for features in [
            &[][..],
            &["-O", all],
            &["-O", "verity", "-b", "4096"],
            &["-b", "1024"],
            &["-O", "^extents,^64bit"],
        ] {
            assert_eq!(made(features), fine, "{features:?}");
        }
        let quota = |name| {
            let why = "attach it read-only, or take that away (tune2fs -O ^";
            [format!("no guest can write an ext4 with the feature {name}: {why}{name})"), String::new()]
        };
        assert_eq!(made(&["-O", "quota"]), quota("quota"));
        assert_eq!(made(&["-O", "quota,project"]), quota("quota"));
        let both = |what: &str| [(); 2].map(|()| format!("no guest can mount its ext4 feature {what}"));
        assert_eq!(made(&["-O", "verity", "-b", "1024"]), both("verity with blocks of 1024 bytes"));
        assert_eq!(made(&["-b", "65536"]), both("blocks of 65536 bytes"));
        made(&[]);
        settle(&path);
        for (feature, name) in [(0x1000, "dirdata"), (0x8000_0000_u32, "0x80000000")] {
            patch(&path, INCOMPATIBLE, &(feature | 0x40).to_le_bytes());
            settle(&path);
            assert_eq!(DiskImage::open(&path, true).unwrap_err().to_string(), both(name)[0]);
        }
    }

    #[test]
    fn a_journal_to_replay_needs_a_writer() {
        let Fixture { cache: _cache, path, .. } = fixture();
        let mut superblock = [0; SUPERBLOCK_LEN];
        File::open(&path).unwrap().read_exact_at(&mut superblock, SUPERBLOCK).unwrap();
        patch(&path, INCOMPATIBLE, &[superblock[INCOMPATIBLE] | 4]);
        assert!(matches!(DiskImage::open(&path, false), Err(DiskImageError::Unclean)));
        settle(&path);
        DiskImage::open(&path, true).unwrap();
        settle(&path);
        patch(&path, INCOMPATIBLE, &[8]);
        assert!(matches!(DiskImage::open(&path, true), Err(DiskImageError::NotExt4)));
        settle(&path);
        patch(&path, INCOMPATIBLE, &[0x80]);
        patch(&path, BLOCKS_HIGH, &[255; 4]);
        assert!(matches!(DiskImage::open(&path, true), Err(DiskImageError::Cut { expected: u64::MAX, .. })));
        settle(&path);
        patch(&path, BLOCK_SIZE_SHIFT, &[7]);
        assert!(matches!(DiskImage::open(&path, true), Err(DiskImageError::NotExt4)));
    }
}
