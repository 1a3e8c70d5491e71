//! The entropy device with a driver in front.
#![allow(clippy::unwrap_used, reason = "tests")]

use super::*;
use crate::harness::Buffer::{In, Out};
use crate::harness::{Descriptor, END, Rig, WRITE};

#[test]
fn buffers_are_filled() {
    let mut rig = Rig::new(Entropy::new(), true);
    let places = rig.send(0, &[In(20), In(44)]);
    rig.process(0);
    assert_eq!(rig.used(0), Some(64));
    // The chance that one of the halves is all zeroes is 2^-128.
    assert_ne!(rig.read(places[0], 20), [0; 20]);
    assert_ne!(rig.read(places[1], 44), [0; 44]);
    assert_eq!(rig.interrupt.queue(), 1);
}

#[test]
fn an_answer_is_bounded_and_says_its_length() {
    let mut rig = Rig::new(Entropy::new(), false);
    let places = rig.send(0, &[In(10_000)]);
    rig.process(0);
    assert_eq!(rig.used(0), Some(256));
    assert_eq!(rig.read(places[0] + 256, 100), [0; 100]);
}

#[test]
fn a_chain_with_nothing_to_fill_gets_nothing() {
    let mut rig = Rig::new(Entropy::new(), true);
    rig.send(0, &[Out(&[1; 64])]);
    let far = Descriptor { addr: END, len: 64, flags: WRITE, next: 0 };
    rig.drivers[0].chain(&rig.memory, &[far]);
    rig.drivers[0].chain(&rig.memory, &[Descriptor { len: 0, ..far }]);
    rig.process(0);
    assert_eq!([rig.used(0), rig.used(0), rig.used(0)], [Some(0); 3]);
}

#[test]
fn no_notification_is_lost_or_made_without_need() {
    let mut rig = Rig::new(Entropy::new(), true);
    rig.process(0);
    assert_eq!(rig.interrupt.queue(), 0);
    for _ in 0..10 {
        rig.send(0, &[In(8)]);
    }
    // More chains than fit: the queue has 8 descriptors.
    rig.drivers[0].set_avail_idx(&rig.memory, 8);
    rig.process(0);
    assert_eq!((0..).take_while(|_| rig.used(0).is_some()).count(), 8);
    assert_eq!(rig.interrupt.queue(), 1);
}
