//! The console with a driver in front and a socket behind.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io::Read;
use std::os::unix::net::UnixStream;
use std::sync::Mutex;

use super::*;
use crate::harness::Buffer::{In, Out};
use crate::harness::{DATA, Descriptor, END, NEXT, Rig};

#[derive(Clone, Default)]
struct Sink {
    taken: Arc<Mutex<Vec<u8>>>,
    full: Arc<Mutex<bool>>,
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if *self.full.lock().unwrap() {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        // A sink may take fewer bytes than it is given.
        let count = bytes.len().min(1000);
        self.taken.lock().unwrap().extend_from_slice(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn rig() -> (Rig<Console>, Sink, UnixStream) {
    let sink = Sink::default();
    let (near, far) = UnixStream::pair().unwrap();
    near.set_nonblocking(true).unwrap();
    let console = Console::new(Box::new(sink.clone()), Some(near.into())).unwrap();
    (Rig::new(console, true), sink, far)
}

fn readable(rig: &Rig<Console>) -> bool {
    let event = rig.device.host_event().unwrap();
    let mut fds = [rustix::event::PollFd::from_borrowed_fd(event, rustix::event::PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut fds, Some(&now)).unwrap() == 1
}

#[test]
fn output_goes_out_in_order() {
    let (mut rig, sink, _) = rig();
    rig.send(TRANSMIT, &[Out(b"hello, "), Out(b"world")]);
    let long = vec![b'x'; 10_000];
    rig.send(TRANSMIT, &[Out(&long)]);
    rig.process(TRANSMIT);
    assert_eq!([rig.used(TRANSMIT), rig.used(TRANSMIT)], [Some(0); 2]);
    assert_eq!(*sink.taken.lock().unwrap(), [b"hello, world", &long[..]].concat());
    assert_eq!(rig.device.lost().load(Ordering::Relaxed), 0);
}

#[test]
fn output_nobody_takes_is_lost_and_the_guest_goes_on() {
    let (mut rig, sink, _) = rig();
    *sink.full.lock().unwrap() = true;
    rig.send(TRANSMIT, &[Out(&[b'x'; 5000])]);
    rig.process(TRANSMIT);
    assert_eq!(rig.used(TRANSMIT), Some(0));
    assert_eq!(rig.device.lost().load(Ordering::Relaxed), 5000);
    *sink.full.lock().unwrap() = false;
    rig.send(TRANSMIT, &[Out(b"again")]);
    rig.process(TRANSMIT);
    assert_eq!(*sink.taken.lock().unwrap(), b"again");
}

#[test]
fn one_chain_writes_a_bounded_amount() {
    let (mut rig, sink, _) = rig();
    let len = u32::try_from(END - DATA).unwrap();
    rig.drivers[TRANSMIT].chain(&rig.memory, &[Descriptor { addr: DATA, len, flags: 0, next: 0 }]);
    rig.process(TRANSMIT);
    assert_eq!(sink.taken.lock().unwrap().len(), MAX_OUTPUT);
    assert_eq!(rig.device.lost().load(Ordering::Relaxed), u64::from(len) - MAX_OUTPUT as u64);
}

#[test]
fn hostile_output_is_given_back() {
    let (mut rig, _, _) = rig();
    let put = |rig: &Rig<Console>, index, addr, flags, next| {
        rig.drivers[TRANSMIT].put(&rig.memory, index, Descriptor { addr, len: 8, flags, next });
    };
    put(&rig, 0, DATA, NEXT, 0);
    put(&rig, 1, END, 0, 0);
    put(&rig, 2, u64::MAX, NEXT, 77);
    for head in [0, 1, 2] {
        rig.drivers[TRANSMIT].offer(&rig.memory, head);
    }
    rig.send(TRANSMIT, &[In(8)]);
    rig.process(TRANSMIT);
    assert_eq!((0..).take_while(|_| rig.used(TRANSMIT) == Some(0)).count(), 4);
}

#[test]
fn input_fills_the_buffers_there_are_and_waits_for_more() {
    let (mut rig, _, mut far) = rig();
    far.write_all(b"0123456789").unwrap();
    assert!(readable(&rig));
    let places = rig.send(RECEIVE, &[In(2), In(2)]);
    rig.process_host();
    assert_eq!(rig.used(RECEIVE), Some(4));
    assert_eq!(rig.read(places[0], 4), b"0123");
    assert_eq!(rig.interrupt.queue(), 1);
    // There is more input, but no room for it: the loop must not be kept busy.
    assert!(!readable(&rig));
    rig.process_host();
    assert_eq!(rig.used(RECEIVE), None);
    let places = rig.send(RECEIVE, &[In(100)]);
    rig.process(RECEIVE);
    assert_eq!(rig.used(RECEIVE), Some(6));
    assert_eq!(rig.read(places[0], 6), b"456789");
}

#[test]
fn a_buffer_without_input_stays_with_the_device() {
    let (mut rig, _, mut far) = rig();
    let places = rig.send(RECEIVE, &[In(16)]);
    rig.process(RECEIVE);
    assert_eq!(rig.used(RECEIVE), None);
    far.write_all(b"later").unwrap();
    assert!(readable(&rig));
    rig.process_host();
    assert_eq!(rig.used(RECEIVE), Some(5));
    assert_eq!(rig.read(places[0], 5), b"later");
}

#[test]
fn the_end_of_input_is_quiet() {
    let (mut rig, _, far) = rig();
    drop(far);
    rig.send(RECEIVE, &[In(16)]);
    rig.process_host();
    assert_eq!(rig.used(RECEIVE), None);
    assert!(!readable(&rig));
}

#[test]
fn buffers_without_room_are_given_back_empty() {
    let (mut rig, _, mut far) = rig();
    far.write_all(b"x").unwrap();
    rig.send(RECEIVE, &[Out(b"read me")]);
    rig.send(RECEIVE, &[In(0)]);
    rig.send(RECEIVE, &[In(1)]);
    rig.process_host();
    assert_eq!([rig.used(RECEIVE), rig.used(RECEIVE), rig.used(RECEIVE)], [Some(0), Some(0), Some(1)]);
}

#[test]
fn after_a_reset_input_is_still_there() {
    let (mut rig, _, mut far) = rig();
    far.write_all(b"early").unwrap();
    rig.process_host();
    rig.activate(false);
    rig.send(RECEIVE, &[In(16)]);
    rig.process(RECEIVE);
    assert_eq!(rig.used(RECEIVE), Some(5));
    let mut none = [0; 1];
    far.set_nonblocking(true).unwrap();
    assert_eq!(far.read(&mut none).unwrap_err().kind(), io::ErrorKind::WouldBlock);
}
