//! Credit of one stream (VIRTIO 1.3 §5.10.6.3): how much either side may still send. Pure arithmetic on wrapping
//! counters.

use std::num::Wrapping;

/// Most bytes of one stream that may wait here until the host takes them; the guest learns this number as `buf_alloc`.
pub(super) const WINDOW: u32 = 256 << 10;

/// Number of bytes taken by the host since the guest was last told, at which the guest is told without asking.
const UPDATE_EVERY: u32 = WINDOW / 2;

/// The counters of both directions.
#[derive(Debug, Default)]
pub(super) struct Credit {
    /// Bytes sent to the guest.
    sent: Wrapping<u32>,
    guest_buf_alloc: u32,
    guest_fwd_cnt: Wrapping<u32>,
    /// Bytes received from the guest.
    received: Wrapping<u32>,
    /// Received bytes that the host has taken.
    taken: Wrapping<u32>,
    /// Taken bytes of which the guest was told.
    told: Wrapping<u32>,
}

impl Credit {
    /// Notes the credit that a packet of the guest reports.
    pub(super) fn update(&mut self, buf_alloc: u32, fwd_cnt: u32) {
        self.guest_buf_alloc = buf_alloc;
        self.guest_fwd_cnt = Wrapping(fwd_cnt);
    }

    /// How many bytes may be sent to the guest.
    pub(super) fn free(&self) -> u32 {
        // "u32 peer_free = peer_buf_alloc - (tx_cnt - peer_fwd_cnt);" A guest that shrinks its buffer, or claims to
        // have taken bytes that it never got, gets nothing until its numbers make sense again.
        self.guest_buf_alloc.saturating_sub((self.sent - self.guest_fwd_cnt).0)
    }

    /// Notes bytes sent to the guest.
    pub(super) fn send(&mut self, len: u32) {
        self.sent += len;
    }

    /// Notes bytes from the guest; returns false if they are more than the guest may send.
    #[must_use]
    pub(super) fn receive(&mut self, len: u32) -> bool {
        // "VIRTIO_VSOCK_OP_RW data packets MUST only be transmitted when the peer has sufficient free buffer space
        // for the payload."
        let fits = len <= WINDOW - self.waiting();
        if fits {
            self.received += len;
        }
        fits
    }

    /// Bytes from the guest that the host has not taken; never over [`WINDOW`].
    pub(super) fn waiting(&self) -> u32 {
        (self.received - self.taken).0
    }

    /// Notes that the host took bytes. Returns true if the guest should be told.
    pub(super) fn take(&mut self, len: u32) -> bool {
        self.taken += len;
        (self.taken - self.told).0 >= UPDATE_EVERY
    }

    /// `buf_alloc` and `fwd_cnt` of a packet to the guest; the packet tells the guest of all bytes taken so far.
    pub(super) fn tell(&mut self) -> (u32, u32) {
        self.told = self.taken;
        (WINDOW, self.taken.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guests_buffer_is_respected_across_the_wrap() {
        let start = u32::MAX - 10;
        let mut credit = Credit { sent: Wrapping(start), ..Credit::default() };
        credit.update(100, start);
        assert_eq!(credit.free(), 100);
        credit.send(60);
        assert_eq!(credit.free(), 40);
        credit.update(100, start.wrapping_add(60));
        assert_eq!(credit.free(), 100);
        credit.update(30, start.wrapping_add(20));
        assert_eq!(credit.free(), 0);
        credit.update(100, start.wrapping_add(61));
        assert_eq!(credit.free(), 0);
    }

    #[test]
    fn our_buffer_is_never_overrun_across_the_wrap() {
        let start = Wrapping(u32::MAX - 10);
        let mut credit = Credit { received: start, taken: start, told: start, ..Credit::default() };
        assert!(credit.receive(WINDOW));
        assert!(!credit.receive(1));
        assert!(!credit.take(UPDATE_EVERY - 1));
        assert!(credit.take(1));
        assert_eq!(credit.tell(), (WINDOW, start.0.wrapping_add(UPDATE_EVERY)));
        assert!(!credit.take(1));
        assert!(!credit.receive(UPDATE_EVERY + 2));
        assert!(credit.receive(UPDATE_EVERY + 1));
        assert_eq!(credit.waiting(), WINDOW);
    }
}
