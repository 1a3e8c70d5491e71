//! The transport as a driver sees it: register by register.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use super::*;
use crate::balloon::{Balloon, Reclaim};
use crate::blk::{BlockDevice, Blocks};
use crate::console::Console;
use crate::harness::{self, DriverQueue, Place, WRITE, signals};
use crate::rng::Entropy;
use crate::{Identity, Link, LinkLost};

const ACKNOWLEDGE: u32 = 1;
const DRIVER: u32 = 2;
const DRIVER_OK: u32 = 4;
const FEATURES_OK: u32 = 8;
const NEEDS_RESET: u32 = 64;
const FAILED: u32 = 128;
const VERSION_1: u64 = 1 << 32;
const EVENT_IDX: u64 = 1 << 29;

/// A transport, its memory and its interrupt line, with every access counted.
struct Bench {
    transport: MmioTransport,
    memory: GuestRam,
    irq: Event,
    accesses: Cell<u32>,
}

impl Bench {
    fn new(device: impl Device + 'static) -> Self {
        Self::with(Attached::Device(Box::new(device)))
    }

    fn with(attached: Attached) -> Self {
        let memory = harness::memory();
        let irq = Event::new().unwrap();
        let transport = MmioTransport::new(attached, memory.clone(), irq.try_clone().unwrap()).unwrap();
        Self { transport, memory, irq, accesses: Cell::new(0) }
    }

    fn read(&self, offset: u64) -> u32 {
        self.accesses.set(self.accesses.get() + 1);
        let mut data = [0; 4];
        self.transport.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    fn write(&self, offset: u64, value: u32) {
        self.accesses.set(self.accesses.get() + 1);
        self.transport.write(offset, &value.to_le_bytes());
    }

    fn status(&self) -> u32 {
        self.read(0x70)
    }

    fn add_status(&self, bit: u32) -> u32 {
        let status = self.status();
        self.write(0x70, status | bit);
        self.status()
    }

    fn accept(&self, features: u64) {
        self.write(0x24, 1);
        self.write(0x20, u32::try_from(features >> 32).unwrap());
        self.write(0x24, 0);
        self.write(0x20, u32::try_from(features & 0xffff_ffff).unwrap());
    }

    fn set_queue(&self, index: u32, queue: Place) {
        let low = |address: u64| u32::try_from(address & 0xffff_ffff).unwrap();
        let high = |address: u64| u32::try_from(address >> 32).unwrap();
        self.write(0x30, index);
        self.write(0x38, u32::from(queue.size));
        for (register, address) in [(0x80, queue.desc), (0x90, queue.avail), (0xa0, queue.used)] {
            self.write(register, low(address));
            self.write(register + 4, high(address));
        }
        self.write(0x44, 1);
    }

    /// Brings the device up to DRIVER_OK with queue 0 only.
    fn start(&self) -> DriverQueue {
        self.write(0x70, 0);
        self.add_status(ACKNOWLEDGE);
        self.add_status(DRIVER);
        self.accept(VERSION_1);
        assert_ne!(self.add_status(FEATURES_OK) & FEATURES_OK, 0);
        self.write(0x30, 0);
        let place = Place::new(0, u16::try_from(self.read(0x34)).unwrap());
        self.set_queue(0, place);
        self.add_status(DRIVER_OK);
        DriverQueue::new(place)
    }

    fn edges(&self) -> u64 {
        signals(&self.irq)
    }
}

fn readable(fd: BorrowedFd<'_>) -> bool {
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).unwrap() == 1
}

const IDENTITY: Identity<'static> =
    Identity { kind: DeviceKind::Console, features: 0b101, queue_sizes: &[16, 8] };

/// A device that does what the test tells it, and counts its calls.
struct Puppet {
    host: Event,
    refuses: bool,
    calls: Arc<Calls>,
}

#[derive(Default)]
struct Calls {
    activated: AtomicU32,
    reset: AtomicU32,
    queue: AtomicU32,
    host: AtomicU32,
}

impl Puppet {
    fn new(refuses: bool) -> (Self, Arc<Calls>, Event) {
        let (host, calls) = (Event::new().unwrap(), Arc::new(Calls::default()));
        (Self { host: host.try_clone().unwrap(), refuses, calls: Arc::clone(&calls) }, calls, host)
    }
}

impl Device for Puppet {
    fn identity(&self) -> Identity<'_> {
        IDENTITY
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::device::copy_config(b"config", offset, data);
    }
    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), ActivateError> {
        self.calls.activated.fetch_add(1, Ordering::Relaxed);
        assert_eq!(activation.queues.len(), activation.kicks.len());
        if self.refuses { Err(ActivateError::Host("no".into())) } else { Ok(()) }
    }
    fn process(&mut self, index: usize, io: &mut Io<'_>) {
        self.calls.queue.fetch_add(1, Ordering::Relaxed);
        io.serve(index, None, |_, _| 0);
    }
    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.host.as_fd())
    }
    fn process_host(&mut self, io: &mut Io<'_>) {
        self.host.take();
        self.calls.host.fetch_add(1, Ordering::Relaxed);
        io.interrupt.config();
    }
    fn reset(&mut self) {
        self.calls.reset.fetch_add(1, Ordering::Relaxed);
    }
}

/// A link that passes a used buffer on, until the link is lost.
struct PuppetLink {
    event: Event,
    lost: Arc<AtomicBool>,
    config: [u8; 1],
}

impl PuppetLink {
    fn state(&self) -> Result<(), LinkLost> {
        if self.lost.load(Ordering::Relaxed) { Err(LinkLost) } else { Ok(()) }
    }
}

impl Link for PuppetLink {
    fn identity(&self) -> Identity<'_> {
        IDENTITY
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        crate::device::copy_config(&self.config, offset, data);
    }
    fn write_config(&mut self, _offset: u64, data: &[u8]) -> Result<(), LinkLost> {
        self.config[0] = data[0];
        self.state()
    }
    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), ActivateError> {
        assert_eq!(activation.queues.len(), activation.kicks.len());
        self.state().map_err(|lost| ActivateError::Host(lost.to_string()))
    }
    fn event(&self) -> BorrowedFd<'_> {
        self.event.as_fd()
    }
    fn forward(&mut self, interrupt: &dyn Interrupt) -> Result<(), LinkLost> {
        self.event.take();
        interrupt.queue(0);
        self.state()
    }
    fn reset(&mut self) {}
}

fn linked() -> (Bench, Event, Arc<AtomicBool>) {
    let (event, lost) = (Event::new().unwrap(), Arc::new(AtomicBool::new(false)));
    let link = PuppetLink { event: event.try_clone().unwrap(), lost: Arc::clone(&lost), config: [7] };
    (Bench::with(Attached::Link(Box::new(link))), event, lost)
}

#[test]
fn the_identity_registers_say_who_it_is() {
    let bench = Bench::new(Entropy::new());
    assert_eq!([0, 4, 8, 12].map(|offset| bench.read(offset)), [0x7472_6976, 2, 4, 0x4b43_4c4d]);
    assert_eq!([0xb0, 0xb4, 0xb8, 0xbc].map(|offset| bench.read(offset)), [u32::MAX; 4]);
    for unknown in [0x18, 0x48, 0x4c, 0x54, 0xc0, 0xc4, 0xf8] {
        assert_eq!(bench.read(unknown), 0);
    }
}

#[test]
fn features_are_shown_a_word_at_a_time() {
    let bench = Bench::new(Puppet::new(false).0);
    let word = |select| {
        bench.write(0x14, select);
        bench.read(0x10)
    };
    assert_eq!([0, 1, 2, u32::MAX].map(word), [1 << 29 | 0b101, 1, 0, 0]);
}

#[test]
fn features_ok_is_refused_without_version_1_or_with_a_bit_nobody_offered() {
    for (features, good) in [
        (VERSION_1, true),
        (VERSION_1 | EVENT_IDX | 0b101, true),
        (0b101, false),
        (VERSION_1 | 0b10, false),
        (VERSION_1 | 1 << 33, false),
        (u64::MAX, false),
    ] {
        let bench = Bench::new(Puppet::new(false).0);
        bench.add_status(ACKNOWLEDGE);
        bench.add_status(DRIVER);
        bench.accept(features);
        assert_eq!(bench.add_status(FEATURES_OK) & FEATURES_OK != 0, good, "{features:#x}");
        // After a refusal the driver may try again with fewer features.
        bench.accept(VERSION_1);
        assert_ne!(bench.add_status(FEATURES_OK) & FEATURES_OK, 0);
        // After FEATURES_OK the driver may not change its choice.
        bench.accept(0b10);
        assert_eq!(bench.add_status(DRIVER_OK), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    }
    // The driver may not accept bits beyond the existing ones either.
    let bench = Bench::new(Puppet::new(false).0);
    bench.write(0x70, ACKNOWLEDGE | DRIVER);
    bench.accept(VERSION_1);
    bench.write(0x24, 2);
    bench.write(0x20, 1);
    assert_eq!(bench.add_status(FEATURES_OK) & FEATURES_OK, 0);
}

#[test]
fn status_bits_come_in_order_and_stay() {
    let (puppet, calls, _) = Puppet::new(false);
    let bench = Bench::new(puppet);
    bench.accept(VERSION_1);
    for early in [DRIVER, FEATURES_OK, DRIVER_OK, DRIVER | FEATURES_OK | DRIVER_OK, NEEDS_RESET] {
        bench.write(0x70, early);
        assert_eq!(bench.status(), 0, "{early}");
    }
    bench.write(0x70, ACKNOWLEDGE | DRIVER_OK);
    assert_eq!(bench.status(), ACKNOWLEDGE);
    bench.write(0x70, ACKNOWLEDGE | DRIVER);
    bench.write(0x70, DRIVER | DRIVER_OK);
    assert_eq!(bench.status(), ACKNOWLEDGE | DRIVER);
    assert_eq!(calls.activated.load(Ordering::Relaxed), 0);
    bench.write(0x70, FEATURES_OK | DRIVER_OK);
    assert_eq!(bench.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK);
    assert!(bench.transport.activated());
    bench.write(0x70, DRIVER_OK);
    assert_eq!(calls.activated.load(Ordering::Relaxed), 1);
    bench.write(0x70, FAILED);
    assert_eq!(bench.status(), ACKNOWLEDGE | DRIVER | FEATURES_OK | DRIVER_OK | FAILED);
    assert!(!bench.transport.activated());
    bench.write(0x70, 0);
    assert_eq!(bench.status(), 0);
    bench.write(0x70, FAILED);
    bench.write(0x70, 15);
    assert_eq!(bench.status(), FAILED);
}

#[test]
fn queue_registers_are_only_writable_while_the_driver_sets_up() {
    let bench = Bench::new(Puppet::new(false).0);
    let ready = |index| {
        bench.write(0x30, index);
        bench.read(0x44)
    };
    bench.set_queue(0, Place::new(0, 16));
    assert_eq!(ready(0), 0);
    bench.start();
    assert_eq!((ready(0), ready(1), ready(2), ready(u32::MAX)), (1, 0, 0, 0));
    bench.set_queue(1, Place::new(1, 8));
    assert_eq!(ready(1), 0);
    bench.write(0x30, 0);
    bench.write(0x44, 0);
    assert_eq!(ready(0), 1);
    bench.write(0x30, 1);
    assert_eq!(bench.read(0x34), 8);
    bench.write(0x30, 2);
    assert_eq!(bench.read(0x34), 0);
    bench.write(0x70, 0);
    assert_eq!((ready(0), ready(1)), (0, 0));
}

/// VIRTIO 1.3 §4.2.2.2: a queue that is ready does not change under the device.
#[test]
fn a_ready_queue_keeps_its_registers() {
    let bench = Bench::new(Entropy::new());
    bench.write(0x70, ACKNOWLEDGE | DRIVER);
    bench.accept(VERSION_1);
    bench.add_status(FEATURES_OK);
    let place = Place::new(0, 8);
    bench.set_queue(0, place);
    bench.set_queue(0, Place { size: 3, desc: 5, avail: 7, used: 9 });
    let mut queue = DriverQueue::new(place);
    assert_eq!(bench.add_status(DRIVER_OK) & NEEDS_RESET, 0);
    queue.chain(&bench.memory, &[harness::Descriptor { addr: harness::DATA, len: 8, flags: WRITE, next: 0 }]);
    bench.transport.process_queue(0);
    assert_eq!(queue.used(&bench.memory), Some((0, 8)));
}

#[test]
fn an_impossible_queue_needs_a_reset() {
    let good = Place::new(0, 16);
    for bad in [
        Place { size: 0, ..good },
        Place { size: 3, ..good },
        Place { size: 32, ..good },
        Place { desc: 0x1008, ..good },
        Place { avail: 0x1001, ..good },
        Place { avail: 0, ..good },
        Place { used: 0x1a02, ..good },
        Place { desc: harness::END - 16, ..good },
        Place { used: harness::END, ..good },
        Place { used: 0xffff_ffff_ffff_fff0, ..good },
        Place { desc: 1 << 63, ..good },
    ] {
        let (puppet, calls, _) = Puppet::new(false);
        let bench = Bench::new(puppet);
        bench.write(0x70, ACKNOWLEDGE | DRIVER);
        bench.accept(VERSION_1);
        bench.add_status(FEATURES_OK);
        bench.set_queue(0, bad);
        assert_ne!(bench.add_status(DRIVER_OK) & NEEDS_RESET, 0, "{bad:x?}");
        assert_eq!((bench.read(0x60), bench.edges()), (2, 1));
        assert!(!bench.transport.activated());
        bench.transport.process_queue(0);
        assert_eq!(calls.activated.load(Ordering::Relaxed) + calls.queue.load(Ordering::Relaxed), 0);
        // A reset makes the device usable again.
        bench.start();
        assert!(bench.transport.activated());
    }
}

#[test]
fn a_device_that_refuses_needs_a_reset() {
    let (puppet, calls, host) = Puppet::new(true);
    let bench = Bench::new(puppet);
    host.signal();
    bench.start();
    assert_eq!(bench.status() & (NEEDS_RESET | DRIVER_OK), NEEDS_RESET | DRIVER_OK);
    assert_eq!(bench.read(0x60), 2);
    assert!(!readable(bench.transport.host_event().unwrap()));
    bench.transport.process_host();
    assert_eq!(calls.host.load(Ordering::Relaxed), 0);
    bench.write(0x70, 15);
    assert_eq!(calls.activated.load(Ordering::Relaxed), 1);
}

#[test]
fn a_request_is_served_and_its_interrupt_acknowledged() {
    let bench = Bench::new(Entropy::new());
    let mut queue = bench.start();
    assert!(readable(bench.transport.kicks()[0].as_fd()));
    bench.transport.process_queue(0);
    assert_eq!((bench.edges(), bench.read(0x60)), (0, 0));
    let buffer = harness::Descriptor { addr: harness::DATA, len: 64, flags: WRITE, next: 0 };
    queue.chain(&bench.memory, &[buffer]);
    bench.write(0x50, 0);
    assert!(readable(bench.transport.kicks()[0].as_fd()));
    bench.transport.process_queue(0);
    assert!(!readable(bench.transport.kicks()[0].as_fd()));
    assert_eq!(queue.used(&bench.memory), Some((0, 64)));
    assert_eq!((bench.edges(), bench.read(0x60)), (1, 1));
    // Each notification makes an edge, whether the one before was acknowledged or not.
    queue.chain(&bench.memory, &[buffer]);
    bench.transport.process_queue(0);
    assert_eq!((bench.edges(), bench.read(0x60)), (1, 1));
    bench.write(0x64, 2);
    assert_eq!(bench.read(0x60), 1);
    bench.write(0x64, 1);
    assert_eq!(bench.read(0x60), 0);
}

#[test]
fn a_kick_for_no_queue_is_nothing() {
    let bench = Bench::new(Entropy::new());
    bench.start();
    bench.transport.process_queue(0);
    for index in [1, 2, 0x1_0000, u32::MAX] {
        bench.write(0x50, index);
        bench.transport.process_queue(usize::try_from(index).unwrap());
    }
    assert!(!readable(bench.transport.kicks()[0].as_fd()));
}

#[test]
fn a_broken_ring_needs_a_reset() {
    let bench = Bench::new(Entropy::new());
    let mut queue = bench.start();
    queue.set_avail_idx(&bench.memory, queue.at.size + 1);
    bench.transport.process_queue(0);
    assert_ne!(bench.status() & NEEDS_RESET, 0);
    assert_eq!((bench.edges(), bench.read(0x60)), (1, 2));
    assert!(!bench.transport.activated());
    bench.transport.process_queue(0);
    assert_eq!(bench.edges(), 0);
    let mut queue = bench.start();
    assert_eq!(bench.read(0x60), 0);
    queue.set_avail_idx(&bench.memory, 0);
    bench.transport.process_queue(0);
    assert!(bench.transport.activated());
}

#[test]
fn the_host_side_is_only_heard_while_active() {
    let (puppet, calls, host) = Puppet::new(false);
    let bench = Bench::new(puppet);
    host.signal();
    let readable = || readable(bench.transport.host_event().unwrap());
    assert!(!readable());
    bench.transport.process_host();
    bench.start();
    assert!(readable());
    let generation = bench.read(0xfc);
    bench.transport.process_host();
    assert_eq!(calls.host.load(Ordering::Relaxed), 1);
    assert!(!readable());
    assert_ne!(bench.read(0xfc), generation);
    assert_eq!((bench.edges(), bench.read(0x60)), (1, 2));
    bench.write(0x70, 0);
    host.signal();
    assert!(!readable());
    bench.start();
    assert!(readable());
    bench.write(0x70, FAILED);
    assert!(!readable());
}

#[test]
fn queues_served_elsewhere_are_left_alone() {
    let (bench, event, _) = linked();
    let mut queue = bench.start();
    assert!(bench.transport.is_link());
    // The transport does not look at the queue at all: the other process may have read further than this one knows.
    queue.set_avail_idx(&bench.memory, 0x7000);
    bench.write(0x50, 0);
    bench.transport.process_queue(0);
    event.signal();
    assert!(readable(bench.transport.host_event().unwrap()));
    bench.transport.process_host();
    assert!(bench.transport.activated());
    assert_eq!((bench.edges(), bench.read(0x60)), (1, 1));
    assert_eq!(signals(&bench.transport.kicks()[0]), 2);
    bench.transport.write(0x100, &[9]);
    assert_eq!(bench.read(0x100), 9);
}

#[test]
fn a_link_that_is_lost_needs_a_reset_and_stays_lost() {
    // The loss is noticed while forwarding, or when the driver writes to the configuration space.
    for forwarding in [true, false] {
        let (bench, event, lost) = linked();
        bench.start();
        lost.store(true, Ordering::Relaxed);
        match forwarding {
            true => bench.transport.process_host(),
            false => bench.transport.write(0x100, &[9]),
        }
        assert_eq!(bench.status() & NEEDS_RESET, NEEDS_RESET);
        assert!(!bench.transport.activated());
        assert_eq!(bench.read(0x60) & 2, 2, "the driver is not told");
        event.signal();
        assert!(!readable(bench.transport.host_event().unwrap()), "nobody would take it");
        bench.start();
        assert_eq!(bench.status() & NEEDS_RESET, NEEDS_RESET);
    }
}

/// Driver and device run on two threads, each asleep whenever the other allows it: no request may be left behind.
#[test]
fn no_notification_is_lost_between_threads() {
    const REQUESTS: u16 = 20_000;
    let bench = Bench::new(Entropy::new());
    let wait = |fd: BorrowedFd<'_>| {
        let mut fds = [rustix::event::PollFd::from_borrowed_fd(fd, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
        rustix::event::poll(&mut fds, Some(&limit)).unwrap() == 1
    };
    bench.write(0x70, ACKNOWLEDGE | DRIVER);
    bench.accept(VERSION_1 | EVENT_IDX);
    bench.add_status(FEATURES_OK);
    let place = Place::new(0, 8);
    bench.set_queue(0, place);
    bench.add_status(DRIVER_OK);
    let (transport, memory, irq) = (&bench.transport, &bench.memory, &bench.irq);
    let kick = &transport.kicks()[0];
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while wait(kick.as_fd()) && !stop.load(Ordering::SeqCst) {
                transport.process_queue(0);
            }
        });
        let mut queue = DriverQueue::new(place);
        let buffer = harness::Descriptor { addr: harness::DATA, len: 8, flags: WRITE, next: 0 };
        let (avail_event, used_event) = (place.used + 4 + 8 * 8, place.avail + 4 + 2 * 8);
        for request in 0..REQUESTS {
            // The driver asks for an interrupt for this request, then offers the request, then kicks if the device
            // asked for a kick.
            harness::write(memory, used_event, &request.to_le_bytes());
            queue.chain(memory, &[buffer]);
            std::sync::atomic::fence(Ordering::SeqCst);
            let mut event = [0; 2];
            harness::read(memory, avail_event, &mut event);
            if u16::from_le_bytes(event) == request {
                transport.write(0x50, &[0; 4]);
            }
            while queue.used(memory).is_none() {
                assert!(wait(irq.as_fd()), "request {request} is lost");
                irq.take();
            }
        }
        stop.store(true, Ordering::SeqCst);
        kick.signal();
    });
}

#[test]
fn reset_forgets_everything() {
    let (puppet, calls, _) = Puppet::new(false);
    let bench = Bench::new(puppet);
    bench.start();
    bench.transport.process_host();
    bench.write(0x50, 0);
    let resets = calls.reset.load(Ordering::Relaxed);
    bench.write(0x70, 0);
    assert_eq!(calls.reset.load(Ordering::Relaxed), resets + 1);
    assert_eq!((bench.status(), bench.read(0x60), bench.read(0x44)), (0, 0, 0));
    assert!(bench.transport.kicks().iter().all(|kick| !readable(kick.as_fd())));
    // The features that were accepted before the reset do not count.
    bench.write(0x70, ACKNOWLEDGE | DRIVER);
    assert_eq!(bench.add_status(FEATURES_OK) & FEATURES_OK, 0);
}

#[test]
fn odd_accesses_are_harmless() {
    let bench = Bench::new(Puppet::new(false).0);
    for len in [0, 1, 2, 3, 5, 8] {
        for offset in 0..0x100 {
            let mut data = vec![0xff; len];
            bench.transport.write(offset, &data);
            bench.transport.read(offset, &mut data);
            assert!(data.iter().all(|&byte| byte == 0));
        }
    }
    let mut data = [0xff; 4];
    bench.transport.read(1, &mut data);
    assert_eq!(data, [0; 4]);
    assert_eq!(bench.status(), 0);
    let mut config = [0xff; 8];
    bench.transport.read(0x103, &mut config);
    assert_eq!(&config, b"fig\0\0\0\0\0");
    bench.transport.read(u64::MAX, &mut config);
    assert_eq!(config, [0; 8]);
}

struct Nothing;

impl Reclaim for Nothing {
    fn reclaim(&mut self, _address: u64, _len: u64) {}
}

impl Blocks for Nothing {
    fn len(&self) -> u64 {
        1 << 20
    }
    fn readonly(&self) -> bool {
        false
    }
    fn read(&mut self, _: u64, _: &[vm_memory::VolatileSlice<'_>]) -> io::Result<()> {
        Ok(())
    }
    fn write(&mut self, _: u64, _: &[vm_memory::VolatileSlice<'_>]) -> io::Result<()> {
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn gives_back(&self) -> bool {
        true
    }
    fn discard(&mut self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }
}

/// The accesses of Linux 6.12 at a probe, from `virtio_mmio_probe()` to `virtio_device_ready()`: `fields` is the number
/// of 4-byte configuration reads that the device's driver makes, `wide` the number of 8-byte fields (two reads between
/// two generations).
fn linux_probe(device: impl Device + 'static, queues: &[u32], fields: u32, wide: u32) -> u32 {
    let bench = Bench::new(device);
    assert_eq!((bench.read(0), bench.read(4)), (0x7472_6976, 2));
    bench.read(8);
    bench.read(12);
    bench.write(0x70, 0); // register_virtio_device()
    for bit in [ACKNOWLEDGE, DRIVER] {
        let status = bench.status();
        bench.write(0x70, status | bit);
    }
    let mut offered = 0;
    for half in [1, 0] {
        bench.write(0x14, half);
        offered = offered << 32 | u64::from(bench.read(0x10));
    }
    bench.accept(offered);
    let status = bench.status();
    bench.write(0x70, status | FEATURES_OK);
    assert_ne!(bench.status() & FEATURES_OK, 0);
    for _ in 0..fields {
        bench.read(0x100);
    }
    for _ in 0..wide {
        for offset in [0xfc, 0x100, 0x104, 0xfc] {
            bench.read(offset);
        }
    }
    for (place, &index) in queues.iter().enumerate() {
        bench.write(0x30, index);
        assert_eq!(bench.read(0x44), 0);
        let size = u16::try_from(bench.read(0x34)).unwrap();
        let before = bench.accesses.get();
        bench.set_queue(index, Place::new(place, size));
        bench.accesses.set(before + 8); // it selects only once
    }
    let status = bench.status();
    bench.write(0x70, status | DRIVER_OK);
    assert!(bench.transport.activated());
    bench.accesses.get()
}

/// The budget is 60 MMIO exits for each device; each interrupt costs two more later.
#[test]
fn a_probe_stays_in_its_budget() {
    let console = Console::new(Box::new(io::sink()), None).unwrap();
    let (balloon, _) = Balloon::new(Box::new(Nothing)).unwrap();
    let probes = [
        linux_probe(Entropy::new(), &[0], 0, 0),
        // size_max, seg_max, three of discard, one of write zeroes, capacity
        linux_probe(BlockDevice::new(Box::new(Nothing), "x"), &[0], 6, 1),
        linux_probe(console, &[0, 1], 0, 0),
        // num_pages, and actual written
        linux_probe(balloon, &[0, 1, 2], 2, 0),
    ];
    assert_eq!(probes, [33, 43, 44, 57]);
}
