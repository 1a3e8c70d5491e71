//! Block device (VIRTIO 1.3 §5.2) over the [`Blocks`] port.

use std::io;

use vm_memory::VolatileSlice;

/// What a block device stores. Offsets and lengths are in bytes and multiples of 512 within `len`.
///
/// Buffers lie in guest memory, which changes while the host looks at it: `guest_memory::read_exact_at` and
/// `write_all_at` move them straight from and to a file, `VolatileSlice::copy_from` and `copy_to` by hand. One
/// buffer may be of any length; their sum is a multiple of 512.
pub trait Blocks: Send {
    /// Size in bytes, a multiple of 512.
    fn len(&self) -> u64;
    /// Whether there is nothing to store.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }
    /// Whether writes are refused.
    fn readonly(&self) -> bool;
    /// Fills `buffers`, in order, from `offset` on.
    fn read(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()>;
    /// Stores `buffers`, in order, from `offset` on.
    fn write(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()>;
    /// Makes everything written so far durable.
    fn flush(&mut self) -> io::Result<()>;
    /// Gives back the space of a range, which then reads as zeroes.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()>;
}
