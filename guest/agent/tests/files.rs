//! Acts on files, as the host sees them.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]
#![allow(unsafe_code, reason = "each test enters a mount namespace")]

#[allow(unreachable_pub, dead_code, reason = "shared by tests that use parts of it")]
mod support;

use std::fs::{self, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use guest_agent::service::Agent;
use guest_protocol::{FileEntry, FileFailure, FileRequest, WriteAt};
use rustix::fs::{CWD, FileType, Mode};
use rustix::io::Errno;
use rustix::mount::MountFlags;
use support::{Client, act, guest, request, run, write};

fn read(path: &str) -> FileRequest {
    FileRequest::Read { path: path.to_owned(), offset: 0, length: u64::MAX, size_limit: None }
}

fn list(agent: &Arc<Agent>, path: &str) -> Vec<FileEntry> {
    act(agent, FileRequest::List { path: path.to_owned() }).ok().entries
}

fn names(agent: &Arc<Agent>, path: &str) -> Vec<String> {
    list(agent, path).into_iter().map(|entry| String::from_utf8(entry.name).unwrap()).collect()
}

fn remove(path: &str, recursive: bool) -> FileRequest {
    FileRequest::Remove { path: path.to_owned(), recursive }
}

fn make_directory(path: &str, mode: u32, parents: bool) -> FileRequest {
    FileRequest::MakeDirectory { path: path.to_owned(), mode, parents }
}

fn mode(path: &str) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

/// A FIFO, a device and a socket.
fn special_files() -> [&'static str; 3] {
    let device = rustix::fs::makedev(1, 5);
    rustix::fs::mknodat(CWD, "/tmp/fifo", FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
    rustix::fs::mknodat(CWD, "/tmp/zero", FileType::CharacterDevice, Mode::from_raw_mode(0o666), device)
        .unwrap();
    drop(std::os::unix::net::UnixListener::bind("/tmp/socket").unwrap());
    ["/tmp/fifo", "/tmp/zero", "/tmp/socket"]
}

#[test]
fn reading() {
    let Some(agent) = guest() else { return };
    let bytes: Vec<u8> =
        (0..3_000_001u32).map(|index| index.wrapping_mul(2_654_435_761).to_le_bytes()[3]).collect();
    fs::write("/tmp/data", &bytes).unwrap();
    symlink("data", "/tmp/link").unwrap();
    assert!(act(&agent, read("/tmp/data")).ok().data == bytes);
    assert!(act(&agent, read("/tmp/link")).ok().data == bytes, "links are followed");
    assert!(act(&agent, read("tmp/../tmp//data")).ok().data == bytes, "relative to the root");

    let part = |offset, length| {
        let request = FileRequest::Read { path: "/tmp/data".into(), offset, length, size_limit: None };
        act(&agent, request).ok().data
    };
    assert_eq!(part(0, 0), []);
    assert!(part(1, 5) == bytes[1..6]);
    assert!(part(2_999_999, 100) == bytes[2_999_999..]);
    for offset in [3_000_001, 1 << 40, 1 << 50, i64::MAX.cast_unsigned(), u64::MAX] {
        assert_eq!(part(offset, u64::MAX), [], "behind the end");
    }
    fs::write("/tmp/empty", "").unwrap();
    assert_eq!(act(&agent, read("/tmp/empty")).ok().data, []);
    // The file has no size.
    assert!(act(&agent, read("/proc/self/status")).ok().data.starts_with(b"Name:"));
}

#[test]
fn a_limit_on_what_is_read() {
    let Some(agent) = guest() else { return };
    fs::write("/tmp/data", "0123456789").unwrap();
    let limited = |path: &str, limit| {
        act(&agent, FileRequest::Read { path: path.into(), offset: 2, length: 3, size_limit: Some(limit) })
    };
    assert_eq!(limited("/tmp/data", 10).ok().data, b"234");
    let refused = limited("/tmp/data", 9);
    assert_eq!(refused.data, b"");
    assert_eq!(refused.failure(), FileFailure::TooLarge);
    // procfs gives no size beforehand.
    assert_eq!(limited("/proc/self/status", 4).failure(), FileFailure::TooLarge);
}

#[test]
fn what_cannot_be_read_or_written() {
    let Some(agent) = guest() else { return };
    let special = special_files();
    symlink("loop", "/tmp/loop").unwrap();
    for path in special.into_iter().chain(["/tmp", "/"]) {
        let started = Instant::now();
        assert_eq!(act(&agent, read(path)).failure(), FileFailure::NotRegular, "{path}");
        for at in [WriteAt::Truncate, WriteAt::Append, WriteAt::Offset(0)] {
            assert_eq!(write(&agent, path, 0o644, at, b"").failure(), FileFailure::NotRegular, "{path}");
        }
        assert!(started.elapsed() < Duration::from_secs(5), "{path}: nothing waits");
    }
    for (path, text, errno) in [
        ("/no/such", "open /no/such: no such file or directory", Errno::NOENT),
        ("/etc/passwd/x", "open /etc/passwd/x: not a directory", Errno::NOTDIR),
        ("/tmp/loop", "open /tmp/loop: ", Errno::LOOP),
        ("", "empty path", Errno::NOENT),
        ("/a\0b", "path \"/a\\0b\" with a NUL byte: invalid argument", Errno::INVAL),
        (&"/x".repeat(3000), "path of 6000 bytes: ", Errno::NAMETOOLONG),
    ] {
        assert_eq!(act(&agent, read(path)).errno(text), errno.raw_os_error(), "{text}");
    }
}

#[test]
fn writing() {
    let Some(agent) = guest() else { return };
    let bytes: Vec<u8> = (0..2_500_000u32).map(|index| index.to_le_bytes()[1]).collect();
    write(&agent, "/tmp/a/b/c", 0o777, WriteAt::Truncate, &bytes).ok();
    assert!(fs::read("/tmp/a/b/c").unwrap() == bytes);
    assert_eq!((mode("/tmp/a"), mode("/tmp/a/b"), mode("/tmp/a/b/c")), (0o755, 0o755, 0o755), "umask 022");
    write(&agent, "/tmp/a/b/c", 0o600, WriteAt::Truncate, b"short").ok();
    assert_eq!(fs::read("/tmp/a/b/c").unwrap(), b"short");
    assert_eq!(mode("/tmp/a/b/c"), 0o755, "a mode is for new files");

    write(&agent, "/tmp/a/b/c", 0, WriteAt::Append, b" and long").ok();
    write(&agent, "/tmp/a/b/c", 0, WriteAt::Offset(2), b"ARE").ok();
    assert_eq!(fs::read("/tmp/a/b/c").unwrap(), b"shARE and long");
    write(&agent, "/tmp/hole", 0o600, WriteAt::Offset(5), b"x").ok();
    assert_eq!(fs::read("/tmp/hole").unwrap(), b"\0\0\0\0\0x");
    write(&agent, "relative", 0o4644, WriteAt::Append, b"").ok();
    assert_eq!((fs::read("/relative").unwrap(), mode("/relative")), (vec![], 0o4644));
    symlink("tmp/hole", "/link").unwrap();
    write(&agent, "/link", 0o644, WriteAt::Truncate, b"through").ok();
    assert_eq!(fs::read("/tmp/hole").unwrap(), b"through");

    let far = write(&agent, "/tmp/hole", 0, WriteAt::Offset(u64::MAX), b"x");
    assert_eq!(far.errno("write /tmp/hole: "), Errno::FBIG.raw_os_error());
    let below_a_file = write(&agent, "/etc/passwd/x/y", 0, WriteAt::Append, b"x");
    assert_eq!(below_a_file.errno("open /etc/passwd/x/y: not a directory"), Errno::NOTDIR.raw_os_error());
    let nul = write(&agent, "/tmp/\0", 0, WriteAt::Append, b"x");
    assert_eq!(nul.errno("path "), Errno::INVAL.raw_os_error());
}

#[test]
fn a_full_disk() {
    let Some(agent) = guest() else { return };
    fs::create_dir("/small").unwrap();
    rustix::mount::mount("small", "/small", "tmpfs", MountFlags::empty(), c"size=1m").unwrap();
    // The host learns of the failure while it still sends: its writes fail, and then it reads the reason.
    let mut client = Client::file(
        &agent,
        FileRequest::Write { path: "/small/file".into(), mode: 0o644, at: WriteAt::Truncate },
    );
    let frame = [&[1, 0, 0, 1, 0][..], &[7; 1 << 16]].concat();
    while client.stream.write_all(&frame).is_ok() {}
    assert_eq!(client.act().errno("write /small/file: no space left"), Errno::NOSPC.raw_os_error());
}

#[test]
fn hanging_up_ends_a_write_and_leaves_what_came() {
    let Some(agent) = guest() else { return };
    let mut client = Client::file(
        &agent,
        FileRequest::Write { path: "/tmp/part".into(), mode: 0o644, at: WriteAt::Truncate },
    );
    client.stdin(b"some");
    client.stream.write_all(&[1, 200, 0, 0, 0, b'x']).unwrap();
    drop(client);
    wait_for_file("/tmp/part", b"some");
    agent.file_acts.wait_for_none(Duration::from_secs(5));
    assert_eq!(fs::read("/tmp/part").unwrap(), b"some", "of the half frame nothing");
    // The agent's own end has the same effect.
    let mut client = Client::file(
        &agent,
        FileRequest::Write { path: "/tmp/part".into(), mode: 0o644, at: WriteAt::Append },
    );
    client.stdin(b" more");
    wait_for_file("/tmp/part", b"some more");
    agent.hang_up();
    agent.file_acts.wait_for_none(Duration::from_secs(5));
    let act = client.act();
    assert!(!act.done && act.failure.is_none());
}

fn wait_for_file(path: &str, content: &[u8]) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while fs::read(path).unwrap_or_default() != content {
        assert!(Instant::now() < deadline);
    }
}

#[test]
fn hanging_up_ends_a_read_that_nobody_takes() {
    let Some(agent) = guest() else { return };
    fs::File::create("/tmp/large").unwrap().set_len(1 << 40).unwrap();
    let mut client = Client::file(&agent, read("/tmp/large"));
    assert!(client.next().is_some());
    // By now the act waits for room, and notices the end of one direction as well as of both.
    client.stream.shutdown(std::net::Shutdown::Write).unwrap();
    let hung_up = Instant::now();
    agent.file_acts.wait_for_none(Duration::from_secs(10));
    assert!(hung_up.elapsed() < Duration::from_secs(2));
}

#[test]
fn listing() {
    let Some(agent) = guest() else { return };
    fs::create_dir_all("/tmp/d/sub").unwrap();
    fs::write("/tmp/d/b", "12345").unwrap();
    fs::set_permissions("/tmp/d/b", Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown("/tmp/d/b", Some(1000), Some(1001)).unwrap();
    fs::File::options()
        .write(true)
        .open("/tmp/d/b")
        .unwrap()
        .set_modified(std::time::UNIX_EPOCH + Duration::new(1_000_000_000, 5))
        .unwrap();
    symlink("/no/where", "/tmp/d/a-link").unwrap();
    let entries = list(&agent, "tmp/d");
    assert_eq!(names(&agent, "/tmp/d/"), ["a-link", "b", "sub"]);
    let [link, file, directory] = entries.as_slice() else { panic!() };
    assert_eq!((link.mode, link.target.as_slice()), (0o120_777, &b"/no/where"[..]), "not followed");
    assert_eq!((file.mode, file.size, file.uid, file.gid), (0o100_640, 5, 1000, 1001));
    assert_eq!((file.mtime_s, file.mtime_ns, file.target.len()), (1_000_000_000, 5, 0));
    assert_eq!(directory.mode, 0o40_755);

    assert_eq!(list(&agent, "/tmp/d/sub"), []);
    let odd = std::ffi::OsStr::new("/tmp/d/sub");
    let odd = Path::new(odd).join(<std::ffi::OsStr as std::os::unix::ffi::OsStrExt>::from_bytes(b"\xff\n"));
    fs::write(odd, "").unwrap();
    assert_eq!(list(&agent, "/tmp/d/sub")[0].name, b"\xff\n");
    let act_on = |path: &str| act(&agent, FileRequest::List { path: path.into() });
    assert_eq!(act_on("/nowhere").errno("open /nowhere: "), Errno::NOENT.raw_os_error());
    assert_eq!(act_on("/tmp/d/b").errno("open /tmp/d/b: not a directory"), Errno::NOTDIR.raw_os_error());
}

#[test]
fn a_directory_larger_than_the_names_that_are_kept() {
    let Some(agent) = guest() else { return };
    fs::create_dir("/tmp/many").unwrap();
    // 20,000 names of 250 bytes cost more than the 4 MiB that are kept at a time.
    let mut expected: Vec<String> =
        (0..20_000u32).map(|index| format!("{:0>250}", index.wrapping_mul(2_654_435_761))).collect();
    for name in &expected {
        fs::File::create(Path::new("/tmp/many").join(name)).unwrap();
    }
    expected.sort();
    assert!(names(&agent, "/tmp/many") == expected);
    act(&agent, remove("/tmp/many", true)).ok();
    assert!(!Path::new("/tmp/many").exists());
}

#[test]
fn stat() {
    let Some(agent) = guest() else { return };
    fs::write("/tmp/file", "abc").unwrap();
    symlink("file", "/tmp/link").unwrap();
    symlink("nothing", "/tmp/dangling").unwrap();
    let stat = |path: &str, follow| act(&agent, FileRequest::Stat { path: path.into(), follow });
    let one = |path: &str, follow| {
        let [entry] = <[FileEntry; 1]>::try_from(stat(path, follow).ok().entries).unwrap();
        (String::from_utf8(entry.name).unwrap(), entry.mode & 0o170_000, entry.size, entry.target)
    };
    assert_eq!(one("tmp/file", false), ("file".into(), 0o100_000, 3, vec![]));
    assert_eq!(one("/tmp/link", true), ("link".into(), 0o100_000, 3, vec![]));
    assert_eq!(one("/tmp/link", false), ("link".into(), 0o120_000, 4, b"file".to_vec()));
    assert_eq!(one("/tmp//", true).0, "tmp");
    assert_eq!((one("/", true).0.as_str(), one("/", true).1), ("", 0o40_000));
    assert_eq!(one("/tmp/dangling", false).3, b"nothing");
    assert_eq!(stat("/tmp/dangling", true).errno("stat /tmp/dangling: "), Errno::NOENT.raw_os_error());
    for path in special_files() {
        one(path, true);
    }
}

#[test]
fn making_directories() {
    let Some(agent) = guest() else { return };
    let made = |path: &str, mode, parents| act(&agent, make_directory(path, mode, parents));
    made("/tmp/a", 0o777, false).ok();
    assert_eq!(mode("/tmp/a"), 0o755);
    assert_eq!(made("/tmp/a", 0o700, false).errno("make directory /tmp/a: "), Errno::EXIST.raw_os_error());
    made("/tmp/a", 0o700, true).ok();
    assert_eq!(mode("/tmp/a"), 0o755, "one that is there stays as it is");
    made("/tmp/b/../c/d/", 0o700, true).ok();
    assert_eq!((mode("/tmp/b"), mode("/tmp/c"), mode("/tmp/c/d")), (0o755, 0o755, 0o700));
    assert_eq!(made("/x/y", 0o700, false).errno("make directory /x/y: "), Errno::NOENT.raw_os_error());
    for path in ["/etc/passwd", "/etc/passwd/x"] {
        assert!(made(path, 0o700, true).failure.is_some(), "{path}");
    }
    made("/", 0o700, true).ok();
    symlink("/tmp/a", "/tmp/to-a").unwrap();
    made("/tmp/to-a", 0o700, true).ok();
    made("/tmp/to-a/below", 0o700, true).ok();
    assert!(Path::new("/tmp/a/below").is_dir());
}

#[test]
fn renaming() {
    let Some(agent) = guest() else { return };
    let renamed =
        |from: &str, to: &str| act(&agent, FileRequest::Rename { from: from.to_owned(), to: to.to_owned() });
    fs::write("/tmp/a", "a").unwrap();
    fs::write("/tmp/b", "b").unwrap();
    renamed("tmp/a", "/tmp/b").ok();
    assert_eq!((fs::read("/tmp/b").unwrap(), Path::new("/tmp/a").exists()), (b"a".to_vec(), false));
    let text = "rename /tmp/a to /tmp/c: no such file or directory";
    assert_eq!(renamed("/tmp/a", "/tmp/c").errno(text), Errno::NOENT.raw_os_error());
    let elsewhere = renamed("/tmp/b", "/proc/b").failure;
    assert!(elsewhere.is_some());
}

#[test]
fn removing() {
    let Some(agent) = guest() else { return };
    fs::create_dir_all("/tmp/tree/sub/deep").unwrap();
    fs::create_dir("/tmp/outside").unwrap();
    fs::write("/tmp/outside/kept", "").unwrap();
    fs::write("/tmp/tree/sub/file", "").unwrap();
    symlink("/tmp/outside", "/tmp/tree/sub/link").unwrap();
    symlink("/tmp/outside", "/tmp/link").unwrap();
    rustix::fs::mknodat(CWD, "/tmp/tree/fifo", FileType::Fifo, Mode::from_raw_mode(0o666), 0).unwrap();
    let removed = |path: &str, recursive| act(&agent, remove(path, recursive));

    assert_eq!(removed("/tmp/tree", false).errno("remove /tmp/tree: "), Errno::NOTEMPTY.raw_os_error());
    removed("/tmp/tree", true).ok();
    assert!(!Path::new("/tmp/tree").exists());
    assert_eq!(removed("/tmp/tree", true).errno("remove /tmp/tree: "), Errno::NOENT.raw_os_error());
    assert_eq!(removed("/tmp/link/", true).errno("remove /tmp/link/: "), Errno::NOTDIR.raw_os_error());
    removed("/tmp/link", true).ok();
    assert!(Path::new("/tmp/outside/kept").exists(), "links are not followed");
    removed("/tmp/outside/kept", true).ok();
    removed("tmp/outside/", true).ok();
    fs::create_dir("/tmp/empty").unwrap();
    removed("/tmp/empty", false).ok();
    for (path, errno) in [
        ("/", Errno::BUSY),
        ("//", Errno::BUSY),
        ("/tmp/.", Errno::INVAL),
        ("/tmp/..", Errno::INVAL),
        ("/etc/passwd/x", Errno::NOTDIR),
    ] {
        assert_eq!(removed(path, true).errno("remove "), errno.raw_os_error(), "{path}");
    }
    assert!(Path::new("/bin/busybox").exists());
}

#[test]
fn what_is_mounted_in_a_tree_is_not_emptied() {
    let Some(agent) = guest() else { return };
    fs::create_dir_all("/tmp/tree/mount/point").unwrap();
    rustix::mount::mount("more", "/tmp/tree/mount/point", "tmpfs", MountFlags::empty(), None).unwrap();
    fs::write("/tmp/tree/mount/point/kept", "").unwrap();
    for path in ["/tmp/tree", "/tmp/tree/mount/point"] {
        let text = "remove /tmp/tree/mount/point: ";
        assert_eq!(act(&agent, remove(path, true)).errno(text), Errno::BUSY.raw_os_error());
        assert!(Path::new("/tmp/tree/mount/point/kept").exists());
    }
}

#[test]
fn deep_trees() {
    let Some(agent) = guest() else { return };
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    rustix::process::setrlimit(
        rustix::process::Resource::Nofile,
        rustix::process::Rlimit { current: limit.maximum, ..limit },
    )
    .unwrap();
    let build = |depth: usize| {
        fs::create_dir("/tmp/deep").unwrap();
        let mut directory = rustix::fs::open("/tmp/deep", directory_flags(), Mode::empty()).unwrap();
        for _ in 1..depth {
            rustix::fs::mkdirat(&directory, "d", Mode::RWXU).unwrap();
            directory = rustix::fs::openat(&directory, "d", directory_flags(), Mode::empty()).unwrap();
        }
    };
    build(2048);
    act(&agent, remove("/tmp/deep", true)).ok();
    assert!(!Path::new("/tmp/deep").exists());
    // A tree deeper than a path can name is refused without a crash, and the message stays short.
    build(2100);
    let act = act(&agent, remove("/tmp/deep", true));
    assert_eq!(act.errno("remove /tmp/deep/d/d/"), Errno::NAMETOOLONG.raw_os_error());
}

fn directory_flags() -> rustix::fs::OFlags {
    rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::DIRECTORY | rustix::fs::OFlags::CLOEXEC
}

#[test]
fn a_tree_that_changes_while_it_is_removed() {
    let Some(agent) = guest() else { return };
    for _ in 0..20 {
        for index in 0..200 {
            fs::create_dir_all(format!("/tmp/busy/{index}/x")).unwrap();
            fs::write(format!("/tmp/busy/{index}/file"), "").unwrap();
        }
        let other = std::thread::spawn({
            let agent = Arc::clone(&agent);
            move || act(&agent, remove("/tmp/busy", true))
        });
        let one = act(&agent, remove("/tmp/busy", true));
        for act in [one, other.join().unwrap()] {
            // Each of the two removed a part, or came after the other's end.
            assert!(act.done || act.errno("remove /tmp/busy") == Errno::NOENT.raw_os_error());
        }
        assert!(!Path::new("/tmp/busy").exists());
    }
}

#[test]
fn programs_and_acts_see_the_same_files() {
    let Some(agent) = guest() else { return };
    write(&agent, "/usr/local/bin/hello", 0o755, WriteAt::Truncate, b"#!/bin/sh\necho hello\n").ok();
    assert_eq!(run(&agent, request(&["hello"])).text(), "hello\n");
    assert_eq!(run(&agent, request(&["sh", "-c", "echo x > /tmp/x"])).status(), 0);
    assert_eq!(act(&agent, read("/tmp/x")).ok().data, b"x\n");
}

#[test]
fn many_at_once() {
    let Some(agent) = guest() else { return };
    let threads: Vec<_> = (0..100)
        .map(|index| {
            let agent = Arc::clone(&agent);
            std::thread::spawn(move || {
                let (path, bytes) = (format!("/tmp/{index}"), vec![index; 300_000]);
                write(&agent, &path, 0o644, WriteAt::Truncate, &bytes).ok();
                assert!(act(&agent, read(&path)).ok().data == bytes);
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
    assert_eq!(names(&agent, "/tmp").len(), 100);
}
