//! Block device (VIRTIO 1.3 §5.2) over the [`Blocks`] port: one queue, whose requests are done one after another.
//!
//! Data goes directly between guest memory and the port. A request is of bounded size, and a turn on the queue ends
//! after a fixed number of bytes, or after a flush, because the thread has other devices to serve. Not here: files,
//! partitions, caching.

mod request;
#[cfg(test)]
mod tests;

use std::io;

use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO, VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX,
    VIRTIO_BLK_F_WRITE_ZEROES,
};
use vm_memory::VolatileSlice;

use crate::{ActivateError, Activation, Device, DeviceKind, Event, Identity, Io};

/// Unit of every offset and length that the guest gives (VIRTIO 1.3 §5.2.5).
const SECTOR: u64 = 512;
/// Number of descriptors, which bounds the requests in flight.
const QUEUE_SIZE: u16 = 128;
/// Most data segments of one request: a chain also has a header and a status.
const SEG_MAX: u32 = QUEUE_SIZE as u32 - 2;
/// Most bytes of one data segment: the largest page of a guest, which Linux wants a segment to hold.
const SIZE_MAX: u32 = 64 << 10;
/// Most bytes of one request, which a driver that keeps to both limits above cannot exceed. Larger requests are
/// refused, because buffers may overlap, and a request with overlapping buffers could keep a thread for as long as it
/// takes to move 4 GiB.
const MAX_TRANSFER: u64 = SEG_MAX as u64 * SIZE_MAX as u64;
/// Most ranges of one discard or write-zeroes request.
const MAX_RANGES: u32 = 32;
/// Most sectors of one range of a discard or write-zeroes request: 2 GiB.
const MAX_RANGE_SECTORS: u32 = 1 << 22;
/// The unit of which a discard should be a multiple, in sectors: a page of the host's file.
const DISCARD_ALIGNMENT: u32 = 8;
/// Bytes of the identity string (VIRTIO 1.3 §5.2.6).
const ID_LEN: usize = 20;
/// Bytes of the configuration space, up to and with `unused1`.
const CONFIG_LEN: usize = 60;

/// The storage behind a block device. Offsets and lengths are in bytes and multiples of 512 within `len`.
///
/// Buffers lie in guest memory, which changes while the host looks at it: `guest_memory::read_exact_at` and
/// `write_all_at` move bytes directly between buffers and a file, `VolatileSlice::copy_from` and `copy_to` between
/// buffers and the host's memory. One buffer may be of any length; the sum of all lengths is a multiple of 512.
pub trait Blocks: Send {
    /// Size in bytes, a multiple of 512.
    fn len(&self) -> u64;
    /// Whether the storage has a size of zero.
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
    /// Whether space can be given back. Only then does it cost nothing to make a range read as zeroes; otherwise the
    /// guest writes its zeroes itself, in requests of bounded size.
    fn gives_back(&self) -> bool;
    /// Gives back the space of a range, which then reads as zeroes.
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()>;
}

/// A disk.
pub struct BlockDevice {
    blocks: Box<dyn Blocks>,
    id: [u8; ID_LEN],
    config: [u8; CONFIG_LEN],
    kick: Option<Event>,
}

impl BlockDevice {
    /// A disk with the contents of `blocks`. The guest sees `id`, cut at 20 bytes, as the disk's serial number.
    #[must_use]
    pub fn new(blocks: Box<dyn Blocks>, id: &str) -> Self {
        let mut padded = [0; ID_LEN];
        padded.iter_mut().zip(id.bytes()).for_each(|(to, from)| *to = from);
        let config = config(blocks.len() / SECTOR, gives_back(blocks.as_ref()));
        Self { blocks, id: padded, config, kick: None }
    }
}

/// `struct virtio_blk_config` (VIRTIO 1.3 §5.2.4). Every field that the driver may read costs an exit at its probe, so
/// no field is offered that says no more than the default: no block size, no topology, no geometry.
fn config(sectors: u64, gives_back: bool) -> [u8; CONFIG_LEN] {
    let mut config = [0; CONFIG_LEN];
    let mut put = |offset: usize, field: &[u8]| config[offset..offset + field.len()].copy_from_slice(field);
    put(0, &sectors.to_le_bytes());
    put(8, &SIZE_MAX.to_le_bytes());
    put(12, &SEG_MAX.to_le_bytes());
    if gives_back {
        put(36, &MAX_RANGE_SECTORS.to_le_bytes());
        put(40, &MAX_RANGES.to_le_bytes());
        put(44, &DISCARD_ALIGNMENT.to_le_bytes());
        put(48, &MAX_RANGE_SECTORS.to_le_bytes());
        put(52, &MAX_RANGES.to_le_bytes());
        put(56, &[1]); // write_zeroes_may_unmap
    }
    config
}

/// Whether ranges can be discarded and made zero.
fn gives_back(blocks: &dyn Blocks) -> bool {
    !blocks.readonly() && blocks.gives_back()
}

impl Device for BlockDevice {
    fn identity(&self) -> Identity<'_> {
        let always = 1 << VIRTIO_BLK_F_SIZE_MAX | 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_FLUSH;
        let by_access = match self.blocks.readonly() {
            true => 1 << VIRTIO_BLK_F_RO,
            false if gives_back(self.blocks.as_ref()) => {
                1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
            }
            false => 0,
        };
        Identity { kind: DeviceKind::Block, features: always | by_access, queue_sizes: &[QUEUE_SIZE] }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::device::copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), ActivateError> {
        self.kick = activation.own_kick(0);
        Ok(())
    }

    fn process(&mut self, index: usize, io: &mut Io<'_>) {
        let Self { blocks, id, kick, .. } = self;
        io.serve(index, kick.as_ref(), |memory, chain| request::serve(blocks.as_mut(), id, memory, chain));
    }

    fn reset(&mut self) {
        self.kick = None;
    }
}
