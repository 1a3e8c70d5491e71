//! A guest holds as many descriptors of the host as it was given. By itself, as it counts those of the whole process.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

#[expect(dead_code, reason = "shared with the tests of hostile guests, which say more")]
#[path = "hostile/guest.rs"]
mod guest;

use std::fs;

use guest::{Guest, ROOT, share, words};
use shares::{Budget, Options};

const EMFILE: i32 = 24;
const RMDIR: u32 = 11;

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn what_is_held_is_bounded() {
    let shared = tempfile::tempdir().unwrap();
    let shared = shared.path();
    for number in 0..400 {
        fs::write(shared.join(format!("file-{number:03}")), [b'x'; 10]).unwrap();
    }
    let before = descriptors();
    let session = share(shared, Options { budget: Budget { nodes: 50, handles: 100 }, ..Options::default() });
    let mut guest = Guest::new(&session);
    let nodes: Vec<u64> =
        (0..400).map(|number| guest.look_up(ROOT, format!("file-{number:03}").as_bytes()).unwrap()).collect();
    // Each file has a descriptor for a moment.
    for node in &nodes {
        let handle = guest.open(*node, 0).unwrap();
        assert_eq!(guest.read(*node, handle).unwrap(), [b'x'; 10]);
        guest.release(*node, handle);
    }
    assert!(descriptors() < before + 70, "{} and {before} before", descriptors());
    let opened: Vec<Result<u64, i32>> = nodes.iter().map(|node| guest.open(*node, 2)).collect();
    assert_eq!(opened.iter().filter(|opened| opened.is_ok()).count(), 100);
    assert!(opened[100..].iter().all(|opened| *opened == Err(EMFILE)));
    // A directory is listed all the same once there is room for its own handle, and every file is there.
    guest.release(nodes[0], opened[0].unwrap());
    assert_eq!(guest.names(ROOT, true).len(), 400);
    assert_eq!(guest.names(ROOT, false).len(), 400);
    // Nothing is made that cannot be opened.
    let filled = guest.open(nodes[0], 0);
    assert!(filled.is_ok());
    let create = [words(&[0o302, 0o644, 0, 0]), b"new\0".to_vec()].concat();
    assert_eq!(guest.ask(35, ROOT, &create), Err(EMFILE));
    assert!(!shared.join("new").exists());
    // A file that nobody has open loses its name without a descriptor, and the guest can still ask what it was.
    let held = descriptors();
    for number in 200..400 {
        guest.unlink(ROOT, format!("file-{number:03}").as_bytes()).unwrap();
    }
    assert_eq!(descriptors(), held);
    assert!(guest.attributes(nodes[200]).is_ok());
    guest.forget(nodes[200], 2);
    // Directories that have no name keep theirs, as many as there may be.
    let name = |number: usize| format!("directory-{number}\0").into_bytes();
    let make = |number| guest.make_directory(ROOT, format!("directory-{number}").as_bytes()).unwrap();
    let directories: Vec<u64> = (0..100).map(make).collect();
    let gone: Vec<_> = (0..100).map(|number| guest.ask(RMDIR, ROOT, &name(number))).collect();
    assert_eq!(gone.iter().filter(|gone| gone.is_ok()).count(), 50);
    assert!(gone[50..].iter().all(|gone| *gone == Err(EMFILE)));
    assert!(guest.attributes(directories[0]).is_ok());
    guest.forget(directories[0], 1);
    assert!(guest.ask(RMDIR, ROOT, &name(99)).is_ok());
    assert!(descriptors() < before + 220);
    guest.ask(38, 0, b"").unwrap();
    drop(session);
    assert_eq!(descriptors(), before);
}
