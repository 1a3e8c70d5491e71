//! Giving guest memory back to the host while the guest runs.
//!
//! Not here: which memory is given back, and when (the balloon decides both).

use std::io;
use std::ops::Range;

use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use crate::page::page_size;
use crate::{GuestRam, sys};

/// Gives back the whole host pages within the `len` bytes from `start` on, which must be in RAM. These pages then read
/// as zeroes; the bytes of other pages stay as they are.
pub fn discard(ram: &GuestRam, start: GuestAddress, len: usize) -> io::Result<()> {
    for slice in ram.get_slices(start, len) {
        let slice = slice.map_err(|_| io::ErrorKind::InvalidInput)?;
        let shared = ram.find_region(start).is_some_and(|region| region.file_offset().is_some());
        let guard = slice.ptr_guard_mut();
        let address = guard.as_ptr();
        let Some(pages) = whole_pages(address.addr(), slice.len(), page_size()) else { continue };
        let first = address.wrapping_byte_add(pages.start).cast();
        // SAFETY: the range is mapped and stays mapped (nothing unmaps guest RAM). The contents of guest memory may
        // change at any time, and no Rust reference leads into guest memory.
        unsafe { sys::give_back(first, pages.len(), shared) }?;
    }
    Ok(())
}

/// The whole pages within the `len` bytes at `address`, as offsets from `address`; `None` if there is no whole page.
fn whole_pages(address: usize, len: usize, page: usize) -> Option<Range<usize>> {
    let first = address.checked_next_multiple_of(page)? - address;
    let end = (address.checked_add(len)? / page * page).checked_sub(address)?;
    (first < end).then_some(first..end)
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

    #[test]
    fn only_whole_pages_of_the_hosts_are_given_back() {
        const APPLE: usize = 16 << 10;
        assert_eq!(whole_pages(0x1000, 0x3000, 0x1000), Some(0..0x3000));
        assert_eq!(whole_pages(4 * APPLE, 2 * APPLE, APPLE), Some(0..2 * APPLE));
        assert_eq!(whole_pages(4 * APPLE - 0x1000, 2 * APPLE, APPLE), Some(0x1000..0x1000 + APPLE));
        assert_eq!(whole_pages(4 * APPLE + 0x1000, 2 * APPLE, APPLE), Some(0x3000..0x3000 + APPLE));
        for (address, len) in
            [(4 * APPLE, 0x1000), (0x1000, 0x3000), (0x3000, 0x2000), (0, 0), (usize::MAX, 1)]
        {
            assert_eq!(whole_pages(address, len, APPLE), None, "{len:#x} at {address:#x}");
        }
    }
}
