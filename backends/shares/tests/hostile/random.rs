//! Requests at random, always the same ones: whatever a guest asks for in whatever order, what is not shared stays as it
//! is, and what is shared has nothing that a host's user must not get.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::sync::Arc;

use fuse::FileSystem;
use overlay::Files;
use shares::{Budget, HostFs, Options, Place, Places};

use crate::guest::{Guest, ROOT, longs, mounted, share, words};
use crate::house;

/// Names, good and bad; `out` and what is renamed from it lead out of the share.
const NAMES: &[&[u8]] = &[b"a", b"b", b"c", b"d", b"e", b"f", b"g", b"out", b"out", b"..", b"a/b", b""];

/// Most steps of one script.
const MAX_STEPS: usize = 200;

/// Numbers that the guest was given.
#[derive(Default)]
struct Known {
    nodes: Vec<u64>,
    handles: Vec<(u64, u64)>,
}

fn step<F: FileSystem>(guest: &mut Guest<'_, F>, known: &mut Known, step: [u8; 6]) {
    let [op, node, name, other, other_name, extra] = step.map(usize::from);
    let node_at = |index: usize| known.nodes[index % known.nodes.len()];
    let (node, other) = (node_at(node), node_at(other));
    let (name, other_name) = (NAMES[name % NAMES.len()], NAMES[other_name % NAMES.len()]);
    let (user, handle) = known.handles.get(extra % known.handles.len().max(1)).copied().unwrap_or((node, 7));
    let number = u32::try_from(extra).unwrap();
    let named = |head: &[u8]| [head, name, b"\0"].concat();
    let mut entry = |answer: Result<Vec<u8>, i32>| {
        if let Ok(body) = answer
            && let Some(bytes) = body.first_chunk()
        {
            known.nodes.push(u64::from_le_bytes(*bytes));
        }
    };
    match op % 22 {
        0 => entry(guest.ask(1, node, &named(b""))),
        1 => entry(guest.ask(9, node, &named(&words(&[0o1777, 0])))),
        2 => entry(guest.ask(8, node, &named(&words(&[0o106_777, 0, 0, 0])))),
        3 => entry(guest.ask(8, node, &named(&words(&[0o060_600 + number, 0x801, 0, 0])))),
        4 => entry(guest.ask(6, node, &[name, b"\0../private\0"].concat())),
        5 => entry(guest.ask(13, node, &named(&longs(&[other])))),
        6 => drop(guest.unlink(node, name)),
        7 => drop(guest.ask(11, node, &named(b""))),
        8 | 9 => drop(guest.rename((node, name), (other, other_name), number % 4)),
        10 => drop(guest.attributes(node)),
        11 => {
            let mode = words(&[number, number, number, 0o7000 | number, 0, number, number, 0]);
            let _ = guest.ask(4, node, &[words(&[number & 0x3f | 1, 0]), longs(&[0; 6]), mode].concat());
        }
        12 => {
            if let Ok(handle) = guest.open(node, number & 0o1003) {
                known.handles.push((node, handle));
            }
        }
        13 => {
            if let Ok(handle) = guest.open_directory(node) {
                known.handles.push((node, handle));
            }
        }
        14 => {
            let create = named(&words(&[0o102 | number << 7, 0o6777, 0, 0]));
            if let Ok(body) = guest.ask(35, node, &create) {
                known.nodes.push(u64::from_le_bytes(*body.first_chunk().unwrap()));
            }
        }
        15 => drop(guest.read(user, handle)),
        16 => drop(guest.write(user, handle, name)),
        17 => drop(guest.list(user, handle, u64::from(number % 8), number % 2 == 0)),
        18 => drop(guest.ask(21, node, &[words(&[2, 0]), b"user.a\0".to_vec(), b"xx".to_vec()].concat())),
        19 if number > 200 => guest.forget(node, u64::from(number)),
        20 => drop(guest.ask(51, node, &words(&[2, 0o600, 0, 0, u32::from(b'/')])[..18])),
        _ => drop(guest.ask(5, node, b"")),
    }
}

/// The host has nothing but files, directories and links in the shared directory, none with special bits.
fn is_harmless(directory: &Path) {
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let found = fs::symlink_metadata(&path).unwrap();
        let kind = found.file_type();
        assert!(kind.is_file() || kind.is_dir() || kind.is_symlink(), "{path:?}: {kind:?}");
        assert!(kind.is_symlink() || found.mode() & 0o7000 == 0, "{path:?}: {:o}", found.mode());
        assert_eq!(found.uid(), rustix::process::geteuid().as_raw(), "{path:?}");
        if kind.is_dir() {
            is_harmless(&path);
        }
    }
}

fn script(data: &[u8]) {
    let house = house();
    let (shared, private) = (house.path().join("shared"), house.path().join("private"));
    symlink("../private", shared.join("out")).unwrap();
    fs::create_dir(shared.join("d")).unwrap();
    fs::write(shared.join("a"), "a").unwrap();
    let session = share(&shared, Options { budget: Budget { nodes: 4, handles: 8 }, ..Options::default() });
    let mut guest = Guest::new(&session);
    let mut known = Known { nodes: vec![ROOT; 4], ..Known::default() };
    for bytes in data.as_chunks().0.iter().take(MAX_STEPS) {
        step(&mut guest, &mut known, *bytes);
    }
    assert_eq!(fs::read(private.join("secret")).unwrap(), b"secret");
    assert_eq!(fs::read_dir(&private).unwrap().count(), 1);
    assert_eq!(fs::read_dir(house.path()).unwrap().count(), 2);
    is_harmless(&shared);
}

/// The same with files that stay with the guest: the host's are as they were, all of them.
fn script_over(data: &[u8]) {
    let house = house();
    let shared = house.path().join("shared");
    symlink("../private", shared.join("out")).unwrap();
    fs::create_dir_all(shared.join("d/e")).unwrap();
    fs::write(shared.join("d/e/b"), "b").unwrap();
    fs::write(shared.join("a"), "a").unwrap();
    fs::hard_link(shared.join("a"), shared.join("c")).unwrap();
    let before = told_of(house.path());
    let options = Options { readonly: true, budget: Budget { nodes: 4, handles: 8 }, ..Options::default() };
    let below = HostFs::new(&shared, options).unwrap();
    let files = Files::over(Arc::new(below), 1 << 20).unwrap();
    let place = |path: &[&CStr], is_file| Place {
        path: path.iter().map(|name| (*name).to_owned()).collect(),
        is_file,
    };
    let places = [place(&[c"d", c"e"], false), place(&[c"f", c"g"], true)];
    let session = mounted(Places::new(Box::new(files), &places, true).unwrap());
    let mut guest = Guest::new(&session);
    let mut known = Known { nodes: vec![ROOT; 4], ..Known::default() };
    for bytes in data.as_chunks().0.iter().take(MAX_STEPS) {
        step(&mut guest, &mut known, *bytes);
    }
    // The directory that had a place's name is out of reach, and the place is where it was.
    let d = guest.look_up(ROOT, b"d").unwrap();
    let e = guest.look_up(d, b"e").unwrap();
    assert_eq!(guest.names(e, true), [b""; 0]);
    assert_eq!(told_of(house.path()), before);
}

/// All files below a directory, with what is told of them and what is in them. Reading a file may change only its time of
/// access.
fn told_of(directory: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        let found = fs::symlink_metadata(&path).unwrap();
        let contents = if found.is_file() { fs::read(&path).unwrap() } else { Vec::new() };
        let times = (found.mtime_nsec(), found.ctime_nsec());
        let told = (found.ino(), found.mode(), found.nlink(), found.uid(), found.gid(), times);
        all.push(format!("{path:?} {told:?} {contents:?}"));
        if found.is_dir() {
            all.extend(told_of(&path));
        }
    }
    all.sort();
    all
}

/// Every kind of request in many orders, as examples to start from.
fn examples() -> Vec<Vec<u8>> {
    let example = |seed: u32| -> Vec<u8> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()[3]
        };
        (0..MAX_STEPS * 6).map(|_| next()).collect()
    };
    (1..120).map(example).collect()
}

#[test]
fn whatever_a_guest_asks_for_stays_in_what_is_shared() {
    fuzzed::run("shares_random", 120, &examples(), &[], script);
}

#[test]
fn whatever_a_guest_asks_for_an_overlay_leaves_the_host_as_it_is() {
    fuzzed::run("shares_random_over", 120, &examples(), &[], script_over);
}
