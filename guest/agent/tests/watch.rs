//! Changes, as they are reported to the host.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]
#![allow(unsafe_code, reason = "each test enters a mount namespace")]

#[allow(unreachable_pub, dead_code, reason = "shared by tests that use parts of it")]
mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_agent::service::Agent;
use guest_protocol::ChangeKind::{Created, Modified, Overflow, Removed};
use guest_protocol::{Change, ChangeKind, FileFailure, FileReply, FileRequest, WatchEvent};
use rustix::io::Errno;
use support::{Client, act, guest};

fn request(path: &str, recursive: bool) -> FileRequest {
    FileRequest::Watch { path: path.to_owned(), recursive }
}

fn watch(agent: &Arc<Agent>, path: &str, recursive: bool) -> Client {
    let mut client = Client::file(agent, request(path, recursive));
    assert_eq!(client.answer(), Some(FileReply::Ok(WatchEvent::Watching)));
    client
}

fn next(client: &mut Client) -> (ChangeKind, String) {
    match client.answer() {
        Some(FileReply::Ok(WatchEvent::Change(Change { kind, path }))) => {
            (kind, String::from_utf8(path).unwrap())
        }
        other => panic!("{other:?}"),
    }
}

/// The changes before a mark, which is made here; no other change comes before it.
fn until(client: &mut Client, mark: &str) -> Vec<(ChangeKind, String)> {
    let mut changes = Vec::new();
    loop {
        match next(client) {
            (Created, path) if path == mark => return changes,
            change => changes.push(change),
        }
    }
}

fn change(kind: ChangeKind, path: &str) -> (ChangeKind, String) {
    (kind, path.to_owned())
}

#[test]
fn one_directory() {
    let Some(agent) = guest() else { return };
    fs::create_dir_all("/tmp/d/sub").unwrap();
    fs::write("/tmp/d/old", "").unwrap();
    fs::write("/tmp/d/cut", "").unwrap();
    let mut client = watch(&agent, "tmp/d/", false);
    fs::write("/tmp/d/new", "x").unwrap();
    fs::rename("/tmp/d/new", "/tmp/moved-out").unwrap();
    fs::rename("/tmp/moved-out", "/tmp/d/moved-in").unwrap();
    fs::set_permissions("/tmp/d/old", fs::Permissions::from_mode(0o600)).unwrap();
    let held_open = fs::File::options().write(true).open("/tmp/d/cut").unwrap();
    held_open.set_len(100).unwrap();
    fs::remove_file("/tmp/d/old").unwrap();
    fs::write("/tmp/d/sub/file", "not told").unwrap();
    fs::create_dir("/tmp/d/mark").unwrap();
    let mut changes = until(&mut client, "/tmp/d/mark");
    drop(held_open);
    // Equal neighbours are reported once, or as often as they were read.
    changes.dedup();
    assert_eq!(
        changes,
        [
            change(Created, "/tmp/d/new"),
            change(Modified, "/tmp/d/new"),
            change(Removed, "/tmp/d/new"),
            change(Created, "/tmp/d/moved-in"),
            change(Modified, "/tmp/d/old"),
            change(Modified, "/tmp/d/cut"),
            change(Removed, "/tmp/d/old"),
        ]
    );
}

#[test]
fn a_tree() {
    let Some(agent) = guest() else { return };
    fs::create_dir_all("/tmp/t/a/b").unwrap();
    fs::create_dir_all("/tmp/elsewhere/inner").unwrap();
    symlink("/tmp/elsewhere", "/tmp/t/link").unwrap();
    let mut client = watch(&agent, "/tmp/t", true);
    fs::write("/tmp/t/a/b/f", "").unwrap();
    fs::write("/tmp/elsewhere/f", "links are not followed").unwrap();
    fs::create_dir("/tmp/t/mark").unwrap();
    let mut changes = until(&mut client, "/tmp/t/mark");
    changes.dedup();
    assert_eq!(changes, [change(Created, "/tmp/t/a/b/f"), change(Modified, "/tmp/t/a/b/f")]);

    // A directory that moves takes its watches along.
    fs::rename("/tmp/t/a", "/tmp/t/z").unwrap();
    wait_for(&mut client, Created, "/tmp/t/z/b");
    fs::write("/tmp/t/z/b/f", "again").unwrap();
    wait_for(&mut client, Modified, "/tmp/t/z/b/f");
    // A directory that moves out is not watched any more, one that moves in is.
    fs::rename("/tmp/t/z", "/tmp/gone").unwrap();
    wait_for(&mut client, Removed, "/tmp/t/z");
    fs::rename("/tmp/elsewhere", "/tmp/t/in").unwrap();
    wait_for(&mut client, Created, "/tmp/t/in/inner");
    fs::write("/tmp/gone/b/untold", "").unwrap();
    fs::write("/tmp/t/in/inner/told", "").unwrap();
    let told = until(&mut client, "/tmp/t/in/inner/told");
    assert!(told.iter().all(|(_, path)| path.starts_with("/tmp/t/in")), "{told:?}");
    fs::remove_dir_all("/tmp/t/in").unwrap();
    wait_for(&mut client, Removed, "/tmp/t/in");
}

/// Skips to a change.
fn wait_for(client: &mut Client, kind: ChangeKind, path: &str) {
    while next(client) != change(kind, path) {}
}

#[test]
fn directories_made_later() {
    let Some(agent) = guest() else { return };
    fs::create_dir("/tmp/t").unwrap();
    let mut client = watch(&agent, "/tmp/t", true);
    let mut expected = BTreeSet::new();
    for round in 0..50 {
        let mut path = format!("/tmp/t/{round}");
        for part in ["a", "b", "c", "d"] {
            path = format!("{path}/{part}");
        }
        fs::create_dir_all(&path).unwrap();
        fs::write(format!("{path}/file"), "").unwrap();
        for above in Path::new(&path).join("file").ancestors().take_while(|path| *path != Path::new("/tmp/t"))
        {
            expected.insert(above.to_str().unwrap().to_owned());
        }
    }
    // However the changes race with the watch, each is reported at least once.
    while !expected.is_empty() {
        let (kind, path) = next(&mut client);
        if kind == Created {
            expected.remove(&path);
        }
    }
    for round in 0..50 {
        fs::write(format!("/tmp/t/{round}/a/b/c/d/late"), "").unwrap();
        wait_for(&mut client, Created, &format!("/tmp/t/{round}/a/b/c/d/late"));
    }
}

#[test]
fn one_file() {
    let Some(agent) = guest() else { return };
    fs::create_dir("/tmp/d").unwrap();
    fs::write("/tmp/d/file", "").unwrap();
    symlink("d/file", "/tmp/link").unwrap();
    for (path, recursive) in [("/tmp/d/file", false), ("/tmp/link", true)] {
        let mut client = watch(&agent, path, recursive);
        fs::write("/tmp/d/other", "").unwrap();
        fs::write("/tmp/d/file", "x").unwrap();
        assert_eq!(next(&mut client), change(Modified, path));
        // Editors save like this.
        fs::write("/tmp/d/file.new", "y").unwrap();
        fs::rename("/tmp/d/file.new", "/tmp/d/file").unwrap();
        wait_for(&mut client, Created, path);
        fs::remove_file("/tmp/d/file").unwrap();
        assert_eq!(next(&mut client), change(Removed, path));
        fs::write("/tmp/d/file", "").unwrap();
        wait_for(&mut client, Created, path);
    }
}

#[test]
fn the_root_disappears() {
    let Some(agent) = guest() else { return };
    for recursive in [false, true] {
        fs::create_dir_all("/tmp/t/sub").unwrap();
        let mut client = watch(&agent, "/tmp/t", recursive);
        fs::remove_dir_all("/tmp/t").unwrap();
        wait_for(&mut client, Removed, "/tmp/t");
        fs::create_dir_all("/tmp/t/sub").unwrap();
        let mut client = watch(&agent, "/tmp/t", recursive);
        fs::rename("/tmp/t", "/tmp/u").unwrap();
        wait_for(&mut client, Removed, "/tmp/t");
        fs::remove_dir_all("/tmp/u").unwrap();
    }
}

#[test]
fn more_changes_than_the_kernel_keeps() {
    let Some(agent) = guest() else { return };
    let limit = fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    fs::create_dir_all("/tmp/t/sub").unwrap();
    let mut client = watch(&agent, "/tmp/t", true);
    // Nobody reads the reports, so the stream fills, and then the kernel's queue.
    for round in 0..limit * 2 {
        let path = format!("/tmp/t/{:0>200}", round % 2);
        fs::write(&path, "").unwrap();
        fs::remove_file(&path).unwrap();
    }
    fs::create_dir_all("/tmp/t/made/meanwhile").unwrap();
    wait_for(&mut client, Overflow, "/tmp/t");
    // Everything is watched again, including directories that nobody was told of.
    fs::write("/tmp/t/made/meanwhile/f", "").unwrap();
    fs::write("/tmp/t/sub/f", "").unwrap();
    wait_for(&mut client, Created, "/tmp/t/made/meanwhile/f");
    wait_for(&mut client, Created, "/tmp/t/sub/f");
}

#[test]
fn too_many_directories() {
    let Some(agent) = guest() else { return };
    let make = |count: usize| {
        for index in 0..count {
            fs::create_dir_all(format!("/tmp/t/{}/{index}", index % 64)).unwrap();
        }
    };
    make(100);
    let mut client = watch(&agent, "/tmp/t", true);
    make(8192);
    // Directories that come later end the watch, which is reported.
    let text = loop {
        match client.answer() {
            Some(FileReply::Ok(WatchEvent::Change(_))) => {}
            Some(FileReply::Err(FileFailure::System { errno, text })) => {
                assert_eq!(errno, Errno::NOSPC.raw_os_error());
                break text;
            }
            other => panic!("{other:?}"),
        }
    };
    assert!(text.starts_with("watch more than 8192 directories: "), "{text}");
    assert_eq!(client.next(), None);
    // Existing directories make the watch refused.
    assert_eq!(act(&agent, request("/tmp/t", true)).errno("watch more than"), Errno::NOSPC.raw_os_error());
    drop(watch(&agent, "/tmp/t", false));
}

#[test]
fn what_cannot_be_watched() {
    let Some(agent) = guest() else { return };
    let failed = act(&agent, request("/no/such", true));
    assert_eq!(failed.errno("watch /no/such: no such file"), Errno::NOENT.raw_os_error());
    assert_eq!(act(&agent, request("/a\0", true)).errno("path "), Errno::INVAL.raw_os_error());
    // The whole guest, without the kernel's own file systems.
    let mut client = watch(&agent, "/", true);
    fs::write("/tmp/f", "").unwrap();
    wait_for(&mut client, Created, "/tmp/f");
}

#[test]
fn hanging_up_ends_it() {
    let Some(agent) = guest() else { return };
    let client = watch(&agent, "/tmp", true);
    let hung_up = Instant::now();
    drop(client);
    agent.file_acts.wait_for_none(Duration::from_secs(5));
    assert!(hung_up.elapsed() < Duration::from_secs(1));
    let client = watch(&agent, "/tmp", true);
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    agent.file_acts.wait_for_none(Duration::from_secs(5));
    assert!(hung_up.elapsed() < Duration::from_secs(2));
}
