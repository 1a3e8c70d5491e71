//! Giving guest memory back to the host while the guest runs.
//!
//! Not here: which memory, and when (the balloon's business).

use std::io;

use rustix::mm::Advice;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::GuestRam;

/// Gives back `len` bytes from `start` on, which then read as zeroes. Both are multiples of the page size and in RAM.
pub fn discard(ram: &GuestRam, start: GuestAddress, len: usize) -> io::Result<()> {
    for slice in ram.get_slices(start, len) {
        let slice = slice.map_err(|_| io::ErrorKind::InvalidInput)?;
        let shared = ram.find_region(start).is_some_and(|region| region.file_offset().is_some());
        // A private page is dropped; a shared one stays in its file unless a hole is made there.
        let advice = if shared { Advice::LinuxRemove } else { Advice::LinuxDontNeed };
        // SAFETY: the range is mapped and stays so (nothing unmaps guest RAM). What it contains changes, as it may at
        // any time in guest memory, which nothing in Rust has a reference to.
        unsafe { rustix::mm::madvise(slice.ptr_guard_mut().as_ptr().cast(), slice.len(), advice) }?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use vm_memory::Bytes;

    use super::*;
    use crate::{Backing, SharedFile, allocate};

    #[test]
    fn what_is_discarded_reads_as_zeroes_and_the_rest_stays() {
        for backing in [
            Backing::Anonymous,
            Backing::Shared(SharedFile::sealed().unwrap()),
            Backing::Shared(SharedFile::new().unwrap()),
        ] {
            let kind = format!("{backing:?}");
            let ram = allocate(&[(GuestAddress(0x10_0000), 0x4000)], backing).unwrap();
            let page = |index: u64| GuestAddress(0x10_0000 + index * 0x1000);
            for index in 0..4 {
                ram.write_obj(0x5a5a_5a5au32, page(index)).unwrap();
            }
            discard(&ram, page(1), 0x2000).unwrap();
            let values: Vec<u32> = (0..4).map(|index| ram.read_obj(page(index)).unwrap()).collect();
            assert_eq!(values, [0x5a5a_5a5a, 0, 0, 0x5a5a_5a5a], "{kind}");
            ram.write_obj(1u32, page(1)).unwrap();
            assert_eq!(ram.read_obj::<u32>(page(1)).unwrap(), 1);
            assert!(discard(&ram, page(3), 0x2000).is_err());
        }
    }
}
