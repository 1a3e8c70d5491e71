//! A guest without manners gets nothing but what is shared, and takes nothing that it does not give back.

#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

mod guest;
mod own;
mod random;

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use guest::{
    EBADF, EBUSY, EEXIST, EINVAL, EISDIR, ENOENT, ENOTDIR, ENXIO, EPERM, EROFS, ESTALE, Guest, ROOT, longs,
    mounted, share, words,
};
use shares::{Budget, HostFs, Options, RootError};

/// A directory that is shared, beside one that is not.
struct House {
    directory: tempfile::TempDir,
    mounted: bool,
}

impl House {
    fn furnish(directory: tempfile::TempDir, mounted: bool) -> Self {
        fs::create_dir(directory.path().join("shared")).unwrap();
        fs::create_dir(directory.path().join("private")).unwrap();
        fs::write(directory.path().join("private/secret"), "secret").unwrap();
        Self { directory, mounted }
    }

    fn path(&self) -> &Path {
        self.directory.path()
    }
}

impl Drop for House {
    fn drop(&mut self) {
        if self.mounted {
            let _ = rustix::mount::unmount(self.directory.path(), rustix::mount::UnmountFlags::DETACH);
        }
    }
}

fn house() -> House {
    House::furnish(tempfile::tempdir().unwrap(), false)
}

/// A house, and for root another one whose devices do nothing: there files are opened by their names.
fn houses() -> Vec<House> {
    let mut houses = vec![house()];
    if rustix::process::geteuid().is_root() {
        let directory = tempfile::tempdir().unwrap();
        let nodev = rustix::mount::MountFlags::NODEV;
        rustix::mount::mount("none", directory.path(), "tmpfs", nodev, None).unwrap();
        houses.push(House::furnish(directory, true));
    } else {
        skip::skip("root", "only root can mount a file system without devices");
    }
    houses
}

#[test]
fn numbers_that_were_not_given_lead_nowhere() {
    let house = house();
    let shared = house.path().join("shared");
    fs::write(shared.join("a"), "a").unwrap();
    fs::write(shared.join("b"), "b").unwrap();
    fs::create_dir(shared.join("d")).unwrap();
    let session = share(&shared, Options::default());
    let mut guest = Guest::new(&session);
    for node in [0, 2, u64::MAX] {
        assert_eq!(guest.attributes(node), Err(ESTALE));
        assert_eq!(guest.look_up(node, b"a"), Err(ESTALE));
        assert_eq!(guest.open(node, 0), Err(ESTALE));
        assert_eq!(guest.rename((ROOT, b"a"), (node, b"a"), 0), Err(ESTALE));
        guest.forget(node, 1);
    }
    let (a, b, d) = (
        guest.look_up(ROOT, b"a").unwrap(),
        guest.look_up(ROOT, b"b").unwrap(),
        guest.look_up(ROOT, b"d").unwrap(),
    );
    let (file, directory) = (guest.open(a, 2).unwrap(), guest.open_directory(d).unwrap());
    assert_eq!(guest.read(a, file).unwrap(), b"a");
    for (node, handle) in [(b, file), (a, directory), (a, 0), (a, u64::MAX), (ROOT, file)] {
        assert_eq!(guest.read(node, handle), Err(EBADF));
        assert_eq!(guest.write(node, handle, b"x"), Err(EBADF));
    }
    assert_eq!(guest.list(a, file, 0, true), Err(EBADF));
    assert_eq!(guest.list(ROOT, directory, 0, false), Err(EBADF));
    assert_eq!(guest.open(d, 0), Err(EISDIR));
    assert_eq!(guest.open_directory(a), Err(ENOTDIR));
    assert_eq!(guest.look_up(a, b"x"), Err(ENOTDIR));
    // A cookie that no list gave is an end or an error, but no entry twice as long.
    for cookie in [1, 12345, u64::MAX >> 1, 1 << 63, u64::MAX] {
        if let Ok(list) = guest.list(d, directory, cookie, false) {
            assert!(list.len() <= 4096);
        }
    }
    guest.release(b, file);
    assert_eq!(guest.read(a, file), Err(EBADF));
    // More references than it has, and those of the root.
    guest.forget(a, u64::MAX);
    assert_eq!(guest.attributes(a), Err(ESTALE));
    guest.forget(ROOT, u64::MAX);
    assert!(guest.attributes(ROOT).is_ok());
}

#[test]
fn links_that_change_meanwhile_lead_nowhere() {
    houses().iter().for_each(flip_while_looking);
}

fn flip_while_looking(house: &House) {
    let (shared, private) = (house.path().join("shared"), house.path().join("private"));
    let (flip, spare) = (shared.join("flip"), house.path().join("spare"));
    let (file, link) = (shared.join("file"), house.path().join("link"));
    fs::write(&file, "decoy").unwrap();
    symlink("../private/secret", &link).unwrap();
    fs::create_dir(&flip).unwrap();
    fs::write(flip.join("secret"), "decoy").unwrap();
    symlink(&private, &spare).unwrap();
    let session = share(&shared, Options { budget: Budget { nodes: 1, handles: 64 }, ..Options::default() });
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                let place = rustix::fs::CWD;
                let exchange = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(place, &flip, place, &spare, exchange).unwrap();
                rustix::fs::renameat_with(place, &file, place, &link, exchange).unwrap();
            }
        });
        let _end = SetOnDrop(&done);
        let mut guest = Guest::new(&session);
        let (mut read, mut written) = (0, 0);
        for _ in 0..5_000 {
            let Ok(node) = guest.look_up(ROOT, b"flip") else { continue };
            if let Ok(file) = guest.look_up(node, b"secret") {
                if let Ok(handle) = guest.open(file, 0) {
                    assert_eq!(guest.read(file, handle).unwrap(), b"decoy");
                    guest.release(file, handle);
                    read += 1;
                }
                guest.forget(file, 1);
            }
            guest.forget(node, 1);
            let Ok(node) = guest.look_up(ROOT, b"file") else { continue };
            if let Ok(handle) = guest.open(node, 2) {
                assert_eq!(guest.read(node, handle).unwrap(), b"decoy");
                guest.release(node, handle);
                written += 1;
            }
            guest.forget(node, 1);
        }
        assert!(read > 0 && written > 0, "neither was ever there");
    });
    assert_eq!(fs::read(private.join("secret")).unwrap(), b"secret");
}

/// Ends a thread that waits for this, whether a test fails or not.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn a_link_out_of_the_share_is_only_text() {
    let house = house();
    let shared = house.path().join("shared");
    symlink("../private", shared.join("out")).unwrap();
    symlink("../private/secret", shared.join("file")).unwrap();
    let session = share(&shared, Options::default());
    let mut guest = Guest::new(&session);
    let (out, file) = (guest.look_up(ROOT, b"out").unwrap(), guest.look_up(ROOT, b"file").unwrap());
    assert_eq!(guest.look_up(out, b"secret"), Err(ENOTDIR));
    assert_eq!(guest.open_directory(out), Err(ENOTDIR));
    assert_eq!(guest.make_directory(out, b"new"), Err(ENOTDIR));
    assert_eq!(guest.open(file, 2), Err(ENXIO));
    assert_eq!(guest.ask(5, file, b""), Ok(b"../private/secret".to_vec()));
    // A size: its target's would be cut.
    let size = [words(&[8, 0]), longs(&[0, 0, 0, 0, 0, 0]), words(&[0; 8])].concat();
    assert_eq!(guest.ask(4, file, &size), Err(EINVAL));
    let create = [words(&[0o2, 0o644, 0, 0]), b"file\0".to_vec()].concat();
    assert_eq!(guest.ask(35, ROOT, &create), Err(ESTALE));
    assert_eq!(fs::read(house.path().join("private/secret")).unwrap(), b"secret");
}

#[test]
fn nothing_that_does_something_is_opened() {
    let house = house();
    let shared = house.path().join("shared");
    let status = std::process::Command::new("mkfifo").arg(shared.join("fifo")).status().unwrap();
    assert!(status.success());
    let _socket = std::os::unix::net::UnixListener::bind(shared.join("socket")).unwrap();
    let session = share(&shared, Options::default());
    let mut guest = Guest::new(&session);
    for name in [&b"fifo"[..], b"socket"] {
        let node = guest.look_up(ROOT, name).unwrap();
        for flags in 0..3 {
            assert_eq!(guest.open(node, flags), Err(ENXIO));
        }
        // Nor is it changed: its mode is another one for the guest alone.
        let before = fs::metadata(shared.join(OsStr::from_bytes(name))).unwrap();
        let mode = [words(&[1, 0]), longs(&[0; 6]), words(&[0, 0, 0, 0o4712, 0, 0, 0, 0])].concat();
        let told = guest.ask(4, node, &mode).unwrap();
        assert_eq!(u32::from_le_bytes(told[76..80].try_into().unwrap()) & 0o7777, 0o4712);
        let times = [words(&[0x30, 0]), longs(&[0, 0, 0, 1, 1, 1]), words(&[0; 8])].concat();
        assert_eq!(guest.ask(4, node, &times), Err(EPERM));
        assert_eq!(guest.ask(13, ROOT, &[longs(&[node]), b"again\0".to_vec()].concat()), Err(EPERM));
        let after = fs::metadata(shared.join(OsStr::from_bytes(name))).unwrap();
        assert_eq!((after.mode(), after.ctime_nsec()), (before.mode(), before.ctime_nsec()));
    }
    // Devices in a share are names like others.
    let session = share(Path::new("/dev"), Options { readonly: true, ..Options::default() });
    let mut guest = Guest::new(&session);
    let zero = guest.look_up(ROOT, b"zero").unwrap();
    assert_eq!(guest.open(zero, 0), Err(ENXIO));
}

#[test]
fn magic_links_are_not_followed() {
    let house = house();
    let session = share(Path::new("/proc/self"), Options { readonly: true, ..Options::default() });
    let mut guest = Guest::new(&session);
    let root = guest.look_up(ROOT, b"root").unwrap();
    assert_eq!(guest.look_up(root, b"etc"), Err(ENOTDIR));
    assert_eq!(guest.open_directory(root), Err(ENOTDIR));
    let exe = guest.look_up(ROOT, b"exe").unwrap();
    assert_eq!(guest.open(exe, 0), Err(ENXIO));
    drop(house);
}

#[test]
fn references_are_counted() {
    let house = house();
    let shared = house.path().join("shared");
    fs::write(shared.join("a"), "").unwrap();
    fs::hard_link(shared.join("a"), shared.join("b")).unwrap();
    let session = share(&shared, Options::default());
    let mut guest = Guest::new(&session);
    let node = guest.look_up(ROOT, b"a").unwrap();
    assert_eq!(guest.look_up(ROOT, b"b"), Ok(node));
    let directory = guest.open_directory(ROOT).unwrap();
    guest.list(ROOT, directory, 0, true).unwrap();
    guest.forget(node, 3);
    assert!(guest.attributes(node).is_ok());
    guest.forget(node, 1);
    assert_eq!(guest.attributes(node), Err(ESTALE));
    assert_ne!(guest.look_up(ROOT, b"a"), Ok(node));
}

#[test]
fn a_file_put_in_anothers_place_is_not_taken_for_it() {
    houses().iter().for_each(put_in_its_place);
}

fn put_in_its_place(house: &House) {
    let shared = house.path().join("shared");
    fs::write(shared.join("a"), "old").unwrap();
    let session = share(&shared, Options::default());
    let mut guest = Guest::new(&session);
    let node = guest.look_up(ROOT, b"a").unwrap();
    for _ in 0..50 {
        fs::remove_file(shared.join("a")).unwrap();
        fs::write(shared.join("a"), "new").unwrap();
        assert_eq!(guest.open(node, 0), Err(ESTALE));
        assert_eq!(guest.attributes(node), Err(ESTALE));
    }
    let other = guest.look_up(ROOT, b"a").unwrap();
    assert_ne!(other, node);
    let handle = guest.open(other, 0).unwrap();
    // A file that is open stays the file that was opened, whatever becomes of its name.
    fs::remove_file(shared.join("a")).unwrap();
    fs::write(shared.join("a"), "newer").unwrap();
    assert_eq!(guest.read(other, handle).unwrap(), b"new");
    assert!(guest.attributes(other).is_ok());
}

#[test]
fn what_an_overlay_gives_another_number_when_it_is_changed_stays_the_same() {
    if !rustix::process::geteuid().is_root() {
        skip::skip("root", "only root can mount an overlay");
        return;
    }
    let house = House::furnish(tempfile::tempdir().unwrap(), true);
    let at = |name: &str| house.path().join(name);
    for name in ["lower/d", "upper", "work"] {
        fs::create_dir_all(at(name)).unwrap();
    }
    fs::write(at("lower/d/a"), "lower").unwrap();
    let part = |name: &str| format!("{name}dir={}", at(name).display());
    let options = std::ffi::CString::new(["lower", "upper", "work"].map(part).join(",")).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    if let Err(error) = rustix::mount::mount("none", house.path(), "overlay", flags, options.as_c_str()) {
        skip::skip("overlay", format!("cannot mount an overlay: {error}"));
        return;
    }
    let session = share(&at("d"), Options::default());
    let mut guest = Guest::new(&session);
    let file = guest.look_up(ROOT, b"a").unwrap();
    assert!(guest.open(file, 0).is_ok());
    let handle = guest.open(file, 2).unwrap();
    guest.write(file, handle, b"upper").unwrap();
    assert!(guest.attributes(file).is_ok());
    assert!(guest.attributes(ROOT).is_ok());
    guest.make_directory(ROOT, b"new").unwrap();
    assert_eq!(guest.names(ROOT, true), [&b"a"[..], b"new"]);
}

#[test]
fn what_the_host_moves_away_is_not_followed() {
    let house = house();
    let (shared, private) = (house.path().join("shared"), house.path().join("private"));
    fs::create_dir_all(shared.join("d/e")).unwrap();
    let session = share(&shared, Options { budget: Budget { nodes: 1, handles: 9 }, ..Options::default() });
    let mut guest = Guest::new(&session);
    let d = guest.look_up(ROOT, b"d").unwrap();
    let e = guest.look_up(d, b"e").unwrap();
    assert_eq!(guest.look_up(e, b"secret"), Err(ENOENT));
    // The way to what is not open is walked from the root, and ends where it did not use to.
    fs::rename(shared.join("d"), private.join("d")).unwrap();
    fs::write(private.join("d/e/secret"), "secret").unwrap();
    guest.make_directory(ROOT, b"other").unwrap();
    let other = guest.look_up(ROOT, b"other").unwrap();
    guest.look_up(other, b"x").unwrap_err();
    assert_eq!(guest.look_up(e, b"secret"), Err(ESTALE));
    assert_eq!(guest.make_directory(e, b"new"), Err(ESTALE));
    assert_eq!(guest.look_up(ROOT, b"d"), Err(ENOENT));
    // Back where it was, it is what it was.
    fs::rename(private.join("d"), shared.join("d")).unwrap();
    assert!(guest.look_up(e, b"secret").is_ok());
}

#[test]
fn directories_go_deeper_than_a_stack() {
    const DEPTH: u32 = 3000;
    let house = house();
    let session = share(
        &house.path().join("shared"),
        Options { budget: Budget { nodes: 20, handles: 20 }, ..Options::default() },
    );
    let mut guest = Guest::new(&session);
    let mut nodes = vec![ROOT];
    for _ in 0..DEPTH {
        nodes.push(guest.make_directory(*nodes.last().unwrap(), b"d").unwrap());
    }
    // The way there is walked anew.
    assert!(guest.look_up(nodes[1], b"d").is_ok());
    for number in 0..30 {
        guest.make_directory(ROOT, format!("other-{number}").as_bytes()).unwrap();
    }
    assert!(guest.make_directory(*nodes.last().unwrap(), b"leaf").is_ok());
    assert_eq!(guest.rename((ROOT, b"d"), (nodes[5], b"inside"), 0), Err(EINVAL));
    // The kernel may forget from the top.
    for node in &nodes[1..] {
        guest.forget(*node, 9);
    }
    assert_eq!(guest.attributes(nodes[9]), Err(ESTALE));
    drop(session);
}

#[test]
fn what_is_read_only_stays_as_it_is() {
    let house = house();
    let shared = house.path().join("shared");
    fs::write(shared.join("a"), "a").unwrap();
    fs::create_dir(shared.join("d")).unwrap();
    let session = share(&shared, Options { readonly: true, ..Options::default() });
    let mut guest = Guest::new(&session);
    let a = guest.look_up(ROOT, b"a").unwrap();
    for flags in [1, 2, 0o1000] {
        assert_eq!(guest.open(a, flags), Err(EROFS));
    }
    let name = |name: &[u8]| [name, b"\0"].concat();
    let requests = [
        (4, a, [words(&[1, 0]), longs(&[0; 6]), words(&[0, 0, 0, 0o777, 0, 0, 0, 0])].concat()),
        (4, a, [words(&[8, 0]), longs(&[0; 6]), words(&[0; 8])].concat()),
        (6, ROOT, b"link\0target\0".to_vec()),
        (8, ROOT, [words(&[0o100_644, 0, 0, 0]), name(b"new")].concat()),
        (8, ROOT, [words(&[0o010_644, 0, 0, 0]), name(b"new")].concat()),
        (9, ROOT, [words(&[0o755, 0]), name(b"new")].concat()),
        (10, ROOT, name(b"a")),
        (11, ROOT, name(b"d")),
        (12, ROOT, [longs(&[ROOT]), b"a\0b\0".to_vec()].concat()),
        (13, ROOT, [longs(&[a]), name(b"b")].concat()),
        (21, a, [words(&[1, 0]), name(b"user.a"), b"x".to_vec()].concat()),
        (24, a, name(b"user.a")),
        (35, ROOT, [words(&[0o102, 0o644, 0, 0]), name(b"a")].concat()),
        (35, ROOT, [words(&[0o102, 0o644, 0, 0]), name(b"new")].concat()),
        (51, ROOT, [words(&[2, 0o600, 0, 0]), name(b"/")].concat()),
    ];
    for (opcode, node, args) in &requests {
        assert_eq!(guest.ask(*opcode, *node, args), Err(EROFS), "{opcode}");
    }
    let handle = guest.open(a, 0).unwrap();
    assert_eq!(guest.write(a, handle, b"x"), Err(EBADF));
    assert_eq!(guest.read(a, handle).unwrap(), b"a");
    assert_eq!(guest.names(ROOT, true), [b"a", b"d"]);
    assert_eq!(fs::metadata(shared.join("a")).unwrap().permissions().mode() & 0o777, 0o644);
}

#[test]
fn devices_of_the_guest_are_names_that_only_it_has() {
    let house = house();
    let shared = house.path().join("shared");
    let session = share(&shared, Options::default());
    let mut guest = Guest::new(&session);
    let make = |name: &[u8]| [words(&[0o060_600, 0x801, 0, 0]), name.to_vec(), b"\0".to_vec()].concat();
    guest.ask(8, ROOT, &make(b"disk")).unwrap();
    assert_eq!(guest.ask(8, ROOT, &make(b"disk")), Err(EEXIST));
    assert_eq!(guest.make_directory(ROOT, b"disk"), Err(EEXIST));
    let node = guest.look_up(ROOT, b"disk").unwrap();
    assert_eq!(guest.open(node, 0), Err(ENXIO));
    let directory = guest.make_directory(ROOT, b"d").unwrap();
    guest.rename((ROOT, b"disk"), (directory, b"moved"), 0).unwrap();
    assert_eq!(guest.look_up(ROOT, b"disk"), Err(ENOENT));
    assert_eq!(guest.names(directory, true), [b"moved"]);
    assert_eq!(guest.names(directory, false), [b"moved"]);
    assert_eq!(fs::read_dir(shared.join("d")).unwrap().count(), 0);
    // The host's directory is empty, the guest's is not.
    assert_eq!(guest.ask(11, ROOT, b"d\0"), Err(39));
    guest.make_directory(ROOT, b"e").unwrap();
    assert_eq!(guest.rename((ROOT, b"e"), (ROOT, b"d"), 0), Err(39));
    guest.unlink(directory, b"moved").unwrap();
    assert!(guest.attributes(node).is_ok());
    guest.forget(node, 9);
    guest.ask(11, ROOT, b"d\0").unwrap();
    let many =
        (0..70_000).take_while(|number| guest.ask(8, ROOT, &make(format!("{number}").as_bytes())).is_ok());
    assert_eq!(many.count(), 1 << 16);
}

#[test]
fn only_directories_are_shared() {
    let house = house();
    let refused = |path: &str| HostFs::new(&house.path().join(path), Options::default()).unwrap_err();
    assert!(matches!(refused("private/secret"), RootError::NotADirectory));
    assert!(matches!(refused("missing"), RootError::Open(_)));
    let refused = |path: &str| HostFs::of_file(&house.path().join(path), Options::default()).unwrap_err();
    assert!(matches!(refused("private"), RootError::NotAFile));
    assert!(matches!(refused("missing"), RootError::Open(_)));
}

#[test]
fn a_single_file_is_all_there_is_of_its_directory() {
    let house = house();
    let private = house.path().join("private");
    fs::write(private.join("other"), "other").unwrap();
    let session = mounted(HostFs::of_file(&private.join("secret"), Options::default()).unwrap());
    let mut guest = Guest::new(&session);
    assert_eq!(guest.names(ROOT, true), [b"secret"]);
    assert_eq!(guest.names(ROOT, false), [b"secret"]);
    let file = guest.look_up(ROOT, b"secret").unwrap();
    let handle = guest.open(file, 2).unwrap();
    guest.write(file, handle, b"told").unwrap();
    let name = |name: &[u8]| [name, b"\0"].concat();
    assert_eq!(guest.look_up(ROOT, b"other"), Err(ENOENT));
    assert_eq!(guest.unlink(ROOT, b"other"), Err(ENOENT));
    assert_eq!(guest.make_directory(ROOT, b"new"), Err(EPERM));
    assert_eq!(guest.ask(35, ROOT, &[words(&[0o102, 0o644, 0, 0]), name(b"new")].concat()), Err(EPERM));
    assert_eq!(guest.ask(51, ROOT, &[words(&[2, 0o600, 0, 0]), name(b"/")].concat()), Err(EPERM));
    assert_eq!(guest.ask(13, ROOT, &[longs(&[file]), name(b"again")].concat()), Err(EPERM));
    assert_eq!(guest.unlink(ROOT, b"secret"), Err(EBUSY));
    assert_eq!(guest.rename((ROOT, b"secret"), (ROOT, b"new"), 0), Err(EBUSY));
    assert_eq!(guest.rename((ROOT, b"other"), (ROOT, b"secret"), 0), Err(ENOENT));
    let mode = [words(&[1, 0]), longs(&[0; 6]), words(&[0, 0, 0, 0o777, 0, 0, 0, 0])].concat();
    assert_eq!(guest.ask(4, ROOT, &mode), Err(EPERM));
    assert!(guest.ask(4, file, &mode).is_ok());
    assert_eq!(fs::read(private.join("secret")).unwrap(), b"toldet");
    assert_eq!(fs::read_dir(&private).unwrap().count(), 2);
    // An editor of the host writes a new file and gives it the name.
    fs::write(private.join("new"), "new").unwrap();
    fs::rename(private.join("new"), private.join("secret")).unwrap();
    let file = guest.look_up(ROOT, b"secret").unwrap();
    let handle = guest.open(file, 0).unwrap();
    assert_eq!(guest.read(file, handle).unwrap(), b"new");
    let readonly = Options { readonly: true, ..Options::default() };
    let session = mounted(HostFs::of_file(&private.join("secret"), readonly).unwrap());
    let mut guest = Guest::new(&session);
    let file = guest.look_up(ROOT, b"secret").unwrap();
    assert_eq!(guest.open(file, 2), Err(EROFS));
    assert_eq!(guest.unlink(ROOT, b"secret"), Err(EROFS));
}
