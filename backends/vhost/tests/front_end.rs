//! A device behind a real vhost-user connection, with a driver that can be paused, reset, early and rude.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod two_rings;

use std::io::Write;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use driven::{descriptors, feature};
use two_rings::{QUEUE_SIZE, Rings};
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost::{VhostBackend, VringConfigData};
use vhost_backend::{Served, start};
use virtio::{ActivateError, Activation, Device, DeviceKind, Event, Identity, Io};
use vm_memory::{Bytes, GuestAddress};

const PATIENCE: Duration = Duration::from_secs(20);

/// A call that the device received.
#[derive(Debug, PartialEq, Eq)]
enum Heard {
    Activated { features: u64, ready: Vec<bool> },
    Served(usize),
    HostSide,
    Reset,
}

/// A device that gives every chain back, and reports each of its calls.
struct Witness {
    tell: Sender<Heard>,
    host: Event,
    kick: Option<Event>,
    config: Vec<u8>,
}

impl Device for Witness {
    fn identity(&self) -> Identity<'_> {
        Identity { kind: DeviceKind::Block, features: 1 << 6, queue_sizes: &[QUEUE_SIZE, QUEUE_SIZE] }
    }
    fn read_config(&self, offset: u64, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.config.get(usize::try_from(offset).unwrap() + index).copied().unwrap_or(0);
        }
    }
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        let offset = usize::try_from(offset).unwrap();
        self.config[offset..offset + data.len()].copy_from_slice(data);
    }
    fn activate(&mut self, activation: &Activation<'_>) -> Result<(), ActivateError> {
        self.kick = activation.own_kick(0);
        let ready = activation.queues.iter().map(virtio_queue::QueueT::ready).collect();
        self.tell.send(Heard::Activated { features: activation.features, ready }).unwrap();
        Ok(())
    }
    fn process(&mut self, index: usize, io: &mut Io<'_>) {
        let mut served = 0;
        let again = self.kick.as_ref().filter(|_| index == 0);
        io.serve(index, again, |_, _| {
            served += 1;
            0
        });
        if served > 0 {
            self.tell.send(Heard::Served(served)).unwrap();
        }
    }
    fn host_event(&self) -> Option<BorrowedFd<'_>> {
        Some(self.host.as_fd())
    }
    fn process_host(&mut self, io: &mut Io<'_>) {
        assert!(self.host.take());
        io.notify(1);
        self.tell.send(Heard::HostSide).unwrap();
    }
    fn reset(&mut self) {
        self.tell.send(Heard::Reset).unwrap();
    }
}

/// A driver, and the calls that reach its device.
struct Driver {
    rings: Rings,
    heard: Receiver<Heard>,
    host: Event,
    served: Option<Served>,
}

impl Deref for Driver {
    type Target = Rings;
    fn deref(&self) -> &Rings {
        &self.rings
    }
}

impl DerefMut for Driver {
    fn deref_mut(&mut self) -> &mut Rings {
        &mut self.rings
    }
}

impl Driver {
    /// Connects, and negotiates up to the point where the rings may start.
    fn connect() -> Self {
        let (tell, heard) = channel();
        let host = Event::new().unwrap();
        let witness =
            Witness { tell, host: host.try_clone().unwrap(), kick: None, config: b"config".to_vec() };
        let (listener, stream) = process::accept_pair().unwrap();
        let served = Some(start("witness", Box::new(witness), listener).unwrap());
        Self { rings: Rings::connect(stream, 1 << 6), heard, host, served }
    }

    fn hear(&self) -> Heard {
        self.heard.recv_timeout(PATIENCE).unwrap()
    }

    fn hears_nothing(&self) {
        assert_eq!(self.heard.recv_timeout(Duration::from_millis(50)).ok(), None);
    }

    /// A driver that is connected and started, and whose device is active for the first time.
    fn running() -> Self {
        let mut driver = Self::connect();
        driver.start(&[0, 0], true);
        assert_eq!(driver.hear(), activated());
        driver
    }
}

fn activated() -> Heard {
    Heard::Activated { features: feature::VERSION_1, ready: vec![true, true] }
}

#[test]
fn chains_come_back_with_an_interrupt() {
    let mut driver = Driver::running();
    driver.offer(0, 3);
    driver.kicks[0].write(1).unwrap();
    assert_eq!(driver.hear(), Heard::Served(3));
    assert_eq!((driver.used(0), driver.used(1)), (3, 0));
    // The device raises the interrupt after it has used the rings; `stop` waits for both.
    driver.stop();
    assert!(driver.interrupted(0));
}

#[test]
fn one_kick_serves_as_many_turns_as_it_takes() {
    let driver = Driver::running();
    let count = u16::try_from(2 * Io::TURN + 1).unwrap();
    driver.offer(0, count);
    driver.kicks[0].write(1).unwrap();
    assert_eq!(
        [driver.hear(), driver.hear(), driver.hear()].map(|heard| heard == Heard::Served(1)),
        [false, false, true]
    );
    assert_eq!(driver.used(0), count);
}

#[test]
fn a_pause_keeps_the_device_and_loses_nothing() {
    let mut driver = Driver::running();
    driver.offer(0, 1);
    driver.kicks[0].write(1).unwrap();
    assert_eq!(driver.hear(), Heard::Served(1));
    let bases = driver.stop();
    assert_eq!(bases, [1, 0]);
    // Chains that are offered meanwhile wait.
    driver.offer(0, 2);
    driver.kicks[0].write(1).unwrap();
    driver.host.signal();
    driver.hears_nothing();
    driver.start(&bases, true);
    let mut later = [driver.hear(), driver.hear()];
    later.sort_by_key(|heard| *heard == Heard::HostSide);
    assert_eq!(later, [Heard::Served(2), Heard::HostSide]);
    driver.hears_nothing();
}

#[test]
fn rings_that_start_from_zero_are_a_new_driver() {
    let mut driver = Driver::running();
    driver.offer(1, 1);
    driver.kicks[1].write(1).unwrap();
    assert_eq!(driver.hear(), Heard::Served(1));
    assert_eq!(driver.stop(), [0, 1]);
    for queue in 0..2 {
        driver.ram.write_slice(&[0; 0xc000], GuestAddress(descriptors(queue))).unwrap();
    }
    driver.offer(1, 1);
    driver.start(&[0, 0], true);
    assert_eq!([driver.hear(), driver.hear(), driver.hear()], [Heard::Reset, activated(), Heard::Served(1)]);
}

#[test]
fn the_host_side_waits_for_the_driver() {
    let mut driver = Driver::connect();
    driver.host.signal();
    driver.hears_nothing();
    driver.start(&[0, 0], true);
    assert_eq!([driver.hear(), driver.hear()], [activated(), Heard::HostSide]);
    driver.stop();
    assert!(driver.interrupted(1));
}

#[test]
fn an_interrupt_that_had_nowhere_to_go_is_raised_later() {
    let mut driver = Driver::connect();
    driver.offer(0, 1);
    driver.start(&[0, 0], false);
    assert_eq!([driver.hear(), driver.hear()], [activated(), Heard::Served(1)]);
    driver.front_end.set_vring_call(0, &driver.calls[0]).unwrap();
    assert!(driver.interrupted(0));
}

#[test]
fn the_configuration_space_is_read_and_written() {
    let mut driver = Driver::connect();
    let flags = VhostUserConfigFlags::WRITABLE;
    driver.front_end.set_config(2, flags, b"NF").unwrap();
    let (_, config) = driver.front_end.get_config(0, 8, flags, &[0; 8]).unwrap();
    assert_eq!(config, b"coNFig\0\0");
}

#[test]
fn a_front_end_that_goes_is_no_error_and_one_that_lies_is() {
    let mut driver = Driver::running();
    let served = driver.served.take().unwrap();
    drop(driver.rings.0.front_end);
    served.wait().unwrap();

    let mut driver = Driver::connect();
    let served = driver.served.take().unwrap();
    // Rings at addresses without memory.
    let rings = VringConfigData {
        queue_max_size: QUEUE_SIZE,
        queue_size: QUEUE_SIZE,
        flags: 0,
        desc_table_addr: 0x1000,
        used_ring_addr: 0x2000,
        avail_ring_addr: 0x3000,
        log_addr: None,
    };
    assert!(driver.front_end.set_vring_addr(0, &rings).is_err());
    drop(driver.rings.0.front_end);
    let _ = served.wait();

    let (tell, _heard) = channel();
    let witness = Witness { tell, host: Event::new().unwrap(), kick: None, config: Vec::new() };
    let (listener, mut stream) = process::accept_pair().unwrap();
    let served = start("witness", Box::new(witness), listener).unwrap();
    stream.write_all(&[0xff; 64]).unwrap();
    assert!(served.wait().is_err());
}
