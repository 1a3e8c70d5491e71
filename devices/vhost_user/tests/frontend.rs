//! The front end against a real back end, `vhost-user-backend`'s loop in threads of this process.
//!
//! The tests play the driver: rings and buffers written by hand into shared memory.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::net::Shutdown;
use std::os::fd::BorrowedFd;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};

use guest_memory::{Backing, GuestRam, SharedFile};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use vhost_user::{Error, Frontend};
use virtio::{ActivateError, Activation, Device, DeviceKind, Event, Identity, Interrupt, Io, Link, LinkLost};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress};

const SIZE: u16 = 16;
const FEATURES: u64 = 1 << 32 | 1 << 29;
const BUFFER: u64 = 0x8000;
const RAM: u64 = 0x10_0000;

/// Fills every buffer with its queue's number plus one, and has a configuration space to write to.
struct Filler {
    config: Mutex<[u8; 60]>,
}

impl Device for Filler {
    fn identity(&self) -> Identity<'_> {
        // The back end has two features of its own, and one that only a transport could offer.
        let features = 1 << 6 | 1 << 9 | 1 << 34;
        Identity { kind: DeviceKind::Block, features, queue_sizes: &[SIZE, SIZE] }
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config.lock().unwrap();
        let offset = usize::try_from(offset).unwrap();
        data.copy_from_slice(&config[offset..offset + data.len()]);
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        // Only the second byte is writable.
        if offset == 1 {
            self.config.get_mut().unwrap()[1] = data[0];
        }
    }
    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), ActivateError> {
        assert_eq!(activation.features & FEATURES, FEATURES);
        Ok(())
    }
    fn process(&mut self, index: usize, io: &mut Io<'_>) {
        while let Some(chain) = io.queues[index].pop_descriptor_chain(io.memory) {
            let head = chain.head_index();
            let mut written = 0;
            for buffer in chain.writable() {
                let byte = u8::try_from(index).unwrap() + 1;
                let bytes = vec![byte; buffer.len() as usize];
                io.memory.write_slice(&bytes, buffer.addr()).unwrap();
                written += buffer.len();
            }
            io.queues[index].add_used(io.memory, head, written).unwrap();
        }
        io.notify(index);
    }
    fn reset(&mut self) {}
}

/// A connection to a [`Filler`] in another thread.
fn back_end() -> UnixStream {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let name = format!("vhost-user-test-{}-{number}", std::process::id());
    let address = SocketAddr::from_abstract_name(name).unwrap();
    let listener = UnixListener::bind_addr(&address).unwrap();
    let connection = UnixStream::connect_addr(&address).unwrap();
    let mut config = [0; 60];
    config[..4].copy_from_slice(&[10, 20, 30, 40]);
    let device = Box::new(Filler { config: Mutex::new(config) });
    std::thread::spawn(move || vhost_backend::serve("filler", device, listener));
    connection
}

fn front_end() -> Frontend {
    Frontend::new(back_end(), DeviceKind::Block, &[SIZE, SIZE]).unwrap()
}

fn shared_ram() -> GuestRam {
    let size = usize::try_from(RAM).unwrap();
    guest_memory::allocate(&[(GuestAddress(0), size)], Backing::Shared(SharedFile::new().unwrap())).unwrap()
}

/// A driver of one machine: memory, queues, kicks.
struct Driver {
    ram: GuestRam,
    queues: [Queue; 2],
    kicks: [Event; 2],
}

impl Driver {
    fn new(ram: GuestRam) -> Self {
        let queues = [0u32, 1].map(|index| {
            let mut queue = Queue::new(SIZE).unwrap();
            let base = 0x1000 + 0x3000 * index;
            queue.set_size(SIZE);
            queue.set_desc_table_address(Some(base), Some(0));
            queue.set_avail_ring_address(Some(base + 0x1000), Some(0));
            queue.set_used_ring_address(Some(base + 0x2000), Some(0));
            queue.set_ready(true);
            queue
        });
        Self { ram, queues, kicks: [Event::new().unwrap(), Event::new().unwrap()] }
    }

    fn activate(&self, device: &mut Frontend) -> Result<(), ActivateError> {
        let Self { ram: memory, queues, kicks } = self;
        device.activate(&Activation { features: FEATURES | 1 << 6, memory, queues, kicks })
    }

    /// Offers one writable buffer of 8 bytes as the `nth` of queue `index`, and kicks.
    fn offer(&self, index: usize, nth: u16) {
        let queue = &self.queues[index];
        let (desc, avail) = (queue.desc_table(), queue.avail_ring());
        let write = |value: u64, address, bytes| {
            self.ram.write_slice(&value.to_le_bytes()[..bytes], GuestAddress(address)).unwrap();
        };
        // VIRTIO 1.3 §2.7.5: address, length, flags (2: device writes), next. §2.7.6: flags, index, ring.
        let nth = u64::from(nth);
        write(BUFFER, desc + 16 * nth, 8);
        write(8, desc + 16 * nth + 8, 4);
        write(2, desc + 16 * nth + 12, 2);
        write(nth, avail + 4 + 2 * nth, 2);
        // §2.7.7.1, used_event: asks for an interrupt when this buffer is used.
        write(nth, avail + 4 + 2 * u64::from(SIZE), 2);
        write(nth + 1, avail + 2, 2);
        self.kicks[index].signal();
    }

    fn used(&self, index: usize) -> u16 {
        self.ram.read_obj(GuestAddress(self.queues[index].used_ring() + 2)).unwrap()
    }

    fn buffer(&self) -> [u8; 8] {
        self.ram.read_obj(GuestAddress(BUFFER)).unwrap()
    }

    fn forget(&self) {
        self.ram.write_slice(&vec![0; 0x7000], GuestAddress(0x1000)).unwrap();
    }
}

#[derive(Default)]
struct Interrupts(Mutex<Vec<usize>>);

impl Interrupt for Interrupts {
    fn queue(&self, index: usize) {
        self.0.lock().unwrap().push(index);
    }
    fn config(&self) {
        panic!("the configuration space never changes");
    }
}

fn readable(fd: BorrowedFd<'_>, limit_s: i64) -> bool {
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: limit_s, tv_nsec: 0 })).unwrap() == 1
}

/// Waits for an event of the back end; returns the queues that it interrupted for, or the loss of the back end.
fn serve(device: &mut Frontend) -> Result<Vec<usize>, LinkLost> {
    assert!(readable(device.event(), 30), "the back end says nothing");
    let interrupts = Interrupts::default();
    device.forward(&interrupts)?;
    Ok(interrupts.0.into_inner().unwrap())
}

/// Waits until the back end has used `count` buffers of queue `index` and has said so. The back end may say so more
/// often: an interrupt without a cause is no fault, and back ends raise one when they get a new call event.
fn expect_used(device: &mut Frontend, driver: &Driver, index: usize, count: u16) {
    loop {
        let told = serve(device).unwrap();
        if told.contains(&index) && driver.used(index) == count {
            return;
        }
    }
}

#[test]
fn identity_is_the_back_ends_without_what_transports_offer() {
    let device = front_end();
    let queue_sizes = &[SIZE, SIZE];
    assert_eq!(
        device.identity(),
        Identity { kind: DeviceKind::Block, features: 1 << 6 | 1 << 9, queue_sizes }
    );
}

#[test]
fn configuration_reads_past_its_end_and_writes_where_the_device_lets() {
    let mut device = front_end();
    let read = |device: &Frontend, offset| {
        let mut bytes = [0xff; 4];
        device.read_config(offset, &mut bytes);
        bytes
    };
    assert_eq!(read(&device, 0), [10, 20, 30, 40]);
    assert_eq!(read(&device, 58), [0; 4]);
    assert_eq!(read(&device, u64::MAX), [0; 4]);
    device.write_config(1, &[99]).unwrap();
    device.write_config(2, &[99]).unwrap();
    device.write_config(59, &[99, 99]).unwrap();
    device.write_config(u64::MAX, &[99]).unwrap();
    assert_eq!(read(&device, 0), [10, 99, 30, 40]);
}

#[test]
fn buffers_come_back_with_an_interrupt_for_their_queue() {
    let mut device = front_end();
    let driver = Driver::new(shared_ram());
    driver.activate(&mut device).unwrap();
    for (nth, index) in [(0, 1), (0, 0), (1, 1), (2, 1)] {
        driver.offer(index, nth);
        expect_used(&mut device, &driver, index, nth + 1);
        assert_eq!(driver.buffer(), [u8::try_from(index).unwrap() + 1; 8]);
    }
}

#[test]
fn a_reset_device_starts_from_zero() {
    let mut device = front_end();
    let driver = Driver::new(shared_ram());
    for _ in 0..3 {
        driver.activate(&mut device).unwrap();
        driver.offer(0, 0);
        expect_used(&mut device, &driver, 0, 1);
        device.reset();
        // A kick of a stopped queue has no effect, and the rings are the driver's again.
        driver.forget();
        driver.offer(0, 0);
        assert!(!readable(device.event(), 0));
        assert_eq!(driver.used(0), 0);
        driver.forget();
        assert!(driver.kicks[0].take());
    }
    device.write_config(1, &[1]).unwrap();
}

#[test]
fn a_queue_the_driver_left_out_is_left_out() {
    let mut device = front_end();
    let mut driver = Driver::new(shared_ram());
    driver.queues[0].set_ready(false);
    driver.activate(&mut device).unwrap();
    driver.offer(1, 0);
    expect_used(&mut device, &driver, 1, 1);
    assert_eq!(driver.used(0), 0);
}

#[test]
fn private_memory_is_refused() {
    let mut device = front_end();
    let size = usize::try_from(RAM).unwrap();
    let ram = guest_memory::allocate(&[(GuestAddress(0), size)], Backing::Anonymous).unwrap();
    let error = Driver::new(ram).activate(&mut device).unwrap_err();
    assert_eq!(error.to_string(), "host side: guest memory is not shared");
    device.reset();
    Driver::new(shared_ram()).activate(&mut device).unwrap();
}

#[test]
fn rings_outside_of_memory_are_refused() {
    let mut device = front_end();
    let mut driver = Driver::new(shared_ram());
    driver.queues[1].set_used_ring_address(Some(u32::try_from(RAM).unwrap() - 8), Some(0));
    assert!(matches!(driver.activate(&mut device), Err(ActivateError::Queue(1))));
}

#[test]
fn a_back_end_that_goes_away_breaks_the_device_once() {
    let connection = back_end();
    let other = connection.try_clone().unwrap();
    let mut device = Frontend::new(connection, DeviceKind::Block, &[SIZE, SIZE]).unwrap();
    let driver = Driver::new(shared_ram());
    driver.activate(&mut device).unwrap();
    other.shutdown(Shutdown::Both).unwrap();
    while serve(&mut device).is_ok() {}
    assert!(!readable(device.event(), 0), "told once");
    device.reset();
    assert_eq!(device.write_config(1, &[1]), Err(LinkLost));
    let error = driver.activate(&mut device).unwrap_err();
    assert_eq!(error.to_string(), "host side: vhost-user back end is gone");
}

#[test]
fn back_ends_that_cannot_serve_are_refused() {
    let error = Frontend::new(back_end(), DeviceKind::Block, &[SIZE; 3]).err().unwrap();
    assert!(matches!(error, Error::Queues { has: 2, needs: 3 }), "{error}");
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let error = Frontend::new(ours, DeviceKind::Block, &[SIZE]).err().unwrap();
    assert!(matches!(error, Error::Request { request: "SET_OWNER", .. }), "{error}");
}
