//! A device with many requests in flight behind a real vhost-user connection: rings that go on while others are held up,
//! chains that other threads complete, and stops that wait for them.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod two_rings;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use driven::{BUFFERS, available, descriptors, used};
use guest_memory::GuestRam;
use two_rings::{QUEUE_SIZE, Rings};
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;
use vhost::vhost_user::message::VhostUserConfigFlags;
use vhost_backend::{ParallelDevice, Served, start_parallel};
use virtio::{Chain, DeviceKind, Identity, SharedQueue};
use vm_memory::{Bytes, GuestAddress};

const PATIENCE: Duration = Duration::from_secs(20);

/// How long the device waits for its chains in tests that let it wait in vain.
const SHORT: Duration = Duration::from_millis(300);

/// A device that hands every chain over to the test, which completes it at any time.
struct Taker(Sender<(usize, Chain)>, Duration);

impl ParallelDevice for Taker {
    fn identity(&self) -> Identity<'_> {
        Identity { kind: DeviceKind::FileSystem, features: 1 << 28, queue_sizes: &[QUEUE_SIZE; 2] }
    }
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(7);
    }
    fn serve(&self, index: usize, queue: &SharedQueue, memory: &Arc<GuestRam>) {
        while let Some(chain) = queue.pop(memory) {
            self.0.send((index, chain)).unwrap();
        }
    }
    fn patience(&self) -> Duration {
        self.1
    }
}

/// A driver, and the chains that the device has taken from it.
struct Bench {
    rings: Rings,
    taken: Receiver<(usize, Chain)>,
    served: Served,
}

impl Bench {
    fn new() -> Self {
        Self::with_patience(PATIENCE)
    }

    fn with_patience(patience: Duration) -> Self {
        let (tell, taken) = channel();
        let (listener, stream) = process::accept_pair().unwrap();
        let served = start_parallel("taker", Box::new(Taker(tell, patience)), listener).unwrap();
        let mut rings = Rings::connect(stream, 1 << 28);
        rings.start(&[0, 0], true);
        // A ring that gets an event for interrupts raises one there.
        assert!([0, 1].iter().all(|queue| rings.interrupted(*queue)));
        Self { rings, taken, served }
    }

    fn offer(&self, queue: usize, count: u16) {
        self.rings.offer(queue, count);
        self.rings.kicks[queue].write(1).unwrap();
    }

    fn take(&self, queue: usize, count: usize) -> Vec<Chain> {
        let chains = (0..count).map(|_| self.taken.recv_timeout(PATIENCE).unwrap());
        chains.map(|(from, chain)| (assert_eq!(from, queue), chain).1).collect()
    }

    /// The heads in the used ring.
    fn heads(&self, queue: usize) -> BTreeSet<u32> {
        (0..self.rings.used(queue)).map(|position| self.rings.used_at(queue, position).0).collect()
    }
}

#[test]
fn many_are_in_flight_and_come_back_from_anywhere() {
    let bench = Bench::new();
    bench.offer(0, QUEUE_SIZE);
    let mut chains = bench.take(0, QUEUE_SIZE.into());
    // The other ring goes on while this one is held up.
    bench.offer(1, 1);
    bench.take(1, 1).pop().unwrap().complete(16);
    assert_eq!((bench.rings.used(0), bench.rings.used(1)), (0, 1));
    assert!(bench.rings.interrupted(1) && !bench.rings.interrupted(0));

    let late = chains.split_off(64);
    let other = std::thread::spawn(move || {
        for chain in late.into_iter().rev() {
            assert_eq!(chain.buffers().writable.write(&[9; 16]), 16);
            chain.complete(16);
        }
    });
    chains.into_iter().rev().for_each(|chain| chain.complete(16));
    other.join().unwrap();
    assert_eq!(bench.heads(0), (0..u32::from(QUEUE_SIZE)).collect());
    assert!(bench.rings.interrupted(0));
    assert_eq!(bench.rings.ram.read_obj::<[u8; 16]>(GuestAddress(BUFFERS)).unwrap(), [9; 16]);
}

#[test]
fn a_stop_waits_for_what_is_in_flight_and_a_pause_loses_nothing() {
    let mut bench = Bench::new();
    bench.offer(0, 2);
    let chains = bench.take(0, 2);
    let Bench { mut rings, taken, served } = bench;
    let stopping = std::thread::spawn(move || (rings.stop(), rings));
    // This pause gives a stop that does not wait the time to return. Without the pause the test would notice such a
    // stop less often.
    std::thread::sleep(Duration::from_millis(20));
    assert!(!stopping.is_finished());
    chains.into_iter().for_each(|chain| chain.complete(16));
    let (bases, rings) = stopping.join().unwrap();
    assert_eq!(bases, [2, 0]);
    assert_eq!(rings.used(0), 2);

    bench = Bench { rings, taken, served };
    bench.offer(0, 3);
    assert!(bench.taken.recv_timeout(Duration::from_millis(20)).is_err(), "a ring that stands still moves");
    bench.rings.start(&bases, true);
    let chains = bench.take(0, 3);
    chains.into_iter().for_each(|chain| chain.complete(16));
    assert_eq!(bench.rings.used(0), 5);
}

#[test]
fn a_driver_that_begins_anew_has_rings_of_its_own() {
    let mut bench = Bench::new();
    bench.offer(1, 4);
    drop(bench.take(1, 4));
    assert_eq!(bench.rings.stop(), [0, 4]);
    for queue in 0..2 {
        let len = usize::try_from(used(queue) - descriptors(queue)).unwrap() + 0x4000;
        assert!(available(queue) < used(queue));
        bench.rings.ram.write_slice(&vec![0; len], GuestAddress(descriptors(queue))).unwrap();
    }
    bench.rings.start(&[0, 0], true);
    bench.offer(1, 1);
    bench.take(1, 1).pop().unwrap().complete(16);
    assert_eq!((bench.rings.used(1), bench.heads(1)), (1, BTreeSet::from([0])));
}

#[test]
fn a_front_end_that_goes_ends_every_thread_with_chains_in_flight() {
    let mut bench = Bench::new();
    let (_, config) = bench.rings.front_end.get_config(0, 4, VhostUserConfigFlags::empty(), &[0; 4]).unwrap();
    assert_eq!(config, [7; 4]);
    bench.offer(0, 1);
    let chains = bench.take(0, 1);
    let Bench { rings, taken, served } = bench;
    drop(rings);
    served.wait().unwrap();
    // The device is gone, and with it its end of the channel.
    assert!(taken.recv_timeout(PATIENCE).is_err());
    drop(chains);
}

/// The host does not answer a request: the rings do not report that they have stopped, and all of them share one
/// patience.
#[test]
fn a_ring_whose_chains_do_not_come_back_ends_the_connection() {
    let bench = Bench::with_patience(SHORT);
    bench.offer(0, 1);
    bench.offer(1, 1);
    let chains = [0, 1].map(|_| bench.taken.recv_timeout(PATIENCE).unwrap());
    let start = Instant::now();
    assert!(bench.rings.front_end.get_vring_base(0).is_err());
    assert!(start.elapsed() >= SHORT);
    assert!(bench.served.wait().is_err());
    drop(chains);
    assert_eq!([0, 1].map(|queue| bench.rings.used(queue)), [0, 0], "late chains go nowhere");
}
