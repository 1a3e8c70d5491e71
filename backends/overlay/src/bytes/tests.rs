//! Tests of contents that begin in memory and go on in a file of the host's.

use super::*;
use crate::space::Space;

fn write(bytes: &mut Bytes, offset: u64, data: &[u8]) -> Result<u64> {
    let mut data = data.to_vec();
    bytes.write(offset, &Source::new(&[VolatileSlice::from(&mut data[..])], 0, usize::MAX))
}

fn read(bytes: &Bytes, offset: u64, len: usize) -> Vec<u8> {
    let mut buffer = vec![0xaa; len];
    let count =
        bytes.read(offset, &Sink::new(&[VolatileSlice::from(&mut buffer[..])], 0, usize::MAX)).unwrap();
    buffer.truncate(usize::try_from(count).unwrap());
    buffer
}

fn home(limit: u64) -> (tempfile::TempDir, Home) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::new(std::fs::File::open(directory.path()).unwrap().into());
    (directory, Home::new(Space::new(limit), Some(store)))
}

#[test]
fn small_contents_are_no_file_of_the_hosts_until_they_grow() {
    let (directory, home) = home(1 << 20);
    let files = || std::fs::read_dir(directory.path()).unwrap().count();
    let mut bytes = home.empty().unwrap();
    bytes.set_len(30_000).unwrap();
    assert_eq!(write(&mut bytes, 10_000, b"begin"), Ok(5));
    assert_eq!((files(), bytes.taken()), (0, 16_384));
    assert_eq!(write(&mut bytes, 20_000, b"end"), Ok(3));
    assert_eq!((files(), bytes.len(), bytes.taken()), (1, 30_000, 20_480));
    assert_eq!((read(&bytes, 9999, 6), read(&bytes, 19_999, 5)), (b"\0begin".to_vec(), b"\0end\0".to_vec()));
    drop(bytes);
    assert_eq!((files(), home.space().free()), (0, 1 << 20));
}

#[test]
fn where_memory_ends_small_contents_are_files_of_the_hosts() {
    let (directory, home) = home(1 << 30);
    let Some(store) = &home.store else { panic!("a store") };
    let mut memory = store.small().unwrap();
    memory.grow(64 << 20).unwrap();
    let mut bytes = home.empty().unwrap();
    assert_eq!(write(&mut bytes, 0, b"x"), Ok(1));
    assert!(matches!(bytes, Bytes::Flat(_)));
    memory.shrink(1024);
    let mut small: Vec<_> = (0..3).map(|_| home.empty().unwrap()).collect();
    small.iter_mut().for_each(|bytes| assert_eq!(write(bytes, 0, b"y"), Ok(1)));
    assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 2);
    small[0].set_len(0).unwrap();
    assert_eq!(write(&mut small[0], 511, b"y"), Ok(1));
    assert!(matches!(small[0], Bytes::Small { .. }), "what was cut gave its memory back");
}

#[test]
fn contents_that_find_no_space_as_a_file_stay_as_they_are() {
    let (_directory, home) = home(6000);
    let mut bytes = home.empty().unwrap();
    assert_eq!(write(&mut bytes, 0, b"x"), Ok(1));
    assert_eq!(write(&mut bytes, 16_384, &[1; 4096]), Err(Errno::ENOSPC));
    assert_eq!((bytes.len(), read(&bytes, 0, 2)), (1, b"x".to_vec()));
}
