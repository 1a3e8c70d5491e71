//! One stream: a host socket on one side, a guest's connection on the other, and the bytes and notices that each side
//! still owes the other.
//!
//! ```text
//!              Connect                    RESPONSE
//!  (nothing) ───────────▶ Requested ──────────────▶ Open ──┐
//!            ───────────▶ Offered ────────────────▶  │     │ RST, or SHUTDOWN of both directions
//!              REQUEST              Accept sent      ▼     ▼
//!                                               (nothing) Draining ──▶ (nothing)
//!                                                           the host took what the guest had sent
//! ```
//!
//! Not here: queues, ports, and whose turn it is ([`super::switch`]).

use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown};

use super::credit::Credit;
use super::packet::{Done, Operation, Ports, Room};
use super::sys::Arrival;
use crate::chain::Slices;

/// The phase of a stream's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The host asked for the stream; the guest has not answered.
    Requested,
    /// The guest asked for the stream; the host's end is not handed over yet.
    Offered,
    /// Both sides have the stream.
    Open,
    /// The guest's side is gone; the host has not taken all bytes yet.
    Draining,
}

bitflags::bitflags! {
    /// Packets without payload that the guest is still to get.
    #[derive(Debug, Clone, Copy, PartialEq, Eq)]
    struct Owed: u8 {
        const REQUEST = 1 << 0;
        const RESPONSE = 1 << 1;
        const CREDIT_UPDATE = 1 << 2;
        const CREDIT_REQUEST = 1 << 3;
    }
}

/// The contents of a packet to the guest, besides addresses and credit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outgoing {
    pub(super) operation: Operation,
    pub(super) flags: u32,
    /// Bytes of payload, already in place.
    pub(super) len: u32,
}

impl Outgoing {
    fn control(operation: Operation, flags: Done) -> Self {
        Self { operation, flags: flags.bits(), len: 0 }
    }
}

/// A stream.
#[derive(Debug)]
pub(super) struct Stream {
    pub(super) ports: Ports,
    pub(super) phase: Phase,
    pub(super) credit: Credit,
    host: OwnedFd,
    /// Bytes from the guest that the host has not taken; their number is [`Credit::waiting`].
    waiting: VecDeque<u8>,
    owed: Owed,
    /// Whether the host socket may have something: it was reported readable, and has not been read to its end since.
    readable: bool,
    /// The directions that the guest has given up.
    guest_done: Done,
    /// The directions that the host has given up.
    host_done: Done,
    /// The host's given-up directions of which the guest was told.
    told_done: Done,
    /// Whether the guest was asked for credit, and has given none since.
    asked: bool,
    /// Whether the host was told that the guest sends no more.
    told_end: bool,
    /// Whether the host socket is watched for room to write.
    pub(super) watched_for_writing: bool,
    /// Whether the stream is in the list of those that may have something for the guest.
    pub(super) queued: bool,
}

impl Stream {
    /// A stream that the host asked for.
    pub(super) fn requested(ports: Ports, host: OwnedFd) -> Self {
        Self::new(ports, host, Phase::Requested, Owed::REQUEST)
    }

    /// A stream that the guest asked for.
    pub(super) fn offered(ports: Ports, host: OwnedFd) -> Self {
        Self::new(ports, host, Phase::Offered, Owed::empty())
    }

    fn new(ports: Ports, host: OwnedFd, phase: Phase, owed: Owed) -> Self {
        Self {
            ports,
            phase,
            credit: Credit::default(),
            host,
            waiting: VecDeque::new(),
            owed,
            readable: true,
            guest_done: Done::empty(),
            host_done: Done::empty(),
            told_done: Done::empty(),
            asked: false,
            told_end: false,
            watched_for_writing: false,
            queued: false,
        }
    }

    /// The host socket.
    pub(super) fn host(&self) -> BorrowedFd<'_> {
        self.host.as_fd()
    }

    /// Whether bytes wait for the host, which has to take them before the stream can go on.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }

    /// Answers the guest's request, once the host has its end.
    pub(super) fn accept(&mut self) {
        self.phase = Phase::Open;
        self.owed |= Owed::RESPONSE;
    }

    /// Notes that the guest accepts the host's request. Returns false if the guest cannot have got a request yet.
    #[must_use]
    pub(super) fn answered(&mut self) -> bool {
        let sent = !self.owed.contains(Owed::REQUEST);
        if sent {
            self.phase = Phase::Open;
        }
        sent
    }

    /// Notes that the guest asks how much it may send.
    pub(super) fn credit_requested(&mut self) {
        self.owed |= Owed::CREDIT_UPDATE;
    }

    /// Passes bytes from the guest to the host, or to the buffer if the host is slow. Returns false if they are more
    /// than the guest may send, or come after the guest said that no more would.
    #[must_use]
    pub(super) fn deliver(&mut self, mut payload: Slices<'_>) -> bool {
        let Ok(len) = u32::try_from(payload.len()) else { return false };
        if self.guest_done.contains(Done::SEND) || !self.credit.receive(len) {
            return false;
        }
        let mut sent = 0;
        if !self.host_done.contains(Done::RECEIVE) && self.waiting.is_empty() && len > 0 {
            match guest_memory::send(self.host.as_fd(), payload.as_slice()) {
                Ok(count) => sent = count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => self.host_done |= Done::RECEIVE,
            }
        }
        if self.host_done.contains(Done::RECEIVE) {
            // Nobody will take these bytes. A shutdown tells the guest so.
            self.taken(payload.len());
            return true;
        }
        self.taken(sent);
        if payload.take(sent).is_some() && !payload.is_empty() {
            let mut rest = vec![0; payload.len()];
            payload.read(&mut rest);
            self.waiting.extend(&rest);
        }
        true
    }

    /// Notes that the guest is done with sending, receiving or both. Returns true if that ends the stream.
    #[must_use]
    pub(super) fn shutdown(&mut self, done: Done) -> bool {
        // VIRTIO 1.3 §5.10.6.6: "These hints are permanent once sent and successive packets with bits clear do not
        // reset them."
        self.guest_done |= done;
        if self.guest_done.contains(Done::RECEIVE) {
            self.stop_reading();
        }
        self.pass_on_end();
        self.guest_done.is_all()
    }

    /// Notes that the guest's side is gone. Bytes that the guest sent before are still delivered.
    pub(super) fn abandon(&mut self) {
        self.phase = Phase::Draining;
        self.owed = Owed::empty();
        self.stop_reading();
    }

    /// Notes an arrival at the host socket.
    pub(super) fn arrived(&mut self, arrival: Arrival) {
        self.readable |= arrival.readable;
        if arrival.hung_up {
            self.host_takes_no_more();
        }
        if arrival.writable {
            self.flush();
        }
    }

    /// Gives the host as many bytes as it takes.
    fn flush(&mut self) {
        while !self.waiting.is_empty() {
            let (front, back) = self.waiting.as_slices();
            match rustix::net::sendmsg(
                &self.host,
                &[IoSlice::new(front), IoSlice::new(back)],
                &mut SendAncillaryBuffer::default(),
                SendFlags::DONTWAIT | SendFlags::NOSIGNAL,
            ) {
                Ok(sent) => {
                    self.waiting.drain(..sent);
                    self.taken(sent);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return,
                Err(_) => self.host_takes_no_more(),
            }
        }
        // The buffer's memory is freed: a stream that was slow once does not keep it.
        self.waiting = VecDeque::new();
        self.pass_on_end();
    }

    fn host_takes_no_more(&mut self) {
        self.host_done |= Done::RECEIVE;
        self.taken(self.waiting.len());
        self.waiting = VecDeque::new();
    }

    /// Notes bytes that left the buffer.
    fn taken(&mut self, count: usize) {
        // The count is never more than the buffer holds.
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        if self.credit.take(count) && !self.guest_done.contains(Done::SEND) {
            self.owed |= Owed::CREDIT_UPDATE;
        }
    }

    /// Tells the host that the guest sends no more, once the host has all bytes.
    fn pass_on_end(&mut self) {
        if self.guest_done.contains(Done::SEND) && self.waiting.is_empty() && !self.told_end {
            self.told_end = true;
            // `shutdown` fails if the host hung up, which has the same effect.
            let _ = rustix::net::shutdown(&self.host, Shutdown::Write);
        }
    }

    /// Makes the host's writes fail, because nobody will read those bytes.
    fn stop_reading(&mut self) {
        self.host_done |= Done::SEND;
        let _ = rustix::net::shutdown(&self.host, Shutdown::Read);
    }

    /// Whether [`Self::emit`] would have a packet.
    pub(super) fn has_something(&self) -> bool {
        match self.phase {
            Phase::Requested => !self.owed.is_empty(),
            Phase::Open => {
                !self.owed.is_empty()
                    || self.told_done != self.host_done
                    || self.is_readable() && (self.credit.free() > 0 || !self.asked)
            }
            Phase::Offered | Phase::Draining => false,
        }
    }

    fn is_readable(&self) -> bool {
        self.readable && !self.host_done.contains(Done::SEND)
    }

    /// The next packet for the guest; its payload is put into `room`.
    pub(super) fn emit(&mut self, room: &Room<'_>) -> Option<Outgoing> {
        if let Some(control) = self.control() {
            return Some(control);
        }
        match self.read(room) {
            Some(len) => Some(Outgoing { operation: Operation::Payload, flags: 0, len }),
            // Reading may have found the end of the host's bytes.
            None => self.control(),
        }
    }

    /// The next packet without payload.
    fn control(&mut self) -> Option<Outgoing> {
        let operations: &[_] = match self.phase {
            Phase::Requested => &[(Owed::REQUEST, Operation::Request)],
            Phase::Open => &[
                (Owed::RESPONSE, Operation::Response),
                (Owed::CREDIT_UPDATE, Operation::CreditUpdate),
                (Owed::CREDIT_REQUEST, Operation::CreditRequest),
            ],
            Phase::Offered | Phase::Draining => return None,
        };
        for &(owed, operation) in operations {
            if self.owed.contains(owed) {
                self.owed.remove(owed);
                return Some(Outgoing::control(operation, Done::empty()));
            }
        }
        if self.phase == Phase::Open && self.told_done != self.host_done {
            self.told_done = self.host_done;
            return Some(Outgoing::control(Operation::Shutdown, self.host_done));
        }
        None
    }

    /// Receives from the host into `room`, as much as the guest has credit for.
    fn read(&mut self, room: &Room<'_>) -> Option<u32> {
        if self.phase != Phase::Open || !self.is_readable() {
            return None;
        }
        let len = self.credit.free().min(room.len());
        if len == 0 {
            // The guest is asked only once: its answer may be that there is still no credit. The guest also reports
            // credit by itself.
            if !self.asked {
                self.asked = true;
                self.owed |= Owed::CREDIT_REQUEST;
            }
            return None;
        }
        match guest_memory::receive(self.host.as_fd(), &room.payload(len)) {
            Ok(0) => self.host_done |= Done::SEND,
            Ok(count) => {
                let count = u32::try_from(count).unwrap_or(len);
                self.credit.send(count);
                self.asked = false;
                return Some(count);
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(_) => {
                self.host_done |= Done::SEND;
                self.host_takes_no_more();
            }
        }
        self.readable = false;
        None
    }

    /// Ends the host's side, which next reads the end of the stream.
    pub(super) fn finish(self) {
        finish(&self.host);
    }
}

/// Ends a host socket so that its other end sees the end of the stream and no error.
pub(super) fn finish(host: &OwnedFd) {
    let _ = rustix::net::shutdown(host, Shutdown::Both);
    // A Unix socket closed with unread bytes gives its peer ECONNRESET. At most a socket buffer of unread bytes is
    // there: after the shutdown none are added.
    let mut unread = [0; 16 << 10];
    while let Ok(1..) | Err(Errno::INTR) =
        rustix::net::recv(host, &mut unread[..], RecvFlags::DONTWAIT).map(|(_, count)| count)
    {}
}
