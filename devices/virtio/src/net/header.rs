//! The header of a packet (VIRTIO 1.3 §5.1.6), checked where it comes from the guest.

use super::{MIN_FRAME, Offloads};

/// Bytes of a packet's header: flags, type, four lengths, and the number of buffers, which modern devices always have.
pub const HEADER: usize = 12;
/// Where a header has the number of buffers.
pub(super) const BUFFER_COUNT: usize = 10;

/// The checksum is to be made.
const NEEDS_CHECKSUM: u8 = 1;

/// The kinds of packets that are to be cut (`VIRTIO_NET_HDR_GSO_*`).
const NOT_CUT: u8 = 0;
const TCP4: u8 = 1;
const TCP6: u8 = 4;
const UDP: u8 = 5;

/// The header of a packet of the guest's before a frame of `len` bytes, without the parts that mean nothing in it.
/// `None` if it asks for something that was not agreed on, or that cannot be.
pub(super) fn checked(header: [u8; HEADER], len: usize, agreed: Offloads) -> Option<[u8; HEADER]> {
    let [flags, kind, h0, h1, s0, s1, c0, c1, o0, o1, ..] = header;
    let [header_len, segment, start, offset] =
        [[h0, h1], [s0, s1], [c0, c1], [o0, o1]].map(u16::from_le_bytes);
    let mut checked = [0; HEADER];
    // VIRTIO 1.3 §5.1.6.2.2: the device ignores flags that it does not know.
    let needs_checksum = flags & NEEDS_CHECKSUM != 0;
    if needs_checksum {
        let end = usize::from(start) + usize::from(offset) + 2;
        if !agreed.contains(Offloads::CHECKSUM) || usize::from(start) < MIN_FRAME || end > len {
            return None;
        }
        checked[0] = NEEDS_CHECKSUM;
        checked[6..10].copy_from_slice(&header[6..10]);
    }
    let needed = match kind {
        NOT_CUT => return Some(checked),
        TCP4 => Offloads::TCP4,
        TCP6 => Offloads::TCP6,
        UDP => Offloads::UDP,
        _ => return None,
    };
    // VIRTIO 1.3 §5.1.6.2.1: a packet that is to be cut needs its checksum made.
    let sound = agreed.contains(needed) && needs_checksum && segment > 0 && usize::from(header_len) <= len;
    checked[1..6].copy_from_slice(&header[1..6]);
    sound.then_some(checked)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header(flags: u8, kind: u8, numbers: [u16; 4]) -> [u8; HEADER] {
        let mut header = [0xff; HEADER];
        (header[0], header[1]) = (flags, kind);
        for (place, number) in header[2..10].chunks_mut(2).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        header
    }

    #[test]
    fn a_header_passes_with_what_was_agreed_and_no_more() {
        let cut = [54, 1448, 34, 16];
        let all = Offloads::all();
        let pass = |flags, kind, numbers, agreed| checked(header(flags, kind, numbers), 1000, agreed);
        for (kind, offload) in [(TCP4, Offloads::TCP4), (TCP6, Offloads::TCP6), (UDP, Offloads::UDP)] {
            let mut expected = header(NEEDS_CHECKSUM, kind, cut);
            expected[BUFFER_COUNT..].fill(0);
            assert_eq!(pass(NEEDS_CHECKSUM, kind, cut, all), Some(expected));
            // Flags that mean nothing here are dropped.
            assert_eq!(pass(0xff, kind, cut, all), Some(expected));
            assert_eq!(pass(NEEDS_CHECKSUM, kind, cut, all - offload), None);
            assert_eq!(pass(0, kind, cut, all), None, "no checksum");
            assert_eq!(pass(NEEDS_CHECKSUM, kind, [54, 0, 34, 16], all), None, "no length of segments");
            assert_eq!(pass(NEEDS_CHECKSUM, kind, [1001, 1448, 34, 16], all), None, "headers past the end");
            assert_eq!(pass(NEEDS_CHECKSUM, kind | 0x80, cut, all), None, "congestion notification");
        }
        assert_eq!(pass(NEEDS_CHECKSUM, 3, cut, all), None, "fragments of UDP");
    }

    #[test]
    fn a_checksum_lies_in_the_frame() {
        let pass = |start, offset, agreed| checked(header(1, NOT_CUT, [9, 9, start, offset]), 1000, agreed);
        let checksum = Offloads::CHECKSUM;
        assert!(pass(14, 984, checksum).is_some() && pass(998, 0, checksum).is_some());
        assert_eq!(pass(14, 985, checksum), None);
        assert_eq!(pass(999, 0, checksum), None);
        assert_eq!(pass(13, 16, checksum), None, "within the Ethernet header");
        assert_eq!(pass(u16::MAX, u16::MAX, checksum), None);
        assert_eq!(pass(34, 16, Offloads::empty()), None);
    }

    #[test]
    fn a_header_that_asks_for_nothing_is_empty() {
        let numbers = [7, 7, u16::MAX, u16::MAX];
        assert_eq!(checked(header(0xfe, NOT_CUT, numbers), 14, Offloads::empty()), Some([0; HEADER]));
    }
}
