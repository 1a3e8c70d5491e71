//! Files over others: what the model of the fuzz body leaves out, such as changes below, lists under way, and numbers.

use std::sync::Arc;

use fuse::{Access, Errno, FileSystem, Gone, How, NodeId, OpenFlags, RenameHow, SetAttributes, WriteHow};

use super::{Guest, ROOT};
use crate::locks::shared;
use crate::{Files, Options};

/// Files below, and those over them.
struct Pair {
    below: Arc<Files>,
    files: Files,
}

impl Pair {
    /// Over what `prepare` makes.
    fn new(prepare: impl FnOnce(&Guest<'_>)) -> Self {
        let options = Options { limit: 1 << 30, mode: 0o755, uid: 7, gid: 8 };
        let below = Arc::new(Files::in_memory(options).unwrap());
        prepare(&Guest(&*below));
        let files = Files::over(below.clone(), 1 << 30).unwrap();
        Self { below, files }
    }

    /// A guest of the file system below, which changes it.
    fn host(&self) -> Guest<'_> {
        Guest(&*self.below)
    }

    fn guest(&self) -> Guest<'_> {
        Guest(&self.files)
    }
}

fn mode(mode: u32) -> SetAttributes {
    SetAttributes { mode: Some(mode), ..SetAttributes::default() }
}

/// The file at a path.
fn at(guest: &Guest<'_>, path: &str) -> Result<NodeId, Errno> {
    path.split('/').try_fold(ROOT, |node, name| guest.look_up(node, name).map(|entry| entry.node))
}

fn text(guest: &Guest<'_>, path: &str) -> Result<String, Errno> {
    let contents = guest.contents(at(guest, path)?)?;
    Ok(String::from_utf8(contents).unwrap())
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

/// `directory/one`, `directory/inner/two`, `three`, and `link`.
fn tree(guest: &Guest<'_>) {
    let directory = guest.make_directory(ROOT, "directory").unwrap();
    let inner = guest.make_directory(directory, "inner").unwrap();
    guest.file(directory, "one", b"1").unwrap();
    guest.file(inner, "two", b"2").unwrap();
    guest.file(ROOT, "three", b"3").unwrap();
    guest.symlink(ROOT, "link", "directory/one").unwrap();
}

#[test]
fn everything_below_is_there() {
    let pair = Pair::new(tree);
    let guest = pair.guest();
    assert_eq!(sorted(guest.names(ROOT)), ["directory", "link", "three"]);
    assert_eq!(text(&guest, "directory/inner/two"), Ok("2".to_owned()));
    assert_eq!(
        pair.files.read_link(&Default::default(), at(&guest, "link").unwrap()),
        Ok(b"directory/one".to_vec())
    );
    let root = guest.stat(ROOT).unwrap();
    assert_eq!((root.uid, root.gid, root.links), (7, 8, 3));
    assert_eq!(at(&guest, "three/x"), Err(Errno::ENOTDIR));
    assert_eq!(at(&guest, "nothing"), Err(Errno::ENOENT));
}

#[test]
fn what_nobody_changed_is_as_it_is_below() {
    let pair = Pair::new(tree);
    let (guest, host) = (pair.guest(), pair.host());
    let (three, below) = (at(&guest, "three").unwrap(), at(&host, "three").unwrap());
    host.change(below, mode(0o600)).unwrap();
    let handle = host.open(below, Access::Write, OpenFlags::empty()).unwrap();
    host.write(below, handle, 1, b"33").unwrap();
    let told = guest.stat(three).unwrap();
    assert_eq!((told.mode, told.size, text(&guest, "three")), (0o100_600, 3, Ok("333".to_owned())));
    host.file(ROOT, "new", b"").unwrap();
    host.unlink(ROOT, "three").unwrap();
    assert_eq!(sorted(guest.names(ROOT)), ["directory", "link", "new"]);
    assert_eq!((at(&guest, "three"), at(&guest, "new").is_ok()), (Err(Errno::ENOENT), true));
    // Another file of the same name is another one.
    host.file(ROOT, "three", b"new").unwrap();
    assert_ne!(at(&guest, "three"), Ok(three));
}

#[test]
fn what_was_changed_stays_whatever_becomes_of_it_below() {
    let pair = Pair::new(tree);
    let (guest, host) = (pair.guest(), pair.host());
    let one = at(&guest, "directory/one").unwrap();
    let handle = guest.open(one, Access::ReadWrite, OpenFlags::empty()).unwrap();
    guest.write_how(one, handle, 0, b" and more", WriteHow::APPEND).unwrap();
    pair.files.let_go(ROOT, Gone::Everything);
    assert_eq!(text(&host, "directory/one"), Ok("1".to_owned()));
    let directory = at(&host, "directory").unwrap();
    host.unlink(directory, "one").unwrap();
    host.rename((ROOT, "directory"), (ROOT, "elsewhere"), RenameHow::Replace).unwrap();
    host.make_directory(ROOT, "directory").unwrap();
    assert_eq!(text(&guest, "directory/one"), Ok("1 and more".to_owned()));
    assert_eq!(text(&guest, "directory/inner/two"), Ok("2".to_owned()));
    assert_eq!(sorted(guest.names(at(&guest, "directory").unwrap())), ["inner", "one"]);
    assert_eq!(sorted(guest.names(ROOT)), ["directory", "elsewhere", "link", "three"]);
}

#[test]
fn attributes_are_changed_without_the_contents() {
    let pair = Pair::new(tree);
    let (guest, host) = (pair.guest(), pair.host());
    let free = || pair.files.statistics(&Default::default(), ROOT).unwrap().free_files;
    let before = free();
    let three = at(&guest, "three").unwrap();
    let told = guest.change(three, SetAttributes { uid: Some(33), ..mode(0o4711) }).unwrap();
    assert_eq!((told.mode, told.uid, told.size), (0o104_711, 33, 1));
    guest.set_xattr(three, "user.a", b"b").unwrap();
    assert!(before - free() < 4);
    let below = at(&host, "three").unwrap();
    assert_eq!((host.stat(below).unwrap().uid, host.xattr(below, "user.a")), (0, Err(Errno::ENODATA)));
    // The contents are still those below.
    let handle = host.open(below, Access::Write, OpenFlags::empty()).unwrap();
    host.write(below, handle, 0, b"four").unwrap();
    let (told, beneath) = (guest.stat(three).unwrap(), host.stat(below).unwrap());
    assert_eq!((told.size, told.mtime, text(&guest, "three")), (4, beneath.mtime, Ok("four".to_owned())));
    // And they are no more from the first write on.
    let own = guest.open(three, Access::ReadWrite, OpenFlags::empty()).unwrap();
    guest.write(three, own, 4, b"!").unwrap();
    host.write(below, handle, 0, b"five").unwrap();
    assert_eq!(text(&guest, "three"), Ok("four!".to_owned()));
    assert!(guest.stat(three).unwrap().mtime >= beneath.mtime);
}

#[test]
fn numbers_stay_what_they_are() {
    let pair = Pair::new(tree);
    let guest = pair.guest();
    let three = at(&guest, "three").unwrap();
    let ino = guest.stat(three).unwrap().ino;
    let reader = guest.open(three, Access::Read, OpenFlags::empty()).unwrap();
    let writer = guest.open(three, Access::Write, OpenFlags::empty()).unwrap();
    guest.write(three, writer, 0, b"changed").unwrap();
    assert_eq!(guest.read(three, reader, 0, 10), Ok(b"changed".to_vec()), "opened before it was copied");
    guest.rename((ROOT, "three"), (ROOT, "four"), RenameHow::Replace).unwrap();
    assert_eq!((at(&guest, "four"), guest.stat(three).unwrap().ino), (Ok(three), ino));
    let new = guest.file(ROOT, "new", b"").unwrap();
    assert_eq!(guest.stat(new).unwrap().ino >> 63, 1);
}

#[test]
fn names_of_one_file_below_are_of_one_file() {
    let pair = Pair::new(|host| {
        let node = host.file(ROOT, "a", b"contents").unwrap();
        host.entry(ROOT, "b", How::HardLink { node }).unwrap();
    });
    let (guest, host) = (pair.guest(), pair.host());
    let a = at(&guest, "a").unwrap();
    assert_eq!((at(&guest, "b"), guest.stat(a).unwrap().links), (Ok(a), 2));
    let handle = guest.open(a, Access::Write, OpenFlags::TRUNCATE).unwrap();
    guest.write(a, handle, 0, b"changed").unwrap();
    pair.files.let_go(ROOT, Gone::Everything);
    assert_eq!(text(&guest, "b"), Ok("changed".to_owned()));
    guest.unlink(ROOT, "a").unwrap();
    assert_eq!(guest.stat(at(&guest, "b").unwrap()).unwrap().links, 1);
    assert_eq!(guest.names(ROOT), ["b"]);
    // The name that was looked up after the change stays, too.
    host.unlink(ROOT, "b").unwrap();
    assert_eq!((text(&guest, "b"), guest.names(ROOT)), (Ok("changed".to_owned()), vec!["b".to_owned()]));
}

#[test]
fn a_directory_below_is_moved_with_all_that_is_in_it() {
    let pair = Pair::new(tree);
    let (guest, host) = (pair.guest(), pair.host());
    let directory = at(&guest, "directory").unwrap();
    let inner = at(&guest, "directory/inner").unwrap();
    guest.rename((directory, "inner"), (ROOT, "moved"), RenameHow::Replace).unwrap();
    guest.rename((ROOT, "directory"), (inner, "deeper"), RenameHow::Replace).unwrap();
    assert_eq!(text(&guest, "moved/two"), Ok("2".to_owned()));
    assert_eq!(text(&guest, "moved/deeper/one"), Ok("1".to_owned()));
    assert_eq!(at(&guest, "moved/deeper/inner"), Err(Errno::ENOENT));
    assert_eq!(sorted(guest.names(ROOT)), ["link", "moved", "three"]);
    assert_eq!(guest.rename((ROOT, "moved"), (directory, "x"), RenameHow::Replace), Err(Errno::EINVAL));
    assert_eq!(text(&host, "directory/inner/two"), Ok("2".to_owned()));
}

#[test]
fn what_was_removed_does_not_come_back() {
    let pair = Pair::new(tree);
    let guest = pair.guest();
    let directory = at(&guest, "directory").unwrap();
    assert_eq!(guest.remove_directory(ROOT, "directory"), Err(Errno::ENOTEMPTY));
    assert_eq!(guest.rename((ROOT, "new"), (ROOT, "directory"), RenameHow::Replace), Err(Errno::ENOENT));
    let new = guest.make_directory(ROOT, "new").unwrap();
    assert_eq!(guest.rename((ROOT, "new"), (ROOT, "directory"), RenameHow::Replace), Err(Errno::ENOTEMPTY));
    guest.unlink(directory, "one").unwrap();
    guest.unlink(at(&guest, "directory/inner").unwrap(), "two").unwrap();
    guest.remove_directory(directory, "inner").unwrap();
    assert!(guest.names(directory).is_empty());
    guest.file(new, "kept", b"").unwrap();
    guest.rename((ROOT, "new"), (ROOT, "directory"), RenameHow::Replace).unwrap();
    assert_eq!(guest.names(at(&guest, "directory").unwrap()), ["kept"]);
    // A new directory under the name of one below has nothing of it.
    guest.unlink(new, "kept").unwrap();
    guest.remove_directory(ROOT, "directory").unwrap();
    let again = guest.make_directory(ROOT, "directory").unwrap();
    assert!(guest.names(again).is_empty());
    // A name that hides one below may be moved away, be given to another file, and be free in between.
    guest.unlink(ROOT, "three").unwrap();
    guest.symlink(ROOT, "three", "directory").unwrap();
    guest.rename((ROOT, "three"), (ROOT, "four"), RenameHow::Keep).unwrap();
    assert_eq!(at(&guest, "three"), Err(Errno::ENOENT));
    guest.rename((ROOT, "four"), (ROOT, "three"), RenameHow::Keep).unwrap();
    assert_eq!(sorted(guest.names(ROOT)), ["directory", "link", "three"]);
}

#[test]
fn a_list_over_another_goes_on_where_it_was() {
    let all: Vec<String> = (0..200).map(|number| format!("name {number}")).collect();
    let pair = Pair::new(|host| {
        for name in &all {
            host.file(ROOT, name, b"").unwrap();
        }
    });
    let guest = pair.guest();
    for number in 0..50 {
        guest.file(ROOT, &format!("own {number}"), b"").unwrap();
    }
    let handle = guest.open_directory(ROOT).unwrap();
    // Names that are listed are changed in every way meanwhile; nothing comes twice, and nothing is left out.
    let (mut seen, mut cookie, mut places) = (Vec::new(), 0, vec![0]);
    loop {
        let some = guest.list(ROOT, handle, cookie, 400).unwrap();
        let Some(last) = some.last() else { break };
        cookie = last.cookie;
        assert!(i64::try_from(cookie).is_ok(), "a program can seek there");
        places.push(cookie);
        for (number, one) in some.into_iter().enumerate() {
            match number % 3 {
                0 => guest.unlink(ROOT, &one.name).unwrap(),
                1 => drop(guest.change(at(&guest, &one.name).unwrap(), mode(0o600)).unwrap()),
                _ => {}
            }
            seen.push(one.name);
        }
    }
    let expected = all.iter().cloned().chain((0..50).map(|number| format!("own {number}"))).collect();
    assert_eq!(sorted(seen.clone()), sorted(expected));
    // From each place on, the rest of the names that are still there.
    let left = guest.names(ROOT);
    assert_eq!(left.len(), guest.list(ROOT, handle, 0, 1 << 20).unwrap().len());
    for place in places {
        let rest: Vec<String> =
            guest.list(ROOT, handle, place, 1 << 20).unwrap().into_iter().map(|one| one.name).collect();
        assert!(left.ends_with(&rest), "from {place}");
    }
}

#[test]
fn a_copy_that_finds_no_space_changes_nothing() {
    let below = Arc::new(Files::in_memory(Options { limit: 1 << 30, mode: 0o755, uid: 0, gid: 0 }).unwrap());
    Guest(&*below).file(ROOT, "large", &[1; 600_000]).unwrap();
    let files = Files::over(below.clone(), 100_000).unwrap();
    let guest = Guest(&files);
    let large = at(&guest, "large").unwrap();
    let handle = guest.open(large, Access::ReadWrite, OpenFlags::empty()).unwrap();
    assert_eq!(guest.write(large, handle, 0, b"x"), Err(Errno::ENOSPC));
    assert_eq!(guest.read(large, handle, 0, 2), Ok(vec![1, 1]));
    assert_eq!(guest.stat(large).unwrap().size, 600_000);
    assert!(files.statistics(&Default::default(), ROOT).unwrap().free > 20);
    let handle = guest.open(large, Access::ReadWrite, OpenFlags::TRUNCATE).unwrap();
    assert_eq!((guest.write(large, handle, 0, b"x"), text(&guest, "large")), (Ok(1), Ok("x".to_owned())));
    assert_eq!(Guest(&*below).contents(at(&Guest(&*below), "large").unwrap()).unwrap().len(), 600_000);
}

#[test]
fn what_finds_no_space_to_be_kept_is_not() {
    let below = Arc::new(Files::in_memory(Options { limit: 1 << 30, mode: 0o755, uid: 0, gid: 0 }).unwrap());
    for number in 0..100 {
        Guest(&*below).file(ROOT, &format!("{number}"), b"").unwrap();
    }
    let files = Files::over(below.clone(), 20_000).unwrap();
    let guest = Guest(&files);
    let nodes: Vec<NodeId> = (0..100).map(|number| at(&guest, &format!("{number}")).unwrap()).collect();
    let kept = nodes.iter().filter(|node| guest.change(**node, mode(0o600)).is_ok()).count();
    assert!((10..30).contains(&kept), "{kept}");
    assert_eq!(guest.change(nodes[99], mode(0o600)).err(), Some(Errno::ENOSPC));
    files.let_go(ROOT, Gone::Everything);
    let known = nodes.iter().filter(|node| guest.stat(**node).is_ok()).count();
    assert_eq!(known, kept, "files that stay although nobody paid for them");
}

#[test]
fn the_kernel_believes_for_long_what_is_only_here() {
    let pair = Pair::new(tree);
    let guest = pair.guest();
    let three = at(&guest, "three").unwrap();
    let valid = || {
        let stat = pair.files.attributes(&Default::default(), three, None, None).unwrap().valid;
        (guest.look_up(ROOT, "three").unwrap().stat.valid == stat, stat.as_secs())
    };
    assert_eq!(valid(), (true, 1), "all of it is below");
    guest.change(three, mode(0o600)).unwrap();
    assert_eq!(valid(), (true, 1), "the size is below");
    guest.open(three, Access::Write, OpenFlags::TRUNCATE).unwrap();
    assert_eq!(valid(), (true, 3600));
}

#[test]
fn files_that_nobody_has_looked_at_again_take_nothing() {
    let pair = Pair::new(tree);
    let guest = pair.guest();
    let free = || pair.files.statistics(&Default::default(), ROOT).unwrap().free_files;
    let before = free();
    for path in ["directory/inner/two", "three", "directory/one"] {
        assert!(text(&guest, path).is_ok());
    }
    assert_eq!(free(), before);
    let two = at(&guest, "directory/inner/two").unwrap();
    pair.files.let_go(two, Gone::Lookups(u64::MAX));
    assert_eq!(guest.stat(two).err(), Some(Errno::ESTALE));
    assert_eq!(text(&guest, "directory/inner/two"), Ok("2".to_owned()));
}

#[test]
fn several_threads_change_the_same_names_over_others() {
    let pair = Pair::new(|host| {
        for number in 0..100 {
            host.file(ROOT, &format!("{number}"), b"below").unwrap();
        }
    });
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let pair = &pair;
            scope.spawn(move || {
                let guest = pair.guest();
                for number in 0..100 {
                    let name = format!("{number}");
                    match (thread, guest.look_up(ROOT, &name)) {
                        (0, _) => drop(guest.unlink(ROOT, &name)),
                        (1, Ok(found)) => drop(guest.change(found.node, mode(0o600))),
                        (2, _) => drop(guest.rename(
                            (ROOT, &name),
                            (ROOT, &format!("moved {number}")),
                            RenameHow::Replace,
                        )),
                        (_, Ok(found)) => {
                            let contents = guest.contents(found.node);
                            assert!(contents == Ok(b"below".to_vec()), "{contents:?}");
                            pair.files.let_go(found.node, Gone::Lookups(1));
                        }
                        _ => {}
                    }
                }
            });
        }
    });
    let guest = pair.guest();
    // Each name is gone, or its file has another one.
    assert!(guest.names(ROOT).iter().all(|name| name.starts_with("moved")), "{:?}", guest.names(ROOT));
    assert_eq!(pair.host().names(ROOT).len(), 100);
}

/// Places where a file was found are looked at in the tree itself: no answer to a guest tells them.
#[test]
fn places_where_a_file_was_found_are_no_more_than_its_names() {
    let pair = Pair::new(tree);
    let (guest, host) = (pair.guest(), pair.host());
    let below = at(&host, "directory").unwrap();
    let directory = at(&guest, "directory").unwrap();
    let one = guest.look_up(directory, "one").unwrap().node;
    let places = || shared(&pair.files.tree).places_found(one);
    // The host takes the name away and gives it again, while another name stays.
    host.entry(ROOT, "again", How::HardLink { node: at(&host, "directory/one").unwrap() }).unwrap();
    for _ in 0..200 {
        host.rename((below, "one"), (ROOT, "one"), RenameHow::Replace).unwrap();
        guest.look_up(directory, "one").unwrap_err();
        host.rename((ROOT, "one"), (below, "one"), RenameHow::Replace).unwrap();
        assert_eq!(guest.look_up(directory, "one").unwrap().node, one);
        assert_eq!(guest.look_up(ROOT, "again").unwrap().node, one);
    }
    assert!(places() <= 8, "{}", places());
    // The guest forgets the directory, and looks it up again.
    pair.files.let_go(directory, Gone::Lookups(9));
    for _ in 0..200 {
        let directory = guest.look_up(ROOT, "directory").unwrap().node;
        assert_eq!(guest.look_up(directory, "one").unwrap().node, one);
        pair.files.let_go(directory, Gone::Lookups(1));
    }
    assert!(places() <= 8, "{}", places());
    // All of its names are still kept with it.
    let handle = guest.open(one, Access::Write, OpenFlags::empty()).unwrap();
    guest.write(one, handle, 0, b"!").unwrap();
    host.unlink(ROOT, "again").unwrap();
    assert_eq!(text(&guest, "again"), Ok("!".to_owned()));
}

/// The paths of what is there otherwise than below.
fn changed(pair: &Pair) -> Vec<String> {
    let changed = shared(&pair.files.tree).changed();
    assert_eq!((changed.gone.len(), changed.left_out), (0, 0));
    let path = |place: &changes::Place| String::from_utf8(place.as_bytes().to_vec()).unwrap();
    sorted(changed.there.iter().map(|(place, ..)| path(place)).collect())
}

#[test]
fn a_change_is_listed_whatever_the_kernel_has_forgotten() {
    let pair = Pair::new(tree);
    let guest = pair.guest();
    let directory = at(&guest, "directory").unwrap();
    let inner = at(&guest, "directory/inner").unwrap();
    let two = at(&guest, "directory/inner/two").unwrap();
    for node in [directory, inner] {
        pair.files.let_go(node, Gone::Lookups(9));
    }
    let handle = guest.open(two, Access::Write, OpenFlags::empty()).unwrap();
    guest.write(two, handle, 0, b"!").unwrap();
    assert_eq!(changed(&pair), ["directory", "directory/inner", "directory/inner/two"]);
    assert_eq!(text(&guest, "directory/inner/two"), Ok("!".to_owned()));
}

#[test]
fn directories_go_with_the_last_file_that_was_found_in_them() {
    let pair = Pair::new(tree);
    let (guest, host) = (pair.guest(), pair.host());
    let [directory, inner, one, two] =
        ["directory", "directory/inner", "directory/one", "directory/inner/two"]
            .map(|path| at(&guest, path).unwrap());
    let is_known = |node| guest.stat(node).is_ok();
    for node in [directory, inner, two] {
        pair.files.let_go(node, Gone::Lookups(9));
    }
    assert_eq!([directory, inner, one, two].map(is_known), [true, false, true, false]);
    // The file is not found there any more, and so nothing that is known is.
    host.unlink(at(&host, "directory").unwrap(), "one").unwrap();
    assert_eq!(guest.look_up(directory, "one").err(), Some(Errno::ENOENT));
    assert_eq!([directory, one].map(is_known), [false, true]);
    pair.files.let_go(one, Gone::Lookups(9));
    assert!(!is_known(one));
}

#[test]
fn directories_that_were_found_in_each_other_are_kept_and_let_go() {
    let pair = Pair::new(tree);
    let (guest, host) = (pair.guest(), pair.host());
    let directory = at(&guest, "directory").unwrap();
    let inner = at(&guest, "directory/inner").unwrap();
    let outer = at(&host, "directory").unwrap();
    host.rename((outer, "inner"), (ROOT, "moved"), RenameHow::Replace).unwrap();
    host.rename((ROOT, "directory"), (at(&host, "moved").unwrap(), "outer"), RenameHow::Replace).unwrap();
    assert_eq!(guest.look_up(inner, "outer").unwrap().node, directory);
    guest.change(inner, mode(0o700)).unwrap();
    let there = shared(&pair.files.tree).changed().there;
    let is_told = |path: &[u8]| there.iter().any(|(place, ..)| place.as_bytes() == path);
    assert!(is_told(b"directory") && is_told(b"directory/inner"));

    let pair = Pair::new(tree);
    let (guest, host) = (pair.guest(), pair.host());
    let inner = at(&guest, "directory/inner").unwrap();
    let outer = at(&host, "directory").unwrap();
    host.rename((outer, "inner"), (ROOT, "moved"), RenameHow::Replace).unwrap();
    host.rename((ROOT, "directory"), (at(&host, "moved").unwrap(), "outer"), RenameHow::Replace).unwrap();
    let directory = guest.look_up(inner, "outer").unwrap().node;
    pair.files.let_go(ROOT, Gone::Everything);
    assert_eq!([inner, directory].map(|node| guest.stat(node).is_ok()), [false, false]);
}
