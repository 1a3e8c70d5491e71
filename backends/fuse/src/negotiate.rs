//! The agreement between kernel and server on a version and its features, which comes before any other request.

use fuse_abi::linux as abi;

use crate::{Errno, MAX_DATA_LEN, Result};

/// The oldest minor version that is served: that of Linux 5.4, which brought virtio-fs. Since then the structures have
/// kept their sizes.
const OLDEST_MINOR: u32 = 31;

/// The first minor version whose requests tell the length of their extensions.
const EXTENSION_LENGTHS_MINOR: u32 = 38;

/// Most requests that the kernel has under way for its own sake, such as reading ahead, before it waits.
const MAX_BACKGROUND: u16 = 64;

/// The number of such requests at which the kernel regards the mount as busy.
const CONGESTED: u16 = 48;

/// Unit of a request's data.
const PAGE_SIZE: usize = 4096;

/// Features of every mount.
///
/// Some features are left out on purpose: locks that the host sees (a wait for one could not be interrupted), lookups
/// of `.` and `..`, access control lists, a cache of symbolic links that others change.
const ALWAYS: u64 = (abi::FUSE_ASYNC_READ
    | abi::FUSE_ATOMIC_O_TRUNC
    | abi::FUSE_BIG_WRITES
    | abi::FUSE_DO_READDIRPLUS
    | abi::FUSE_READDIRPLUS_AUTO
    | abi::FUSE_ASYNC_DIO
    | abi::FUSE_PARALLEL_DIROPS
    | abi::FUSE_MAX_PAGES
    | abi::FUSE_SUBMOUNTS
    | abi::FUSE_HANDLE_KILLPRIV_V2
    | abi::FUSE_INIT_EXT) as u64
    | abi::FUSE_SECURITY_CTX
    | abi::FUSE_DIRECT_IO_ALLOW_MMAP;

/// Features of files that other programs change, too.
const SHARED: u64 = abi::FUSE_AUTO_INVAL_DATA as u64;

/// Features of files that only this kernel changes: it may delay writes, and cache the targets of links.
const EXCLUSIVE: u64 = (abi::FUSE_WRITEBACK_CACHE | abi::FUSE_CACHE_SYMLINKS) as u64;

/// Whether anybody but the kernel that asks changes the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coherence {
    /// The host's programs change the files, too.
    Shared,
    /// Only that kernel changes the files.
    Exclusive,
}

/// The offer of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Init {
    pub(crate) major: u32,
    pub(crate) minor: u32,
    pub(crate) max_readahead: u32,
    pub(crate) flags: u64,
}

/// The answer to an offer.
pub(crate) enum Agreement {
    /// The kernel's version is another one; it may offer again.
    AnotherVersion(abi::fuse_init_out),
    /// Requests may come.
    Agreed(abi::fuse_init_out),
}

/// Agrees on the features that both sides have.
pub(crate) fn negotiate(offer: Init, coherence: Coherence) -> Result<Agreement> {
    let newest = abi::fuse_init_out {
        major: abi::FUSE_KERNEL_VERSION,
        minor: abi::FUSE_KERNEL_MINOR_VERSION,
        ..Default::default()
    };
    if offer.major > newest.major {
        return Ok(Agreement::AnotherVersion(newest));
    }
    if offer.major < newest.major || offer.minor < OLDEST_MINOR {
        return Err(Errno::EPROTO);
    }
    let mut wanted = ALWAYS
        | match coherence {
            Coherence::Shared => SHARED,
            Coherence::Exclusive => EXCLUSIVE,
        };
    if offer.minor < EXTENSION_LENGTHS_MINOR {
        wanted &= !abi::FUSE_SECURITY_CTX;
    }
    let [low, high] = halves(wanted & offer.flags);
    Ok(Agreement::Agreed(abi::fuse_init_out {
        minor: newest.minor.min(offer.minor),
        max_readahead: offer.max_readahead.min(u32::try_from(MAX_DATA_LEN).unwrap_or(u32::MAX)),
        flags: low,
        flags2: high,
        max_background: MAX_BACKGROUND,
        congestion_threshold: CONGESTED,
        max_write: u32::try_from(MAX_DATA_LEN).unwrap_or(u32::MAX),
        time_gran: 1,
        max_pages: u16::try_from(MAX_DATA_LEN / PAGE_SIZE).unwrap_or(u16::MAX),
        ..newest
    }))
}

/// The lower and the upper half of the flags.
#[expect(clippy::cast_possible_truncation, reason = "that is what halves are")]
fn halves(flags: u64) -> [u32; 2] {
    [flags as u32, (flags >> 32) as u32]
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINUX_6_12: Init = Init { major: 7, minor: 41, max_readahead: 128 << 10, flags: u64::MAX };

    fn agreed(offer: Init, coherence: Coherence) -> abi::fuse_init_out {
        match negotiate(offer, coherence).unwrap() {
            Agreement::Agreed(out) => out,
            Agreement::AnotherVersion(_) => panic!("the version is known"),
        }
    }

    #[test]
    fn features_are_those_of_both_and_of_the_device() {
        let shared = agreed(LINUX_6_12, Coherence::Shared);
        let exclusive = agreed(LINUX_6_12, Coherence::Exclusive);
        assert_eq!(shared.flags & !exclusive.flags, abi::FUSE_AUTO_INVAL_DATA);
        assert_eq!(exclusive.flags & !shared.flags, abi::FUSE_WRITEBACK_CACHE | abi::FUSE_CACHE_SYMLINKS);
        for out in [shared, exclusive] {
            let never = abi::FUSE_POSIX_LOCKS
                | abi::FUSE_FLOCK_LOCKS
                | abi::FUSE_EXPORT_SUPPORT
                | abi::FUSE_POSIX_ACL
                | abi::FUSE_SETXATTR_EXT
                | abi::FUSE_DONT_MASK;
            assert_eq!(out.flags & never, 0);
            assert_ne!(out.flags & abi::FUSE_HANDLE_KILLPRIV_V2, 0);
            assert_eq!((out.major, out.minor, out.max_readahead), (7, 40, 128 << 10));
            assert_eq!((out.max_write, out.max_pages, out.time_gran), (1 << 20, 256, 1));
        }
        let modest = agreed(Init { flags: abi::FUSE_MAX_PAGES.into(), ..LINUX_6_12 }, Coherence::Shared);
        assert_eq!((modest.flags, modest.flags2), (abi::FUSE_MAX_PAGES, 0));
        let eager = agreed(Init { max_readahead: u32::MAX, ..LINUX_6_12 }, Coherence::Shared);
        assert_eq!(eager.max_readahead, 1 << 20);
    }

    #[test]
    fn labels_only_come_with_their_length() {
        let label = |minor| {
            let out = agreed(Init { minor, ..LINUX_6_12 }, Coherence::Shared);
            assert_eq!(out.minor, minor.min(40));
            u64::from(out.flags2) << 32 & abi::FUSE_SECURITY_CTX != 0
        };
        assert!(!label(31) && !label(37) && label(38) && label(41));
    }

    #[test]
    fn other_versions_are_told_ours_or_refused() {
        let offer = |major, minor| negotiate(Init { major, minor, ..LINUX_6_12 }, Coherence::Shared);
        for major in [8, u32::MAX] {
            match offer(major, 0).unwrap() {
                Agreement::AnotherVersion(out) => assert_eq!((out.major, out.minor, out.flags), (7, 40, 0)),
                Agreement::Agreed(_) => panic!("version {major} is not ours"),
            }
        }
        for (major, minor) in [(0, 40), (6, 99), (7, 0), (7, 30)] {
            assert_eq!(offer(major, minor).err(), Some(Errno::EPROTO), "{major}.{minor}");
        }
        assert!(offer(7, u32::MAX).is_ok());
    }
}
