//! The process of shared folders as its guest and its supervisor meet it: files both ways, requests that no kernel would
//! make, walls, limits, and ends.

#![allow(clippy::unwrap_used, clippy::cast_possible_truncation, reason = "tests")]

mod added;
mod changes;
mod guest;
mod kinds;
mod watch;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use confinement::User;
use guest::{
    FIRST, Guest, IN_TABLE, NEXT, PATIENCE, QUEUE_SIZE, REPLY, REQUEST, ROOT, URGENT, WRITE, answer, long,
    longs, request, terminated, words,
};
use machine::shares::{Caching, View};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, Signal};

const EPERM: i32 = 1;
const EIO: i32 = 5;
const EBADF: i32 = 9;
const EACCES: i32 = 13;
const EXDEV: i32 = 18;
const EINVAL: i32 = 22;
const EROFS: i32 = 30;
const ENOENT: i32 = 2;
const EBUSY: i32 = 16;
const EEXIST: i32 = 17;
const ENOSPC: i32 = 28;
const ENOSYS: i32 = 38;
const ESTALE: i32 = 116;

const PROGRAM: &str = env!("CARGO_BIN_EXE_matchlock-shares");
/// A user without privilege.
const USER: u32 = 1001;

/// Two directories that are shared, beside one that is not.
fn house() -> tempfile::TempDir {
    let house = tempfile::tempdir().unwrap();
    for name in ["shared", "other", "private"] {
        fs::create_dir(house.path().join(name)).unwrap();
    }
    fs::write(house.path().join("private/secret"), "secret").unwrap();
    house
}

/// A line of a file below `/proc`, without its name.
fn of_proc(pid: u32, file: &str, name: &str) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn read_args(handle: u64, offset: u64, len: u32) -> Vec<u8> {
    [longs(&[handle, offset]), words(&[len, 0]), longs(&[0, 0])].concat()
}

fn write_args(handle: u64, data: &[u8]) -> Vec<u8> {
    [longs(&[handle, 0]), words(&[data.len() as u32, 0]), longs(&[0, 0]), data.to_vec()].concat()
}

#[test]
fn files_go_both_ways() {
    let house = house();
    let (shared, other) = (house.path().join("shared"), house.path().join("other"));
    let caching = Caching::None;
    let readonly = View { readonly: true, owner_uid: Some(77), owner_gid: Some(78), caching };
    fs::write(shared.join("of the host"), "hello").unwrap();
    fs::write(other.join("kept"), "kept").unwrap();
    let mut guest = Guest::new(&[(&shared, View::default()), (&other, readonly)]);
    let tag = [&b"matchlock"[..], &[0; 27], &2u32.to_le_bytes(), &[0; 8]].concat();
    assert_eq!(guest.config(48), tag);

    // The directory of mounts: each is one for the guest's kernel (FUSE_ATTR_SUBMOUNT).
    let entry = guest.ask(FIRST, 1, ROOT, &terminated(b"0")).unwrap();
    let (mount, flags) = (long(&entry, 0), &entry[124..128]);
    assert_eq!(flags, 1u32.to_le_bytes());
    let kept = guest.look_up(ROOT, b"1").unwrap();
    for name in [&b"2"[..], b"00", b"-1", b"shared"] {
        assert_eq!(guest.look_up(ROOT, name), Err(ENOENT));
    }
    let list = guest.ask(FIRST, 28, ROOT, &read_args(0, 0, 4096)).unwrap();
    assert_eq!((list.len(), list[24], list[56]), (64, b'0', b'1'));
    assert_eq!(guest.create(ROOT, b"2"), Err(EROFS));

    let file = guest.look_up(mount, b"of the host").unwrap();
    let handle = guest.open(file, 0).unwrap();
    assert_eq!(guest.ask(FIRST, 15, file, &read_args(handle, 1, 100)).unwrap(), b"ello");
    let (made, handle) = guest.create(mount, b"of the guest").unwrap();
    guest.ask(FIRST + 1, 16, made, &write_args(handle, b"good day")).unwrap();
    assert_eq!(fs::read(shared.join("of the guest")).unwrap(), b"good day");

    // As much as a request may move, by an indirect table, and through another thread.
    let data: Vec<u8> = (0..1 << 20).map(|at: u32| (at % 251) as u8).collect();
    let reply = guest.serve_by_table(FIRST, &request(16, made, &write_args(handle, &data)), 24);
    assert_eq!(answer(&reply).unwrap(), words(&[1 << 20, 0]));
    assert_eq!(fs::read(shared.join("of the guest")).unwrap(), data);
    let reply =
        guest.serve_by_table(FIRST, &request(15, made, &read_args(handle, 0, 1 << 20)), (1 << 20) + 16);
    assert_eq!(answer(&reply).unwrap(), data);
    assert_eq!(guest.ask(FIRST, 20, made, &[longs(&[handle]), words(&[0, 0])].concat()), Ok(Vec::new()));

    // A list that names nodes names them as they are found.
    let directory = guest.ask(FIRST, 27, mount, &words(&[0, 0])).map(|opened| long(&opened, 0)).unwrap();
    let list = guest.ask(FIRST, 44, mount, &read_args(directory, 0, 4096)).unwrap();
    let listed: Vec<u64> = (0..list.len() - 7).step_by(8).map(|at| long(&list, at)).collect();
    assert!(listed.contains(&file) && listed.contains(&made));

    // A node that is forgotten, by the queue for that, is gone.
    for (node, count) in [(file, 2u64), (kept, 9)] {
        assert_eq!(guest.serve_bytes(URGENT, &request(2, node, &longs(&[count])), 0), b"");
    }
    assert_eq!(guest.ask(FIRST, 3, file, &longs(&[0, 0])), Err(ESTALE));

    let file = guest.look_up(kept, b"kept").unwrap();
    let attributes = guest.ask(FIRST, 3, file, &longs(&[0, 0])).unwrap();
    assert_eq!(attributes[84..92], words(&[77, 78]));
    assert_eq!(guest.open(file, 2), Err(EROFS));
    // Nothing that the guest is told of this share may be kept (FOPEN_DIRECT_IO); of the other one some, for a second.
    let opened = guest.ask(FIRST, 14, file, &words(&[0, 0])).unwrap();
    assert_eq!((&opened[8..12], &attributes[..16]), (&words(&[1])[..], &[0; 16][..]));
    let attributes = guest.ask(FIRST, 3, mount, &longs(&[0, 0])).unwrap();
    assert_eq!(attributes[..16], longs(&[1, 0]));
    assert_eq!(guest.create(kept, b"new"), Err(EROFS));
    assert_eq!(guest.rename((mount, b"of the guest"), (kept, b"x")), Err(EXDEV));
    assert_eq!(guest.rename((mount, b"of the guest"), (ROOT, b"x")), Err(EXDEV));
    assert_eq!(guest.ask(FIRST, 13, mount, &[longs(&[file]), terminated(b"x")].concat()), Err(EXDEV));
}

#[test]
fn requests_and_chains_that_no_kernel_makes_come_back_and_harm_nobody() {
    let house = house();
    let shared = house.path().join("shared");
    fs::write(shared.join("file"), "file").unwrap();
    let mut guest = Guest::new(&[(&shared, View::default())]);
    let mount = guest.look_up(ROOT, b"0").unwrap();

    // Names that lead out, and numbers that were not given: of this mount, of none, and of the directory of mounts.
    for name in [&b".."[..], b".", b"a/b", b"../private/secret", b"/etc/passwd"] {
        for parent in [ROOT, mount] {
            assert_eq!(guest.look_up(parent, name), Err(EINVAL), "{}", name.escape_ascii());
        }
    }
    for node in [0, 2, u64::MAX, 2 << 48 | 1, 1 << 48, 1 << 48 | 999, 1 << 63] {
        assert_eq!(guest.look_up(node, b"file"), Err(ESTALE), "{node:#x}");
        assert_eq!(guest.rename((mount, b"file"), (node, b"file")), Err(ESTALE), "{node:#x}");
        assert_eq!(guest.serve_bytes(URGENT, &request(2, node, &longs(&[u64::MAX])), 0), b"");
    }

    let look_up = request(1, mount, &terminated(b"file"));
    // Requests that are none, and room for no reply.
    assert_eq!(guest.serve_bytes(FIRST, &look_up[..8], 4096), b"");
    assert_eq!(answer(&guest.serve_bytes(FIRST, &look_up[..40], 4096)), Err(EINVAL));
    let unterminated = request(1, mount, b"file");
    assert_eq!(answer(&guest.serve_bytes(FIRST, &unterminated, 4096)), Err(EINVAL));
    for len in [0, 39, 44, u32::MAX] {
        let lie = [&words(&[len]), &look_up[4..]].concat();
        assert_eq!(answer(&guest.serve_bytes(FIRST, &lie, 4096)), Err(EINVAL));
    }
    for room in [0, 1, 15] {
        assert_eq!(guest.serve_bytes(FIRST, &look_up, room), b"");
    }
    guest.put(REQUEST, &look_up);
    let len = look_up.len() as u32;
    let malformed = [
        // A loop; an answer before the question; memory that is not there; a table in a table, and one past memory.
        vec![(REQUEST, len, NEXT, 1), (REPLY, 4096, WRITE | NEXT, 0)],
        vec![(REPLY, 4096, WRITE | NEXT, 1), (REQUEST, len, 0, 0)],
        vec![(REQUEST, len, NEXT, 1), (1 << 40, 4096, WRITE, 0)],
        vec![(u64::MAX - 8, len, NEXT, 1), (REPLY, 4096, WRITE, 0)],
        vec![(REQUEST, len, NEXT, QUEUE_SIZE)],
        vec![(1 << 40, 4096, IN_TABLE, 0)],
        vec![(REQUEST, 7, IN_TABLE, 0)],
    ];
    for chain in malformed {
        assert_eq!(guest.serve(FIRST, &chain), 0, "{chain:x?}");
    }
    // The question and the answer in the same place.
    guest.serve(FIRST, &[(REQUEST, len, NEXT, 1), (REQUEST, 4096, WRITE, 0)]);
    // Operations there are not.
    for opcode in [0, 7, 53, 4096, u32::MAX] {
        assert!(guest.ask(FIRST, opcode, mount, &[0; 64]).is_err());
    }

    assert!(guest.look_up(mount, b"file").is_ok(), "still there");

    // A kernel that starts once more has a mount of its own, in which nothing of the one before is known.
    let file = guest.look_up(mount, b"file").unwrap();
    let handle = guest.open(file, 0).unwrap();
    let init = [words(&[7, 40, 1 << 17, u32::MAX, u32::MAX]), vec![0; 44]].concat();
    guest.ask(FIRST, 26, 0, &init).unwrap();
    assert_eq!(guest.ask(FIRST, 3, file, &longs(&[0, 0])), Err(ESTALE));
    assert_eq!(guest.ask(FIRST, 15, file, &read_args(handle, 0, 100)), Err(EBADF));
    let again = guest.look_up(ROOT, b"0").and_then(|mount| guest.look_up(mount, b"file")).unwrap();
    let handle = guest.open(again, 0).unwrap();
    assert_eq!(guest.ask(FIRST, 15, again, &read_args(handle, 0, 100)).unwrap(), b"file");
    assert_eq!(fs::read_dir(house.path().join("private")).unwrap().count(), 1);
}

#[test]
fn a_guest_takes_no_more_than_it_is_given() {
    let house = house();
    let shared = house.path().join("shared");
    for number in 0..1000 {
        fs::write(shared.join(number.to_string()), "x").unwrap();
    }
    fs::write(shared.join("long"), vec![b'x'; 1 << 20]).unwrap();
    let mut guest = Guest::new(&[(&shared, View::default())]);
    let pid = guest.shares.pid();
    let mount = guest.look_up(ROOT, b"0").unwrap();
    // A ring full of requests for 1 MiB each, all with the same buffers: what waits is in the guest's memory.
    let long = guest.look_up(mount, b"long").unwrap();
    let handle = guest.open(long, 0).unwrap();
    guest.put(REQUEST, &request(15, long, &read_args(handle, 0, 1 << 20)));
    guest.describe(FIRST, &[(REQUEST, 80, NEXT, 1), (REPLY, (1 << 20) + 16, WRITE, 0)]);
    let before = guest.rings.used(FIRST);
    for round in 1..=4u16 {
        guest.rings.offer(FIRST, [0; QUEUE_SIZE as usize]);
        guest.kick(FIRST);
        guest.wait_used(FIRST, before.wrapping_add(round * QUEUE_SIZE));
    }
    // Everything is looked up, again and again, and opened; nothing is ever given back.
    for round in 0..20 {
        for number in 0..1000u32 {
            let node = guest.look_up(mount, number.to_string().as_bytes()).unwrap();
            if round < 2 {
                guest.open(node, 2).unwrap();
            }
        }
    }
    let resident: u64 = of_proc(pid, "status", "RssAnon:").split(' ').next().unwrap().parse().unwrap();
    assert!(resident < 16 << 10, "{resident} KiB");
    let threads: u32 = of_proc(pid, "status", "Threads:").parse().unwrap();
    assert!(threads < 20, "{threads} threads");
    let soft: u64 = of_proc(pid, "limits", "Max open files").split(' ').next().unwrap().parse().unwrap();
    let open = fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count() as u64;
    assert!(open < soft, "{open} of {soft}");
}

/// Checks what the process may do, and that it serves as `user`.
fn walls_hold(mut guest: Guest, shared: &Path, user: u32) {
    let pid = guest.shares.pid();
    let status = |name| of_proc(pid, "status", name);
    assert_eq!(status("CapEff:"), "0000000000000000");
    assert_eq!(status("CapPrm:"), "0000000000000000");
    assert_eq!((status("NoNewPrivs:").as_str(), status("Seccomp:").as_str()), ("1", "2"));
    assert_eq!(status("Uid:"), format!("{user} {user} {user} {user}"));
    assert_eq!(of_proc(pid, "limits", "Max core file size"), "1 1 bytes");
    // Its root directory has what is shared, and nothing besides.
    let root = PathBuf::from(format!("/proc/{pid}/root"));
    let names: Vec<_> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["0"]);
    let (there, shared_there) = (fs::metadata(root.join("0")).unwrap(), fs::metadata(shared).unwrap());
    assert_eq!((there.dev(), there.ino()), (shared_there.dev(), shared_there.ino()));
    let net = fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_ne!(net, fs::read_link("/proc/self/ns/net").unwrap());

    let mount = guest.look_up(ROOT, b"0").unwrap();
    guest.create(mount, b"new").unwrap();
    let made = fs::metadata(shared.join("new")).unwrap();
    assert_eq!((made.uid(), made.permissions().mode()), (user, 0o100_644));
    assert_eq!(guest.look_up(mount, b"of root").and_then(|node| guest.open(node, 0)), Err(EACCES));
    changes::are_told(&guest.shares, shared);
}

#[test]
fn root_serves_a_users_directory_as_that_user_and_sees_nothing_else() {
    if !rustix::process::geteuid().is_root() {
        return skip::skip("root", "takes on another user");
    }
    let house = tempfile::tempdir().unwrap();
    let shared = house.path().join("shared");
    fs::create_dir(&shared).unwrap();
    chown(&shared, Some(USER), Some(USER)).unwrap();
    fs::write(shared.join("of root"), "x").unwrap();
    fs::set_permissions(shared.join("of root"), fs::Permissions::from_mode(0o600)).unwrap();
    let user = User { uid: USER, gid: USER, groups: vec![USER, 4242] };
    let served = guest::start(Path::new(PROGRAM), &[(&shared, View::default())], Some(user));
    let guest = Guest::served_by(served);
    assert_eq!(of_proc(guest.shares.pid(), "status", "Groups:"), format!("{USER} 4242"));
    walls_hold(guest, &shared, USER);
}

#[test]
fn a_user_without_privilege_has_the_same_walls() {
    if !rustix::process::geteuid().is_root() {
        return skip::skip("root", "takes on another user");
    }
    let user = USER.to_string();
    let unshare =
        ["--reuid", &user, "--regid", &user, "--clear-groups", "unshare", "--user", "--mount", "true"];
    if !Command::new("setpriv").args(unshare).status().is_ok_and(|status| status.success()) {
        return skip::skip("namespaces", "this host lets users have none");
    }
    let house = tempfile::tempdir().unwrap();
    fs::set_permissions(house.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let (shared, program) = (house.path().join("shared"), house.path().join("matchlock-shares"));
    fs::create_dir(&shared).unwrap();
    chown(&shared, Some(USER), Some(USER)).unwrap();
    fs::write(shared.join("of root"), "x").unwrap();
    fs::set_permissions(shared.join("of root"), fs::Permissions::from_mode(0o600)).unwrap();
    // The program is where that user finds it; who starts it is nobody's business but the test's.
    fs::copy(PROGRAM, house.path().join("program")).unwrap();
    let script = format!(
        "#!/bin/sh\nexec setpriv --reuid {USER} --regid {USER} --clear-groups {}\n",
        house.path().join("program").display()
    );
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    walls_hold(Guest::served_by(guest::start(&program, &[(&shared, View::default())], None)), &shared, USER);
}

#[test]
fn a_process_that_is_killed_says_so_and_one_without_a_supervisor_ends() {
    let house = house();
    let shared = house.path().join("shared");
    let mut guest = Guest::new(&[(&shared, View::default())]);
    let pid = Pid::from_raw(guest.shares.pid() as i32).unwrap();
    rustix::process::kill_process(pid, Signal::KILL).unwrap();
    let patience = PATIENCE.try_into().unwrap();
    assert_eq!(
        poll(&mut [PollFd::from_borrowed_fd(guest.shares.ended(), PollFlags::IN)], Some(&patience)),
        Ok(1)
    );
    let why = guest.shares.failure();
    assert!(why.contains("signal: 9"), "{why}");

    let (mut shares, _socket) = guest::start(Path::new(PROGRAM), &[(&shared, View::default())], None);
    shares.wait_until_serving().unwrap();
    let pid = Pid::from_raw(shares.pid() as i32).unwrap();
    let ended = rustix::process::pidfd_open(pid, PidfdFlags::empty()).unwrap();
    drop(shares);
    assert_eq!(poll(&mut [PollFd::new(&ended, PollFlags::IN)], Some(&patience)), Ok(1));
}

#[test]
fn what_cannot_be_served_is_an_error_with_a_reason() {
    let house = house();
    let file = house.path().join("private/secret");
    let (mut shares, _socket) = guest::start(Path::new(PROGRAM), &[(&file, View::default())], None);
    let error = shares.wait_until_serving().unwrap_err().to_string();
    assert_eq!(error, "shared folders: what is shared is not a directory");
}
