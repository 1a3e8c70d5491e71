//! Chains that come back late, early, together, from other threads, and never.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::collections::BTreeMap;
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering, fence};
use std::thread;
use std::time::Instant;

use super::*;
use crate::Event;
use crate::harness::{self, DATA, Descriptor, DriverQueue, Held, Place, SEAM, WRITE};

const SIZE: u16 = 64;
const LONG: Duration = Duration::from_secs(30);

/// A queue, and the driver's side of it.
struct Bench {
    memory: Arc<GuestRam>,
    held: Arc<Held>,
    queue: SharedQueue,
    driver: DriverQueue,
}

impl Bench {
    fn new(event_idx: bool) -> Self {
        let driver = DriverQueue::new(Place::new(0, SIZE));
        let held = Arc::new(Held::new(driver.to_queue(event_idx)));
        let queue = SharedQueue::new(Box::new(Arc::clone(&held)));
        Self { memory: Arc::new(harness::memory()), held, queue, driver }
    }

    /// Offers `count` chains with room for 8 bytes each.
    fn offer(&mut self, count: u16) {
        for _ in 0..count {
            let addr = DATA + 8 * u64::from(self.next_head());
            self.driver.chain(&self.memory, &[Descriptor { addr, len: 8, flags: WRITE, next: 0 }]);
        }
    }

    fn next_head(&self) -> u16 {
        let mut idx = [0; 2];
        harness::read(&self.memory, self.driver.at.avail + 2, &mut idx);
        u16::from_le_bytes(idx) % SIZE
    }

    fn take(&self) -> Vec<Chain> {
        std::iter::from_fn(|| self.queue.pop(&self.memory)).collect()
    }

    fn used(&mut self) -> Vec<(u32, u32)> {
        std::iter::from_fn(|| self.driver.used(&self.memory)).collect()
    }
}

#[test]
fn chains_come_back_in_any_order_from_any_thread() {
    for event_idx in [false, true] {
        let mut bench = Bench::new(event_idx);
        bench.offer(SIZE);
        let mut chains = bench.take();
        assert_eq!(chains.len(), usize::from(SIZE));
        let mut threads = Vec::new();
        while !chains.is_empty() {
            let part = chains.split_off(chains.len() - 16);
            threads.push(thread::spawn(move || {
                for chain in part.into_iter().rev() {
                    let head = u8::try_from(chain.head()).unwrap();
                    assert_eq!(chain.buffers().writable.write(&[head; 8]), 8);
                    chain.complete(u32::from(head) + 1);
                }
            }));
        }
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        let used: BTreeMap<_, _> = bench.used().into_iter().collect();
        assert_eq!(used, (0..u32::from(SIZE)).map(|head| (head, head + 1)).collect());
        for head in 0..SIZE {
            let mut bytes = [0; 8];
            harness::read(&bench.memory, DATA + 8 * u64::from(head), &mut bytes);
            assert_eq!(bytes, [u8::try_from(head).unwrap(); 8]);
        }
        // With event indexes: the driver asked for the interrupt of the first chain, and has not asked again.
        assert_eq!(bench.held.signals(), if event_idx { 1 } else { u64::from(SIZE) });
    }
}

#[test]
fn a_batch_is_told_of_once() {
    let mut bench = Bench::new(false);
    bench.offer(6);
    let mut chains = bench.take().into_iter();
    let mut batch = bench.queue.batch();
    for chain in chains.by_ref().take(3) {
        batch.complete(chain, 8);
    }
    assert_eq!(bench.held.signals(), 0);
    batch.tell();
    batch.tell();
    assert_eq!(bench.held.signals(), 1);
    chains.for_each(|chain| batch.complete(chain, 8));
    drop(batch);
    assert_eq!(bench.held.signals(), 1);
    assert_eq!(bench.used().len(), 6);

    // A chain of another queue goes back to that queue.
    let mut other = Bench::new(false);
    other.offer(1);
    bench.queue.batch().complete(other.take().pop().unwrap(), 8);
    assert_eq!((other.held.signals(), bench.held.signals()), (1, 0));
    assert_eq!((other.used(), bench.used()), (vec![(0, 8)], vec![]));
}

/// Notes, whenever the driver is told, for which chain the driver has been asked to notify.
struct Watching {
    held: Arc<Held>,
    memory: Arc<GuestRam>,
    event: u64,
    asked: Arc<Mutex<Vec<u16>>>,
}

impl QueueHolder for Watching {
    fn lend(&self, borrow: &mut dyn FnMut(&mut Queue)) {
        self.held.lend(borrow);
    }

    fn signal(&self) {
        self.asked.lock().unwrap().push(event(&self.memory, self.event));
        self.held.signal();
    }
}

fn event(memory: &GuestRam, at: u64) -> u16 {
    let mut index = [0; 2];
    harness::read(memory, at, &mut index);
    u16::from_le_bytes(index)
}

#[test]
fn a_driver_hears_of_what_is_done_before_it_is_asked_to_notify() {
    let mut bench = Bench::new(true);
    let at = bench.driver.at.used + 4 + 8 * u64::from(SIZE);
    let asked = Arc::default();
    let holder = Watching {
        held: bench.held.clone(),
        memory: bench.memory.clone(),
        event: at,
        asked: Arc::clone(&asked),
    };
    bench.queue = SharedQueue::new(Box::new(holder));
    bench.offer(2);
    let mut batch = bench.queue.batch();
    for _ in 0..2 {
        let chain = batch.pop(&bench.memory).unwrap();
        batch.complete(chain, 8);
    }
    assert_eq!(*asked.lock().unwrap(), [0u16; 0], "there was more to do");
    assert!(batch.pop(&bench.memory).is_none());
    assert_eq!((asked.lock().unwrap().as_slice(), event(&bench.memory, at)), (&[0][..], 2));
    // Without anything done, there is nothing to tell.
    assert!(batch.pop(&bench.memory).is_none());
    drop(batch);
    assert_eq!(asked.lock().unwrap().len(), 1);
}

#[test]
fn a_chain_that_is_dropped_comes_back_empty() {
    let mut bench = Bench::new(false);
    bench.offer(2);
    let chains = bench.take();
    thread::spawn(move || drop(chains)).join().unwrap();
    assert_eq!(bench.used(), [(0, 0), (1, 0)]);
    assert_eq!(bench.held.signals(), 2);
    let in_a_panic = {
        bench.offer(1);
        let chain = bench.take().pop().unwrap();
        thread::spawn(move || {
            let _chain = chain;
            std::panic::resume_unwind(Box::new("over"));
        })
        .join()
    };
    assert!(in_a_panic.is_err());
    assert_eq!(bench.used(), [(2, 0)]);
}

#[test]
fn what_is_out_at_a_reset_does_not_reach_the_new_ring() {
    let mut bench = Bench::new(true);
    bench.offer(4);
    let mut old = bench.take();
    let late = bench.queue.clone();
    let mut batch = late.batch();
    batch.complete(old.pop().unwrap(), 8);
    bench.queue.close();
    // The driver sets the same rings up again, from zero.
    harness::write(&bench.memory, bench.driver.at.desc, &[0; 0x1000]);
    bench.driver = DriverQueue::new(bench.driver.at);
    bench.held.replace(bench.driver.to_queue(true));
    bench.queue = SharedQueue::new(Box::new(Arc::clone(&bench.held)));
    bench.offer(2);
    let new = bench.take();
    assert_eq!(new.len(), 2);

    drop(batch);
    thread::spawn(move || {
        old.pop().unwrap().complete(8);
        late.batch().complete(old.pop().unwrap(), 8);
        drop(old);
        assert!(late.pop(&Arc::new(harness::memory())).is_none());
    })
    .join()
    .unwrap();
    assert_eq!((bench.used(), bench.held.signals()), (vec![], 0));
    new.into_iter().for_each(|chain| chain.complete(8));
    assert_eq!((bench.used(), bench.held.signals()), (vec![(0, 8), (1, 8)], 1));
}

#[test]
fn finishing_waits_for_what_is_out_and_takes_no_more() {
    let mut bench = Bench::new(false);
    bench.offer(3);
    let first = bench.queue.pop(&bench.memory).unwrap();
    let second = bench.queue.pop(&bench.memory).unwrap();
    assert_eq!(bench.queue.finish(Duration::ZERO), 2);
    assert!(bench.queue.pop(&bench.memory).is_none(), "a third, though it is to finish");
    let queue = bench.queue.clone();
    let begun = Instant::now();
    let waiting = thread::spawn(move || queue.finish(LONG));
    first.complete(8);
    assert!(!waiting.is_finished());
    second.complete(8);
    assert_eq!(waiting.join().unwrap(), 0);
    assert!(begun.elapsed() < LONG);
    // The chains that came back in time are in the ring.
    assert_eq!(bench.used(), [(0, 8), (1, 8)]);
    assert_eq!(bench.queue.finish(LONG), 0);
}

#[test]
fn a_driver_has_no_more_chains_out_than_descriptors() {
    for event_idx in [false, true] {
        let mut bench = Bench::new(event_idx);
        bench.offer(SIZE);
        let mut chains = bench.take();
        // The driver offers the same chains again, as if they had come back.
        for head in 0..SIZE {
            bench.driver.offer(&bench.memory, head);
        }
        assert!(bench.queue.pop(&bench.memory).is_none());
        chains.pop().unwrap().complete(8);
        assert_eq!(bench.take().len(), 1);
        drop(chains);
        assert_eq!(bench.take().len(), usize::from(SIZE) - 1);
    }
}

#[test]
fn a_full_queue_asks_for_the_next_notification() {
    let mut bench = Bench::new(true);
    bench.offer(SIZE);
    let chains = bench.take();
    assert!(bench.queue.pop(&bench.memory).is_none());
    // §2.7.10.1, avail_event: "The driver MUST send a notification when idx reaches it."
    let mut event = [0; 2];
    harness::read(&bench.memory, bench.driver.at.used + 4 + 8 * u64::from(SIZE), &mut event);
    assert_eq!(u16::from_le_bytes(event), SIZE);
    drop(chains);
}

#[test]
fn buffers_are_found_once_whatever_the_driver_writes_later() {
    let mut bench = Bench::new(false);
    harness::write(&bench.memory, SEAM - 4, b"abcdefgh");
    let head = bench.driver.chain(
        &bench.memory,
        &[
            Descriptor { addr: SEAM - 4, len: 8, flags: 0, next: 0 },
            Descriptor { addr: DATA, len: 4, flags: WRITE, next: 0 },
        ],
    );
    let chain = bench.queue.pop(&bench.memory).unwrap();
    bench.driver.put(
        &bench.memory,
        head,
        Descriptor { addr: u64::MAX, len: u32::MAX, flags: WRITE, next: 0 },
    );
    let buffers = chain.buffers();
    assert_eq!((buffers.readable.as_slice().len(), buffers.malformed), (2, false), "one in each region");
    let mut text = [0; 8];
    assert_eq!(buffers.readable.read(&mut text), 8);
    assert_eq!((&text, buffers.writable.len()), (b"abcdefgh", 4));

    // VIRTIO 1.3 §2.7.4.2 forbids a readable buffer after a writable one.
    bench.driver.chain(
        &bench.memory,
        &[
            Descriptor { addr: DATA, len: 4, flags: WRITE, next: 0 },
            Descriptor { addr: DATA, len: 4, flags: 0, next: 0 },
        ],
    );
    let malformed = bench.queue.pop(&bench.memory).unwrap();
    assert!(malformed.buffers().malformed);
    assert!(format!("{malformed:?} {:?}", bench.queue).contains("out: 2"));
}

#[test]
fn a_queue_that_the_driver_left_out_has_no_chains() {
    let mut bench = Bench::new(false);
    bench.offer(1);
    bench.held.lend(&mut |queue| queue.set_ready(false));
    assert!(bench.queue.pop(&bench.memory).is_none());
}

/// Threads that each pop for themselves and sleep when there is no chain, and a driver that notifies and is notified
/// only when the rings ask for it: no chain may be left behind.
#[test]
fn no_notification_is_lost_among_followers() {
    const REQUESTS: u32 = 20_000;
    let mut bench = Bench::new(true);
    let place = bench.driver.at;
    let (stop, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU32::new(0)));
    let kick = Arc::new(Event::new().unwrap());
    let followers: Vec<_> = (0..3)
        .map(|_| {
            let (queue, memory, stop) = (bench.queue.clone(), Arc::clone(&bench.memory), Arc::clone(&stop));
            let (kick, served) = (Arc::clone(&kick), Arc::clone(&served));
            thread::spawn(move || {
                while !stop.load(Ordering::SeqCst) {
                    harness::wait(kick.as_fd(), LONG);
                    kick.take();
                    let mut batch = queue.batch();
                    while let Some(chain) = queue.pop(&memory) {
                        served.fetch_add(1, Ordering::SeqCst);
                        batch.complete(chain, 8);
                    }
                }
                kick.signal();
            })
        })
        .collect();
    let (avail_event, used_event) =
        (place.used + 4 + 8 * u64::from(SIZE), place.avail + 4 + 2 * u64::from(SIZE));
    let (mut offered, mut back) = (0, 0);
    while back < REQUESTS {
        let room = REQUESTS.min(back + u32::from(SIZE)) - offered;
        // §2.7.7.1, used_event: "The driver […] SHOULD NOT be notified before idx reaches it": asks for the next one.
        let next = u16::try_from(back & 0xffff).unwrap();
        harness::write(&bench.memory, used_event, &next.to_le_bytes());
        let before = u16::try_from(offered & 0xffff).unwrap();
        bench.offer(u16::try_from(room).unwrap());
        offered += room;
        fence(Ordering::SeqCst);
        let mut event = [0; 2];
        harness::read(&bench.memory, avail_event, &mut event);
        let now = u16::try_from(offered & 0xffff).unwrap();
        if now.wrapping_sub(u16::from_le_bytes(event)).wrapping_sub(1) < now.wrapping_sub(before) {
            kick.signal();
        }
        let mut got = bench.used().len();
        while got == 0 {
            assert!(
                bench.held.wait(LONG),
                "{back} of {offered} are back, {} served",
                served.load(Ordering::SeqCst)
            );
            got = bench.used().len();
        }
        back += u32::try_from(got).unwrap();
    }
    stop.store(true, Ordering::SeqCst);
    kick.signal();
    followers.into_iter().for_each(|follower| follower.join().unwrap());
    assert_eq!(served.load(Ordering::SeqCst), REQUESTS);
}
