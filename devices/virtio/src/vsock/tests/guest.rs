//! A guest for tests: a driver with its queues in memory, and sockets on top that obey the norm as Linux does.
//!
//! The guest kicks only when the device asked for a kick, so a device that forgets to ask hangs here as it would in a
//! machine. Hostile guests build their own packets with [`Guest::post`].

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicU32, Ordering};

use guest_memory::GuestRam;
use rustix::event::{PollFd, PollFlags, Timespec};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

use crate::vsock::packet::{HEADER, Header, MAX_PAYLOAD, Operation, Ports, TYPE_STREAM};
use crate::vsock::{GUEST_CID, Vsock};
use crate::{Activation, Device, Event, Interrupt, Io};

/// Number of entries of a queue.
pub(super) const SIZE: u16 = 128;
/// Size of a buffer for packets from the device: a page, as Linux posts.
const RX_BUFFER: u32 = 4096;
/// Most packets in flight to the device: each slot has room for the largest packet.
const TX_SLOTS: u16 = 16;
const TX_SLOT: u64 = 0x1_1000;
const RX_BUFFERS_AT: u64 = 0x10_0000;
const TX_SLOTS_AT: u64 = 0x20_0000;
const MEMORY: usize = 0x40_0000;
const NEXT: u16 = 1;
const WRITE: u16 = 2;

/// The driver's side of a queue.
#[derive(Debug)]
struct Ring {
    base: u64,
    avail: u16,
    used: u16,
    /// The value of `avail` when the driver last considered a kick.
    kicked: u16,
}

impl Ring {
    fn new(index: usize) -> Self {
        Self { base: 0x4000 * (index as u64 + 1), avail: 0, used: 0, kicked: 0 }
    }

    fn avail_at(&self) -> u64 {
        self.base + 0x1000
    }

    fn used_at(&self) -> u64 {
        self.base + 0x2000
    }

    fn queue(&self) -> Queue {
        let mut queue = Queue::new(SIZE).unwrap();
        queue.set_desc_table_address(Some(self.base as u32), Some(0));
        queue.set_avail_ring_address(Some(self.avail_at() as u32), Some(0));
        queue.set_used_ring_address(Some(self.used_at() as u32), Some(0));
        queue.set_event_idx(true);
        queue.set_ready(true);
        queue
    }

    fn describe(&self, memory: &GuestRam, index: u16, address: u64, len: u32, flags: u16, next: u16) {
        let at = self.base + 16 * u64::from(index);
        memory.write_obj(address.to_le(), GuestAddress(at)).unwrap();
        memory.write_obj(len.to_le(), GuestAddress(at + 8)).unwrap();
        memory.write_obj(flags.to_le(), GuestAddress(at + 12)).unwrap();
        memory.write_obj(next.to_le(), GuestAddress(at + 14)).unwrap();
    }

    fn offer(&mut self, memory: &GuestRam, head: u16) {
        let slot = self.avail_at() + 4 + 2 * u64::from(self.avail % SIZE);
        memory.write_obj(head.to_le(), GuestAddress(slot)).unwrap();
        self.avail = self.avail.wrapping_add(1);
        memory.write_obj(self.avail.to_le(), GuestAddress(self.avail_at() + 2)).unwrap();
    }

    /// VIRTIO 1.3 §2.7.10: whether the device wants a notification of the chains offered since the last call.
    fn needs_kick(&mut self, memory: &GuestRam) -> bool {
        let event: u16 = memory.read_obj(GuestAddress(self.used_at() + 4 + 8 * u64::from(SIZE))).unwrap();
        let (old, new) = (std::mem::replace(&mut self.kicked, self.avail), self.avail);
        new.wrapping_sub(u16::from_le(event)).wrapping_sub(1) < new.wrapping_sub(old)
    }

    fn take_used(&mut self, memory: &GuestRam) -> Option<(u16, u32)> {
        let idx: u16 = memory.read_obj(GuestAddress(self.used_at() + 2)).unwrap();
        if u16::from_le(idx) == self.used {
            return None;
        }
        let at = self.used_at() + 4 + 8 * u64::from(self.used % SIZE);
        let head: u32 = memory.read_obj(GuestAddress(at)).unwrap();
        let len: u32 = memory.read_obj(GuestAddress(at + 4)).unwrap();
        self.used = self.used.wrapping_add(1);
        // used_event: asks for a notification of the next used chain.
        let event = self.avail_at() + 4 + 2 * u64::from(SIZE);
        memory.write_obj(self.used.to_le(), GuestAddress(event)).unwrap();
        Some((u16::from_le(u16::try_from(head).unwrap()), u32::from_le(len)))
    }
}

/// Counts interrupts by queue.
#[derive(Debug, Default)]
pub(super) struct Interrupts(pub(super) [AtomicU32; 3]);

impl Interrupt for Interrupts {
    fn queue(&self, index: usize) {
        self.0[index].fetch_add(1, Ordering::Relaxed);
    }

    fn config(&self) {}
}

/// A guest socket.
#[derive(Debug, Default)]
pub(super) struct Socket {
    pub(super) connected: bool,
    pub(super) reset: bool,
    /// The directions that the host said it is done with: bit 0 receiving, bit 1 sending.
    pub(super) peer_done: u32,
    /// Bytes received and not yet read.
    pub(super) inbox: VecDeque<u8>,
    /// Size of the receive buffer.
    pub(super) buf_alloc: u32,
    fwd_cnt: u32,
    told_fwd: u32,
    tx_cnt: u32,
    pub(super) peer_buf_alloc: u32,
    pub(super) peer_fwd: u32,
    pub(super) credit_requests: u32,
    pub(super) credit_updates: u32,
}

impl Socket {
    /// How many bytes may be sent.
    pub(super) fn free(&self) -> u32 {
        self.peer_buf_alloc.wrapping_sub(self.tx_cnt.wrapping_sub(self.peer_fwd))
    }
}

/// The guest and its device.
pub(super) struct Guest {
    pub(super) device: Vsock,
    pub(super) memory: GuestRam,
    pub(super) interrupts: Interrupts,
    pub(super) sockets: BTreeMap<(u32, u32), Socket>,
    /// Packets that belong to no socket.
    pub(super) strays: Vec<(Header, Vec<u8>)>,
    /// Guest ports on which a socket listens.
    pub(super) listening: Vec<u32>,
    /// Whether used rx buffers are posted again.
    pub(super) refill: bool,
    queues: [Queue; 3],
    rings: [Ring; 3],
    kicks: Vec<Event>,
    tx_free: Vec<u16>,
    rx_missing: Vec<u16>,
}

impl Guest {
    pub(super) fn new(device: Vsock, turns: bool) -> Self {
        let memory = GuestRam::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        let kicks = if turns { (0..3).map(|_| Event::new().unwrap()).collect() } else { Vec::new() };
        let rings = [0, 1, 2].map(Ring::new);
        let queues = [0, 1, 2].map(|index| rings[index].queue());
        let mut guest = Self {
            device,
            memory,
            interrupts: Interrupts::default(),
            sockets: BTreeMap::new(),
            strays: Vec::new(),
            listening: Vec::new(),
            refill: true,
            queues,
            rings,
            kicks,
            tx_free: Vec::new(),
            rx_missing: Vec::new(),
        };
        guest.activate();
        guest
    }

    /// Does a driver's work when it finds the device, at first or after a reset.
    pub(super) fn activate(&mut self) {
        self.device.reset();
        self.rings = [0, 1, 2].map(Ring::new);
        self.memory.write_slice(&vec![0; 0x10000], GuestAddress(0x4000)).unwrap();
        self.queues = [0, 1, 2].map(|index| self.rings[index].queue());
        self.sockets.clear();
        self.strays.clear();
        let features = self.device.identity().features;
        let activation =
            Activation { features, memory: &self.memory, queues: &self.queues, kicks: &self.kicks };
        self.device.activate(&activation).unwrap();
        // Each packet takes two descriptors, as before Linux 6.2; further descriptors serve `post` with more pieces.
        self.tx_free = (0..TX_SLOTS).collect();
        self.rx_missing = (0..SIZE).collect();
        self.post_rx(usize::MAX);
    }

    fn lend(&mut self, call: impl FnOnce(&mut Vsock, &mut Io<'_>)) {
        let mut queues: Vec<&mut Queue> = self.queues.iter_mut().collect();
        let mut io = Io { memory: &self.memory, queues: &mut queues, interrupt: &self.interrupts };
        call(&mut self.device, &mut io);
    }

    /// Posts up to `count` of the rx buffers that are not posted.
    pub(super) fn post_rx(&mut self, count: usize) {
        for _ in 0..count.min(self.rx_missing.len()) {
            let index = self.rx_missing.pop().unwrap();
            let address = RX_BUFFERS_AT + u64::from(index) * u64::from(RX_BUFFER);
            self.rings[0].describe(&self.memory, index, address, RX_BUFFER, WRITE, 0);
            self.rings[0].offer(&self.memory, index);
        }
        if self.rings[0].needs_kick(&self.memory) {
            self.lend(|device, io| device.process(0, io));
        }
    }

    /// Puts a packet into the tx queue in pieces of these lengths (the rest is the last piece), and kicks if asked.
    /// Returns false if all slots are in flight.
    pub(super) fn post(&mut self, header: &Header, payload: &[u8], pieces: &[usize]) -> bool {
        let mut bytes = header.encode().to_vec();
        bytes.extend(payload);
        self.post_raw(&bytes, pieces)
    }

    pub(super) fn post_raw(&mut self, bytes: &[u8], pieces: &[usize]) -> bool {
        self.reap_tx();
        let Some(slot) = self.tx_free.pop() else { return false };
        assert!(pieces.len() < usize::from(SIZE / TX_SLOTS) && bytes.len() <= TX_SLOT as usize);
        let at = TX_SLOTS_AT + u64::from(slot) * TX_SLOT;
        self.memory.write_slice(bytes, GuestAddress(at)).unwrap();
        let head = slot * (SIZE / TX_SLOTS);
        let (mut index, mut done) = (head, 0);
        for &piece in pieces {
            let piece = piece.min(bytes.len() - done);
            self.rings[1].describe(&self.memory, index, at + done as u64, piece as u32, NEXT, index + 1);
            done += piece;
            index += 1;
        }
        self.rings[1].describe(&self.memory, index, at + done as u64, (bytes.len() - done) as u32, 0, 0);
        self.rings[1].offer(&self.memory, head);
        if self.rings[1].needs_kick(&self.memory) {
            self.lend(|device, io| device.process(1, io));
        }
        true
    }

    fn reap_tx(&mut self) {
        while let Some((head, len)) = self.rings[1].take_used(&self.memory) {
            assert_eq!(len, 0);
            self.tx_free.push(head / (SIZE / TX_SLOTS));
        }
    }

    /// Packets in flight to the device.
    pub(super) fn tx_in_flight(&mut self) -> usize {
        self.reap_tx();
        usize::from(TX_SLOTS) - self.tx_free.len()
    }

    /// Breaks the tx ring: its index runs away.
    pub(super) fn break_tx(&mut self) {
        let index = self.rings[1].avail.wrapping_add(SIZE + 1);
        self.memory.write_obj(index.to_le(), GuestAddress(self.rings[1].avail_at() + 2)).unwrap();
        self.lend(|device, io| device.process(1, io));
    }

    /// The next packet from the device.
    pub(super) fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        let (index, len) = self.rings[0].take_used(&self.memory)?;
        let at = RX_BUFFERS_AT + u64::from(index) * u64::from(RX_BUFFER);
        let mut bytes = vec![0; len as usize];
        self.memory.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        self.rx_missing.push(index);
        if self.refill && self.rx_missing.len() >= usize::from(SIZE / 2) {
            self.post_rx(usize::MAX);
        }
        let payload = bytes.split_off(HEADER);
        let header = Header::decode(&bytes.try_into().unwrap());
        assert_eq!(header.len as usize, payload.len());
        Some((header, payload))
    }

    /// Lets the device do all the work it was asked for. Returns true if there was some.
    pub(super) fn run(&mut self) -> bool {
        let mut ran = false;
        for index in 0..self.kicks.len() {
            if self.kicks[index].take() {
                ran = true;
                self.lend(|device, io| device.process(index, io));
            }
        }
        let event = self.device.host_event().unwrap();
        let mut poll = [PollFd::from_borrowed_fd(event.as_fd(), PollFlags::IN)];
        if rustix::event::poll(&mut poll, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap() > 0 {
            ran = true;
            self.lend(Device::process_host);
        }
        ran
    }

    /// Runs device and driver until both have nothing to do.
    pub(super) fn settle(&mut self) {
        while self.run() | self.take_packets() {}
    }

    /// Gives every packet that arrived to its socket.
    pub(super) fn take_packets(&mut self) -> bool {
        let mut any = false;
        while let Some((header, payload)) = self.receive() {
            any = true;
            self.dispatch(header, payload);
        }
        any
    }

    fn dispatch(&mut self, header: Header, payload: Vec<u8>) {
        assert_eq!((header.src_cid, header.dst_cid), (2, GUEST_CID));
        let key = (header.src_port, header.dst_port);
        let operation = Operation::new(header.op).unwrap();
        if operation == Operation::Request {
            assert!(!self.sockets.contains_key(&key), "ports used twice");
            let accepts = self.listening.contains(&header.dst_port);
            let socket = Socket { connected: accepts, buf_alloc: MAX_PAYLOAD, ..Socket::default() };
            let answer = if accepts { Operation::Response } else { Operation::Reset };
            self.sockets.insert(key, socket);
            self.learn(key, &header);
            self.control(key, answer, 0);
            if !accepts {
                self.sockets.remove(&key);
            }
            return;
        }
        if !self.sockets.contains_key(&key) || header.kind != TYPE_STREAM {
            self.strays.push((header, payload));
            return;
        }
        self.learn(key, &header);
        let socket = self.sockets.get_mut(&key).unwrap();
        match operation {
            Operation::Response => socket.connected = true,
            Operation::Reset => {
                socket.reset = true;
                socket.connected = false;
            }
            Operation::Shutdown => {
                assert_ne!(header.flags, 0);
                socket.peer_done |= header.flags;
                // Linux answers a full shutdown at once if everything was read.
                if socket.peer_done == 3 && socket.inbox.is_empty() {
                    socket.connected = false;
                    self.control(key, Operation::Reset, 0);
                }
            }
            Operation::Payload => {
                assert!(header.len > 0 && socket.peer_done & 2 == 0, "payload after the end");
                socket.inbox.extend(&payload);
                assert!(socket.inbox.len() <= socket.buf_alloc as usize, "credit exceeded");
            }
            Operation::CreditUpdate => socket.credit_updates += 1,
            Operation::CreditRequest => {
                socket.credit_requests += 1;
                self.control(key, Operation::CreditUpdate, 0);
            }
            Operation::Request => unreachable!(),
        }
    }

    fn learn(&mut self, key: (u32, u32), header: &Header) {
        let socket = self.sockets.get_mut(&key).unwrap();
        socket.peer_buf_alloc = header.buf_alloc;
        socket.peer_fwd = header.fwd_cnt;
    }

    /// A well-formed header of a socket.
    pub(super) fn header(&mut self, key: (u32, u32), operation: Operation) -> Header {
        let mut header = header(Ports { host: key.0, guest: key.1 }, operation);
        if let Some(socket) = self.sockets.get_mut(&key) {
            socket.told_fwd = socket.fwd_cnt;
            header.buf_alloc = socket.buf_alloc;
            header.fwd_cnt = socket.fwd_cnt;
        }
        header
    }

    /// Sends a packet without payload.
    pub(super) fn control(&mut self, key: (u32, u32), operation: Operation, flags: u32) {
        let header = Header { flags, ..self.header(key, operation) };
        while !self.post(&header, &[], &[]) {
            assert!(self.run(), "tx queue is stuck");
        }
    }

    /// Asks for a stream to a host port.
    pub(super) fn connect(&mut self, host: u32, guest: u32, buf_alloc: u32) -> (u32, u32) {
        let key = (host, guest);
        self.sockets.insert(key, Socket { buf_alloc, ..Socket::default() });
        self.control(key, Operation::Request, 0);
        self.settle();
        key
    }

    /// Sends as much of `bytes` as credit and queue allow; returns how much.
    pub(super) fn send(&mut self, key: (u32, u32), bytes: &[u8]) -> usize {
        let mut done = 0;
        while done < bytes.len() {
            let socket = &self.sockets[&key];
            let len = (bytes.len() - done).min(socket.free() as usize).min(MAX_PAYLOAD as usize);
            if len == 0 || !socket.connected || socket.peer_done & 1 != 0 {
                break;
            }
            let header = Header { len: len as u32, ..self.header(key, Operation::Payload) };
            // Linux 6.17 sends the header by itself, and the payload in pieces of 32 KiB.
            if !self.post(&header, &bytes[done..done + len], &[HEADER, 32 << 10]) {
                break;
            }
            self.sockets.get_mut(&key).unwrap().tx_cnt += len as u32;
            done += len;
            self.take_packets();
        }
        done
    }

    /// Reads up to `len` bytes that arrived, and reports the freed room as Linux does.
    pub(super) fn read(&mut self, key: (u32, u32), len: usize) -> Vec<u8> {
        let socket = self.sockets.get_mut(&key).unwrap();
        let rest = socket.inbox.split_off(len.min(socket.inbox.len()));
        let bytes = Vec::from(std::mem::replace(&mut socket.inbox, rest));
        socket.fwd_cnt = socket.fwd_cnt.wrapping_add(bytes.len() as u32);
        let delta = socket.fwd_cnt.wrapping_sub(socket.told_fwd);
        let low = socket.inbox.is_empty();
        if socket.connected && delta > 0 && (low || socket.buf_alloc.saturating_sub(delta) < MAX_PAYLOAD) {
            self.control(key, Operation::CreditUpdate, 0);
        }
        bytes
    }

    /// Closes a socket as Linux does; packets that come for it later are stray.
    pub(super) fn close(&mut self, key: (u32, u32)) {
        if self.sockets[&key].connected {
            let (operation, flags) = if self.sockets[&key].peer_done == 3 {
                (Operation::Reset, 0)
            } else {
                (Operation::Shutdown, 3)
            };
            self.control(key, operation, flags);
        }
    }
}

/// A header from the guest, valid except for its credit.
pub(super) fn header(ports: Ports, operation: Operation) -> Header {
    Header {
        src_cid: GUEST_CID,
        dst_cid: 2,
        src_port: ports.guest,
        dst_port: ports.host,
        kind: TYPE_STREAM,
        op: operation as u16,
        ..Header::default()
    }
}
