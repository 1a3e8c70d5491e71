//! Tests of contents in a file of the host's, against plain bytes.

use std::sync::Arc;

use super::*;
use crate::space::Space;
use crate::store::Store;

/// An empty file, its space, and the directory that it is in.
fn empty(limit: u64) -> (tempfile::TempDir, Arc<Space>, Flat) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::new(std::fs::File::open(directory.path()).unwrap().into());
    let space = Space::new(limit);
    let flat = Flat::new(store.create().unwrap(), space.charge(0).unwrap());
    (directory, space, flat)
}

fn write(flat: &mut Flat, offset: u64, data: &[u8]) -> Result<u64> {
    let (mut data, len) = (data.to_vec(), data.len());
    // Two pieces, so that their seam is somewhere in a block.
    let (first, second) = data.split_at_mut(len / 3);
    let slices = [VolatileSlice::from(first), VolatileSlice::from(second)];
    flat.write(offset, &Source::new(&slices, 0, usize::MAX))
}

fn read(flat: &Flat, offset: u64, len: usize) -> Vec<u8> {
    let mut buffer = vec![0xaa; len];
    let (first, second) = buffer.split_at_mut(len / 3);
    let slices = [VolatileSlice::from(first), VolatileSlice::from(second)];
    let count = flat.read(offset, &Sink::new(&slices, 0, usize::MAX)).unwrap();
    buffer.truncate(usize::try_from(count).unwrap());
    buffer
}

#[test]
fn bytes_are_where_they_were_put() {
    let (directory, space, mut flat) = empty(1 << 20);
    let data: Vec<u8> = (0..400_000u32).map(|number| number.to_le_bytes()[0] | 1).collect();
    assert_eq!(write(&mut flat, 10_000, &data), Ok(400_000));
    assert_eq!((flat.len(), flat.taken()), (410_000, 99 * BLOCK));
    assert_eq!(read(&flat, 10_000, 500_000), data);
    assert_eq!(read(&flat, 0, 10_100), [vec![0; 10_000], data[..100].to_vec()].concat());
    assert_eq!(read(&flat, flat.len() - 1, 10), data[399_999..]);
    assert_eq!((read(&flat, flat.len(), 10), read(&flat, u64::MAX, 10)), (vec![], vec![]));
    assert_eq!(space.free(), (1 << 20) - flat.taken());
    drop(flat);
    assert_eq!(space.free(), 1 << 20);
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
}

#[test]
fn what_is_cut_off_is_gone() {
    let (_directory, _, mut flat) = empty(1 << 20);
    write(&mut flat, 0, &[7; 40_000]).unwrap();
    flat.set_len(20_000).unwrap();
    assert_eq!((flat.len(), flat.taken()), (20_000, 5 * BLOCK));
    flat.set_len(40_000).unwrap();
    assert_eq!((read(&flat, 19_999, 3), read(&flat, 30_000, 2)), (vec![7, 0, 0], vec![0, 0]));
    flat.set_len(0).unwrap();
    assert_eq!((flat.len(), flat.taken()), (0, 0));
    flat.set_len(1 << 62).unwrap();
    assert_eq!((read(&flat, (1 << 62) - 2, 5), flat.taken()), (vec![0, 0], 0));
}

#[test]
fn a_full_file_system_takes_what_fits() {
    let (_directory, space, mut flat) = empty(5 * BLOCK);
    assert_eq!(write(&mut flat, 100, &[1; 40_000]), Ok(5 * BLOCK - 100));
    assert_eq!(write(&mut flat, 5 * BLOCK, b"x"), Err(Errno::ENOSPC));
    assert_eq!(write(&mut flat, 0, &[2; 5 * 4096]), Ok(5 * BLOCK), "what is there is written again");
    assert_eq!((write(&mut flat, 1 << 40, b""), flat.len()), (Ok(0), 5 * BLOCK));
    flat.set_len(3 * BLOCK).unwrap();
    assert_eq!(write(&mut flat, 1 << 40, &[3; 10_000]), Ok(2 * BLOCK));
    assert_eq!((space.free(), read(&flat, 1 << 40, 2), read(&flat, 1 << 39, 2)), (0, vec![3, 3], vec![0, 0]));
}

#[test]
fn space_is_reserved_wholly_or_not_at_all() {
    let reserve = |keep_size| Allocation::Reserve { keep_size };
    let (_directory, space, mut flat) = empty(100_000);
    assert_eq!(flat.allocate(0, 1 << 62, reserve(false)), Err(Errno::ENOSPC));
    assert_eq!((flat.len(), flat.taken(), space.free()), (0, 0, 100_000));
    assert_eq!(flat.allocate(10_000, 80_000, reserve(true)), Ok(()));
    assert_eq!((flat.len(), flat.taken()), (0, 20 * BLOCK));
    let rest = space.charge(space.free()).unwrap();
    assert_eq!(write(&mut flat, 10_000, &[1; 80_000]), Ok(80_000));
    drop(rest);
    assert_eq!(flat.allocate(0, 90_001, reserve(false)), Ok(()));
    assert_eq!((flat.len(), read(&flat, 89_999, 10)), (90_001, vec![1, 0]));
}

#[test]
fn holes_are_made_and_found() {
    let (directory, _, mut flat) = empty(1 << 20);
    write(&mut flat, 0, &[5; 60_000]).unwrap();
    let seek = |flat: &Flat, offset| (flat.seek(offset, Seek::Data), flat.seek(offset, Seek::Hole));
    assert_eq!(seek(&flat, 100), (Ok(100), Ok(60_000)));
    flat.allocate(10_000, 30_000, Allocation::Punch).unwrap();
    assert_eq!((flat.len(), flat.taken()), (60_000, 9 * BLOCK));
    assert_eq!((read(&flat, 9999, 3), read(&flat, 39_999, 2)), (vec![5, 0, 0], vec![0, 5]));
    assert_eq!(seek(&flat, 0), (Ok(0), Ok(3 * BLOCK)));
    assert_eq!(seek(&flat, 20_000), (Ok(9 * BLOCK), Ok(20_000)));
    assert_eq!(seek(&flat, 60_000), (Err(Errno::ENXIO), Err(Errno::ENXIO)));
    flat.set_len(100_000).unwrap();
    assert_eq!(seek(&flat, 70_000), (Err(Errno::ENXIO), Ok(70_000)));
    flat.allocate(59_000, 50_000, Allocation::Zero { keep_size: false }).unwrap();
    assert_eq!((flat.len(), read(&flat, 58_999, 2)), (109_000, vec![5, 0]));
    flat.allocate(0, u64::MAX >> 1, Allocation::Punch).unwrap();
    assert_eq!((flat.len(), flat.taken(), seek(&flat, 1)), (109_000, 0, (Err(Errno::ENXIO), Ok(1))));
    let file = std::fs::read_dir(directory.path()).unwrap().next().unwrap().unwrap();
    let blocks = std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap());
    assert_eq!(blocks, 0, "the host has the space back");
}

#[test]
fn ranges_without_space_of_the_hosts_read_as_zeroes() {
    let (_directory, _, mut flat) = empty(1 << 20);
    write(&mut flat, 0, &[5; 10_000]).unwrap();
    let file = tempfile::tempfile().unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, &[5; 100_000], 0).unwrap();
    crate::store::clear(std::os::fd::AsFd::as_fd(&file), 3, 1 << 40).unwrap();
    let mut bytes = vec![1; 100_000];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, 0).unwrap();
    assert!(bytes[..3] == [5; 3] && bytes[3..].iter().all(|byte| *byte == 0));
    assert_eq!(file.metadata().unwrap().len(), 100_000);
}
