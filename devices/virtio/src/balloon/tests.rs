//! The balloon with a driver in front.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::sync::Mutex;

use super::*;
use crate::harness::Buffer::{In, Out};
use crate::harness::{Descriptor, END, Rig, SEAM, WRITE};

#[derive(Clone, Default)]
struct Reclaimed(Arc<Mutex<Vec<(u64, u64)>>>);

impl Reclaim for Reclaimed {
    fn reclaim(&mut self, address: u64, len: u64) {
        self.0.lock().unwrap().push((address, len));
    }
}

fn rig() -> (Rig<Balloon>, BalloonHandle, Reclaimed) {
    let reclaimed = Reclaimed::default();
    let (balloon, handle) = Balloon::new(Box::new(reclaimed.clone())).unwrap();
    (Rig::new(balloon, true), handle, reclaimed)
}

fn pages(numbers: &[u32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

fn taken(reclaimed: &Reclaimed) -> Vec<(u64, u64)> {
    std::mem::take(&mut reclaimed.0.lock().unwrap())
}

#[test]
fn inflating_gives_back_runs_of_pages() {
    let (mut rig, _, reclaimed) = rig();
    rig.send(INFLATE, &[Out(&pages(&[0x105, 0x104, 0x103])), Out(&pages(&[0x103, 0x110]))]);
    rig.process(INFLATE);
    assert_eq!(rig.used(INFLATE), Some(0));
    assert_eq!(taken(&reclaimed), [(0x10_3000, 0x3000), (0x11_0000, 0x1000)]);
}

#[test]
fn pages_outside_memory_are_left_alone() {
    let (mut rig, _, reclaimed) = rig();
    let last = u32::try_from(END / PAGE - 1).unwrap();
    rig.send(INFLATE, &[Out(&pages(&[u32::MAX, last + 2, last]))]);
    // A run that leaves memory is not given back at all: a driver that is wrong about its end may be wrong about all of
    // it.
    rig.send(INFLATE, &[Out(&pages(&[last, last + 1]))]);
    // Three bytes are too few for a page number.
    rig.send(INFLATE, &[Out(&[1, 0, 0])]);
    rig.send(INFLATE, &[In(4)]);
    rig.process(INFLATE);
    assert_eq!((0..).take_while(|_| rig.used(INFLATE) == Some(0)).count(), 4);
    assert_eq!(taken(&reclaimed), [(END - PAGE, PAGE)]);
}

#[test]
fn one_request_gives_back_a_bounded_number_of_pages() {
    let (mut rig, _, reclaimed) = rig();
    let numbers: Vec<u32> = (0..2 * 1024).map(|n| 0x40 + n % 0x180).collect();
    rig.send(INFLATE, &[Out(&pages(&numbers))]);
    rig.process(INFLATE);
    assert_eq!(taken(&reclaimed), [(0x4_0000, 0x18_0000)]);
}

#[test]
fn deflating_takes_nothing() {
    let (mut rig, _, reclaimed) = rig();
    rig.send(DEFLATE, &[Out(&pages(&[0x100]))]);
    rig.process(DEFLATE);
    assert_eq!(rig.used(DEFLATE), Some(0));
    assert_eq!(taken(&reclaimed), []);
}

#[test]
fn reported_ranges_are_given_back_on_whichever_queue() {
    for queue in 2..QUEUE_SIZES.len() {
        let (mut rig, _, reclaimed) = rig();
        let range = |addr, len, flags| Descriptor { addr, len, flags, next: 0 };
        rig.drivers[queue].chain(
            &rig.memory,
            &[
                range(SEAM - 0x2000, 0x4000, WRITE),
                range(0x5_0800, 0x2000, WRITE), // one whole page in it
                range(0x6_0001, 0x1ffe, WRITE), // none
                range(0x7_0000, 0x1000, 0),     // not the device's to lose
                range(END - 0x1000, 0x2000, WRITE),
                range(u64::MAX - 5, 0x1000, WRITE),
                range(0x8_0000, 0, WRITE),
            ],
        );
        rig.process(queue);
        assert_eq!(rig.used(queue), Some(0));
        assert_eq!(taken(&reclaimed), [(SEAM - 0x2000, 0x4000), (0x5_1000, 0x1000)]);
    }
}

#[test]
fn the_target_reaches_the_driver_and_its_answer_the_host() {
    let (mut rig, handle, _) = rig();
    let field = |rig: &Rig<Balloon>, offset| {
        let mut data = [0; 4];
        rig.device.read_config(offset, &mut data);
        u32::from_le_bytes(data)
    };
    assert_eq!((field(&rig, 0), field(&rig, 4)), (0, 0));
    handle.set_target(10 * PAGE + 5);
    rig.process_host();
    assert_eq!(rig.interrupt.config(), 1);
    assert_eq!(field(&rig, 0), 10);
    rig.process_host();
    assert_eq!(rig.interrupt.config(), 0);
    rig.device.write_config(4, &7u32.to_le_bytes());
    rig.device.write_config(0, &99u32.to_le_bytes());
    rig.device.write_config(4, &[1, 2]);
    assert_eq!((field(&rig, 0), field(&rig, 4)), (10, 7));
    assert_eq!(handle.actual(), 7 * PAGE);
    rig.activate(true);
    assert_eq!((field(&rig, 0), handle.actual()), (10, 0));
}
