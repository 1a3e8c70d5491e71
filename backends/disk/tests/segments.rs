//! [`Disk`] against a flat model: whatever its segments, a disk reads and writes like one run of bytes.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, missing_docs, reason = "tests")]

use std::io::Write as _;
use std::os::fd::OwnedFd;

use disk::{Disk, DiskError, Segment};
use proptest::prelude::*;
use virtio::blk::Blocks;
use vm_memory::VolatileSlice;

/// A file with `before` bytes that are not part of the disk, then `contents`, then more bytes.
fn file(before: usize, contents: &[u8]) -> OwnedFd {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(&vec![0xEE; before]).unwrap();
    file.write_all(contents).unwrap();
    file.write_all(&[0xEE; 100]).unwrap();
    file.into()
}

#[derive(Debug, Clone)]
enum Run {
    File(usize, Vec<u8>),
    Bytes(Vec<u8>),
    Zeroes(usize),
}

fn build(runs: &[Run], readonly: bool) -> (Disk, Vec<u8>) {
    let mut model = Vec::new();
    let mut segments = Vec::new();
    for run in runs {
        match run {
            Run::File(before, contents) => {
                model.extend(contents);
                segments.push(Segment::File {
                    file: file(*before, contents),
                    offset: *before as u64,
                    len: contents.len() as u64,
                });
            }
            Run::Bytes(bytes) => {
                model.extend(bytes);
                segments.push(Segment::Bytes(bytes.clone()));
            }
            Run::Zeroes(len) => {
                model.resize(model.len() + len, 0);
                segments.push(Segment::Zeroes(*len as u64));
            }
        }
    }
    let padding = model.len().next_multiple_of(512) - model.len();
    model.resize(model.len() + padding, 0);
    segments.push(if readonly {
        Segment::Zeroes(padding as u64)
    } else {
        Segment::File { file: file(3, &vec![0; padding]), offset: 3, len: padding as u64 }
    });
    (Disk::new(segments, readonly).unwrap(), model)
}

fn read(disk: &mut Disk, offset: u64, lens: &[usize]) -> std::io::Result<Vec<u8>> {
    let mut buffers: Vec<Vec<u8>> = lens.iter().map(|len| vec![0xCC; *len]).collect();
    let slices: Vec<_> = buffers.iter_mut().map(|buffer| VolatileSlice::from(&mut buffer[..])).collect();
    disk.read(offset, &slices)?;
    Ok(buffers.concat())
}

fn contents() -> impl Strategy<Value = Vec<u8>> {
    proptest::collection::vec(any::<u8>(), 0..2000)
}

fn any_run() -> impl Strategy<Value = Run> {
    prop_oneof![
        (0..50usize, contents()).prop_map(|(before, contents)| Run::File(before, contents)),
        contents().prop_map(Run::Bytes),
        (0..2000usize).prop_map(Run::Zeroes),
    ]
}

/// A place on the disk, and the lengths of the request's buffers.
fn request() -> impl Strategy<Value = (prop::sample::Index, Vec<usize>)> {
    (any::<prop::sample::Index>(), proptest::collection::vec(0..1500usize, 0..6))
}

proptest! {
    #[test]
    fn reads_like_a_flat_disk(
        runs in proptest::collection::vec(any_run(), 0..8),
        requests in proptest::collection::vec(request(), 1..20),
    ) {
        let (mut disk, model) = build(&runs, true);
        prop_assert_eq!(disk.len(), model.len() as u64);
        for (at, lens) in requests {
            let offset = at.index(model.len() + 1);
            let end = offset + lens.iter().sum::<usize>();
            match read(&mut disk, offset as u64, &lens) {
                Ok(bytes) => prop_assert_eq!(Some(&bytes[..]), model.get(offset..end)),
                Err(_) => prop_assert!(end > model.len()),
            }
        }
    }

    #[test]
    fn writes_and_discards_like_a_flat_disk(
        runs in proptest::collection::vec((0..50usize, contents()).prop_map(|(b, c)| Run::File(b, c)), 0..6),
        requests in proptest::collection::vec((request(), any::<u8>(), any::<bool>()), 1..20),
    ) {
        let (mut disk, mut model) = build(&runs, false);
        for ((at, lens), byte, discard) in requests {
            let offset = at.index(model.len() + 1);
            let len = lens.iter().sum::<usize>();
            let (done, byte) = if discard {
                (disk.discard(offset as u64, len as u64), 0)
            } else {
                let mut buffers: Vec<Vec<u8>> = lens.iter().map(|len| vec![byte; *len]).collect();
            let slices: Vec<_> =
                buffers.iter_mut().map(|buffer| VolatileSlice::from(&mut buffer[..])).collect();
                (disk.write(offset as u64, &slices), byte)
            };
            match done {
                Ok(()) => model[offset..offset + len].fill(byte),
                Err(_) => prop_assert!(offset + len > model.len()),
            }
        }
        disk.flush().unwrap();
        let whole = read(&mut disk, 0, &[model.len()]).unwrap();
        prop_assert_eq!(whole, model);
    }
}

#[test]
fn more_buffers_than_one_system_call_takes() {
    let bytes: Vec<u8> = (0..512 * 9).map(|n| (n % 251) as u8).collect();
    let segment = Segment::File { file: file(0, &bytes), offset: 0, len: bytes.len() as u64 };
    let mut disk = Disk::new(vec![segment], false).unwrap();
    assert_eq!(read(&mut disk, 0, &[1; 512 * 9]).unwrap(), bytes);
    let mut reversed: Vec<u8> = bytes.iter().rev().copied().collect();
    let slices: Vec<_> = reversed.chunks_mut(2).map(VolatileSlice::from).collect();
    disk.write(0, &slices).unwrap();
    drop(slices);
    assert_eq!(read(&mut disk, 0, &[512 * 9]).unwrap(), reversed);
}

#[test]
fn refuses_what_is_no_disk() {
    let too_short = Segment::File { file: file(0, &[0; 412]), offset: 1, len: 512 };
    assert!(matches!(
        Disk::new(vec![Segment::Zeroes(512), too_short], true),
        Err(DiskError::FileTooShort { index: 1, size: 512, end: 513 })
    ));
    assert!(matches!(Disk::new(vec![Segment::Zeroes(513)], true), Err(DiskError::Size(513))));
    assert!(matches!(Disk::new(vec![Segment::Zeroes(512)], false), Err(DiskError::NotWritable(0))));
    assert!(matches!(
        Disk::new(vec![Segment::Zeroes(u64::MAX), Segment::Zeroes(1)], true),
        Err(DiskError::TooLarge)
    ));
    let past = Segment::File { file: file(0, &[]), offset: u64::MAX, len: 512 };
    assert!(matches!(Disk::new(vec![past], true), Err(DiskError::TooLarge)));

    let path = tempfile::NamedTempFile::new().unwrap();
    path.as_file().set_len(512).unwrap();
    let readonly: OwnedFd = std::fs::File::open(path.path()).unwrap().into();
    let segment = || Segment::File { file: readonly.try_clone().unwrap(), offset: 0, len: 512 };
    assert!(matches!(Disk::new(vec![segment()], false), Err(DiskError::NotWritable(0))));
    let mut disk = Disk::new(vec![segment()], true).unwrap();
    assert!(disk.readonly());
    assert!(disk.write(0, &[VolatileSlice::from(&mut [0; 512][..])]).is_err());
    assert!(disk.discard(0, 512).is_err());
    disk.flush().unwrap();
}

#[test]
fn a_file_truncated_later_is_an_error_not_zeroes() {
    let file = std::fs::File::from(file(0, &[1; 1024]));
    let segment = Segment::File { file: file.try_clone().unwrap().into(), offset: 0, len: 1024 };
    let mut disk = Disk::new(vec![segment], true).unwrap();
    file.set_len(512).unwrap();
    assert_eq!(read(&mut disk, 0, &[512]).unwrap(), [1; 512]);
    assert!(read(&mut disk, 512, &[512]).is_err());
}

/// If the host cannot give back a range, no zeroes are written over it either, however long it is.
#[test]
fn space_is_given_back_where_the_file_system_can() {
    let whole = file(0, &[1; 8192]);
    let disk =
        |file: OwnedFd, len, readonly| Disk::new(vec![Segment::File { file, offset: 0, len }], readonly);
    let mut holes = disk(whole.try_clone().unwrap(), 8192, false).unwrap();
    assert!(holes.gives_back());
    holes.discard(0, 4096).unwrap();
    assert_eq!(read(&mut holes, 0, &[8192]).unwrap(), [[0; 4096], [1; 4096]].concat());
    assert_eq!(rustix::fs::fstat(&whole).unwrap().st_size, 8292, "the probe changes nothing");
    assert!(!disk(whole, 8192, true).unwrap().gives_back());
    let null: OwnedFd = std::fs::File::options().read(true).write(true).open("/dev/null").unwrap().into();
    let mut none = disk(null, 1 << 60, false).unwrap();
    assert!(!none.gives_back());
    assert!(none.discard(0, 1 << 60).is_err());
}

#[test]
fn an_empty_disk_is_a_disk() {
    let mut disk = Disk::new(Vec::new(), false).unwrap();
    assert!(disk.is_empty());
    assert_eq!(read(&mut disk, 0, &[]).unwrap(), []);
    assert!(read(&mut disk, 0, &[1]).is_err());
}
