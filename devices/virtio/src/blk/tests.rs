//! The block device with a driver in front and a vector behind.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::io;
use std::sync::{Arc, Mutex};

use vm_memory::VolatileSlice;

use super::*;
use crate::harness::Buffer::{In, Out};
use crate::harness::{Buffer, DATA, Descriptor, END, NEXT, Rig, SEAM, WRITE, signals};

const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;
const SECTORS: u64 = 16;

#[derive(Default)]
struct Disk {
    bytes: Vec<u8>,
    flushes: u32,
    broken: bool,
    no_holes: bool,
}

struct Shared(Arc<Mutex<Disk>>, bool);

impl Shared {
    fn disk(&self) -> io::Result<std::sync::MutexGuard<'_, Disk>> {
        let disk = self.0.lock().unwrap();
        if disk.broken { Err(io::ErrorKind::Other.into()) } else { Ok(disk) }
    }
}

impl Blocks for Shared {
    fn len(&self) -> u64 {
        SECTORS * SECTOR
    }
    fn readonly(&self) -> bool {
        self.1
    }
    fn read(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let disk = self.disk()?;
        let mut from = &disk.bytes[usize::try_from(offset).unwrap()..];
        for buffer in buffers {
            buffer.copy_from(&from[..buffer.len()]);
            from = &from[buffer.len()..];
        }
        Ok(())
    }
    fn write(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        let mut disk = self.disk()?;
        let mut to = &mut disk.bytes[usize::try_from(offset).unwrap()..];
        for buffer in buffers {
            buffer.copy_to(&mut to[..buffer.len()]);
            to = &mut to[buffer.len()..];
        }
        Ok(())
    }
    fn flush(&mut self) -> io::Result<()> {
        self.disk()?.flushes += 1;
        Ok(())
    }
    fn gives_back(&self) -> bool {
        !self.0.lock().unwrap().no_holes
    }
    fn discard(&mut self, offset: u64, len: u64) -> io::Result<()> {
        let range = usize::try_from(offset).unwrap()..usize::try_from(offset + len).unwrap();
        self.disk()?.bytes[range].fill(0);
        Ok(())
    }
}

fn rig_with(readonly: bool) -> (Rig<BlockDevice>, Arc<Mutex<Disk>>) {
    let bytes = (0..SECTORS * SECTOR).map(|byte| u8::try_from(byte / SECTOR + 1).unwrap()).collect();
    let disk = Arc::new(Mutex::new(Disk { bytes, ..Disk::default() }));
    (Rig::new(BlockDevice::new(Box::new(Shared(disk.clone(), readonly)), "a disk"), true), disk)
}

fn rig() -> (Rig<BlockDevice>, Arc<Mutex<Disk>>) {
    rig_with(false)
}

fn header(kind: u32, sector: u64) -> [u8; 16] {
    let mut header = [0; 16];
    header[..4].copy_from_slice(&kind.to_le_bytes());
    header[8..].copy_from_slice(&sector.to_le_bytes());
    header
}

fn segment(sector: u64, sectors: u32, flags: u32) -> Vec<u8> {
    [&sector.to_le_bytes()[..], &sectors.to_le_bytes(), &flags.to_le_bytes()].concat()
}

/// Sends one request, whose last buffer is the status; returns status and used length.
fn request(rig: &mut Rig<BlockDevice>, buffers: &[Buffer<'_>]) -> (u8, u32) {
    let places = rig.send(0, &[buffers, &[In(1)]].concat());
    crate::harness::write(&rig.memory, places[buffers.len()], &[0xee]);
    rig.process(0);
    let used = rig.used(0).unwrap();
    assert_eq!(rig.used(0), None);
    (rig.read(places[buffers.len()], 1)[0], used)
}

fn write_request(rig: &mut Rig<BlockDevice>, sector: u64, data: &[u8]) -> u8 {
    request(rig, &[Out(&header(1, sector)), Out(data)]).0
}

#[test]
fn reads_fill_every_buffer() {
    let (mut rig, _) = rig();
    let places = rig.send(0, &[Out(&header(0, 2)), In(512), In(100), In(924), In(1)]);
    rig.process(0);
    assert_eq!(rig.used(0), Some(1537));
    assert_eq!(rig.read(places[1], 512), [3; 512]);
    assert_eq!(rig.read(places[2], 1024), [[4; 512], [5; 512]].concat());
    assert_eq!(rig.read(places[4], 1), [OK]);
    assert_eq!(rig.interrupt.queue(), 1);
}

#[test]
fn writes_store_every_buffer() {
    let (mut rig, disk) = rig();
    let data = [Out(&[7; 200]), Out(&[8; 312])];
    assert_eq!(request(&mut rig, &[Out(&header(1, 15)), data[0], data[1]]), (OK, 1));
    let bytes = &disk.lock().unwrap().bytes;
    assert_eq!(bytes[15 * 512..], [vec![7; 200], vec![8; 312]].concat());
    assert_eq!(bytes[14 * 512..15 * 512], [15; 512]);
}

#[test]
fn a_buffer_may_cross_two_mappings() {
    let (mut rig, disk) = rig();
    crate::harness::write(&rig.memory, DATA, &header(0, 0));
    let descriptors = [(DATA, 16, 0), (SEAM - 100, 512, WRITE), (END - 1, 1, WRITE)]
        .map(|(addr, len, flags)| Descriptor { addr, len, flags, next: 0 });
    rig.drivers[0].chain(&rig.memory, &descriptors);
    rig.process(0);
    assert_eq!(rig.used(0), Some(513));
    assert_eq!(rig.read(SEAM - 100, 512), disk.lock().unwrap().bytes[..512]);
}

/// VIRTIO 1.3 §2.7.4.1: "The device MUST NOT make assumptions about the particular arrangement of descriptors."
#[test]
fn framing_is_free() {
    let (mut rig, disk) = rig();
    let head = header(1, 1);
    let whole = [&head[..], &[9; 512]].concat();
    assert_eq!(request(&mut rig, &[Out(&whole)]), (OK, 1));
    assert_eq!(disk.lock().unwrap().bytes[512..1024], [9; 512]);
    let split = [Out(&head[..1]), Out(&head[1..9]), Out(&head[9..]), Out(&[4; 512])];
    assert_eq!(request(&mut rig, &split), (OK, 1));
    assert_eq!(disk.lock().unwrap().bytes[512..1024], [4; 512]);
    // The status is the last byte, whatever buffer it is in.
    let places = rig.send(0, &[Out(&header(0, 1)), In(513)]);
    rig.process(0);
    assert_eq!(rig.used(0), Some(513));
    assert_eq!(rig.read(places[1], 513), [vec![4; 512], vec![OK]].concat());
}

#[test]
fn requests_end_at_the_capacity() {
    let (mut rig, disk) = rig();
    let before = disk.lock().unwrap().bytes.clone();
    for (sector, len) in
        [(15, 1024), (16, 512), (17, 512), (u64::MAX, 512), (u64::MAX / 512, 512), (1 << 55, 512)]
    {
        assert_eq!(write_request(&mut rig, sector, &vec![1; len]), IOERR, "{sector}");
        assert_eq!(request(&mut rig, &[Out(&header(0, sector)), In(1024)]), (IOERR, 1), "{sector}");
    }
    for len in [1, 511, 513] {
        assert_eq!(write_request(&mut rig, 0, &vec![1; len]), IOERR, "{len}");
    }
    assert_eq!(disk.lock().unwrap().bytes, before);
    assert_eq!(write_request(&mut rig, 0, &[]), OK);
}

#[test]
fn directions_must_fit() {
    let (mut rig, disk) = rig();
    let before = disk.lock().unwrap().bytes.clone();
    assert_eq!(request(&mut rig, &[Out(&header(0, 0)), Out(&[1; 512])]).0, IOERR);
    assert_eq!(request(&mut rig, &[Out(&header(1, 0)), In(512)]).0, IOERR);
    assert_eq!(request(&mut rig, &[Out(&header(1, 0)[..15])]).0, IOERR);
    assert_eq!(request(&mut rig, &[]).0, IOERR);
    // Readable buffers after writable ones, and a status to write.
    let places = rig.send(0, &[Out(&header(1, 0)), In(1), Out(&[1; 512]), In(1)]);
    rig.process(0);
    assert_eq!(rig.used(0), Some(1));
    assert_eq!(rig.read(places[3], 1), [IOERR]);
    // The same request, which would be right but for the order.
    let places = rig.send(0, &[Out(&header(1, 0)), In(1), Out(&[1; 512])]);
    rig.process(0);
    assert_eq!(rig.used(0), Some(1));
    assert_eq!(rig.read(places[1], 1), [IOERR]);
    // No writable byte at all, so no place for an answer.
    rig.send(0, &[Out(&header(1, 0)), Out(&[1; 512])]);
    rig.process(0);
    assert_eq!(rig.used(0), Some(0));
    assert_eq!(disk.lock().unwrap().bytes, before);
}

#[test]
fn a_readonly_disk_refuses_writes() {
    let (mut rig, disk) = rig_with(true);
    let before = disk.lock().unwrap().bytes.clone();
    assert_eq!(rig.device.identity().features >> 5 & 1, 1);
    assert_eq!(write_request(&mut rig, 0, &[1; 512]), IOERR);
    assert_eq!(request(&mut rig, &[Out(&header(11, 0)), Out(&segment(0, 1, 0))]).0, UNSUPP);
    assert_eq!(request(&mut rig, &[Out(&header(13, 0)), Out(&segment(0, 1, 0))]).0, UNSUPP);
    assert_eq!(request(&mut rig, &[Out(&header(0, 0)), In(512)]), (OK, 513));
    assert_eq!(disk.lock().unwrap().bytes, before);
}

#[test]
fn the_identity_is_twenty_bytes() {
    let (mut rig, _) = rig();
    let places = rig.send(0, &[Out(&header(8, 0)), In(20), In(1)]);
    rig.process(0);
    assert_eq!(rig.used(0), Some(21));
    assert_eq!(rig.read(places[1], 21), b"a disk\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0");
    assert_eq!(request(&mut rig, &[Out(&header(8, 0)), In(19)]).0, IOERR);
}

#[test]
fn flush_reaches_the_disk_and_errors_come_back() {
    let (mut rig, disk) = rig();
    assert_eq!(request(&mut rig, &[Out(&header(4, 0))]), (OK, 1));
    assert_eq!(disk.lock().unwrap().flushes, 1);
    disk.lock().unwrap().broken = true;
    assert_eq!(request(&mut rig, &[Out(&header(4, 0))]), (IOERR, 1));
    assert_eq!(request(&mut rig, &[Out(&header(0, 0)), In(512)]), (IOERR, 1));
    assert_eq!(write_request(&mut rig, 0, &[1; 512]), IOERR);
}

#[test]
fn discarded_and_zeroed_ranges_read_as_zeroes() {
    for kind in [11, 13] {
        let (mut rig, disk) = rig();
        let two = [segment(1, 2, 0), segment(15, 1, 0)].concat();
        assert_eq!(request(&mut rig, &[Out(&header(kind, 0)), Out(&two)]), (OK, 1));
        let bytes = disk.lock().unwrap().bytes.clone();
        let zero: Vec<_> = (0..SECTORS).filter(|&s| bytes[usize::try_from(s).unwrap() * 512] == 0).collect();
        assert_eq!(zero, [1, 2, 15]);
    }
}

#[test]
fn discard_and_zeroing_limits_hold() {
    let (mut rig, disk) = rig();
    let before = disk.lock().unwrap().bytes.clone();
    let mut status = |kind: u32, data: &[u8]| request(&mut rig, &[Out(&header(kind, 0)), Out(data)]).0;
    for kind in [11, 13] {
        assert_eq!(status(kind, &[]), IOERR);
        assert_eq!(status(kind, &segment(0, 1, 0)[..15]), IOERR);
        assert_eq!(status(kind, &[segment(0, 1, 0), vec![0; 8]].concat()), IOERR);
        assert_eq!(status(kind, &segment(0, 17, 0)), IOERR);
        assert_eq!(status(kind, &segment(16, 1, 0)), IOERR);
        assert_eq!(status(kind, &segment(u64::MAX, u32::MAX, 0)), IOERR);
        assert_eq!(status(kind, &segment(0, MAX_RANGE_SECTORS + 1, 0)), IOERR);
        assert_eq!(status(kind, &segment(0, 1, 2)), UNSUPP);
        // The first range is valid, the second is not: neither is touched.
        assert_eq!(status(kind, &[segment(0, 1, 0), segment(16, 1, 0)].concat()), IOERR);
        assert_eq!(status(kind, &segment(0, 0, 0).repeat(33)), IOERR);
        assert_eq!(status(kind, &segment(0, 0, 0).repeat(32)), OK);
    }
    assert_eq!(status(11, &segment(0, 1, 1)), UNSUPP);
    assert_eq!(disk.lock().unwrap().bytes, before);
    assert_eq!(request(&mut rig, &[Out(&header(13, 0)), Out(&segment(0, 1, 1))]).0, OK);
}

/// The guest then writes its zeroes itself, and a request never makes the host write gigabytes of them.
#[test]
fn what_cannot_be_given_back_is_not_offered() {
    let disk = Disk { bytes: vec![1; 512], no_holes: true, ..Disk::default() };
    let disk = Arc::new(Mutex::new(disk));
    let mut rig = Rig::new(BlockDevice::new(Box::new(Shared(disk.clone(), false)), ""), true);
    assert_eq!(rig.device.identity().features, 1 << 1 | 1 << 2 | 1 << 9);
    let mut config = [0xff; CONFIG_LEN];
    rig.device.read_config(0, &mut config);
    assert_eq!(config[36..], [0; 24]);
    for kind in [11, 13] {
        let data = segment(0, 1, 0);
        assert_eq!(request(&mut rig, &[Out(&header(kind, 0)), Out(&data)]).0, UNSUPP);
    }
    assert_eq!(disk.lock().unwrap().bytes, [1; 512]);
}

#[test]
fn unknown_requests_are_unsupported() {
    let (mut rig, _) = rig();
    for kind in [2, 3, 5, 9, 10, 14, 15, 16, 99, u32::MAX] {
        assert_eq!(request(&mut rig, &[Out(&header(kind, 0)), In(512)]).0, UNSUPP, "{kind}");
    }
}

#[test]
fn hostile_chains_are_answered_or_dropped() {
    let (mut rig, disk) = rig();
    let before = disk.lock().unwrap().bytes.clone();
    crate::harness::write(&rig.memory, DATA, &header(1, 0));
    let put = |rig: &Rig<BlockDevice>, index, addr, len, flags, next| {
        rig.drivers[0].put(&rig.memory, index, Descriptor { addr, len, flags, next });
    };
    // A loop of writable buffers.
    put(&rig, 0, DATA, 16, NEXT, 1);
    put(&rig, 1, DATA + 64, 512, NEXT | WRITE, 1);
    // A next beyond the table; a buffer beyond memory; a buffer of nearly 2^32 bytes; an empty buffer.
    put(&rig, 2, DATA, 16, NEXT, 500);
    put(&rig, 3, END - 8, 16, NEXT, 6);
    put(&rig, 4, DATA, u32::MAX, NEXT, 6);
    put(&rig, 5, u64::MAX - 8, 16, NEXT, 6);
    put(&rig, 6, DATA, 0, WRITE, 0);
    let heads = [0, 2, 3, 4, 5, 6];
    for head in heads {
        rig.drivers[0].offer(&rig.memory, head);
    }
    rig.process(0);
    for head in heads {
        let (id, len) = rig.drivers[0].used(&rig.memory).unwrap();
        assert_eq!(id, u32::from(head));
        assert!(len <= 1, "{head}: {len}");
    }
    // A head beyond the descriptor table cannot be given back.
    rig.drivers[0].offer(&rig.memory, 128);
    rig.process(0);
    assert_eq!(rig.used(0), None);
    // The driver claims more chains than there are descriptors.
    rig.drivers[0].set_avail_idx(&rig.memory, 0x7000);
    rig.process(0);
    assert_eq!(rig.used(0), None);
    assert_eq!(disk.lock().unwrap().bytes, before);
}

/// Chains that would be valid without their one bad buffer.
#[test]
fn a_chain_with_one_bad_buffer_is_refused_whole() {
    for bad in 0..3 {
        let (mut rig, disk) = rig();
        let before = disk.lock().unwrap().bytes.clone();
        crate::harness::write(&rig.memory, DATA, &header(1, 0));
        crate::harness::write(&rig.memory, DATA + 0x1000, &[0xee]);
        let data = [(DATA + 64, 512), (END, 512), (END - 8, 16)][bad];
        let after_status = if bad == 0 { (WRITE | NEXT, 500) } else { (WRITE, 0) };
        for (index, (addr, len), (flags, next)) in [
            (0, (DATA, 16), (NEXT, 1)),
            (1, data, (NEXT, 2)),
            (2, (DATA + 64, 512), (NEXT, 3)),
            (3, (DATA + 0x1000, 1), after_status),
        ] {
            rig.drivers[0].put(&rig.memory, index, Descriptor { addr, len, flags, next });
        }
        rig.drivers[0].offer(&rig.memory, 0);
        rig.process(0);
        assert_eq!(rig.used(0), Some(1));
        assert_eq!(rig.read(DATA + 0x1000, 1), [IOERR]);
        assert_eq!(disk.lock().unwrap().bytes, before);
    }
}

#[test]
fn one_range_is_bounded_on_any_disk() {
    let mut rig = Rig::new(BlockDevice::new(Box::new(Huge(Arc::default())), ""), true);
    for (sectors, expected) in [(MAX_RANGE_SECTORS, OK), (MAX_RANGE_SECTORS + 1, IOERR), (u32::MAX, IOERR)] {
        assert_eq!(request(&mut rig, &[Out(&header(11, 0)), Out(&segment(0, sectors, 0))]).0, expected);
    }
}

#[test]
fn one_turn_serves_a_bounded_number_of_requests() {
    let (mut rig, _) = rig();
    for _ in 0..40 {
        rig.send(0, &[Out(&header(8, 0)), In(21)]);
    }
    rig.process(0);
    assert_eq!((0..).take_while(|_| rig.used(0).is_some()).count(), Io::TURN);
    assert_eq!(signals(&rig.kicks[0]), 1);
    rig.process(0);
    assert_eq!((0..).take_while(|_| rig.used(0).is_some()).count(), 40 - Io::TURN);
    assert!(!rig.kicks[0].take());
}

/// A disk without contents that counts the bytes asked of it.
struct Huge(Arc<Mutex<u64>>);

impl Blocks for Huge {
    fn len(&self) -> u64 {
        1 << 50
    }
    fn readonly(&self) -> bool {
        false
    }
    fn read(&mut self, _: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        *self.0.lock().unwrap() += buffers.iter().map(|buffer| buffer.len() as u64).sum::<u64>();
        Ok(())
    }
    fn write(&mut self, offset: u64, buffers: &[VolatileSlice<'_>]) -> io::Result<()> {
        self.read(offset, buffers)
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
    fn gives_back(&self) -> bool {
        true
    }
    fn discard(&mut self, _: u64, len: u64) -> io::Result<()> {
        assert_eq!(len, u64::from(MAX_RANGE_SECTORS) * SECTOR);
        Ok(())
    }
}

/// Offers a request of `segments` buffers of `len` bytes each, all at the same address.
fn overlapping(rig: &mut Rig<BlockDevice>, kind: u32, segments: usize, len: u32) {
    crate::harness::write(&rig.memory, DATA, &header(kind, 0));
    let flags = if kind == 0 { WRITE } else { 0 };
    let mut chain = vec![Descriptor { addr: DATA, len: 16, flags: 0, next: 0 }];
    chain.resize(segments + 1, Descriptor { addr: DATA, len, flags, next: 0 });
    chain.push(Descriptor { addr: END - 1, len: 1, flags: WRITE, next: 0 });
    rig.drivers[0].chain(&rig.memory, &chain);
}

/// Buffers may overlap, so the size of a request is not bounded by the guest's memory.
#[test]
fn a_request_moves_no_more_than_the_limits_promise() {
    let moved = Arc::new(Mutex::new(0));
    let mut rig = Rig::new(BlockDevice::new(Box::new(Huge(moved.clone())), ""), true);
    for kind in [0, 1] {
        for (segments, len, expected) in
            [(126, SIZE_MAX, OK), (126, SIZE_MAX + 512, IOERR), (9, 1 << 20, IOERR), (7, 1 << 20, OK)]
        {
            let before = *moved.lock().unwrap();
            overlapping(&mut rig, kind, segments, len);
            rig.process(0);
            assert!(rig.used(0).is_some());
            assert_eq!(rig.read(END - 1, 1), [expected], "{segments} of {len} bytes");
            let bytes = if expected == OK { segments as u64 * u64::from(len) } else { 0 };
            assert_eq!(*moved.lock().unwrap() - before, bytes);
        }
    }
}

#[test]
fn one_turn_moves_a_bounded_number_of_bytes() {
    let moved = Arc::new(Mutex::new(0));
    let mut rig = Rig::new(BlockDevice::new(Box::new(Huge(moved.clone())), ""), true);
    for _ in 0..30 {
        overlapping(&mut rig, 0, 1, 1 << 20);
    }
    let mut served = 0;
    while served < 30 {
        rig.process(0);
        let this_turn = (0..).take_while(|_| rig.used(0).is_some()).count();
        served += this_turn;
        assert_eq!(this_turn, if served < 30 { 8 } else { 6 });
        // A turn that leaves requests behind signals the kick.
        assert_eq!(rig.kicks[0].take(), served < 30);
    }
    assert_eq!(*moved.lock().unwrap(), 30 << 20);
}

#[test]
fn what_may_take_long_ends_the_turn() {
    let (mut rig, disk) = rig();
    // A flush, a discard, a write that fails.
    let slow = [(header(4, 0), Vec::new()), (header(11, 0), segment(0, 1, 0)), (header(1, 0), vec![0; 512])];
    for (header, data) in &slow {
        disk.lock().unwrap().broken = *header == slow[2].0;
        for _ in 0..3 {
            rig.send(0, &[Out(header), Out(data), In(1)]);
        }
        for _ in 0..3 {
            rig.process(0);
            assert!(rig.used(0).is_some() && rig.used(0).is_none());
            assert!(rig.kicks[0].take());
        }
        rig.process(0);
        assert!(rig.used(0).is_none() && !rig.kicks[0].take());
    }
    assert_eq!(disk.lock().unwrap().flushes, 3);
}

#[test]
fn the_configuration_says_what_the_features_promise() {
    let (rig, _) = rig();
    let mut config = [0xff; 64];
    rig.device.read_config(0, &mut config);
    assert_eq!(config[..8], SECTORS.to_le_bytes());
    assert_eq!(config[8..12], 65_536u32.to_le_bytes());
    assert_eq!(config[12..16], 126u32.to_le_bytes());
    assert_eq!(config[40..44], 32u32.to_le_bytes());
    assert_eq!(config[60..], [0; 4]);
    for (offset, len) in [(59, 4), (60, 1), (u64::MAX, 8), (0, 0)] {
        let mut data = vec![0xff; len];
        rig.device.read_config(offset, &mut data);
        assert!(data.iter().all(|&byte| byte == 0));
    }
    assert_eq!(rig.device.identity().features, 1 << 1 | 1 << 2 | 1 << 9 | 1 << 13 | 1 << 14);
}
