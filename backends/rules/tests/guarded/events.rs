//! Events: which request makes which, with what in it.

use ::rules::{Event, Events};
use fuse::{Access, Errno, FileSystem, OpenFlags, RenameHow, SetAttributes, Sync};
use policy::files::{Op, Rules};

use crate::guest::{ROOT, USER, block, events, folder};

/// Events so far, in short: operation, path, size, and mode in octal.
fn told(events: &Events) -> Vec<String> {
    events.mark(0);
    let batch = events.take(usize::MAX, usize::MAX);
    assert_eq!(batch.lost, 0);
    let short = |event: &Event| {
        let path = String::from_utf8(event.path.clone()).unwrap();
        format!("{} {path} {} {:o}", event.op.name().unwrap(), event.size, event.mode)
    };
    batch.events.iter().map(short).collect()
}

#[test]
fn a_program_that_writes_a_file() {
    let (guard, events) = events();
    let (_, guest) = folder(guard);
    guest.write(ROOT, "f", "12345").unwrap();
    assert_eq!(
        told(&events),
        ["stat /w/f 0 0", "create /w/f 0 640", "write /w/f 5 100640", "close /w/f 0 0"]
    );
    guest.write(ROOT, "f", "123").unwrap();
    assert_eq!(
        told(&events),
        ["stat /w/f 0 0", "open /w/f 0 0", "truncate /w/f 0 0", "write /w/f 3 100640", "close /w/f 0 0"]
    );
    let f = guest.walk("f").unwrap();
    guest.read(f).unwrap();
    assert_eq!(told(&events), ["stat /w/f 0 0", "open /w/f 0 0", "read /w/f 3 0", "close /w/f 0 0"]);
}

#[test]
fn everything_else() {
    let (guard, events) = events();
    let (_, guest) = folder(guard);
    let d = guest.mkdir(ROOT, "d").unwrap();
    let s = guest.symlink(d, "s", "target").unwrap();
    guest.0.read_link(&USER, s).unwrap();
    let n = guest.mknod(d, "n").unwrap();
    guest.link(n, ROOT, "l").unwrap();
    assert_eq!(
        told(&events),
        [
            "mkdir /w/d 0 755",
            "symlink /w/d/s 0 0",
            "readlink /w/d/s 0 0",
            "create /w/d/n 0 640",
            "create /w/l 0 0"
        ]
    );
    // By the name of the last request.
    let change = |change: SetAttributes| guest.change(n, change).unwrap();
    change(SetAttributes { mode: Some(0o4711), size: Some(7), ..SetAttributes::default() });
    change(SetAttributes { uid: Some(5), ..SetAttributes::default() });
    assert_eq!(told(&events), ["chmod /w/l 0 4711", "truncate /w/l 0 0"]);
    guest.list(d, true).unwrap();
    guest.rename((d, "n"), (ROOT, "m"), RenameHow::Replace).unwrap();
    guest.unlink(ROOT, "m").unwrap();
    guest.unlink(d, "s").unwrap();
    guest.rmdir(ROOT, "d").unwrap();
    assert_eq!(
        told(&events),
        ["readdir /w/d 0 0", "rename /w/d/n 0 0", "remove /w/m 0 0", "remove /w/d/s 0 0", "remove /w/d 0 0"]
    );
    let handle = guest.open(n, Access::Read, OpenFlags::empty()).unwrap();
    guest.0.sync(&USER, n, Sync::File { handle, data_only: false }).unwrap();
    guest.0.sync(&USER, ROOT, Sync::All).unwrap();
    guest.0.statistics(&USER, ROOT).unwrap();
    guest.0.attributes(&USER, n, None, None).unwrap();
    assert_eq!(told(&events), ["open /w/m 0 0", "sync /w/m 0 0", "stat /w/m 0 0"]);
}

#[test]
fn who_asked_and_whose_it_is() {
    let (guard, events) = events();
    let (host, guest) = folder(guard);
    let f = host.write(ROOT, "f", "").unwrap();
    host.change(
        f,
        SetAttributes { uid: Some(7), gid: Some(8), mode: Some(0o606), ..SetAttributes::default() },
    )
    .unwrap();
    guest.write(ROOT, "f", "1").unwrap();
    events.mark(0);
    let owners =
        events.take(usize::MAX, usize::MAX).events.into_iter().map(|event| (event.op, event.uid, event.gid));
    let expected = [
        (Op::Stat, 1000, 100),
        (Op::Open, 1000, 100),
        (Op::Truncate, 1000, 100),
        (Op::Write, 7, 8),
        // The request says nobody.
        (Op::Close, 0, 0),
    ];
    assert_eq!(owners.collect::<Vec<_>>(), expected);
}

#[test]
fn what_fails_is_told_and_what_is_blocked_is_not() {
    let (mut guard, events) = events();
    let block = block(&["remove", "write"], "/w/k*");
    guard.rules = std::sync::Arc::new(Rules::new(&[block]).unwrap());
    let (host, guest) = folder(guard);
    host.write(ROOT, "kept", "").unwrap();
    assert_eq!(guest.unlink(ROOT, "kept"), Err(Errno::EPERM));
    assert_eq!(guest.unlink(ROOT, "missing"), Err(Errno::ENOENT));
    assert_eq!(guest.look_up(ROOT, "missing"), Err(Errno::ENOENT));
    let kept = guest.walk("kept").unwrap();
    let handle = guest.open(kept, Access::Read, OpenFlags::empty()).unwrap();
    assert_eq!(guest.write_to(kept, handle, b"1"), Err(Errno::EPERM));
    let f = guest.walk("kept").and_then(|_| guest.mknod(ROOT, "f")).unwrap();
    let reader = guest.open(f, Access::Read, OpenFlags::empty()).unwrap();
    assert_eq!(guest.write_to(f, reader, b"1"), Err(Errno::EBADF));
    assert_eq!(
        told(&events),
        [
            "remove /w/missing 0 0",
            "stat /w/missing 0 0",
            "stat /w/kept 0 0",
            "open /w/kept 0 0",
            "stat /w/kept 0 0",
            "create /w/f 0 640",
            "open /w/f 0 0",
            "write /w/f 0 0",
        ]
    );
}
