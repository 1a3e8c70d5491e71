//! All streams of a device: packets from the guest go to their stream, and streams take turns to give packets to the
//! guest.
//!
//! The memory of every part is bounded: the number of streams by [`MAX_STREAMS`], each stream's buffer by its credit
//! window, packets that belong to no stream by [`MAX_RESETS`]. Packets that a stream owes the guest are flags of the
//! stream, not a queue, and a stream that is gone is in no list. Not here: queues.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use super::packet::{Done, HOST_CID, Header, Operation, Packet, Ports, Room, TYPE_STREAM};
use super::stream::{self, Outgoing, Phase, Stream};
use super::sys::{Arrival, Watch};
use super::{PortMessage, channel};

/// Most streams at once, including streams whose guest side is gone while the host still has bytes to take. Each stream
/// takes a descriptor, of which processes have 1,024 by default; if none are left, streams are refused.
pub const MAX_STREAMS: usize = 512;

/// Most resets that wait for room in the rx queue. At that number no more packets are taken from the guest.
pub const MAX_RESETS: usize = 128;

/// First host port of streams to the guest, out of the way of the ports that the guest connects to.
const FIRST_EPHEMERAL_PORT: u32 = 1 << 31;

/// The token of the channel among the watched sockets; the tokens of streams count up from 1.
const CHANNEL: u64 = 0;

/// All streams of a device.
#[derive(Debug)]
pub(super) struct Switch {
    cid: u64,
    channel: OwnedFd,
    listening: Vec<u32>,
    watch: Watch,
    streams: HashMap<u64, Stream>,
    /// The streams that have a guest side.
    tokens: HashMap<Ports, u64>,
    next_token: u64,
    next_port: u32,
    /// Streams that may have something for the guest, in turn; each stream at most once.
    ready: VecDeque<u64>,
    /// Resets for packets that belong to no stream: the packet's ports and type.
    resets: VecDeque<(Ports, u16)>,
    /// Host ends of [`Phase::Offered`] streams that the channel has not taken yet.
    offers: VecDeque<(u64, OwnedFd)>,
}

impl Switch {
    pub(super) fn new(channel: OwnedFd, listening: Vec<u32>, cid: u64) -> io::Result<Self> {
        Ok(Self {
            cid,
            channel,
            listening,
            watch: Watch::new()?,
            streams: HashMap::new(),
            tokens: HashMap::new(),
            next_token: CHANNEL + 1,
            next_port: FIRST_EPHEMERAL_PORT,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            offers: VecDeque::new(),
        })
    }

    pub(super) fn cid(&self) -> u64 {
        self.cid
    }

    /// A descriptor that is readable when [`Self::host_arrivals`] has something to do.
    pub(super) fn event(&self) -> BorrowedFd<'_> {
        self.watch.as_fd()
    }

    /// Starts to listen to the channel. Messages that came before are still in it.
    pub(super) fn start(&mut self) -> io::Result<()> {
        self.stop();
        self.watch.add(self.channel.as_fd(), CHANNEL)
    }

    /// Ends every stream, and leaves messages in the channel.
    pub(super) fn stop(&mut self) {
        self.watch.remove(self.channel.as_fd());
        self.tokens.clear();
        self.ready.clear();
        self.resets.clear();
        self.offers.clear();
        self.streams.drain().for_each(|(_, stream)| stream.finish());
    }

    /// Whether [`Self::accept`] may be called: there is a place for its answer.
    pub(super) fn can_accept(&self) -> bool {
        self.resets.len() < MAX_RESETS
    }

    /// Whether there is a place for many answers again.
    pub(super) fn can_resume(&self) -> bool {
        self.resets.len() <= MAX_RESETS / 2
    }

    /// Takes a packet of the guest's.
    pub(super) fn accept(&mut self, packet: Packet<'_>) {
        let header = packet.header;
        // VIRTIO 1.3 §5.10.6.4.1: "The guest_cid configuration field MUST be used as the source CID when sending
        // outgoing packets." The device answers no other source CID, and answers for no destination but the host.
        if header.src_cid != self.cid || header.dst_cid != HOST_CID {
            return;
        }
        let ports = Ports { host: header.dst_port, guest: header.src_port };
        let operation = Operation::new(header.op);
        if header.kind != TYPE_STREAM {
            // VIRTIO 1.3 §5.10.6.4.2: "A VIRTIO_VSOCK_OP_RST reply MUST be sent if a packet is received with an
            // unknown type value." But a reset is never answered.
            if operation != Some(Operation::Reset) {
                self.resets.push_back((ports, header.kind));
            }
            return;
        }
        let token = self.tokens.get(&ports).copied();
        let Some((token, stream)) = token.and_then(|token| Some((token, self.streams.get_mut(&token)?)))
        else {
            match operation {
                Some(Operation::Request) => self.open(ports, &header),
                Some(Operation::Reset) => {}
                _ => self.resets.push_back((ports, TYPE_STREAM)),
            }
            return;
        };
        // VIRTIO 1.3 §5.10.6.3: "All packets associated with a stream flow MUST contain valid information in
        // buf_alloc and fwd_cnt fields."
        stream.credit.update(header.buf_alloc, header.fwd_cnt);
        let goes_on = match (operation, stream.phase) {
            (Some(Operation::Response), Phase::Requested) => stream.answered(),
            (Some(Operation::Payload), Phase::Open) => {
                packet.payload.is_some_and(|bytes| stream.deliver(bytes))
            }
            (Some(Operation::CreditUpdate), Phase::Open) => true,
            (Some(Operation::CreditRequest), Phase::Open) => {
                stream.credit_requested();
                true
            }
            // VIRTIO 1.3 §5.10.6.6: "Clean disconnect is achieved by one or more VIRTIO_VSOCK_OP_SHUTDOWN packets that
            // indicate no more data will be sent and received, followed by a VIRTIO_VSOCK_OP_RST response".
            (Some(Operation::Shutdown), Phase::Open) => {
                !stream.shutdown(Done::from_bits_truncate(header.flags))
            }
            (Some(Operation::Reset), _) => return self.abandon(token),
            // The operation makes no sense in this phase: the two sides do not agree on the state of the stream.
            _ => false,
        };
        if goes_on {
            self.settle(token);
        } else {
            self.resets.push_back((ports, TYPE_STREAM));
            self.abandon(token);
        }
    }

    /// Opens a stream to the host, as the guest asks.
    fn open(&mut self, ports: Ports, header: &Header) {
        // VIRTIO 1.3 §5.10.6.6: "A VIRTIO_VSOCK_OP_RST reply is sent if a listening socket does not exist on the
        // destination or the destination has insufficient resources to establish the connection."
        let pair = self.listening.contains(&ports.host).then(|| {
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)
        });
        let Some(Ok((ours, theirs))) = pair else {
            self.resets.push_back((ports, TYPE_STREAM));
            return;
        };
        let mut stream = Stream::offered(ports, ours);
        stream.credit.update(header.buf_alloc, header.fwd_cnt);
        match self.insert(stream) {
            Some(token) => {
                self.offers.push_back((token, theirs));
                self.make_offers();
            }
            None => self.resets.push_back((ports, TYPE_STREAM)),
        }
    }

    /// Hands over the host's ends of streams, as many as the channel takes.
    fn make_offers(&mut self) {
        while let Some((token, end)) = self.offers.front() {
            let token = *token;
            let Some(stream) = self.streams.get_mut(&token) else {
                self.offers.pop_front();
                continue;
            };
            let message = PortMessage::Accept { port: stream.ports.host };
            match channel::send(self.channel.as_fd(), message, end.as_fd()) {
                Ok(()) => {
                    stream.accept();
                    self.settle(token);
                    self.offers.pop_front();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.resets.push_back((stream.ports, TYPE_STREAM));
                    self.abandon(token);
                }
            }
        }
        // `change` fails if the channel's other end hung up, and then the channel is no longer watched.
        let _ = self.watch.change(self.channel.as_fd(), CHANNEL, !self.offers.is_empty());
    }

    /// Opens a stream to the guest, as the host asks.
    fn connect(&mut self, guest_port: u32, end: OwnedFd) {
        let ports = Ports { host: self.free_port(guest_port), guest: guest_port };
        if let Some(token) = self.insert(Stream::requested(ports, end)) {
            self.settle(token);
        }
    }

    /// A host port that makes a new pair with `guest`. The port that was used last is tried last.
    fn free_port(&mut self, guest: u32) -> u32 {
        loop {
            let host = self.next_port;
            // The highest port number is VMADDR_PORT_ANY.
            self.next_port = if host < u32::MAX - 1 { host + 1 } else { FIRST_EPHEMERAL_PORT };
            if !self.listening.contains(&host) && !self.tokens.contains_key(&Ports { host, guest }) {
                return host;
            }
        }
    }

    /// Adds a stream, or ends it if there is no room for it.
    fn insert(&mut self, stream: Stream) -> Option<u64> {
        let token = self.next_token;
        if self.streams.len() >= MAX_STREAMS || self.watch.add(stream.host(), token).is_err() {
            stream.finish();
            return None;
        }
        self.next_token += 1;
        self.tokens.insert(stream.ports, token);
        self.streams.insert(token, stream);
        Some(token)
    }

    /// Handles the loss of a stream's guest side.
    fn abandon(&mut self, token: u64) {
        let Some(stream) = self.streams.get_mut(&token) else { return };
        self.tokens.remove(&stream.ports);
        stream.abandon();
        self.offers.retain(|(offered, _)| *offered != token);
        self.settle(token);
    }

    /// Brings lists and watches up to date after a change to a stream.
    fn settle(&mut self, token: u64) {
        let Some(stream) = self.streams.get_mut(&token) else { return };
        let writing = stream.is_waiting();
        if stream.phase == Phase::Draining && !writing {
            if let Some(stream) = self.streams.remove(&token) {
                // Otherwise a guest that never makes room could fill the host's memory with streams that it opens and
                // resets.
                if stream.queued {
                    self.ready.retain(|ready| *ready != token);
                }
                stream.finish();
            }
            return;
        }
        if writing != stream.watched_for_writing {
            stream.watched_for_writing = writing;
            // A socket that was added can be changed.
            let _ = self.watch.change(stream.host(), token, writing);
        }
        if !stream.queued && stream.has_something() {
            stream.queued = true;
            self.ready.push_back(token);
        }
    }

    /// Handles everything that has happened on the host's side. Does not wait.
    pub(super) fn host_arrivals(&mut self) {
        loop {
            let arrivals = self.watch.take();
            let last = arrivals.len() < Watch::BATCH;
            for arrival in arrivals {
                if arrival.token == CHANNEL {
                    self.channel_arrived(arrival);
                } else if let Some(stream) = self.streams.get_mut(&arrival.token) {
                    stream.arrived(arrival);
                    self.settle(arrival.token);
                }
            }
            // Arrivals from here on are reported anew.
            if last {
                return;
            }
        }
    }

    fn channel_arrived(&mut self, arrival: Arrival) {
        if arrival.readable {
            self.take_messages();
        }
        if arrival.writable || arrival.hung_up {
            self.make_offers();
        }
    }

    fn take_messages(&mut self) {
        loop {
            match channel::receive(self.channel.as_fd()) {
                Ok(Some((PortMessage::Connect { port }, end))) => self.connect(port, end),
                // A message for the other side of the channel; its descriptor is closed.
                Ok(Some((PortMessage::Accept { .. }, end))) => stream::finish(&end),
                Err(error) if error.kind() == io::ErrorKind::InvalidData => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Ok(None) | Err(_) => {
                    // Streams live on without the channel; the owner of the lifeline ends the process.
                    self.watch.remove(self.channel.as_fd());
                    break;
                }
            }
        }
    }

    /// Whether [`Self::emit`] may have something.
    pub(super) fn wants_room(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Puts the next packet for the guest into `room`; returns the packet's length. If the result is `None`, there is
    /// no packet, and [`Self::wants_room`] is false.
    pub(super) fn emit(&mut self, room: &Room<'_>) -> Option<u32> {
        if let Some((ports, kind)) = self.resets.pop_front() {
            let header = Header { kind, op: Operation::Reset as u16, ..self.header(ports) };
            return Some(room.complete(&header));
        }
        while let Some(token) = self.ready.pop_front() {
            let Some(stream) = self.streams.get_mut(&token) else { continue };
            stream.queued = false;
            let packet = stream.emit(room).map(|packet| (packet, stream.ports, stream.credit.tell()));
            debug_assert!(packet.is_some() || !stream.has_something(), "it would be asked for ever");
            self.settle(token);
            if let Some((Outgoing { operation, flags, len }, ports, (buf_alloc, fwd_cnt))) = packet {
                let op = operation as u16;
                let header = Header { op, flags, len, buf_alloc, fwd_cnt, ..self.header(ports) };
                return Some(room.complete(&header));
            }
        }
        None
    }

    /// The fields that all packets to the guest share.
    fn header(&self, ports: Ports) -> Header {
        Header {
            src_cid: HOST_CID,
            dst_cid: self.cid,
            src_port: ports.host,
            dst_port: ports.guest,
            kind: TYPE_STREAM,
            ..Header::default()
        }
    }

    /// Bytes from the guest that wait for the host, all streams together.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn waiting(&self) -> usize {
        self.streams.values().map(|stream| stream.credit.waiting() as usize).sum()
    }

    /// Number of streams.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn streams(&self) -> usize {
        self.streams.len()
    }

    /// Number of streams that wait for their turn.
    #[cfg(test)]
    pub(super) fn ready(&self) -> usize {
        self.ready.len()
    }

    /// Number of resets that wait for room.
    #[cfg(any(test, feature = "fuzzing"))]
    pub(super) fn resets(&self) -> usize {
        self.resets.len()
    }
}
