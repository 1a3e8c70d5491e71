//! Cases of names: lists, links, renames, removed files, directories that the host has changed.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, RawDir, RenameFlags, SeekFrom, linkat, openat, renameat_with, seek,
};
use rustix::io::Errno;

use crate::{Acts, Case, Shared, listed};

pub(crate) const CASES: &[Case] = &[
    (7, "the host removes", Acts::Both(the_host_removes)),
    (9, "symbolic links have the size of their targets", Acts::Guest(symbolic_links_have_a_size)),
    (10, "hard links to symbolic links", Acts::Guest(hard_links_to_symbolic_links)),
    (11, "storms of hard links", Acts::Guest(storms_of_hard_links)),
    (15, "removing while listing", Acts::Guest(removing_while_listing)),
    (15, "seeking in a list", Acts::Guest(seeking_in_a_list)),
    (15, "the host adds and removes while listing", Acts::Both(the_host_changes_a_list)),
    (16, "lists in small pieces", Acts::Guest(lists_in_small_pieces)),
    (23, "the host swaps a chain of links", Acts::Both(the_host_swaps_a_chain_of_links)),
    (24, "a tree is copied, removed and moved", Acts::Guest(a_tree_is_copied_removed_and_moved)),
    (24, "names of the host are removed and made again", Acts::Both(names_are_removed_and_made_again)),
    (25, "a directory of the host is renamed", Acts::Both(a_directory_of_the_host_is_renamed)),
    (26, "files without a name", Acts::Guest(files_without_a_name)),
    (33, "the host replaces an open file", Acts::Both(the_host_replaces_an_open_file)),
    (34, "names are bytes", Acts::Guest(names_are_bytes)),
];

fn the_host_removes(shared: &mut Shared<'_>) {
    shared.host("write", "x", "text");
    shared.host("link", "link", "x");
    assert_eq!(fs::metadata(shared.at("x")).unwrap().len(), 4);
    assert_eq!(fs::read_link(shared.at("link")).unwrap(), Path::new("x"));
    shared.host("remove", "x", "");
    shared.host("remove", "link", "");
    shared.seen(|| !shared.at("x").exists());
    // The target of the link may be known a moment longer, but is never another error's.
    shared.seen(|| match fs::read_link(shared.at("link")) {
        Ok(target) => {
            assert_eq!(target, Path::new("x"));
            false
        }
        Err(error) => {
            assert_eq!(error.kind(), std::io::ErrorKind::NotFound, "{error}");
            true
        }
    });
    assert!(listed(&shared.guest).is_empty());
    fs::create_dir(shared.at("x")).unwrap();
    fs::create_dir(shared.at("link")).unwrap();
}

fn symbolic_links_have_a_size(directory: &Path) {
    let target = |number: usize| "t".repeat(number % 50 + 1);
    for number in 0..200 {
        symlink(target(number), directory.join(number.to_string())).unwrap();
    }
    for round in 0..3 {
        for number in round..200 {
            let found = fs::symlink_metadata(directory.join(number.to_string())).unwrap();
            assert_eq!((found.len(), found.nlink()), (target(number).len() as u64, 1), "{number}");
        }
        fs::remove_file(directory.join(round.to_string())).unwrap();
    }
}

fn hard_links_to_symbolic_links(directory: &Path) {
    for number in 0..100 {
        let (link, again) = (directory.join(format!("bar{number}")), directory.join(format!("baz{number}")));
        symlink("foo", &link).unwrap();
        linkat(CWD, &link, CWD, &again, AtFlags::empty()).unwrap();
        let (link, again_found) =
            (fs::symlink_metadata(&link).unwrap(), fs::symlink_metadata(&again).unwrap());
        assert_eq!((link.nlink(), link.ino()), (2, again_found.ino()));
        assert_eq!(fs::read_link(&again).unwrap(), Path::new("foo"));
    }
}

/// Makes a link. Linux counts the names of a file of a FUSE server itself: it takes the count from the answer to a link, and lowers it
/// after the answer to a removal. Where two such answers overtake each other in the kernel, the count may reach zero, and the
/// kernel refuses links without asking the server, until somebody looks at the file.
fn link_in_a_storm(source: &Path, name: &Path) {
    for _ in 0..50 {
        match fs::hard_link(source, name) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                assert!(fs::metadata(source).unwrap().nlink() >= 1);
            }
            linked => return linked.unwrap(),
        }
    }
    panic!("{} has no further name", source.display());
}

fn storms_of_hard_links(directory: &Path) {
    let source = directory.join("source");
    fs::write(&source, "source").unwrap();
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let source = &source;
            scope.spawn(move || {
                for number in 0..25 {
                    let name = directory.join(format!("{thread}-{number}"));
                    link_in_a_storm(source, &name);
                    assert!(fs::metadata(&name).unwrap().nlink() >= 2);
                    assert_eq!(fs::read(&name).unwrap(), b"source");
                    fs::remove_file(&name).unwrap();
                }
            });
        }
    });
    assert_eq!(fs::metadata(&source).unwrap().nlink(), 1);
}

/// A directory that is open to be listed.
fn opened(directory: &Path) -> File {
    openat(CWD, directory, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .unwrap()
        .into()
}

/// Names from where a directory stands, by one read into a buffer of this size.
fn some<const SIZE: usize>(directory: &File) -> Vec<OsString> {
    let mut buffer = [MaybeUninit::uninit(); SIZE];
    let mut list = RawDir::new(directory, &mut buffer);
    let mut names = Vec::new();
    while let Some(entry) = list.next() {
        names.push(OsStr::from_bytes(entry.unwrap().file_name().to_bytes()).to_owned());
        if list.is_buffer_empty() {
            break;
        }
    }
    names.retain(|name| name != "." && name != "..");
    names
}

fn fill(directory: &Path, count: usize) {
    for number in 0..count {
        fs::write(directory.join(format!("file-{number:03}")), "").unwrap();
    }
}

fn removing_while_listing(directory: &Path) {
    fill(directory, 200);
    let list = opened(directory);
    let mut removed = 0;
    for _ in 0..400 {
        for name in some::<500>(&list) {
            fs::remove_file(directory.join(name)).unwrap();
            removed += 1;
        }
    }
    assert_eq!((removed, listed(directory).len()), (200, 0));
}

/// The whole list, by reads into a buffer of this size.
fn whole<const SIZE: usize>(directory: &Path) -> Vec<(OsString, u64)> {
    let list = opened(directory);
    let mut buffer = [MaybeUninit::uninit(); SIZE];
    let mut all = RawDir::new(&list, &mut buffer);
    let mut entries = Vec::new();
    while let Some(entry) = all.next() {
        let entry = entry.unwrap();
        entries.push((OsStr::from_bytes(entry.file_name().to_bytes()).to_owned(), entry.next_entry_cookie()));
    }
    entries
}

fn seeking_in_a_list(directory: &Path) {
    fill(directory, 60);
    let entries = whole::<4096>(directory);
    assert_eq!(entries.len(), 62);
    let list = opened(directory);
    for at in (0..entries.len() - 1).rev() {
        seek(&list, SeekFrom::Start(entries[at].1)).unwrap();
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut rest = RawDir::new(&list, &mut buffer);
        let next = rest.next().unwrap().unwrap();
        assert_eq!(next.file_name().to_bytes(), entries[at + 1].0.as_bytes(), "after entry {at}");
    }
    seek(&list, SeekFrom::Start(entries[61].1)).unwrap();
    assert!(some::<4096>(&list).is_empty(), "nothing is after the last one");
    seek(&list, SeekFrom::Start(0)).unwrap();
    let mut buffer = [MaybeUninit::uninit(); 4096];
    let first = RawDir::new(&list, &mut buffer).next().unwrap().unwrap().file_name().to_owned();
    assert_eq!(first.to_bytes(), entries[0].0.as_bytes());
}

/// An entry that is there all the time is listed once.
fn the_host_changes_a_list(shared: &mut Shared<'_>) {
    for number in 0..60 {
        shared.host("write", &format!("file-{number:02}"), "");
    }
    shared.seen(|| listed(&shared.guest).len() == 60);
    let list = opened(&shared.guest);
    let mut seen = Vec::new();
    for number in 0..60 {
        seen.extend(some::<500>(&list));
        if number < 20 {
            shared.host("remove", &format!("file-{number:02}"), "");
            shared.host("write", &format!("more-{number:02}"), "");
        }
    }
    seen.sort();
    for number in 20..60 {
        let name = OsString::from(format!("file-{number:02}"));
        assert_eq!(seen.iter().filter(|found| **found == name).count(), 1, "{name:?} in {seen:?}");
    }
}

fn lists_in_small_pieces(directory: &Path) {
    fill(directory, 100);
    assert_eq!(whole::<300>(directory).len(), 102);
    assert_eq!(whole::<2048>(directory).len(), 102);
    assert_eq!(whole::<32768>(directory).len(), 102);
}

fn the_host_swaps_a_chain_of_links(shared: &mut Shared<'_>) {
    for name in ["one", "two"] {
        shared.host("directory", name, "");
        shared.host("write", &format!("{name}/file"), name);
    }
    shared.host("link", "data", "one");
    shared.host("link", "file", "data/file");
    assert_eq!(fs::read(shared.at("file")).unwrap(), b"one");
    for (spare, target) in [("a", "two"), ("b", "one"), ("c", "two")] {
        shared.host("link", spare, target);
        shared.host("rename", spare, "data");
        shared.seen(|| {
            let text = fs::read_to_string(shared.at("file")).unwrap();
            assert!(text == "one" || text == "two", "{text:?}");
            text == target
        });
    }
}

/// A tree as `cp -r` makes it.
fn plant(directory: &Path) {
    fs::create_dir_all(directory.join("b/c")).unwrap();
    fs::write(directory.join("b/c/file"), "file").unwrap();
    fs::write(directory.join("b/other"), "other").unwrap();
}

fn a_tree_is_copied_removed_and_moved(directory: &Path) {
    let (a, copy) = (directory.join("a"), directory.join("bak"));
    plant(&a);
    plant(&copy);
    fs::remove_dir_all(&a).unwrap();
    fs::rename(copy.join("b/c"), copy.join("b/c2")).unwrap();
    fs::rename(&copy, &a).unwrap();
    assert_eq!(listed(directory), ["a"]);
    assert_eq!(listed(&a.join("b")), ["c2", "other"]);
    assert_eq!(fs::read(a.join("b/c2/file")).unwrap(), b"file");
}

fn names_are_removed_and_made_again(shared: &mut Shared<'_>) {
    for name in ["x", "y", "z", "from"] {
        shared.host("write", name, name);
    }
    for name in ["x", "y", "z"] {
        fs::remove_file(shared.at(name)).unwrap();
    }
    // A link, a rename that replaces nothing, and one that might.
    symlink("from", shared.at("x")).unwrap();
    assert_eq!(fs::read(shared.at("x")).unwrap(), b"from");
    let keep = RenameFlags::NOREPLACE;
    assert_eq!(renameat_with(CWD, shared.at("from"), CWD, shared.at("x"), keep), Err(Errno::EXIST));
    renameat_with(CWD, shared.at("from"), CWD, shared.at("y"), keep).unwrap();
    assert!(!shared.at("from").exists());
    fs::rename(shared.at("y"), shared.at("z")).unwrap();
    assert_eq!(listed(&shared.guest), ["x", "z"]);
    assert_eq!(fs::read(shared.at("z")).unwrap(), b"from");
    // A link of a file of the host's is the same file.
    fs::hard_link(shared.at("z"), shared.at("linked")).unwrap();
    let found = |name: &str| fs::metadata(shared.at(name)).unwrap();
    assert_eq!((found("z").ino(), found("z").nlink()), (found("linked").ino(), 2));
}

fn a_directory_of_the_host_is_renamed(shared: &mut Shared<'_>) {
    for (verb, name, more) in [
        ("directory", "d", ""),
        ("directory", "d/e", ""),
        ("write", "d/e/file", "file"),
        ("directory", "full", ""),
        ("write", "full/file", ""),
        ("directory", "empty", ""),
    ] {
        shared.host(verb, name, more);
    }
    let at = |name: &str| shared.at(name);
    assert_eq!(fs::rename(at("d"), at("full")).unwrap_err().raw_os_error(), Some(39));
    fs::rename(at("d"), at("moved")).unwrap();
    fs::rename(at("moved/e"), at("full/e")).unwrap();
    fs::rename(at("full"), at("empty")).unwrap();
    assert_eq!(listed(&shared.guest), ["empty", "moved"]);
    assert_eq!(fs::read(at("empty/e/file")).unwrap(), b"file");
}

fn files_without_a_name(directory: &Path) {
    let nameless = || {
        let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
        File::from(openat(CWD, directory, flags, Mode::from_raw_mode(0o640)).unwrap())
    };
    let (kept, lost) = (nameless(), nameless());
    for file in [&kept, &lost] {
        rustix::io::write(file, b"nameless").unwrap();
        assert_eq!(file.metadata().unwrap().nlink(), 0);
    }
    assert_eq!(listed(directory).len(), 0);
    let number = std::os::fd::AsRawFd::as_raw_fd(&kept);
    let by_number = format!("/proc/self/fd/{number}");
    linkat(CWD, by_number, CWD, directory.join("named"), AtFlags::SYMLINK_FOLLOW).unwrap();
    drop((kept, lost));
    assert_eq!(listed(directory), ["named"]);
    let named = directory.join("named");
    assert_eq!(fs::read(&named).unwrap(), b"nameless");
    let found = fs::metadata(&named).unwrap();
    assert_eq!((found.nlink(), found.mode() & 0o777), (1, 0o640));
}

fn the_host_replaces_an_open_file(shared: &mut Shared<'_>) {
    shared.host("write", "file", "old");
    let open = File::open(shared.at("file")).unwrap();
    for number in 0..5 {
        let text = format!("new, number {number}");
        shared.host("write", "spare", &text);
        shared.host("rename", "spare", "file");
        shared.seen(|| fs::read_to_string(shared.at("file")).unwrap() == text);
        assert_eq!(std::io::read_to_string(&open).unwrap(), if number == 0 { "old" } else { "" });
    }
}

fn names_are_bytes(directory: &Path) {
    let long = "l".repeat(255);
    let names: [&[u8]; 8] = [
        "caf\u{e9}".as_bytes(),
        "cafe\u{301}".as_bytes(),
        b"\xff\xfe not UTF-8",
        long.as_bytes(),
        b"A",
        b"a",
        b" space\n\\040",
        b"...",
    ];
    let at = |name: &[u8]| directory.join(OsStr::from_bytes(name));
    for name in names {
        fs::write(at(name), name).unwrap();
    }
    let mut expected: Vec<_> = names.iter().map(|name| OsStr::from_bytes(name).to_owned()).collect();
    expected.sort();
    assert_eq!(listed(directory), expected);
    for name in names {
        assert_eq!(fs::read(at(name)).unwrap(), name);
        fs::rename(at(name), at(b"moved")).unwrap();
        assert_eq!(fs::read(at(b"moved")).unwrap(), name);
        fs::rename(at(b"moved"), at(name)).unwrap();
        fs::remove_file(at(name)).unwrap();
    }
    let longer = "l".repeat(256);
    assert_eq!(fs::write(at(longer.as_bytes()), "").unwrap_err().raw_os_error(), Some(36));
}
