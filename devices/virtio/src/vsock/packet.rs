//! Packets as they lie in the queues (VIRTIO 1.3 §5.10.6): headers become typed values here, once.
//!
//! This file treats a chain as a run of bytes, whatever its descriptors: Linux puts header and payload into one, two,
//! or (since 6.17, for large payloads) more of them. Not here: the meaning of a packet for a stream.

use guest_memory::GuestRam;
use virtio_queue::DescriptorChain;
use vm_memory::VolatileSlice;

use crate::chain::{Buffers, Slices};

/// Well-known CID of the host.
pub(super) const HOST_CID: u64 = 2;

/// Largest payload of a packet: Linux sends and expects no more (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
pub(super) const MAX_PAYLOAD: u32 = 64 << 10;

/// Length of a header.
pub(super) const HEADER: usize = HEADER_LEN as usize;
const HEADER_LEN: u32 = 44;

/// `VIRTIO_VSOCK_TYPE_STREAM`, the only type here.
pub(super) const TYPE_STREAM: u16 = 1;

/// The purpose of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
pub(super) enum Operation {
    Request = 1,
    Response = 2,
    Reset = 3,
    Shutdown = 4,
    Payload = 5,
    CreditUpdate = 6,
    CreditRequest = 7,
}

impl Operation {
    const ALL: [Self; 7] = [
        Self::Request,
        Self::Response,
        Self::Reset,
        Self::Shutdown,
        Self::Payload,
        Self::CreditUpdate,
        Self::CreditRequest,
    ];

    /// The operation of a header's `op`; `None` for values that are no operation.
    pub(super) fn new(value: u16) -> Option<Self> {
        Self::ALL.into_iter().find(|operation| *operation as u16 == value)
    }
}

bitflags::bitflags! {
    /// The directions that the sender of a shutdown gives up.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    pub(super) struct Done: u32 {
        /// The sender will not receive any more.
        const RECEIVE = 1 << 0;
        /// The sender will not send any more.
        const SEND = 1 << 1;
    }
}

/// The two ports of a stream. The CIDs are always the host's and the guest's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Ports {
    pub(super) host: u32,
    pub(super) guest: u32,
}

/// `struct virtio_vsock_hdr`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Header {
    pub(super) src_cid: u64,
    pub(super) dst_cid: u64,
    pub(super) src_port: u32,
    pub(super) dst_port: u32,
    pub(super) len: u32,
    pub(super) kind: u16,
    pub(super) op: u16,
    pub(super) flags: u32,
    pub(super) buf_alloc: u32,
    pub(super) fwd_cnt: u32,
}

impl Header {
    pub(super) fn decode(bytes: &[u8; HEADER]) -> Self {
        Self {
            src_cid: u64::from_le_bytes(field(bytes, 0)),
            dst_cid: u64::from_le_bytes(field(bytes, 8)),
            src_port: u32::from_le_bytes(field(bytes, 16)),
            dst_port: u32::from_le_bytes(field(bytes, 20)),
            len: u32::from_le_bytes(field(bytes, 24)),
            kind: u16::from_le_bytes(field(bytes, 28)),
            op: u16::from_le_bytes(field(bytes, 30)),
            flags: u32::from_le_bytes(field(bytes, 32)),
            buf_alloc: u32::from_le_bytes(field(bytes, 36)),
            fwd_cnt: u32::from_le_bytes(field(bytes, 40)),
        }
    }

    pub(super) fn encode(&self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }
}

fn field<const N: usize>(bytes: &[u8; HEADER], at: usize) -> [u8; N] {
    let mut field = [0; N];
    field.copy_from_slice(&bytes[at..at + N]);
    field
}

/// A packet from the guest.
pub(super) struct Packet<'a> {
    /// The header, copied, because the guest may change its own at any moment.
    pub(super) header: Header,
    /// The payload, as long as the header says; `None` if the chain is shorter, or if the length is over
    /// [`MAX_PAYLOAD`].
    pub(super) payload: Option<Slices<'a>>,
}

impl<'a> Packet<'a> {
    /// The packet in a chain of the tx queue; `None` if the chain is too short for a header.
    pub(super) fn new(memory: &'a GuestRam, chain: DescriptorChain<&GuestRam>) -> Option<Self> {
        let mut readable = Buffers::new(memory, chain).readable;
        let mut header = [0; HEADER];
        readable.take(HEADER)?.read(&mut header);
        let header = Header::decode(&header);
        // VIRTIO 1.3 §5.10.6: "the driver may provide buffer(s) for the payload that have a total size longer than
        // len, in which case only the first len bytes will be used for the actual data."
        let len = usize::try_from(header.len).ok().filter(|_| header.len <= MAX_PAYLOAD);
        Some(Self { header, payload: len.and_then(|len| readable.take(len)) })
    }
}

/// Room for a packet to the guest.
pub(super) struct Room<'a> {
    header: Slices<'a>,
    payload: Slices<'a>,
}

impl<'a> Room<'a> {
    /// The room in a chain of the rx queue; `None` if a header and a byte do not fit.
    pub(super) fn new(memory: &'a GuestRam, chain: DescriptorChain<&GuestRam>) -> Option<Self> {
        let mut payload = Buffers::new(memory, chain).writable;
        let header = payload.take(HEADER)?;
        (!payload.is_empty()).then_some(Self { header, payload })
    }

    /// Room for payload, at least 1 and at most [`MAX_PAYLOAD`].
    pub(super) fn len(&self) -> u32 {
        u32::try_from(self.payload.len()).map_or(MAX_PAYLOAD, |len| len.min(MAX_PAYLOAD))
    }

    /// The first `len` bytes of the room for payload.
    pub(super) fn payload(&self, len: u32) -> Vec<VolatileSlice<'a>> {
        let mut left = len as usize;
        let mut slices = Vec::with_capacity(self.payload.as_slice().len());
        for slice in self.payload.as_slice() {
            let part = slice.subslice(0, slice.len().min(left)).ok().filter(|part| !part.is_empty());
            let Some(part) = part else { break };
            left -= part.len();
            slices.push(part);
        }
        slices
    }

    /// Writes the header in front of `header.len` bytes of payload that are already there; returns the packet's length.
    pub(super) fn complete(&self, header: &Header) -> u32 {
        self.header.write(&header.encode());
        HEADER_LEN + header.len
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_survive_the_round_trip_and_lie_where_the_norm_says() {
        let mut bytes = [0; HEADER];
        bytes.iter_mut().zip(1..).for_each(|(byte, value)| *byte = value);
        let header = Header::decode(&bytes);
        assert_eq!(header.encode(), bytes);
        assert_eq!((header.src_cid, header.kind, header.op), (0x0807_0605_0403_0201, 0x1E1D, 0x201F));
        assert_eq!((header.buf_alloc, header.fwd_cnt), (0x2827_2625, 0x2C2B_2A29));
    }

    #[test]
    fn operations_are_those_of_the_norm() {
        assert_eq!(Operation::new(0), None);
        assert_eq!(Operation::new(5), Some(Operation::Payload));
        assert_eq!(Operation::new(8), None);
    }
}
