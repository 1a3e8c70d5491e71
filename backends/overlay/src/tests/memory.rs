//! A folder in memory: what the model of the fuzz body leaves out, such as times, lists under way, and limits.

use fuse::{
    Access, Context, Errno, FileSystem, Gone, How, Listing, OpenFlags, RenameHow, SetAttributes, SetTime,
    Time, WriteHow,
};

use super::{Guest, ROOT};
use crate::{Files, Options};

const LIMIT: u64 = 1 << 30;

fn folder(limit: u64) -> Files {
    Files::in_memory(Options { limit, mode: 0o755, uid: 7, gid: 8 }).unwrap()
}

const OLD: Time = Time { seconds: 1000, nanoseconds: 0 };

/// Makes a file old, and its directory, so that what is noted of them can be told from what was.
fn age(guest: &Guest<'_>, node: fuse::NodeId) {
    let old = Some(SetTime::At(OLD));
    guest
        .change(node, SetAttributes { atime: old, mtime: old, ctime: Some(OLD), ..SetAttributes::default() })
        .unwrap();
}

/// Which of access, modification and change of a file were noted since it was old.
fn noted(guest: &Guest<'_>, node: fuse::NodeId) -> (bool, bool, bool) {
    let told = guest.stat(node).unwrap();
    (told.atime > OLD, told.mtime > OLD, told.ctime > OLD)
}

#[test]
fn the_root_is_as_asked_for() {
    let files = folder(LIMIT);
    let root = Guest(&files).stat(ROOT).unwrap();
    assert_eq!((root.ino, root.mode, root.uid, root.gid, root.links), (1, 0o040_755, 7, 8, 2));
    assert_eq!(Files::in_memory(Options { limit: 100, mode: 0, uid: 0, gid: 0 }).err(), Some(Errno::ENOSPC));
}

#[test]
fn times_say_what_happened() {
    let files = folder(LIMIT);
    let guest = Guest(&files);
    let directory = guest.make_directory(ROOT, "directory").unwrap();
    let (node, handle) = guest.create(directory, Some("a")).unwrap();
    let renew = || [node, directory].iter().for_each(|node| age(&guest, *node));
    let noted = || (noted(&guest, node), noted(&guest, directory));
    let (nothing, changed, modified) = ((false, false, false), (false, false, true), (false, true, true));
    let set = |change| guest.change(node, change).map(drop);
    let nothing_set = SetAttributes::default;

    renew();
    guest.write(node, handle, 0, b"contents").unwrap();
    assert_eq!(noted(), (modified, nothing), "write");
    renew();
    guest.write(node, handle, 0, b"").unwrap();
    assert_eq!(noted(), (nothing, nothing), "write of nothing");
    renew();
    set(SetAttributes { size: Some(3), ..nothing_set() }).unwrap();
    assert_eq!(noted(), (modified, nothing), "truncate");
    renew();
    set(SetAttributes { mode: Some(0o600), ..nothing_set() }).unwrap();
    assert_eq!(noted(), (changed, nothing), "chmod");
    renew();
    guest.set_xattr(node, "user.a", b"b").unwrap();
    assert_eq!(noted(), (changed, nothing), "setxattr");
    renew();
    guest.entry(directory, "b", How::HardLink { node }).unwrap();
    assert_eq!(noted(), (changed, modified), "link");
    renew();
    guest.unlink(directory, "b").unwrap();
    assert_eq!(noted(), (changed, modified), "unlink");
    renew();
    guest.rename((directory, "a"), (directory, "b"), RenameHow::Replace).unwrap();
    assert_eq!(noted(), (changed, modified), "rename");
    renew();
    assert_eq!(guest.unlink(directory, "a"), Err(Errno::ENOENT));
    assert_eq!(noted(), (nothing, nothing), "an error");
    renew();
    guest.read(node, handle, 0, 10).unwrap();
    assert_eq!(noted(), ((true, false, false), nothing), "read");
    let (first, _) = (guest.stat(node).unwrap().atime, guest.read(node, handle, 0, 10).unwrap());
    assert_eq!(guest.stat(node).unwrap().atime, first, "a read is noted once");
}

#[test]
fn a_list_goes_on_where_it_was() {
    let files = folder(LIMIT);
    let guest = Guest(&files);
    let all: Vec<String> = (0..300).map(|number| format!("name {number}")).collect();
    for name in &all {
        guest.file(ROOT, name, b"").unwrap();
    }
    assert_eq!(guest.names(ROOT), all);

    // Each entry that comes is removed; none is left out, none comes twice, and new names come last.
    let handle = guest.open_directory(ROOT).unwrap();
    let (mut seen, mut cookie) = (Vec::new(), 2);
    loop {
        let some = guest.list(ROOT, handle, cookie, 500).unwrap();
        let Some(last) = some.last() else { break };
        cookie = last.cookie;
        for one in some {
            guest.unlink(ROOT, &one.name).unwrap();
            seen.push(one.name);
        }
        if seen.len() < 100 {
            guest.file(ROOT, &format!("new {}", seen.len()), b"").unwrap();
        }
    }
    let (old, new) = seen.split_at(300);
    assert_eq!(old, all);
    assert!(!new.is_empty() && new.iter().all(|name| name.starts_with("new")));
    assert!(guest.names(ROOT).is_empty());
}

#[test]
fn lists_go_back_to_any_place() {
    let files = folder(LIMIT);
    let guest = Guest(&files);
    for name in ["a", "b", "c", "d", "e"] {
        guest.file(ROOT, name, b"").unwrap();
    }
    let handle = guest.open_directory(ROOT).unwrap();
    let all = guest.list(ROOT, handle, 0, 4096).unwrap();
    // A name that replaces another takes its place, and the place of one that is gone is still one.
    guest.rename((ROOT, "a"), (ROOT, "c"), RenameHow::Replace).unwrap();
    guest.unlink(ROOT, "d").unwrap();
    let behind = |at: usize| {
        let some = guest.list(ROOT, handle, all[at].cookie, 4096).unwrap();
        some.into_iter().map(|seen| seen.name).collect::<String>()
    };
    assert_eq!([0, 1, 2, 3, 4].map(behind), ["bce", "ce", "e", "e", ""]);
    for cookie in [u64::MAX, 1 << 32, 1000] {
        assert_eq!(guest.list(ROOT, handle, cookie, 4096), Ok(Vec::new()));
    }
    assert_eq!(guest.list(all_root_file(&guest), handle, 0, 4096), Err(Errno::EBADF));
}

fn all_root_file(guest: &Guest<'_>) -> fuse::NodeId {
    guest.look_up(ROOT, "e").unwrap().node
}

#[test]
fn a_list_with_nodes_gives_references() {
    let files = folder(LIMIT);
    let guest = Guest(&files);
    let node = guest.file(ROOT, "a", b"").unwrap();
    let mut bytes = Vec::new();
    let handle = guest.open_directory(ROOT).unwrap();
    let mut listing = Listing::new(&mut bytes, 4096, true);
    files.list(&Context::default(), ROOT, handle, 0, &mut listing).unwrap();
    assert_eq!(listing.entries().count(), 3);
    guest.unlink(ROOT, "a").unwrap();
    files.let_go(node, Gone::Lookups(1));
    assert!(guest.stat(node).is_ok());
    files.let_go(node, Gone::Lookups(1));
    assert_eq!(guest.stat(node).err(), Some(Errno::ESTALE));
}

#[test]
fn a_file_without_a_name_lasts_as_long_as_it_is_open() {
    let files = folder(LIMIT);
    let guest = Guest(&files);
    let free = files.statistics(&Context::default(), ROOT).unwrap().free;
    let (node, handle) = guest.create(ROOT, Some("a")).unwrap();
    guest.write(node, handle, 0, &[1; 100_000]).unwrap();
    guest.unlink(ROOT, "a").unwrap();
    assert_eq!(guest.stat(node).unwrap().links, 0);
    assert_eq!(guest.entry(ROOT, "b", How::HardLink { node }).err(), Some(Errno::ENOENT));
    files.let_go(node, Gone::Lookups(5));
    assert_eq!(guest.stat(node).err(), Some(Errno::ESTALE));
    assert_eq!(guest.write(node, handle, 100_000, b"2"), Ok(1));
    assert_eq!(guest.read(node, handle, 99_999, 10), Ok(vec![1, b'2']));
    assert_ne!(files.statistics(&Context::default(), ROOT).unwrap().free, free);
    files.let_go(node, Gone::File(handle));
    assert_eq!(files.statistics(&Context::default(), ROOT).unwrap().free, free);
    assert_eq!(guest.read(node, handle, 0, 1), Err(Errno::EBADF));
}

#[test]
fn a_file_made_without_a_name_gets_one() {
    let files = folder(LIMIT);
    let guest = Guest(&files);
    let (node, handle) = guest.create(ROOT, None).unwrap();
    guest.write(node, handle, 0, b"contents").unwrap();
    assert!(guest.names(ROOT).is_empty());
    guest.entry(ROOT, "a", How::HardLink { node }).unwrap();
    assert_eq!((guest.stat(node).unwrap().links, guest.contents(node)), (1, Ok(b"contents".to_vec())));
    // It was given its name; taken, it gets no other.
    guest.unlink(ROOT, "a").unwrap();
    assert_eq!(guest.entry(ROOT, "b", How::HardLink { node }).err(), Some(Errno::ENOENT));
}

#[test]
fn a_removed_directory_takes_no_names() {
    let files = folder(LIMIT);
    let guest = Guest(&files);
    let directory = guest.make_directory(ROOT, "a").unwrap();
    let handle = guest.open_directory(directory).unwrap();
    guest.file(ROOT, "b", b"").unwrap();
    guest.remove_directory(ROOT, "a").unwrap();
    assert_eq!(guest.make_directory(directory, "c"), Err(Errno::ENOENT));
    assert_eq!(guest.create(directory, Some("c")).err(), Some(Errno::ENOENT));
    assert_eq!(guest.rename((ROOT, "b"), (directory, "c"), RenameHow::Replace), Err(Errno::ENOENT));
    assert_eq!(guest.list(directory, handle, 0, 4096), Ok(Vec::new()));
    files.let_go(directory, Gone::Lookups(1));
    assert_eq!(guest.list(directory, handle, 0, 4096), Ok(Vec::new()));
}

#[test]
fn a_full_folder_says_so_and_can_be_emptied() {
    let files = folder(200_000);
    let guest = Guest(&files);
    let free = || files.statistics(&Context::default(), ROOT).unwrap().free;
    let told = files.statistics(&Context::default(), ROOT).unwrap();
    assert_eq!((told.block_size, told.blocks, told.free), (4096, 48, 48));
    let (node, handle) = guest.create(ROOT, Some("a")).unwrap();
    let stored = guest.write(node, handle, 0, &[1; 1 << 20]).unwrap();
    assert!((180_000..200_000).contains(&stored), "{stored}");
    assert_eq!(guest.write(node, handle, 1 << 30, &[1; 16 << 10]), Err(Errno::ENOSPC));
    assert_eq!(guest.stat(node).unwrap().size, stored, "a write that failed");
    let mut small = 0u64;
    while guest.file(ROOT, &format!("small {small}"), b"").is_ok() {
        small += 1;
    }
    let mut end = 1 << 32;
    while guest.write(node, handle, end, b"x").is_ok() {
        end += 1 << 14;
    }
    // A kernel that writes later hears that something was lost.
    let end = guest.stat(node).unwrap().size;
    let late = guest.write_how(node, handle, end - 1, &[b'x'; 600], WriteHow::DELAYED);
    assert_eq!((late, guest.write(node, handle, end - 1, &[b'x'; 600])), (Err(Errno::ENOSPC), Ok(512)));
    assert_eq!(free(), 0);
    assert_eq!(guest.make_directory(ROOT, "directory"), Err(Errno::ENOSPC));
    assert_eq!(guest.symlink(ROOT, "link", "target"), Err(Errno::ENOSPC));
    assert_eq!(guest.entry(ROOT, "link", How::HardLink { node }).err(), Some(Errno::ENOSPC));
    assert_eq!(guest.set_xattr(node, "user.a", &[0; 4096]), Err(Errno::ENOSPC));
    assert_eq!(guest.look_up(ROOT, "link").err(), Some(Errno::ENOENT));
    // Full or not, a name can be changed, and files be taken away.
    guest.rename((ROOT, "a"), (ROOT, &"b".repeat(255)), RenameHow::Replace).unwrap();
    guest.unlink(ROOT, &"b".repeat(255)).unwrap();
    (0..small).for_each(|number| guest.unlink(ROOT, &format!("small {number}")).unwrap());
    files.let_go(node, Gone::File(handle));
    files.let_go(ROOT, Gone::Everything);
    assert_eq!(free(), 48);
}

#[test]
fn handles_are_of_one_file_and_for_what_they_were_opened() {
    let files = folder(LIMIT);
    let guest = Guest(&files);
    let (node, other) = (guest.file(ROOT, "a", b"1").unwrap(), guest.file(ROOT, "b", b"2").unwrap());
    let handle = guest.open(node, Access::Read, OpenFlags::empty()).unwrap();
    assert_eq!(guest.write(node, handle, 0, b"x"), Err(Errno::EBADF));
    assert_eq!(guest.read(other, handle, 0, 1), Err(Errno::EBADF));
    assert_eq!(guest.open(ROOT, Access::Read, OpenFlags::empty()), Err(Errno::EISDIR));
    assert_eq!(guest.open_directory(node), Err(Errno::ENOTDIR));
    let directory = guest.open_directory(ROOT).unwrap();
    assert_eq!(guest.read(ROOT, directory, 0, 1), Err(Errno::EISDIR));
    let link = guest.symlink(ROOT, "link", "../../..").unwrap();
    assert!(guest.open(link, Access::Read, OpenFlags::empty()).is_err());
    for number in [0, 99, u64::MAX] {
        let node = fuse::NodeId(number);
        assert_eq!(guest.stat(node).err(), Some(Errno::ESTALE));
        assert_eq!(guest.look_up(node, "a").err(), Some(Errno::ESTALE));
        files.let_go(node, Gone::Lookups(u64::MAX));
    }
    files.let_go(ROOT, Gone::Lookups(u64::MAX));
    assert!(guest.stat(ROOT).is_ok());
}

#[test]
fn writes_end_where_a_file_can() {
    let files = folder(LIMIT);
    let guest = Guest(&files);
    let (node, handle) = guest.create(ROOT, Some("a")).unwrap();
    let last = i64::MAX.unsigned_abs();
    guest.change(node, SetAttributes { size: Some(last - 1), ..SetAttributes::default() }).unwrap();
    assert_eq!(guest.write_how(node, handle, 0, b"x", WriteHow::APPEND), Ok(1));
    assert_eq!(guest.write_how(node, handle, 0, b"x", WriteHow::APPEND), Err(Errno::EFBIG));
    assert_eq!(guest.read(node, handle, last - 1, 5), Ok(b"x".to_vec()));
    assert_eq!(guest.stat(node).unwrap().size, last);
}

#[test]
fn attributes_that_the_kernel_would_have_to_obey_are_refused() {
    let files = folder(LIMIT);
    let guest = Guest(&files);
    assert_eq!(guest.set_xattr(ROOT, "system.posix_acl_access", b""), Err(Errno::EOPNOTSUPP));
    guest.set_xattr(ROOT, "user.a", b"value").unwrap();
    assert_eq!(guest.xattr(ROOT, "user.a"), Ok(b"value".to_vec()));
    // The list of their names has to fit into a reply.
    let name = |number: u32| format!("user.{number:0>240}");
    let count = (0..1000).take_while(|number| guest.set_xattr(ROOT, &name(*number), b"").is_ok()).count();
    assert!((250..270).contains(&count), "{count}");
}

#[test]
fn several_threads_find_what_each_made() {
    let files = folder(LIMIT);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let files = &files;
            scope.spawn(move || {
                let guest = Guest(files);
                let own = guest.make_directory(ROOT, &format!("of {thread}")).unwrap();
                for round in 0..200u32 {
                    let text = format!("{thread} {round}");
                    let node = guest.file(ROOT, &format!("new {thread}"), text.as_bytes()).unwrap();
                    guest
                        .rename((ROOT, &format!("new {thread}")), (ROOT, "shared"), RenameHow::Replace)
                        .unwrap();
                    // Another thread's file may have the name by now, and is whole.
                    let found = guest.look_up(ROOT, "shared").unwrap();
                    let contents = guest.contents(found.node).unwrap();
                    assert!((3..6).contains(&contents.len()), "{}", contents.escape_ascii());
                    files.let_go(found.node, Gone::Lookups(1));
                    guest.file(own, &format!("kept {round}"), b"x").unwrap();
                    files.let_go(node, Gone::Lookups(1));
                    assert_eq!(guest.names(own).len(), usize::try_from(round + 1).unwrap());
                }
            });
        }
    });
    let guest = Guest(&files);
    assert_eq!(guest.names(ROOT).len(), 5);
    assert_eq!(guest.stat(ROOT).unwrap().links, 6);
}
