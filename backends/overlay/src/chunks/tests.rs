//! Tests of contents in memory, against plain bytes.

use std::sync::Arc;

use super::*;
use crate::space::Space;

fn empty(limit: u64) -> (Arc<Space>, Chunks) {
    let space = Space::new(limit);
    let chunks = Chunks::new(space.charge(0).unwrap());
    (space, chunks)
}

fn write(chunks: &mut Chunks, offset: u64, data: &[u8]) -> Result<u64> {
    let (mut data, len) = (data.to_vec(), data.len());
    // Two pieces, so that their seam is somewhere in a chunk.
    let (first, second) = data.split_at_mut(len / 3);
    let slices = [VolatileSlice::from(first), VolatileSlice::from(second)];
    chunks.write(offset, &Source::new(&slices, 0, usize::MAX))
}

fn read(chunks: &Chunks, offset: u64, len: usize) -> Vec<u8> {
    let mut buffer = vec![0xaa; len];
    let (first, second) = buffer.split_at_mut(len / 3);
    let slices = [VolatileSlice::from(first), VolatileSlice::from(second)];
    let count = chunks.read(offset, &Sink::new(&slices, 0, usize::MAX));
    buffer.truncate(usize::try_from(count).unwrap());
    buffer
}

#[test]
fn bytes_are_where_they_were_put() {
    let (space, mut chunks) = empty(1 << 20);
    let chunk = wide(CHUNK_LEN);
    let data: Vec<u8> = (0..40_000u32).map(|number| number.to_le_bytes()[0] | 1).collect();
    assert_eq!(write(&mut chunks, chunk - 100, &data), Ok(40_000));
    assert_eq!(chunks.len(), chunk - 100 + 40_000);
    assert_eq!(read(&chunks, chunk - 100, 50_000), data);
    assert_eq!(read(&chunks, 0, CHUNK_LEN), [vec![0; CHUNK_LEN - 100], data[..100].to_vec()].concat());
    assert_eq!(read(&chunks, chunks.len() - 1, 10), data[39_999..]);
    assert_eq!(read(&chunks, chunks.len(), 10), b"");
    assert_eq!(read(&chunks, u64::MAX, 10), b"");
    assert_eq!(chunks.taken(), 4 * chunk - 8192);
    assert_eq!(space.free(), (1 << 20) - chunks.taken());
    drop(chunks);
    assert_eq!(space.free(), 1 << 20);
}

#[test]
fn a_small_file_takes_little_and_grows() {
    let (_, mut chunks) = empty(1 << 20);
    for (offset, taken) in
        [(0, 512), (511, 512), (512, 1024), (3000, 4096), (16_383, 16_384), (16_384, 16_896)]
    {
        assert_eq!(write(&mut chunks, offset, b"x"), Ok(1));
        assert_eq!(chunks.taken(), taken, "{offset}");
    }
}

#[test]
fn what_is_cut_off_is_gone() {
    let (_, mut chunks) = empty(1 << 20);
    write(&mut chunks, 0, &[7; 40_000]).unwrap();
    chunks.set_len(20_000);
    assert_eq!((chunks.len(), chunks.taken()), (20_000, 16_384 + 4096));
    chunks.set_len(40_000);
    assert_eq!(read(&chunks, 19_999, 3), [7, 0, 0]);
    assert_eq!(read(&chunks, 30_000, 2), [0, 0]);
    chunks.set_len(16_384);
    assert_eq!(chunks.taken(), 16_384);
    chunks.set_len(0);
    assert_eq!((chunks.len(), chunks.taken()), (0, 0));
    chunks.set_len(1 << 62);
    assert_eq!((read(&chunks, (1 << 62) - 2, 5), chunks.taken()), (vec![0, 0], 0));
}

#[test]
fn a_full_file_system_takes_what_fits() {
    let (space, mut chunks) = empty(20_000);
    assert_eq!(write(&mut chunks, 0, &[1; 40_000]), Ok(16_384));
    assert_eq!(write(&mut chunks, 16_384, &[1; 2048]), Ok(2048));
    assert_eq!(write(&mut chunks, 18_000, &[1; 4096]), Ok(432));
    assert_eq!(write(&mut chunks, 18_432, &[1; 4096]), Err(Errno::ENOSPC));
    assert_eq!(write(&mut chunks, 1 << 40, b"x"), Ok(1));
    assert_eq!(write(&mut chunks, 1 << 41, &[1; 2048]), Ok(1024));
    assert_eq!(write(&mut chunks, 1 << 42, b"x"), Err(Errno::ENOSPC));
    chunks.set_len(18_432);
    assert_eq!((chunks.len(), space.free()), (18_432, 20_000 - 18_432));
    assert_eq!(chunks.chunks.len(), 2);
}

#[test]
fn space_is_reserved_wholly_or_not_at_all() {
    let reserve = |keep_size| Allocation::Reserve { keep_size };
    let (space, mut chunks) = empty(100_000);
    assert_eq!(chunks.allocate(0, 1 << 62, reserve(false)), Err(Errno::ENOSPC));
    // Less than is free, but for what the last chunk is rounded to.
    assert_eq!(chunks.allocate(10_000, 89_500, reserve(false)), Err(Errno::ENOSPC));
    assert_eq!((chunks.len(), chunks.taken(), space.free()), (0, 0, 100_000));
    assert_eq!(chunks.allocate(10_000, 80_000, reserve(true)), Ok(()));
    assert_eq!((chunks.len(), chunks.taken()), (0, 5 * 16_384 + 8192));
    // Reserved parts can be written to.
    let rest = space.charge(space.free()).unwrap();
    assert_eq!(write(&mut chunks, 10_000, &[1; 80_000]), Ok(80_000));
    drop(rest);
    assert_eq!(chunks.allocate(0, 90_001, reserve(false)), Ok(()));
    assert_eq!((chunks.len(), read(&chunks, 89_999, 10)), (90_001, vec![1, 0]));
}

#[test]
fn holes_are_made_and_found() {
    let (_, mut chunks) = empty(1 << 20);
    write(&mut chunks, 0, &[5; 60_000]).unwrap();
    let seek = |chunks: &Chunks, offset| (chunks.seek(offset, Seek::Data), chunks.seek(offset, Seek::Hole));
    assert_eq!(seek(&chunks, 100), (Ok(100), Ok(60_000)));
    chunks.allocate(10_000, 30_000, Allocation::Punch).unwrap();
    assert_eq!((chunks.len(), chunks.taken()), (60_000, 3 * 16_384));
    assert_eq!(read(&chunks, 9999, 3), [5, 0, 0]);
    assert_eq!(read(&chunks, 39_999, 2), [0, 5]);
    assert_eq!(seek(&chunks, 0), (Ok(0), Ok(16_384)));
    assert_eq!(seek(&chunks, 16_384), (Ok(32_768), Ok(16_384)));
    assert_eq!(seek(&chunks, 20_000), (Ok(32_768), Ok(20_000)));
    assert_eq!(seek(&chunks, 60_000), (Err(Errno::ENXIO), Err(Errno::ENXIO)));
    chunks.set_len(100_000);
    assert_eq!(seek(&chunks, 59_999), (Ok(59_999), Ok(65_536)));
    assert_eq!(seek(&chunks, 70_000), (Err(Errno::ENXIO), Ok(70_000)));
    chunks.allocate(59_000, 50_000, Allocation::Zero { keep_size: false }).unwrap();
    assert_eq!((chunks.len(), read(&chunks, 58_999, 2)), (109_000, vec![5, 0]));
    assert_eq!(seek(&chunks, 59_000), (Ok(59_000), Ok(109_000)));
    chunks.allocate(0, u64::MAX >> 1, Allocation::Punch).unwrap();
    assert_eq!((chunks.len(), chunks.taken(), seek(&chunks, 1)), (109_000, 0, (Err(Errno::ENXIO), Ok(1))));
}
