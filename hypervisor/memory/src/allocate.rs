//! Allocation of a machine's RAM, aligned so that the host can back it with huge pages.
//!
//! A guest page and the host page under it can only be one 2 MiB page if both addresses agree modulo 2 MiB; a guest
//! whose RAM is not so aligned takes a quarter more instructions to reach its init. Not here: hugetlbfs pools.

use std::io;
use std::ptr;
use std::sync::Arc;

use rustix::mm::{MapFlags, ProtFlags};
use vm_memory::mmap::{MmapRegionBuilder, MmapRegionError};
use vm_memory::{FileOffset, GuestAddress, GuestRegionCollectionError, GuestRegionMmap};

use crate::page::page_size;
use crate::{GuestRam, SharedFile, sys};

/// Size of the huge page for which guest and host addresses are aligned, on hosts whose pages have 4 KiB.
const HUGE_PAGE: u64 = 2 << 20;

/// The kind of memory behind guest RAM.
#[derive(Debug)]
pub enum Backing {
    /// Private memory of this process.
    Anonymous,
    /// One file that other processes (vhost-user back ends) can map; each region carries its [`FileOffset`].
    Shared(SharedFile),
}

/// Why RAM could not be allocated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A range is empty, not made of whole pages, or reaches past the end of the address space.
    #[error("guest RAM range {size:#x} bytes at {start:#x} is not a range of pages")]
    Range {
        /// Guest address.
        start: u64,
        /// Size in bytes.
        size: usize,
    },
    /// The ranges overlap or are not in ascending order.
    #[error("guest RAM ranges: {0}")]
    Layout(#[from] GuestRegionCollectionError),
    /// vm-memory refused the mapping.
    #[error("guest RAM mapping: {0}")]
    Mapping(#[from] MmapRegionError),
    /// The host refused one operation.
    #[error("{operation} of {size} bytes of guest RAM: {source}")]
    Host {
        /// The system call.
        operation: &'static str,
        /// The number of bytes asked for.
        size: u64,
        /// The host's answer.
        source: io::Error,
    },
}

/// Allocates zeroed RAM for the given guest ranges (address and size in bytes), in ascending order.
///
/// The host provides the memory when it is first touched, in huge pages where the host has them, and leaves the memory
/// out of core dumps. The memory belongs to the process and is given back when the process ends, not when the last
/// clone of the [`GuestRam`] is dropped: a machine's RAM lives as long as its process, and a hypervisor's mapping of
/// the RAM can never dangle.
pub fn allocate(ranges: &[(GuestAddress, usize)], backing: Backing) -> Result<GuestRam, Error> {
    let mut offset = 0u64;
    let mut placed = Vec::with_capacity(ranges.len());
    for &(start, size) in ranges {
        check(start, size)?;
        // The file's pages can be huge only if the offset, too, agrees with the addresses modulo 2 MiB.
        offset += (start.0.wrapping_sub(offset)) % HUGE_PAGE;
        placed.push((start, size, offset));
        offset += size as u64;
    }
    let file = match backing {
        Backing::Anonymous => None,
        Backing::Shared(file) => {
            let host = |(operation, errno): (_, rustix::io::Errno)| Error::Host {
                operation,
                size: offset,
                source: errno.into(),
            };
            Some(Arc::new(file.with_len(offset).map_err(host)?))
        }
    };
    let regions = placed.into_iter().map(|(start, size, offset)| {
        let file = file.as_ref().map(|file| FileOffset::from_arc(Arc::clone(file), offset));
        region(start, size, file)
    });
    Ok(GuestRam::from_regions(regions.collect::<Result<_, _>>()?)?)
}

fn check(start: GuestAddress, size: usize) -> Result<(), Error> {
    // The host maps nothing smaller than its own page.
    let page = page_size();
    let whole_pages = start.0.is_multiple_of(page as u64) && size.is_multiple_of(page);
    // Guest-physical addresses have at most 52 bits, which bounds every sum below.
    let fits = start.0.checked_add(size as u64).is_some_and(|end| end <= 1 << 52);
    if size > 0 && whole_pages && fits { Ok(()) } else { Err(Error::Range { start: start.0, size }) }
}

fn region(start: GuestAddress, size: usize, file: Option<FileOffset>) -> Result<GuestRegionMmap<()>, Error> {
    let host = map(start, size, file.as_ref()).map_err(|(operation, errno)| Error::Host {
        operation,
        size: size as u64,
        source: errno.into(),
    })?;
    let mut builder = MmapRegionBuilder::<()>::new(size);
    if let Some(file) = file {
        builder = builder.with_file_offset(file);
    }
    // SAFETY: `host` starts a mapping of `size` bytes that nothing ever unmaps.
    let builder = unsafe { builder.with_raw_mmap_pointer(host.cast()) };
    GuestRegionMmap::new(builder.build()?, start).ok_or(Error::Range { start: start.0, size })
}

type MapError = (&'static str, rustix::io::Errno);

/// Maps `size` bytes whose host address agrees with the guest address modulo 2 MiB.
fn map(
    start: GuestAddress,
    size: usize,
    file: Option<&FileOffset>,
) -> Result<*mut std::ffi::c_void, MapError> {
    let mmap = |errno| ("mmap", errno);
    // One huge page more than needed leaves room for an aligned start wherever the kernel puts the mapping.
    let reserved = size + (2 << 20);
    // SAFETY: a fresh mapping at an address the kernel picks touches nothing that exists.
    let base = unsafe {
        let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
        rustix::mm::mmap_anonymous(ptr::null_mut(), reserved, ProtFlags::empty(), flags)
    }
    .map_err(mmap)?;
    let head = (start.0.wrapping_sub(base.addr() as u64) % HUGE_PAGE) as usize;
    let host = base.wrapping_byte_add(head);
    if head > 0 {
        // SAFETY: the first `head` bytes, whole pages, of the reservation made above; no reference leads into them.
        unsafe { rustix::mm::munmap(base, head) }.map_err(|errno| ("munmap", errno))?;
    }
    let tail = reserved - head - size;
    if tail > 0 {
        // SAFETY: the last `tail` bytes, whole pages, of the reservation made above; no reference leads into them.
        unsafe { rustix::mm::munmap(host.wrapping_byte_add(size), tail) }
            .map_err(|errno| ("munmap", errno))?;
    }
    let (prot, fixed) = (ProtFlags::READ | ProtFlags::WRITE, MapFlags::FIXED | MapFlags::NORESERVE);
    match file {
        None => {
            // SAFETY: replaces exactly the remaining part of this function's reservation, into which no reference
            // leads.
            unsafe { rustix::mm::mmap_anonymous(host, size, prot, fixed | MapFlags::PRIVATE) }
                .map_err(mmap)?
        }
        Some(at) => {
            let flags = fixed | MapFlags::SHARED;
            // SAFETY: replaces exactly the remaining part of this function's reservation, into which no reference
            // leads.
            unsafe { rustix::mm::mmap(host, size, prot, flags, at.file(), at.start()) }.map_err(mmap)?
        }
    };
    for advice in sys::ADVICE {
        // A kernel built without huge pages refuses the advice; the memory serves as well without it.
        // SAFETY: neither advice changes the contents of the mapping, which this function owns.
        let _ = unsafe { rustix::mm::madvise(host, size, advice) };
    }
    Ok(host)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

    /// A multiple of every host's page size.
    const PAGE: usize = 64 << 10;
    const HIGH: GuestAddress = GuestAddress(4 << 30);

    fn both(ranges: &[(GuestAddress, usize)]) -> [GuestRam; 2] {
        [Backing::Anonymous, Backing::Shared(SharedFile::new().unwrap())]
            .map(|backing| allocate(ranges, backing).unwrap())
    }

    #[test]
    fn host_and_guest_addresses_agree_modulo_a_huge_page() {
        let odd = GuestAddress(0x10_0000 + 3 * PAGE as u64);
        for ram in both(&[(odd, 5 * PAGE), (GuestAddress(0x40_0000), 4 << 20), (HIGH, (2 << 20) + PAGE)]) {
            assert_eq!(ram.iter().count(), 3);
            for region in ram.iter() {
                let host = region.get_host_address(MemoryRegionAddress(0)).unwrap().addr();
                assert_eq!((host as u64).wrapping_sub(region.start_addr().0) % HUGE_PAGE, 0);
                if let Some(file) = region.file_offset() {
                    assert_eq!(file.start() % HUGE_PAGE, region.start_addr().0 % HUGE_PAGE);
                }
            }
        }
    }

    #[test]
    fn memory_is_zeroed_and_writable_to_its_last_byte() {
        for ram in both(&[(GuestAddress(0), 3 << 20), (HIGH, PAGE)]) {
            let last = HIGH.0 + PAGE as u64 - 8;
            assert_eq!(ram.read_obj::<u64>(GuestAddress(last)).unwrap(), 0);
            ram.write_obj(0x1122_3344_5566_7788u64, GuestAddress(last)).unwrap();
            assert_eq!(ram.read_obj::<u64>(GuestAddress(last)).unwrap(), 0x1122_3344_5566_7788);
            assert!(ram.write_obj(1u64, GuestAddress(last + 1)).is_err());
            assert!(ram.write_obj(1u8, GuestAddress(3 << 20)).is_err());
        }
    }

    #[test]
    fn shared_memory_is_seen_through_its_one_sealed_file() {
        let ram = allocate(
            &[(GuestAddress(0), 1 << 20), (HIGH, PAGE)],
            Backing::Shared(SharedFile::sealed().unwrap()),
        )
        .unwrap();
        let mut inodes = Vec::new();
        for (value, region) in (1u64..).zip(ram.iter()) {
            ram.write_obj(value, region.start_addr()).unwrap();
            let at = region.file_offset().unwrap();
            let mut bytes = [0; 8];
            rustix::io::pread(at.file(), &mut bytes, at.start()).unwrap();
            assert_eq!(u64::from_le_bytes(bytes), value);
            assert!(at.file().set_len(PAGE as u64).is_err(), "the file can be shrunk");
            inodes.push(rustix::fs::fstat(at.file()).unwrap().st_ino);
        }
        assert_eq!(inodes[0], inodes[1]);
    }

    #[test]
    fn impossible_ranges_are_refused() {
        for (start, size) in [(0, 0), (0, 100), (0x800, PAGE), (u64::MAX - 0xfff, PAGE), (1 << 52, PAGE)] {
            let error = allocate(&[(GuestAddress(start), size)], Backing::Anonymous).unwrap_err();
            assert!(matches!(error, Error::Range { .. }), "{error}");
        }
        let overlapping = [(GuestAddress(0), 2 * PAGE), (GuestAddress(PAGE as u64), PAGE)];
        assert!(matches!(allocate(&overlapping, Backing::Anonymous), Err(Error::Layout(_))));
        let error = allocate(&[(GuestAddress(0), 1 << 50)], Backing::Anonymous).unwrap_err();
        assert!(matches!(error, Error::Host { operation: "mmap", .. }), "{error}");
    }
}
