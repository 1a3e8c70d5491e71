//! The same lies to files that stay with the guest, in memory and over a directory, as one of a device's mounts: nothing
//! gets out, nothing ends, and what is kept has an end.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use fuse::{FileSystem, Session};
use overlay::Files;
use shares::{HostFs, Options, Router};

use crate::guest::{
    E2BIG, EBADF, EFBIG, EINVAL, EISDIR, ENAMETOOLONG, ENODATA, ENOENT, ENOSPC, ENOTDIR, ENXIO, EROFS,
    ESTALE, Guest, ROOT, long, longs, mounted, terminated, words,
};
use crate::house;

const LIMIT: u64 = 4 << 20;

/// The second mount: its node, and the bits of all its nodes.
const OTHER: u64 = 2 << 48;

fn memory() -> Box<dyn FileSystem> {
    Box::new(Files::in_memory(overlay::Options { limit: LIMIT, mode: 0o755, uid: 0, gid: 0 }).unwrap())
}

fn over(shared: &Path) -> Box<dyn FileSystem> {
    let below = HostFs::new(shared, Options { readonly: true, ..Options::default() }).unwrap();
    Box::new(Files::over(Arc::new(below), LIMIT).unwrap())
}

/// Lets a guest lie to each of the two, beside a folder in memory.
fn each(lie: impl Fn(&mut Guest<'_, Router>, u64)) {
    let house = house();
    let shared = house.path().join("shared");
    fs::write(shared.join("below"), "below").unwrap();
    fs::create_dir(shared.join("d")).unwrap();
    symlink("../private", shared.join("out")).unwrap();
    for files in [memory(), over(&shared)] {
        let session: Session<Router> = mounted(Router::new(vec![files, memory()]));
        let mut guest = Guest::new(&session);
        let mount = guest.look_up(ROOT, b"0").unwrap();
        lie(&mut guest, mount);
        // It goes on serving.
        assert!(guest.attributes(mount).is_ok() && guest.look_up(ROOT, b"1") == Ok(OTHER | 1));
    }
    let mut names: Vec<_> = fs::read_dir(&shared).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["below", "d", "out"]);
    assert_eq!(fs::read(shared.join("below")).unwrap(), b"below");
    assert_eq!(fs::read_dir(shared.join("d")).unwrap().count(), 0);
    assert_eq!(fs::read(house.path().join("private/secret")).unwrap(), b"secret");
}

fn create(guest: &mut Guest<'_, Router>, parent: u64, name: &[u8]) -> Result<(u64, u64), i32> {
    let args = [words(&[0o102, 0o100_644, 0, 0]), terminated(name)].concat();
    guest.ask(35, parent, &args).map(|made| (long(&made, 0), long(&made, 128)))
}

#[test]
fn names_lead_nowhere_but_to_what_is_there() {
    each(|guest, mount| {
        let wrong = [&b".."[..], b".", b"a/b", b"../private/secret", b"/etc/passwd", b"/"];
        for (name, errno) in
            wrong.map(|name| (name, EINVAL)).into_iter().chain([(&[b'a'; 256][..], ENAMETOOLONG)])
        {
            assert_eq!(guest.look_up(mount, name), Err(errno));
            assert_eq!(create(guest, mount, name).err(), Some(errno));
            assert_eq!(guest.make_directory(mount, name), Err(errno));
            assert_eq!(guest.unlink(mount, name), Err(errno));
            for (from, to) in [(name, &b"x"[..]), (b"x", name)] {
                assert_eq!(guest.rename((mount, from), (mount, to), 0), Err(errno));
            }
            assert_eq!(guest.ask(6, mount, &[terminated(name), terminated(b"t")].concat()), Err(errno));
            assert_eq!(guest.ask(13, mount, &[longs(&[mount]), terminated(name)].concat()), Err(errno));
        }
        // A name without its end, and one with an end in it, which is another name.
        assert_eq!(guest.ask(1, mount, b"endless"), Err(EINVAL));
        assert_eq!(guest.look_up(mount, b""), Err(ENOENT));
        // Links are text: of the guest's, and of the host's.
        guest.ask(6, mount, &[terminated(b"mine"), terminated(b"../../etc")].concat()).unwrap();
        for name in [&b"mine"[..], b"out"] {
            let Ok(link) = guest.look_up(mount, name) else { continue };
            assert_eq!(guest.look_up(link, b"passwd"), Err(ENOTDIR));
            assert_eq!(guest.open_directory(link), Err(ENOTDIR));
            assert!([EINVAL, ENXIO].contains(&guest.open(link, 2).unwrap_err()));
        }
    });
}

#[test]
fn numbers_that_were_not_given_are_none() {
    each(|guest, mount| {
        let (file, handle) = create(guest, mount, b"file").unwrap();
        let (other, other_handle) = create(guest, OTHER | 1, b"file").unwrap();
        for node in [0, 2, u64::MAX, 1 << 48, mount | 1 << 40, 3 << 48 | 1, 1 << 63] {
            assert_eq!(guest.attributes(node), Err(ESTALE), "{node:#x}");
            assert_eq!(guest.open(node, 0), Err(ESTALE));
            assert_eq!(guest.rename((mount, b"file"), (node, b"x"), 0), Err(ESTALE));
            guest.forget(node, u64::MAX);
        }
        // Handles of other files, of none, and of another mount.
        for (node, handle) in
            [(mount, handle), (file, handle + 7), (file, u64::MAX), (other, other_handle + 1)]
        {
            assert_eq!(guest.write(node, handle, b"x"), Err(EBADF));
            assert_eq!(guest.read(node, handle), Err(EBADF));
        }
        assert!([EBADF, ENOTDIR].contains(&guest.list(file, handle, 0, true).unwrap_err()));
        let directory = guest.open_directory(mount).unwrap();
        assert!([EBADF, EISDIR].contains(&guest.read(mount, directory).unwrap_err()));
        for cookie in [1, 12_345, 1 << 62, u64::MAX >> 1, 1 << 63, u64::MAX] {
            if let Ok(list) = guest.list(mount, directory, cookie, true) {
                assert!(list.len() <= 4096);
            }
        }
        // More references than there are, and those of the mount itself.
        guest.forget(mount, u64::MAX);
        guest.forget(file, u64::MAX);
        assert_eq!(guest.write(file, handle, b"still open").map(|body| body[0]), Ok(10));
        assert_eq!(guest.look_up(mount, b"file"), Ok(file));
        // From mount to mount nothing is moved, linked or copied.
        assert_eq!(guest.rename((mount, b"file"), (OTHER | 1, b"x"), 0), Err(18));
        assert_eq!(guest.ask(13, OTHER | 1, &[longs(&[file]), terminated(b"x")].concat()), Err(18));
        let copy = [longs(&[handle, 0, other, other_handle, 0, 4096]), longs(&[0])].concat();
        assert_eq!(guest.ask(47, file, &copy), Err(18));
    });
}

#[test]
fn sizes_and_ranges_beyond_all_measure_are_refused() {
    each(|guest, mount| {
        let (file, handle) = create(guest, mount, b"file").unwrap();
        let end = i64::MAX as u64;
        for (offset, errno) in [(end, EFBIG), (end + 1, EINVAL), (u64::MAX, EINVAL)] {
            let write = [longs(&[handle, offset]), words(&[2, 0]), longs(&[0, 0]), b"xx".to_vec()].concat();
            let told = guest.ask(16, file, &write).unwrap_err();
            assert!([errno, EFBIG].contains(&told), "{offset:#x}: {told}");
        }
        // Far away, but with nothing in between.
        let write = [longs(&[handle, end - 1]), words(&[1, 0]), longs(&[0, 0]), b"x".to_vec()].concat();
        guest.ask(16, file, &write).unwrap();
        let mut read = |len: u32| {
            let args = [longs(&[handle, 1 << 40]), words(&[len, 0]), longs(&[0, 0])].concat();
            guest.ask(15, file, &args)
        };
        assert_eq!(read(u32::MAX), Err(EINVAL));
        assert!(read(1 << 20).is_ok_and(|zeroes| !zeroes.is_empty() && zeroes.iter().all(|byte| *byte == 0)));
        for size in [end + 1, u64::MAX] {
            let size = [words(&[8, 0]), longs(&[0, size, 0, 0, 0, 0]), words(&[0; 8])].concat();
            assert!([EINVAL, EFBIG].contains(&guest.ask(4, file, &size).unwrap_err()));
        }
        // Space that there is not, and a range that ends nowhere.
        for (offset, len) in [(0, 1 << 50), (0, end), (end, end), (u64::MAX, 1), (0, 0)] {
            let allocate = [longs(&[handle, offset, len]), words(&[0, 0])].concat();
            let told = guest.ask(43, file, &allocate).unwrap_err();
            assert!([ENOSPC, EFBIG, EINVAL].contains(&told), "{offset:#x} {len:#x}: {told}");
        }
        let seek = [longs(&[handle, u64::MAX]), words(&[3, 0])].concat();
        assert!(guest.ask(46, file, &seek).is_err());
        // Attributes that are too long, and lists of them that are.
        let set = |name: &[u8], len: usize| {
            let head = words(&[u32::try_from(len).unwrap(), 0]);
            [head, terminated(name), vec![b'x'; len]].concat()
        };
        assert!([E2BIG, EINVAL].contains(&guest.ask(21, file, &set(b"user.a", (64 << 10) + 1)).unwrap_err()));
        let many = (0..).map(|number| guest.ask(21, file, &set(format!("user.{number:0200}").as_bytes(), 0)));
        assert!((10..400).contains(&many.take_while(Result::is_ok).count()));
        assert_eq!(guest.ask(22, file, &[words(&[64, 0]), terminated(b"user.a")].concat()), Err(ENODATA));
    });
}

#[test]
fn directories_stay_a_tree() {
    each(|guest, mount| {
        let a = guest.make_directory(mount, b"a").unwrap();
        let b = guest.make_directory(a, b"b").unwrap();
        assert_eq!(guest.rename((mount, b"a"), (b, b"inside"), 0), Err(EINVAL));
        assert_eq!(guest.rename((mount, b"a"), (a, b"inside"), 0), Err(EINVAL));
        assert!([EINVAL, 39].contains(&guest.rename((a, b"b"), (mount, b"a"), 2).unwrap_err()));
        assert!(guest.ask(13, mount, &[longs(&[a]), terminated(b"hard")].concat()).is_err());
        assert!(guest.rename((mount, b"a"), (mount, b"x"), 4).is_err(), "a whiteout");
        assert!(guest.rename((mount, b"a"), (mount, b"x"), u32::MAX).is_err());
        // The directory of mounts is nobody's.
        for name in [&b"0"[..], b"1"] {
            assert_eq!(guest.rename((ROOT, name), (mount, b"x"), 2), Err(EROFS));
            assert_eq!(guest.rename((mount, b"a"), (ROOT, name), 2), Err(18));
            assert_eq!(guest.ask(11, ROOT, &terminated(name)), Err(EROFS));
        }
        // Deeper than a stack, and let go from above.
        let mut nodes = vec![b];
        for _ in 0..3000 {
            match guest.make_directory(*nodes.last().unwrap(), b"d") {
                Ok(node) => nodes.push(node),
                Err(errno) => {
                    assert_eq!(errno, ENOSPC);
                    break;
                }
            }
        }
        assert!(nodes.len() > 1000);
        nodes.iter().for_each(|node| guest.forget(*node, 9));
    });
}

#[test]
fn what_is_never_given_back_is_bounded() {
    each(|guest, mount| {
        let (file, _) = create(guest, mount, b"file").unwrap();
        let opened = (0..200_000).take_while(|_| guest.open(file, 2).is_ok()).count();
        assert!(opened <= 1 << 17, "{opened}");
        for _ in 0..100_000 {
            guest.look_up(mount, b"file").unwrap();
        }
        // Without a name, files are counted all the same.
        let nameless = words(&[0o20_200_002, 0o600, 0, 0]);
        let made =
            (0..100_000).take_while(|_| guest.ask(51, mount, &[&nameless[..], b"/\0"].concat()).is_ok());
        assert!(made.count() < 100_000);
        guest.unlink(mount, b"file").unwrap();
    });
}

#[test]
fn a_mount_that_begins_anew_has_the_files_and_nothing_else_of_the_one_before() {
    each(|guest, mount| {
        let init = [words(&[7, 40, 1 << 17, u32::MAX, u32::MAX]), vec![0; 44]].concat();
        let (mut file, mut handle) = create(guest, mount, b"kept").unwrap();
        guest.write(file, handle, b"kept").unwrap();
        // With and without a word from the kernel that it ends.
        for says_so in [true, false] {
            if says_so {
                guest.ask(38, 0, b"").unwrap();
                assert!(guest.look_up(mount, b"kept").is_err(), "nothing is mounted");
            }
            guest.ask(26, 0, &init).unwrap();
            assert_eq!(guest.read(file, handle), Err(EBADF));
            let mount = guest.look_up(ROOT, b"0").unwrap();
            file = guest.look_up(mount, b"kept").unwrap();
            handle = guest.open(file, 0).unwrap();
            assert_eq!(guest.read(file, handle).unwrap(), b"kept");
        }
        for (opcode, args) in
            [(0, 64), (7, 64), (53, 64), (4096, 64), (u32::MAX, 0), (35, 3), (45, 11), (16, 20)]
        {
            assert!(guest.ask(opcode, mount, &vec![0xff; args]).is_err(), "{opcode}");
        }
    });
}
