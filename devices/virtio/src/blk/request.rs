//! One block request (VIRTIO 1.3 §5.2.6): header, data, status.

use guest_memory::GuestRam;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP, VIRTIO_BLK_T_DISCARD, VIRTIO_BLK_T_FLUSH,
    VIRTIO_BLK_T_GET_ID, VIRTIO_BLK_T_IN, VIRTIO_BLK_T_OUT, VIRTIO_BLK_T_WRITE_ZEROES,
    VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP,
};
use virtio_queue::DescriptorChain;

use super::{Blocks, ID_LEN, MAX_RANGE_SECTORS, MAX_RANGES, MAX_TRANSFER, SECTOR};
use crate::chain::{Buffers, Slices};
use crate::{Done, Io};

/// Bytes of a request's header: type, reserved and sector.
const HEADER_LEN: usize = 16;
/// `struct virtio_blk_discard_write_zeroes`.
const RANGE_LEN: usize = 16;

/// The turn of a request that may take long, whatever its size. A request that the disk failed to do counts as one,
/// because the disk may have tried for long.
const WHOLE_TURN: Done = Done { len: 0, moved: Io::TURN_BYTES };

/// Why a request is not done; each reason is a status byte.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// The driver erred.
    Driver,
    /// The storage erred.
    Storage,
    /// The device has no such request.
    Unsupported,
}

impl From<std::io::Error> for Refusal {
    fn from(_: std::io::Error) -> Self {
        Self::Storage
    }
}

/// Does the request in `chain`.
pub(super) fn serve(
    blocks: &mut dyn Blocks,
    id: &[u8; ID_LEN],
    memory: &GuestRam,
    chain: DescriptorChain<&GuestRam>,
) -> Done {
    let mut buffers = Buffers::new(memory, chain);
    // The status goes into the last writable byte, however the driver cut its buffers. VIRTIO 1.3 §2.7.4.1: "The device
    // MUST NOT make assumptions about the particular arrangement of descriptors."
    let Some(status) = buffers.writable.take_last() else { return 0.into() };
    let (byte, Done { len, moved }) = match data(blocks, id, buffers) {
        Ok(done) => (VIRTIO_BLK_S_OK, done),
        Err(Refusal::Driver) => (VIRTIO_BLK_S_IOERR, 0.into()),
        Err(Refusal::Storage) => (VIRTIO_BLK_S_IOERR, WHOLE_TURN),
        Err(Refusal::Unsupported) => (VIRTIO_BLK_S_UNSUPP, 0.into()),
    };
    status.write(&byte.to_le_bytes()[..1]);
    Done { len: len + 1, moved }
}

/// Does the whole request except the status.
fn data(blocks: &mut dyn Blocks, id: &[u8; ID_LEN], buffers: Buffers<'_>) -> Result<Done, Refusal> {
    let Buffers { mut readable, writable, malformed: false } = buffers else { return Err(Refusal::Driver) };
    let mut header = [0; HEADER_LEN];
    readable.take(HEADER_LEN).ok_or(Refusal::Driver)?.read(&mut header);
    let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
    let sector = u64::from_le_bytes(sector);
    match u32::from_le_bytes([t0, t1, t2, t3]) {
        VIRTIO_BLK_T_IN if readable.is_empty() => {
            let (offset, len) = transfer(blocks, sector, &writable)?;
            blocks.read(offset, writable.as_slice())?;
            Ok(Done { len, moved: writable.len() })
        }
        // VIRTIO 1.3 §5.2.6.2: "A device MUST set the status byte to VIRTIO_BLK_S_IOERR for a write request if the
        // VIRTIO_BLK_F_RO feature if offered, and MUST NOT write any data."
        VIRTIO_BLK_T_OUT if writable.is_empty() && !blocks.readonly() => {
            let (offset, _) = transfer(blocks, sector, &readable)?;
            blocks.write(offset, readable.as_slice())?;
            Ok(Done { len: 0, moved: readable.len() })
        }
        VIRTIO_BLK_T_IN | VIRTIO_BLK_T_OUT => Err(Refusal::Driver),
        VIRTIO_BLK_T_FLUSH => {
            blocks.flush()?;
            Ok(WHOLE_TURN)
        }
        // VIRTIO 1.3 §5.2.6.1: "The length of data MUST be 20 bytes for VIRTIO_BLK_T_GET_ID requests."
        VIRTIO_BLK_T_GET_ID if writable.len() == ID_LEN => {
            let written = writable.write(id);
            Ok(u32::try_from(written).map_err(|_| Refusal::Driver)?.into())
        }
        VIRTIO_BLK_T_GET_ID => Err(Refusal::Driver),
        kind @ (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) if super::gives_back(blocks) => {
            for (offset, len) in ranges(blocks, kind, readable)? {
                blocks.discard(offset, len)?;
            }
            Ok(WHOLE_TURN)
        }
        _ => Err(Refusal::Unsupported),
    }
}

/// The place on the disk to which `data` belongs, and its length, if one request may move that much.
fn transfer(blocks: &dyn Blocks, sector: u64, data: &Slices<'_>) -> Result<(u64, u32), Refusal> {
    let len = data.len() as u64;
    // VIRTIO 1.3 §5.2.3: "Maximum size of any single segment is in size_max", "Maximum number of segments in a request
    // is in seg_max". A driver may cut its buffers as it likes; their sum has this limit.
    if len > MAX_TRANSFER {
        return Err(Refusal::Driver);
    }
    Ok((range(blocks, sector, len)?, u32::try_from(len).map_err(|_| Refusal::Driver)?))
}

/// The byte offset of `sector`, if `len` bytes from there are sectors of the disk.
fn range(blocks: &dyn Blocks, sector: u64, len: u64) -> Result<u64, Refusal> {
    let offset = sector.checked_mul(SECTOR).ok_or(Refusal::Driver)?;
    match offset.checked_add(len) {
        Some(end) if end <= blocks.len() && len.is_multiple_of(SECTOR) => Ok(offset),
        _ => Err(Refusal::Driver),
    }
}

/// The ranges of a discard or write-zeroes request in bytes, all of them checked before any is touched.
fn ranges(blocks: &dyn Blocks, kind: u32, data: Slices<'_>) -> Result<Vec<(u64, u64)>, Refusal> {
    let mut bytes = [0; RANGE_LEN * MAX_RANGES as usize];
    let len = data.len();
    // VIRTIO 1.3 §5.2.6.1: "The length of data MUST be a multiple of the size of struct
    // virtio_blk_discard_write_zeroes" and "MUST NOT contain more than max_discard_seg […] segments".
    if len == 0 || len > bytes.len() || !len.is_multiple_of(RANGE_LEN) {
        return Err(Refusal::Driver);
    }
    data.read(&mut bytes);
    let (segments, _) = bytes[..len].as_chunks::<RANGE_LEN>();
    segments
        .iter()
        .map(|&[s0, s1, s2, s3, s4, s5, s6, s7, n0, n1, n2, n3, flags @ ..]| {
            // VIRTIO 1.3 §5.2.6.2: "The device MUST set the status byte to VIRTIO_BLK_S_UNSUPP for discard, secure
            // erase and write zeroes commands if any unknown flag is set. Furthermore, the device MUST set the status
            // byte to VIRTIO_BLK_S_UNSUPP for discard commands if the unmap flag is set."
            let known = if kind == VIRTIO_BLK_T_DISCARD { 0 } else { VIRTIO_BLK_WRITE_ZEROES_FLAG_UNMAP };
            if u32::from_le_bytes(flags) & !known != 0 {
                return Err(Refusal::Unsupported);
            }
            let sectors = u32::from_le_bytes([n0, n1, n2, n3]);
            if sectors > MAX_RANGE_SECTORS {
                return Err(Refusal::Driver);
            }
            let len = u64::from(sectors) * SECTOR;
            let offset = range(blocks, u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]), len)?;
            Ok((offset, len))
        })
        .collect()
}
