//! Looks at a request before it is served: whether other requests should wait for it.

use std::mem::offset_of;

use fuse_abi::linux as abi;
use fuse_abi::linux::fuse_opcode;
use vm_memory::VolatileSlice;

use crate::Source;

/// Least bytes of a READ or WRITE that takes longer than handing it to another thread does.
const MUCH_DATA: usize = 64 << 10;

/// Whether a request may take long, because it moves much data or waits for a disk.
///
/// The guest may change the bytes that are looked at before the request is served. So the answer decides only where a
/// request is served, not what it may do.
pub fn takes_long(request: &[VolatileSlice<'_>], reply: &[VolatileSlice<'_>]) -> bool {
    let mut opcode = [0; size_of::<u32>()];
    Source::new(request, offset_of!(abi::fuse_in_header, opcode), opcode.len()).copy_to(&mut opcode);
    let has_much = |slices| Source::new(slices, 0, usize::MAX).len() >= MUCH_DATA;
    match fuse_opcode::try_from(u32::from_ne_bytes(opcode)) {
        Ok(fuse_opcode::FUSE_READ) => has_much(reply),
        Ok(fuse_opcode::FUSE_WRITE) => has_much(request),
        Ok(
            fuse_opcode::FUSE_FSYNC
            | fuse_opcode::FUSE_FSYNCDIR
            | fuse_opcode::FUSE_SYNCFS
            | fuse_opcode::FUSE_FALLOCATE
            | fuse_opcode::FUSE_COPY_FILE_RANGE,
        ) => true,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether a request of `len` bytes with room for `room` takes long.
    fn said(opcode: fuse_opcode, len: usize, room: usize) -> bool {
        let (mut request, mut reply) = (vec![0; len], vec![0; room]);
        if let Some(place) = request.get_mut(4..8) {
            place.copy_from_slice(&(opcode as u32).to_ne_bytes());
        }
        takes_long(&[VolatileSlice::from(&mut request[..])], &[VolatileSlice::from(&mut reply[..])])
    }

    #[test]
    fn data_and_disks_take_long() {
        use fuse_opcode::{FUSE_FSYNC, FUSE_GETATTR, FUSE_READ, FUSE_SYNCFS, FUSE_WRITE};
        assert!(said(FUSE_READ, 80, MUCH_DATA + 16) && !said(FUSE_READ, 80, 4096 + 16));
        assert!(said(FUSE_WRITE, MUCH_DATA + 80, 24) && !said(FUSE_WRITE, 4096 + 80, 24));
        assert!(said(FUSE_FSYNC, 56, 16) && said(FUSE_SYNCFS, 48, 16));
        assert!(!said(FUSE_GETATTR, MUCH_DATA, MUCH_DATA));
        assert!(!said(FUSE_READ, 7, MUCH_DATA), "no request");
    }
}
