//! A shared directory as programs see it: mounted on the host, beside the directory itself.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::ffi::{CString, OsStr};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use fuse::Coherence;
use rustix::fs::{AtFlags, CWD, Mode, OFlags, Timespec, Timestamps, XattrFlags};
use rustix::process::{Gid, Uid};
use shares::{Budget, Caching, HostFs, MountError, Mounted, Options};

/// A user who has no privilege, and serves.
const USER: u32 = 1001;

/// A directory and its mount.
struct Share {
    _mounted: Mounted,
    _shared: tempfile::TempDir,
    _place: tempfile::TempDir,
    /// The directory, as the host has it.
    host: PathBuf,
    /// The mount, as a guest has it.
    guest: PathBuf,
}

/// A share whose attributes are told anew each time, served by a user without privilege.
fn share(options: Options) -> Option<Share> {
    share_as(Options { valid: Duration::ZERO, ..options })
}

/// A share with just these options, served by a user without privilege.
fn share_as(options: Options) -> Option<Share> {
    if !rustix::process::geteuid().is_root() {
        skip::skip("root", "mounts need root");
        return None;
    }
    let (shared, place) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    chown(shared.path(), Some(USER), Some(USER)).unwrap();
    let enter = || {
        let (user, group) = (Uid::from_raw(USER), Gid::from_raw(USER));
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(group, group, group).unwrap();
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
    };
    let files = HostFs::new(shared.path(), options).unwrap();
    let mounted = match Mounted::new(files, Coherence::Shared, place.path(), 2, enter) {
        Ok(mounted) => mounted,
        Err(MountError::Device(error)) => {
            skip::skip("fuse", format!("/dev/fuse: {error}"));
            return None;
        }
        Err(error) => panic!("{error}"),
    };
    let (host, guest) = (shared.path().to_owned(), place.path().to_owned());
    Some(Share { _mounted: mounted, _shared: shared, _place: place, host, guest })
}

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().permissions().mode() & 0o7777
}

fn owner(path: &Path) -> (u32, u32) {
    let found = fs::symlink_metadata(path).unwrap();
    (found.uid(), found.gid())
}

fn set_mode(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn owners_and_special_bits_are_the_guests_and_permissions_the_hosts_too() {
    let Some(share) = share(Options::default()) else { return };
    let (guest, host) = (share.guest.join("a"), share.host.join("a"));
    fs::write(&guest, "a").unwrap();
    assert_eq!((owner(&guest), owner(&host)), ((0, 0), (USER, USER)));
    chown(&guest, Some(33), Some(34)).unwrap();
    set_mode(&guest, 0o6751);
    assert_eq!((owner(&guest), mode(&guest)), ((33, 34), 0o6751));
    assert_eq!((owner(&host), mode(&host)), ((USER, USER), 0o751));
    // A change of the owner takes privileges, and so does a write of somebody without privilege.
    chown(&guest, Some(35), None).unwrap();
    assert_eq!((owner(&guest), mode(&guest)), ((35, 34), 0o751));
    // Modes that forbid the host's user to go on.
    set_mode(&guest, 0o000);
    assert_eq!((mode(&guest), mode(&host)), (0, 0o600));
    assert_eq!(fs::read(&guest).unwrap(), b"a");
    // The host's user has the last word.
    set_mode(&host, 0o640);
    assert_eq!(mode(&guest), 0o640);
    // Files of a directory with a group of its own are of that group.
    let directory = share.guest.join("d");
    fs::create_dir(&directory).unwrap();
    chown(&directory, None, Some(50)).unwrap();
    set_mode(&directory, 0o2775);
    fs::create_dir(directory.join("e")).unwrap();
    File::create(directory.join("f")).unwrap();
    assert_eq!((owner(&directory.join("e")), mode(&directory.join("e"))), ((0, 50), 0o2755));
    assert_eq!(owner(&directory.join("f")), (0, 50));
    assert_eq!(mode(&share.host.join("d/e")), 0o755);
    symlink("a", share.guest.join("link")).unwrap();
    lchown(share.guest.join("link"), Some(7), Some(8)).unwrap();
    assert_eq!(owner(&share.guest.join("link")), (7, 8));
}

#[test]
fn owners_that_are_asked_for_are_those_of_everything_else() {
    let options = Options { owner_uid: Some(1000), ..Options::default() };
    let Some(share) = share(options) else { return };
    fs::write(share.host.join("a"), "a").unwrap();
    assert_eq!(owner(&share.guest.join("a")), (1000, 0));
    fs::write(share.guest.join("b"), "b").unwrap();
    assert_eq!(owner(&share.guest.join("b")), (0, 0));
    chown(share.guest.join("a"), Some(3), None).unwrap();
    assert_eq!(owner(&share.guest.join("a")), (3, 0));
}

#[test]
fn a_new_file_is_written_by_who_made_it_whatever_its_mode() {
    let Some(share) = share(Options::default()) else { return };
    for (name, bits) in [("a", 0o444), ("b", 0o000)] {
        let path = share.guest.join(name);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(bits).open(&path).unwrap();
        file.write_all(b"contents").unwrap();
        assert_eq!((mode(&path), file.metadata().unwrap().len()), (bits, 8));
        fs::remove_file(&path).unwrap();
        assert!(!share.host.join(name).exists());
    }
}

#[test]
fn open_files_outlive_their_names() {
    let Some(share) = share(Options::default()) else { return };
    let (a, b) = (share.guest.join("a"), share.guest.join("b"));
    let open = || OpenOptions::new().read(true).write(true).create(true).truncate(true).open(&a).unwrap();
    let check = |mut file: File| {
        file.write_all(b"kept").unwrap();
        file.set_len(10).unwrap();
        file.set_permissions(fs::Permissions::from_mode(0o640)).unwrap();
        file.sync_all().unwrap();
        let found = file.metadata().unwrap();
        assert_eq!((found.nlink(), found.len(), found.mode() & 0o777), (0, 10, 0o640));
        file.seek(SeekFrom::Start(0)).unwrap();
        let mut text = Vec::new();
        file.read_to_end(&mut text).unwrap();
        assert_eq!(text, b"kept\0\0\0\0\0\0");
    };
    let removed = open();
    fs::remove_file(&a).unwrap();
    check(removed);
    let replaced = open();
    fs::write(&b, "new").unwrap();
    fs::rename(&b, &a).unwrap();
    check(replaced);
    assert_eq!(fs::read(&a).unwrap(), b"new");
    // A directory that somebody is in.
    fs::create_dir(&b).unwrap();
    let inside = rustix::fs::open(&b, OFlags::PATH, Mode::empty()).unwrap();
    fs::remove_dir(&b).unwrap();
    assert_eq!(rustix::fs::fstat(&inside).unwrap().st_mode & 0o170_000, 0o040_000);
    // A file that never had a name, and gets one.
    let flags = OFlags::TMPFILE | OFlags::RDWR;
    let mut nameless = File::from(rustix::fs::open(&share.guest, flags, Mode::from_raw_mode(0o600)).unwrap());
    nameless.write_all(b"nameless").unwrap();
    assert_eq!(nameless.metadata().unwrap().nlink(), 0);
    let number = rustix::path::DecInt::from_fd(&nameless);
    let link = PathBuf::from("/proc/self/fd").join(number.as_ref() as &Path);
    rustix::fs::linkat(CWD, &link, CWD, &b, AtFlags::SYMLINK_FOLLOW).unwrap();
    assert_eq!(fs::read(share.host.join("b")).unwrap(), b"nameless");
}

#[test]
fn what_the_host_does_is_seen_and_what_the_guest_does_too() {
    let Some(share) = share(Options::default()) else { return };
    let (guest, host) = (share.guest.join("a"), share.host.join("a"));
    fs::write(&host, "one").unwrap();
    assert_eq!(fs::read(&guest).unwrap(), b"one");
    fs::write(share.host.join("b"), "another").unwrap();
    fs::rename(share.host.join("b"), &host).unwrap();
    assert_eq!(fs::read(&guest).unwrap(), b"another");
    fs::remove_file(&host).unwrap();
    assert!(!guest.exists());
    fs::create_dir(&guest).unwrap();
    assert!(host.is_dir());
    fs::rename(&host, share.host.join("c")).unwrap();
    fs::write(share.guest.join("c/d"), "d").unwrap();
    assert_eq!(fs::read(share.host.join("c/d")).unwrap(), b"d");
    // Guest and host append to one file, and neither overwrites.
    let append = |path: &Path| OpenOptions::new().append(true).create(true).open(path).unwrap();
    let (mut ours, mut theirs) = (append(&share.guest.join("log")), append(&share.host.join("log")));
    for _ in 0..50 {
        ours.write_all(b"guest\n").unwrap();
        theirs.write_all(b"host..\n").unwrap();
    }
    let text = fs::read_to_string(share.host.join("log")).unwrap();
    assert_eq!((text.lines().count(), text.len()), (100, 50 * 13));
    assert!(text.lines().all(|line| line == "guest" || line == "host.."));
}

#[test]
fn names_are_bytes_and_links_are_counted() {
    let Some(share) = share(Options::default()) else { return };
    let long = "x".repeat(255);
    for name in [&b"\xff\xfe"[..], "e\u{301}".as_bytes(), "\u{e9}".as_bytes(), b"a b\\040", long.as_bytes()] {
        let name = OsStr::from_bytes(name);
        fs::write(share.guest.join(name), "x").unwrap();
        assert!(share.host.join(name).exists());
        fs::rename(share.guest.join(name), share.guest.join("tmp")).unwrap();
        fs::rename(share.guest.join("tmp"), share.guest.join(name)).unwrap();
    }
    assert_eq!(fs::read_dir(&share.guest).unwrap().count(), 5);
    let too_long = fs::write(share.guest.join(format!("{long}x")), "x").unwrap_err();
    assert_eq!(too_long.raw_os_error(), Some(36));
    symlink("target", share.guest.join("link")).unwrap();
    for _ in 0..100 {
        fs::hard_link(share.guest.join("link"), share.guest.join("again")).unwrap();
        let found = fs::symlink_metadata(share.guest.join("again")).unwrap();
        assert_eq!((found.nlink(), found.len()), (2, 6));
        assert_eq!(found.ino(), fs::symlink_metadata(share.guest.join("link")).unwrap().ino());
        fs::remove_file(share.guest.join("again")).unwrap();
    }
    assert_eq!(fs::read_link(share.host.join("link")).unwrap(), Path::new("target"));
}

#[test]
fn fifos_work_in_the_guest_and_are_not_on_the_host() {
    let Some(share) = share(Options::default()) else { return };
    let path = share.guest.join("fifo");
    rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
    let writer = std::thread::spawn({
        let path = path.clone();
        move || fs::write(path, "through").unwrap()
    });
    assert_eq!(fs::read(&path).unwrap(), b"through");
    writer.join().unwrap();
    assert!(fs::read_dir(&share.guest).unwrap().any(|entry| entry.unwrap().file_name() == "fifo"));
    assert_eq!(fs::read_dir(&share.host).unwrap().count(), 0);
    fs::remove_file(&path).unwrap();
    assert!(!path.exists());
    // A directory of somebody else's, in which everybody may make names.
    fs::create_dir(share.host.join("d")).unwrap();
    set_mode(&share.host.join("d"), 0o777);
    let path = share.guest.join("d/fifo");
    rustix::fs::mknodat(CWD, &path, rustix::fs::FileType::Fifo, Mode::from_raw_mode(0o644), 0).unwrap();
    fs::rename(&path, share.guest.join("d/moved")).unwrap();
    fs::remove_file(share.guest.join("d/moved")).unwrap();
    let changed = fs::metadata(share.host.join("d")).unwrap().modified().unwrap();
    assert!(changed.elapsed().unwrap() < Duration::from_secs(60));
}

#[test]
fn large_directories_are_listed_whole_however_few_descriptors_there_are() {
    let options = Options { budget: Budget { nodes: 16, handles: 16 }, ..Options::default() };
    let Some(share) = share(options) else { return };
    for number in 0..3000 {
        fs::write(share.host.join(format!("file-{number}")), number.to_string()).unwrap();
    }
    let names = || fs::read_dir(&share.guest).unwrap().map(|entry| entry.unwrap().file_name());
    assert_eq!(names().collect::<std::collections::BTreeSet<_>>().len(), 3000);
    for number in (0..3000).step_by(7) {
        let path = share.guest.join(format!("file-{number}"));
        assert_eq!(fs::read_to_string(path).unwrap(), number.to_string());
    }
    // Files are removed while they are listed.
    for name in names() {
        fs::remove_file(share.guest.join(name)).unwrap();
    }
    assert_eq!(fs::read_dir(&share.host).unwrap().count(), 0);
}

#[test]
fn times_attributes_and_space_are_kept() {
    let Some(share) = share(Options::default()) else { return };
    let path = share.guest.join("a");
    fs::write(&path, vec![1; 100_000]).unwrap();
    let time = |seconds| Timespec { tv_sec: seconds, tv_nsec: 123_456_789 };
    let times = Timestamps { last_access: time(-5), last_modification: time(1 << 32) };
    rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
    let host = fs::metadata(share.host.join("a")).unwrap();
    assert_eq!((host.atime(), host.mtime(), host.mtime_nsec()), (-5, 1 << 32, 123_456_789));
    let set = |name: &str, value: &[u8]| rustix::fs::setxattr(&path, name, value, XattrFlags::empty());
    let get = |name: &str| {
        let mut value = Vec::with_capacity(100);
        rustix::fs::getxattr(&path, name, rustix::buffer::spare_capacity(&mut value)).map(|_| value)
    };
    set("user.a", b"value").unwrap();
    set("security.capability", b"\x01\0\0\x02\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0").unwrap();
    assert_eq!(get("user.a").unwrap(), b"value");
    assert!(get("security.capability").is_ok());
    let on_host = CString::new(share.host.join("a").as_os_str().as_bytes()).unwrap();
    assert_eq!(rustix::fs::listxattr(&on_host, &mut [0u8; 100][..]).unwrap(), 0);
    // A file that gets a new owner has no capabilities.
    chown(&path, Some(0), Some(0)).unwrap();
    assert!(get("security.capability").is_err());
    let file = OpenOptions::new().read(true).write(true).open(&path).unwrap();
    let punch = rustix::fs::FallocateFlags::PUNCH_HOLE | rustix::fs::FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, punch, 4096, 8192).unwrap();
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(0)).unwrap(), 4096);
    assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(5000)).unwrap(), 12_288);
    let mut byte = [9];
    file.read_exact_at(&mut byte, 5000).unwrap();
    assert_eq!(byte, [0]);
    let copy = File::create(share.guest.join("b")).unwrap();
    let copied = rustix::fs::copy_file_range(&file, Some(&mut 0), &copy, None, 50_000).unwrap();
    assert_eq!(copied, 50_000);
    assert!(fs::read(share.host.join("b")).unwrap() == fs::read(&path).unwrap()[..50_000]);
    let state = rustix::fs::statvfs(&share.guest).unwrap();
    let of_host = rustix::fs::statvfs(&share.host).unwrap();
    assert_eq!((state.f_bsize, state.f_frsize), (4096, 4096));
    let flags = rustix::fs::StatVfsMountFlags::NODEV | rustix::fs::StatVfsMountFlags::NOSUID;
    assert!(state.f_flag.contains(flags), "{:?}", state.f_flag);
    assert_eq!(state.f_blocks * 4096, of_host.f_blocks * of_host.f_frsize);
}

#[test]
fn a_share_that_is_read_only_is_so_for_root() {
    let Some(share) = share(Options { readonly: true, ..Options::default() }) else { return };
    fs::write(share.host.join("a"), "a").unwrap();
    let path = share.guest.join("a");
    let refused = [
        fs::write(&path, "b"),
        fs::remove_file(&path),
        fs::rename(&path, share.guest.join("b")),
        fs::create_dir(share.guest.join("d")),
        fs::set_permissions(&path, fs::Permissions::from_mode(0o777)),
        chown(&path, Some(5), None),
        OpenOptions::new().read(true).write(true).open(&path).map(drop),
    ];
    for refused in refused {
        assert_eq!(refused.unwrap_err().raw_os_error(), Some(30));
    }
    assert_eq!(fs::read(&path).unwrap(), b"a");
}

/// Waits until something is so, which takes at most a second by what is promised, and a moment of a busy host's.
fn within_a_second(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(5), "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

#[test]
fn by_default_contents_are_those_of_the_last_open_and_names_those_of_the_last_second() {
    let Some(share) = share_as(Options::default()) else { return };
    let (guest, host) = (share.guest.join("a"), share.host.join("a"));
    let read = || fs::read_to_string(&guest).unwrap();
    fs::write(&host, "one").unwrap();
    set_mode(&host, 0o666);
    // Of the same size, in the same second, however often.
    for text in ["two", "six", "ten"] {
        assert_eq!(
            (read(), read()),
            (fs::read_to_string(&host).unwrap(), fs::read_to_string(&host).unwrap())
        );
        fs::write(&host, text).unwrap();
        assert_eq!(read(), text);
    }
    // Of a file whose pages the guest keeps: it has not changed for a while.
    let changed = Instant::now();
    while changed.elapsed() < Duration::from_secs(3) {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!([read(), read(), read()], ["ten", "ten", "ten"]);
    fs::write(&host, "old").unwrap();
    assert_eq!(read(), "old");
    fs::write(&host, "longer").unwrap();
    assert_eq!(read(), "longer");
    fs::write(&host, "short").unwrap();
    assert_eq!(read(), "short");
    // A file that a program of the guest writes, and one of the host then.
    fs::write(&guest, "guest").unwrap();
    assert_eq!(read(), "guest");
    fs::write(&host, "hosts").unwrap();
    assert_eq!(read(), "hosts");
    // A name that was not there.
    let (guest_b, host_b) = (share.guest.join("b"), share.host.join("b"));
    assert!(!guest_b.exists());
    fs::write(&host_b, "b").unwrap();
    assert!(guest_b.exists(), "names that are not there are asked for each time");
    fs::remove_file(&host_b).unwrap();
    within_a_second("a name that is gone", || !guest_b.exists());
    fs::create_dir(&guest_b).unwrap();
    OpenOptions::new().append(true).open(&host).unwrap().write_all(b" more").unwrap();
    within_a_second("attributes", || fs::metadata(&guest).unwrap().len() == 10);
}

#[test]
fn without_caches_the_guest_sees_everything_at_once() {
    let Some(share) = share_as(Options { caching: Caching::None, ..Options::default() }) else { return };
    let (guest, host) = (share.guest.join("a"), share.host.join("a"));
    fs::write(&host, "one").unwrap();
    let open = File::open(&guest).unwrap();
    let writer = OpenOptions::new().write(true).open(&host).unwrap();
    for text in ["two", "six", "ten"] {
        writer.write_all_at(text.as_bytes(), 0).unwrap();
        let mut read = [0; 3];
        open.read_exact_at(&mut read, 0).unwrap();
        assert_eq!(read, text.as_bytes());
    }
    fs::write(&host, "longer").unwrap();
    assert_eq!(fs::metadata(&guest).unwrap().len(), 6);
    fs::remove_file(&host).unwrap();
    assert!(!guest.exists());
    fs::write(&guest, "of the guest").unwrap();
    assert_eq!(fs::read_to_string(&host).unwrap(), "of the guest");
}

#[test]
fn a_guest_that_is_told_to_keep_everything_asks_once() {
    let Some(share) = share_as(Options { caching: Caching::Always, ..Options::default() }) else { return };
    let (guest, host) = (share.guest.join("a"), share.host.join("a"));
    fs::write(&host, "one").unwrap();
    fs::write(share.host.join("b"), "b").unwrap();
    assert!(guest.exists() && share.guest.join("b").exists());
    fs::write(&host, "longer").unwrap();
    fs::remove_file(share.host.join("b")).unwrap();
    assert_eq!(fs::metadata(&guest).unwrap().len(), 3);
    assert!(share.guest.join("b").exists());
    // The guest's own changes are there.
    fs::write(share.guest.join("d"), "d").unwrap();
    assert_eq!(fs::read_to_string(share.host.join("d")).unwrap(), "d");
    fs::remove_file(share.guest.join("d")).unwrap();
    fs::create_dir(share.guest.join("d")).unwrap();
    assert!(share.host.join("d").is_dir());
}
