//! A driver of virtio-fs that asks as Linux does, as quickly as it can: header, arguments and pages each in a descriptor of
//! their own, behind an indirect table; nothing is allocated for a request. The machine is left out: no exit of a vCPU,
//! and no interrupt.

use std::os::fd::AsRawFd;
use std::sync::atomic::{Ordering, fence};

use anyhow::{Context, Result, bail, ensure};
use driven::flag::{NEXT, TABLE, WRITE};
use driven::{BUFFERS, Rings, Setup, available, descriptors, feature, used};
use fuse_abi::linux as abi;
use fuse_abi::linux::fuse_opcode;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, VolatileSlice};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use zerocopy::{FromBytes, Immutable, IntoBytes};

/// Size of each queue. A request takes one descriptor of it.
const QUEUE_SIZE: u16 = 1024;

/// The queue of what must not wait, and that of requests.
const URGENT: usize = 0;
const REQUESTS: usize = 1;

const PAGE: usize = 4096;

/// Most bytes that a request moves.
pub(super) const DATA: usize = 1 << 20;

/// A slot's memory: its table, the request, the reply, and the data.
const REQUEST_AT: usize = 8 << 10;
const REPLY_AT: usize = REQUEST_AT + PAGE;
const DATA_AT: usize = REPLY_AT + PAGE;
const SLOT: usize = DATA_AT + DATA;

/// FORGETs that are under way at most, which nobody waits for, and the memory of one.
const FORGETS: u16 = 256;
const FORGET_LEN: usize = 64;

const HEADER_LEN: usize = size_of::<abi::fuse_in_header>();
const REPLY_HEADER_LEN: usize = size_of::<abi::fuse_out_header>();

/// Most bytes of arguments, and of a reply that is no data.
const MAX_ARGS: usize = 96;
const MAX_REPLY: usize = 144;

/// How long an answer may take.
const PATIENCE_MS: i32 = 20_000;

/// The words of a kernel that mounts.
const FLAGS: u32 = abi::FUSE_ASYNC_READ
    | abi::FUSE_ATOMIC_O_TRUNC
    | abi::FUSE_BIG_WRITES
    | abi::FUSE_DONT_MASK
    | abi::FUSE_AUTO_INVAL_DATA
    | abi::FUSE_DO_READDIRPLUS
    | abi::FUSE_READDIRPLUS_AUTO
    | abi::FUSE_ASYNC_DIO
    | abi::FUSE_PARALLEL_DIROPS
    | abi::FUSE_MAX_PAGES
    | abi::FUSE_SUBMOUNTS
    | abi::FUSE_HANDLE_KILLPRIV_V2;

/// A request.
#[derive(Clone, Copy)]
pub(super) struct Ask {
    opcode: fuse_opcode,
    node: u64,
    args: [u8; MAX_ARGS],
    args_len: usize,
    /// Bytes of the slot's data that go along.
    data: usize,
    /// Bytes of a reply that is no data.
    reply: usize,
    /// Bytes of data that may come back.
    room: usize,
}

impl Ask {
    pub(super) fn new(opcode: fuse_opcode, node: u64) -> Self {
        Self { opcode, node, args: [0; MAX_ARGS], args_len: 0, data: 0, reply: 0, room: 0 }
    }

    pub(super) fn with(mut self, args: &(impl IntoBytes + Immutable + ?Sized)) -> Self {
        let bytes = args.as_bytes();
        self.args[self.args_len..self.args_len + bytes.len()].copy_from_slice(bytes);
        self.args_len += bytes.len();
        self
    }

    /// A name, and its NUL.
    pub(super) fn with_name(self, name: &[u8]) -> Self {
        self.with(name).with(&0u8)
    }

    pub(super) fn with_data(self, data: usize) -> Self {
        Self { data, ..self }
    }

    /// The answer has a `T`.
    pub(super) fn for_reply<T>(self) -> Self {
        Self { reply: self.reply + size_of::<T>(), ..self }
    }

    pub(super) fn for_data(self, room: usize) -> Self {
        Self { room, ..self }
    }
}

/// An answer.
#[derive(Clone, Copy)]
pub(super) struct Answer {
    /// The number of an error, or 0.
    pub(super) error: i32,
    body: [u8; MAX_REPLY],
    /// Bytes of it behind its header.
    pub(super) len: usize,
}

impl Answer {
    /// The part of the answer that is `at` bytes behind the header.
    pub(super) fn read<T: FromBytes>(&self, at: usize) -> Result<T> {
        ensure!(self.error == 0, "error {}", -self.error);
        let (value, _) = T::read_from_prefix(&self.body[at..]).ok().context("a reply that is short")?;
        Ok(value)
    }
}

/// One side of a queue.
struct Queue {
    number: usize,
    /// Chains made available, and as many of them as the device was told of.
    next: u16,
    told: u16,
    /// Chains that have come back.
    seen: u16,
    free: Vec<u16>,
    /// The slot of each chain.
    owner: Vec<usize>,
}

impl Queue {
    fn new(number: usize) -> Self {
        let owner = vec![0; QUEUE_SIZE.into()];
        Self { number, next: 0, told: 0, seen: 0, free: (0..QUEUE_SIZE).rev().collect(), owner }
    }
}

/// The driver.
pub(super) struct Wire<'a> {
    memory: VolatileSlice<'a>,
    rings: &'a Rings,
    requests: Queue,
    urgent: Queue,
    forgets: Vec<usize>,
    asked: Vec<Ask>,
    unique: u64,
    told: Epoll,
}

/// Rings for a driver with so many slots.
pub(super) fn setup(slots: usize) -> Setup {
    let forgets = usize::from(FORGETS) * FORGET_LEN;
    let buffers = (slots * SLOT + forgets).next_multiple_of(2 << 20);
    Setup {
        queues: 2,
        queue_size: QUEUE_SIZE,
        features: feature::INDIRECT | feature::EVENT_INDEX,
        memory: (2 << 20) + buffers,
    }
}

impl<'a> Wire<'a> {
    /// A driver on rings that have started, and its first request.
    pub(super) fn mount(rings: &'a Rings, slots: usize) -> Result<Self> {
        ensure!(rings.features & feature::INDIRECT != 0, "no indirect tables");
        ensure!(rings.features & feature::EVENT_INDEX != 0, "no event index");
        let memory = rings.ram.get_slice(GuestAddress(0), setup(slots).memory)?;
        let told = Epoll::new()?;
        for call in &rings.calls {
            // Each word is an event of its own, so that none has to be read.
            let events = EventSet::IN | EventSet::EDGE_TRIGGERED;
            told.ctl(ControlOperation::Add, call.as_raw_fd(), EpollEvent::new(events, 0))?;
        }
        let base = slot_at(slots);
        let mut wire = Self {
            memory,
            rings,
            requests: Queue::new(REQUESTS),
            urgent: Queue::new(URGENT),
            forgets: (0..usize::from(FORGETS)).map(|number| base + number * FORGET_LEN).collect(),
            asked: vec![Ask::new(fuse_opcode::FUSE_INIT, 0); slots],
            unique: 0,
            told,
        };
        let init = abi::fuse_init_in {
            major: abi::FUSE_KERNEL_VERSION,
            minor: 38,
            max_readahead: 128 << 10,
            flags: FLAGS,
            ..Default::default()
        };
        let init = Ask::new(fuse_opcode::FUSE_INIT, 0).with(&init).for_reply::<abi::fuse_init_out>();
        let agreed: abi::fuse_init_out = wire.call(init)?.read(0)?;
        ensure!(agreed.max_write >= 1 << 20, "requests of {} bytes", agreed.max_write);
        Ok(wire)
    }

    /// Puts a request on its queue; the device hears of it by [`Self::tell`].
    pub(super) fn ask(&mut self, slot: usize, ask: &Ask) -> Result<()> {
        let at = slot_at(slot);
        self.write_request(at + REQUEST_AT, ask)?;
        self.memory.write_obj([0u64; 2], at + REPLY_AT)?;
        let mut table = Table::new(&self.memory, at);
        table.add(at + REQUEST_AT, HEADER_LEN, 0)?;
        table.add(at + REQUEST_AT + HEADER_LEN, ask.args_len, 0)?;
        table.add_pages(at + DATA_AT, ask.data, 0)?;
        table.add(at + REPLY_AT, REPLY_HEADER_LEN, WRITE)?;
        table.add(at + REPLY_AT + REPLY_HEADER_LEN, ask.reply, WRITE)?;
        table.add_pages(at + DATA_AT, ask.room, WRITE)?;
        let count = table.end()?;
        self.asked[slot] = *ask;
        offer(&self.memory, &mut self.requests, slot, (at, count * 16, TABLE))
    }

    /// Says that the kernel has so many references less to a node. Nobody waits for it.
    pub(super) fn forget(&mut self, node: u64, count: u64) -> Result<()> {
        while self.forgets.is_empty() {
            self.wait_for_forgets()?;
        }
        let at = self.forgets.pop().context("a FORGET")?;
        let forget = abi::fuse_forget_in { nlookup: count };
        let ask = Ask::new(fuse_opcode::FUSE_FORGET, node).with(&forget);
        self.write_request(at, &ask)?;
        offer(&self.memory, &mut self.urgent, at, (at, HEADER_LEN + ask.args_len, 0))
    }

    fn write_request(&mut self, at: usize, ask: &Ask) -> Result<()> {
        self.unique += 2;
        let header = abi::fuse_in_header {
            len: u32::try_from(HEADER_LEN + ask.args_len + ask.data)?,
            opcode: ask.opcode as u32,
            unique: self.unique,
            nodeid: ask.node,
            pid: 1,
            ..Default::default()
        };
        self.memory.write_slice(header.as_bytes(), at)?;
        self.memory.write_slice(&ask.args[..ask.args_len], at + HEADER_LEN)?;
        Ok(())
    }

    /// Tells the device of what was asked since, if the device wants to know.
    pub(super) fn tell(&mut self) -> Result<()> {
        for queue in [&mut self.requests, &mut self.urgent] {
            if queue.next == queue.told {
                continue;
            }
            fence(Ordering::SeqCst);
            let event = place(used(queue.number)) + 4 + 8 * usize::from(QUEUE_SIZE);
            let event: u16 = self.memory.load(event, Ordering::Relaxed)?;
            let behind = queue.next.wrapping_sub(event).wrapping_sub(1);
            if behind < queue.next.wrapping_sub(queue.told) {
                self.rings.kicks[queue.number].write(1)?;
            }
            queue.told = queue.next;
        }
        Ok(())
    }

    /// The slot of the next request that was answered, if there is one.
    pub(super) fn answered(&mut self) -> Result<Option<usize>> {
        self.hear_forgets()?;
        take(&self.memory, &mut self.requests)
    }

    /// Waits until a request has been answered.
    pub(super) fn wait(&mut self) -> Result<()> {
        self.sleep(|wire| wire.has_more(&wire.requests))
    }

    fn has_more(&self, queue: &Queue) -> Result<bool> {
        let index: u16 = self.memory.load(place(used(queue.number)) + 2, Ordering::Acquire)?;
        Ok(index != queue.seen)
    }

    /// Sleeps until `has_come`, which the device's words may be about.
    fn sleep(&self, has_come: impl Fn(&Self) -> Result<bool>) -> Result<()> {
        if has_come(self)? {
            return Ok(());
        }
        for queue in [&self.requests, &self.urgent] {
            let event = place(available(queue.number)) + 4 + 2 * usize::from(QUEUE_SIZE);
            self.memory.store(queue.seen, event, Ordering::Relaxed)?;
        }
        fence(Ordering::SeqCst);
        while !has_come(self)? {
            let mut events = [EpollEvent::default(); 2];
            match self.told.wait(PATIENCE_MS, &mut events) {
                Ok(0) => bail!("no answer in {PATIENCE_MS} ms"),
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Waits until every FORGET has been heard.
    pub(super) fn settle(&mut self) -> Result<()> {
        while self.forgets.len() < usize::from(FORGETS) {
            self.wait_for_forgets()?;
        }
        Ok(())
    }

    fn wait_for_forgets(&mut self) -> Result<()> {
        self.tell()?;
        self.sleep(|wire| wire.has_more(&wire.urgent))?;
        self.hear_forgets()
    }

    fn hear_forgets(&mut self) -> Result<()> {
        while let Some(at) = take(&self.memory, &mut self.urgent)? {
            self.forgets.push(at);
        }
        Ok(())
    }

    /// The answer in a slot.
    pub(super) fn answer(&self, slot: usize) -> Result<Answer> {
        let at = slot_at(slot) + REPLY_AT;
        let mut header = abi::fuse_out_header::default();
        self.memory.read_slice(header.as_mut_bytes(), at)?;
        let len = usize::try_from(header.len)?.checked_sub(REPLY_HEADER_LEN).context("no answer")?;
        let mut answer = Answer { error: header.error, body: [0; MAX_REPLY], len };
        let body = self.asked[slot].reply;
        self.memory.read_slice(&mut answer.body[..body], at + REPLY_HEADER_LEN)?;
        Ok(answer)
    }

    /// Data that came back in a slot.
    pub(super) fn data(&self, slot: usize, into: &mut [u8]) -> Result<()> {
        Ok(self.memory.read_slice(into, slot_at(slot) + DATA_AT)?)
    }

    /// A request by itself.
    pub(super) fn call(&mut self, ask: Ask) -> Result<Answer> {
        self.ask(0, &ask)?;
        self.tell()?;
        loop {
            if self.answered()?.is_some() {
                return self.answer(0);
            }
            self.wait()?;
        }
    }
}

/// An address as an offset: memory begins at 0.
fn place(address: u64) -> usize {
    usize::try_from(address).unwrap_or(usize::MAX)
}

/// Where a slot's memory is.
fn slot_at(slot: usize) -> usize {
    place(BUFFERS) + slot * SLOT
}

/// An indirect table.
struct Table<'a> {
    memory: &'a VolatileSlice<'a>,
    at: usize,
    count: usize,
    /// The last descriptor, which is not written before it is known whether another one follows.
    last: [u64; 2],
}

impl<'a> Table<'a> {
    fn new(memory: &'a VolatileSlice<'a>, at: usize) -> Self {
        Self { memory, at, count: 0, last: [0; 2] }
    }

    fn add(&mut self, at: usize, len: usize, flags: u16) -> Result<()> {
        if len == 0 {
            return Ok(());
        }
        if self.count > 0 {
            self.write(self.last[1] | u64::from(NEXT) << 32)?;
        }
        self.count += 1;
        self.last = descriptor(at, len, flags, self.count);
        Ok(())
    }

    fn add_pages(&mut self, at: usize, len: usize, flags: u16) -> Result<()> {
        (0..len).step_by(PAGE).try_for_each(|done| self.add(at + done, PAGE.min(len - done), flags))
    }

    fn write(&self, second: u64) -> Result<()> {
        Ok(self.memory.write_obj([self.last[0], second], self.at + 16 * (self.count - 1))?)
    }

    /// Returns how many descriptors there are.
    fn end(self) -> Result<usize> {
        self.write(self.last[1])?;
        Ok(self.count)
    }
}

fn descriptor(at: usize, len: usize, flags: u16, next: usize) -> [u64; 2] {
    [at as u64, len as u64 | u64::from(flags) << 32 | (next as u64) << 48]
}

/// Makes a chain of one descriptor available.
fn offer(
    memory: &VolatileSlice<'_>,
    queue: &mut Queue,
    slot: usize,
    (at, len, flags): (usize, usize, u16),
) -> Result<()> {
    let head = queue.free.pop().context("a ring that is full")?;
    queue.owner[usize::from(head)] = slot;
    memory.write_obj(
        descriptor(at, len, flags, 0),
        place(descriptors(queue.number)) + 16 * usize::from(head),
    )?;
    let ring = place(available(queue.number));
    memory.store(head, ring + 4 + 2 * usize::from(queue.next % QUEUE_SIZE), Ordering::Relaxed)?;
    queue.next = queue.next.wrapping_add(1);
    Ok(memory.store(queue.next, ring + 2, Ordering::Release)?)
}

/// The slot of the next chain that came back.
fn take(memory: &VolatileSlice<'_>, queue: &mut Queue) -> Result<Option<usize>> {
    let ring = place(used(queue.number));
    let index: u16 = memory.load(ring + 2, Ordering::Acquire)?;
    if index == queue.seen {
        return Ok(None);
    }
    let head: u32 = memory.load(ring + 4 + 8 * usize::from(queue.seen % QUEUE_SIZE), Ordering::Relaxed)?;
    queue.seen = queue.seen.wrapping_add(1);
    let head = u16::try_from(head)?;
    queue.free.push(head);
    Ok(queue.owner.get(usize::from(head)).copied())
}
