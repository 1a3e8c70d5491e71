//! Attributes that are kept for files go when the files do.

mod exact;

use fuse::{Access, OpenFlags, RenameHow, XattrName, XattrSet};

use super::*;
use crate::guest_attributes::MAX_FILES;
use crate::specials::MAX_NAMES;

/// A user of the guest whom the host does not know.
const ASKER: Context<'static> =
    Context { uid: 12_345, gid: 12_345, pid: 1, extensions: fuse::Extensions::NONE };

fn name(name: &'static CStr) -> Name<'static> {
    Name::new(name).unwrap()
}

fn make(files: &HostFs, new: &'static CStr, mode: u32) -> NodeId {
    let how = How::Node { mode, device: fuse::Device::default() };
    files.entry(&ASKER, NodeId::ROOT, name(new), how).unwrap().node
}

fn tag(files: &HostFs, node: NodeId) {
    let name = XattrName::new(c"user.a").unwrap();
    files.xattr(&ASKER, node, Xattr::Set { name, value: b"a", how: XattrSet::Any }).unwrap();
}

#[test]
fn what_the_guest_made_of_a_file_goes_with_its_last_name_and_reference() {
    let shared = tempfile::tempdir().unwrap();
    let files = HostFs::new(shared.path(), Options::default()).unwrap();
    let unlink = |old| files.names(&ASKER, NodeId::ROOT, NameChange::Unlink(name(old))).unwrap();
    for mode in [0o100_600, 0o010_600] {
        let node = make(&files, c"a", mode);
        tag(&files, node);
        files.entry(&ASKER, NodeId::ROOT, name(c"b"), How::HardLink { node }).unwrap();
        unlink(c"a");
        files.let_go(node, Gone::Lookups(2));
        let again = files.entry(&ASKER, NodeId::ROOT, name(c"b"), How::Existing).unwrap();
        assert_eq!((again.stat.attributes.uid, again.stat.attributes.links), (12_345, 1));
        assert_eq!(files.table.len(), 1);
        unlink(c"b");
        tag(&files, again.node);
        files.let_go(again.node, Gone::Lookups(1));
        assert_eq!(files.table.len(), 0, "{mode:o}");
    }
    let creation =
        Creation { mode: 0o640, access: Access::ReadWrite, flags: OpenFlags::empty(), exclusive: false };
    let (entry, opened) = files.create(&ASKER, NodeId::ROOT, None, creation).unwrap();
    assert_eq!(files.table.len(), 1);
    files.let_go(entry.node, Gone::File(opened.handle));
    files.let_go(entry.node, Gone::Lookups(1));
    assert_eq!(files.table.len(), 0);
    // A mount that ends takes everything.
    let node = make(&files, c"a", 0o100_600);
    unlink(c"a");
    assert_eq!(files.table.len(), 1);
    files.let_go(NodeId::ROOT, Gone::Everything);
    assert_eq!(files.table.len(), 0);
    assert_eq!(files.attributes(&ASKER, node, None, None), Err(Errno::ESTALE));
    // Attributes of a file that the kernel has forgotten go at once.
    let node = make(&files, c"a", 0o100_600);
    files.let_go(node, Gone::Lookups(1));
    assert_eq!(files.table.len(), 1);
    unlink(c"a");
    assert_eq!(files.table.len(), 0);
}

#[test]
fn a_name_that_stays_after_all_is_found_again() {
    let shared = tempfile::tempdir().unwrap();
    let files = HostFs::new(shared.path(), Options::default()).unwrap();
    let how = How::Directory { mode: 0o755 };
    let directory = files.entry(&ASKER, NodeId::ROOT, name(c"d"), how).unwrap().node;
    std::fs::write(shared.path().join("d/file"), "").unwrap();
    for _ in 0..3 {
        let remove = NameChange::RemoveDirectory(name(c"d"));
        assert_eq!(files.names(&ASKER, NodeId::ROOT, remove), Err(Errno::ENOTEMPTY));
    }
    assert_eq!(files.nodes.pinned(), 0);
    assert!(files.attributes(&ASKER, directory, None, None).is_ok());
}

/// Calls that tests make again and again.
impl HostFs {
    fn unlink(&self, old: &str) -> Result<()> {
        let old = CString::new(old).unwrap();
        self.names(&ASKER, NodeId::ROOT, NameChange::Unlink(Name::new(&old).unwrap()))
    }

    fn find(&self, parent: NodeId, old: &str) -> Result<Entry> {
        let old = CString::new(old).unwrap();
        self.entry(&ASKER, parent, Name::new(&old).unwrap(), How::Existing)
    }

    fn fill(&self, count: usize) {
        for ino in 0..u64::try_from(count).unwrap() {
            let other = Identity { device: 99, ino, btime: (0, 0) };
            self.table.change(other, |file| file.uid = Some(1)).unwrap();
        }
    }
}

fn shared_directory() -> (tempfile::TempDir, HostFs) {
    let shared = tempfile::tempdir().unwrap();
    let options = Options { budget: Budget { nodes: 4, handles: 100 }, ..Options::default() };
    let files = HostFs::new(shared.path(), options).unwrap();
    (shared, files)
}

#[test]
fn finding_a_special_file_does_not_wait_for_ever() {
    const FIFO: u32 = 0o010_600;
    let (_shared, files) = shared_directory();
    make(&files, c"fifo", FIFO);
    let files = Arc::new(files);
    let (done, ended) = std::sync::mpsc::channel();
    // Threads that wait for ever cannot be waited for.
    for thread in 0..3 {
        let (files, done) = (files.clone(), done.clone());
        std::thread::spawn(move || {
            for _ in 0..20_000 {
                if thread == 0 {
                    make(&files, c"other", FIFO);
                    files.unlink("other").unwrap();
                } else {
                    files.find(NodeId::ROOT, "fifo").unwrap();
                }
            }
            done.send(()).unwrap();
        });
    }
    for _ in 0..3 {
        ended.recv_timeout(Duration::from_secs(60)).expect("threads wait for each other");
    }
}

#[test]
fn what_cannot_be_told_is_not_made() {
    let (shared, files) = shared_directory();
    files.fill(MAX_FILES);
    let new = name(c"new");
    let hows = [
        How::Directory { mode: 0o755 },
        How::Node { mode: 0o100_644, device: fuse::Device::default() },
        How::SymbolicLink { target: fuse::LinkTarget::new(c"target").unwrap() },
    ];
    for how in hows {
        assert_eq!(files.entry(&ASKER, NodeId::ROOT, new, how).unwrap_err(), Errno::ENOSPC);
    }
    let creation =
        Creation { mode: 0o640, access: Access::ReadWrite, flags: OpenFlags::empty(), exclusive: false };
    for name in [Some(new), None] {
        assert_eq!(files.create(&ASKER, NodeId::ROOT, name, creation).unwrap_err(), Errno::ENOSPC);
    }
    assert_eq!(std::fs::read_dir(shared.path()).unwrap().count(), 0);
    assert_eq!((files.table.len(), files.nodes.pinned()), (MAX_FILES, 0));
}

#[test]
fn a_file_with_another_name_loses_one_however_few_descriptors_there_are() {
    let (shared, files) = shared_directory();
    for number in 0..20 {
        let path = |prefix: &str| shared.path().join(format!("{prefix}{number}"));
        std::fs::write(path("a"), "a").unwrap();
        std::fs::hard_link(path("a"), path("b")).unwrap();
        let a = files.find(NodeId::ROOT, &format!("a{number}")).unwrap();
        assert_eq!(files.find(NodeId::ROOT, &format!("b{number}")).unwrap().node, a.node);
        files.attributes(&ASKER, a.node, None, Some(&owned_by(7))).unwrap();
    }
    for number in 0..20 {
        files.unlink(&format!("b{number}")).unwrap();
    }
    assert_eq!(files.nodes.pinned(), 0);
    for number in 0..20 {
        let a = files.find(NodeId::ROOT, &format!("a{number}")).unwrap();
        assert_eq!((a.stat.attributes.links, a.stat.attributes.uid), (1, 7));
        assert!(files.attributes(&ASKER, a.node, None, None).is_ok());
    }
}

fn owned_by(uid: u32) -> SetAttributes {
    SetAttributes { uid: Some(uid), ..SetAttributes::default() }
}

#[test]
fn what_was_kept_for_files_that_the_host_removed_goes_when_there_is_much() {
    let (shared, files) = shared_directory();
    for number in 0..3 {
        std::fs::write(shared.path().join(format!("{number}")), "").unwrap();
    }
    let look = |old: &str| {
        let node = files.find(NodeId::ROOT, old).unwrap().node;
        files.attributes(&ASKER, node, None, Some(&owned_by(7))).unwrap();
        node
    };
    let (removed, replaced, stays) = (look("0"), look("1"), look("2"));
    files.fill(MAX_FILES / 2);
    std::fs::remove_file(shared.path().join("0")).unwrap();
    std::fs::write(shared.path().join("new"), "").unwrap();
    std::fs::rename(shared.path().join("new"), shared.path().join("1")).unwrap();
    for node in [removed, replaced, stays] {
        files.let_go(node, Gone::Lookups(1));
    }
    assert_eq!(files.table.len(), MAX_FILES / 2 + 1);
    assert_eq!(files.find(NodeId::ROOT, "2").unwrap().stat.attributes.uid, 7);
    // Names that only the guest has in a directory that the host removed.
    std::fs::create_dir(shared.path().join("d")).unwrap();
    let directory = files.find(NodeId::ROOT, "d").unwrap().node;
    for number in 0..MAX_NAMES / 2 {
        let new = CString::new(number.to_string()).unwrap();
        let how = How::Node { mode: 0o010_600, device: fuse::Device::default() };
        let made = files.entry(&ASKER, directory, Name::new(&new).unwrap(), how).unwrap();
        files.let_go(made.node, Gone::Lookups(1));
    }
    std::fs::remove_dir(shared.path().join("d")).unwrap();
    files.let_go(directory, Gone::Lookups(1));
    assert!(shared_names(&files).is_empty());
}

fn shared_names(files: &HostFs) -> std::sync::RwLockReadGuard<'_, Specials> {
    shared(&files.specials)
}

#[test]
fn handles_that_are_closed_are_not_remembered() {
    let (shared, files) = shared_directory();
    std::fs::write(shared.path().join("a"), "").unwrap();
    let node = files.find(NodeId::ROOT, "a").unwrap().node;
    let opening = Opening::File { access: Access::Read, flags: OpenFlags::empty() };
    let opened: Vec<_> = (0..100).map(|_| files.open(&ASKER, node, opening).unwrap().handle).collect();
    assert_eq!(files.open(&ASKER, node, opening), Err(Errno::EMFILE));
    assert_eq!(files.nodes.get(node).unwrap().handles(), 100);
    opened.into_iter().for_each(|handle| files.let_go(node, Gone::File(handle)));
    assert_eq!(files.nodes.get(node).unwrap().handles(), 0);
}

#[test]
fn privileges_go_with_every_change_of_contents() {
    let (_shared, files) = shared_directory();
    let node = make(&files, c"a", 0o100_755);
    let opening = Opening::File { access: Access::ReadWrite, flags: OpenFlags::empty() };
    let handle = files.open(&ASKER, node, opening).unwrap().handle;
    let how = fuse::Allocation::Reserve { keep_size: false };
    let copy = Data::Copy { offset: 0, to_node: node, to: handle, to_offset: 10, len: 5 };
    for act in [Data::Allocate { offset: 0, len: 10, how }, copy] {
        let mode = SetAttributes { mode: Some(0o6755), ..SetAttributes::default() };
        files.attributes(&ASKER, node, None, Some(&mode)).unwrap();
        files.data(&ASKER, node, handle, act).unwrap();
        let found = files.attributes(&ASKER, node, None, None).unwrap();
        assert_eq!(found.attributes.mode, 0o100_755);
    }
}

#[test]
fn a_special_file_goes_with_its_last_name_when_the_kernel_has_forgotten_it() {
    let (_shared, files) = shared_directory();
    let node = make(&files, c"a", 0o010_600);
    tag(&files, node);
    let identity = files.nodes.get(node).unwrap().identity;
    // The file has a name, which a mount that ends leaves it.
    files.let_go(NodeId::ROOT, Gone::Everything);
    assert_eq!(files.table.len(), 1);
    files.unlink("a").unwrap();
    assert_eq!(shared_names(&files).attributes(identity), Err(Errno::ESTALE));
    assert_eq!(files.table.len(), 0);
}

#[test]
fn a_file_found_just_before_it_lost_its_name_is_gone_all_the_same() {
    let (shared, files) = shared_directory();
    // A directory needs a descriptor, which a program may be in.
    for (how, remove, pinned) in [
        (How::Node { mode: 0o100_600, device: fuse::Device::default() }, NameChange::Unlink(name(c"a")), 0),
        (How::Directory { mode: 0o700 }, NameChange::RemoveDirectory(name(c"a")), 1),
    ] {
        let node = files.entry(&ASKER, NodeId::ROOT, name(c"a"), how).unwrap().node;
        let (root, directory) = files.directory(NodeId::ROOT).unwrap();
        let found = sys::stat_at(directory.as_fd(), c"a").unwrap();
        files.names(&ASKER, NodeId::ROOT, remove).unwrap();
        assert_eq!(files.learn(&root, c"a", &found).unwrap().node, node);
        assert_eq!(files.nodes.pinned(), pinned);
        std::fs::write(shared.path().join("a"), "another").unwrap();
        assert_eq!(files.attributes(&ASKER, node, None, None).unwrap().attributes.links, 0);
        files.let_go(node, Gone::Lookups(2));
        assert_eq!((files.table.len(), files.nodes.pinned()), (0, 0));
        std::fs::remove_file(shared.path().join("a")).unwrap();
    }
}

#[test]
fn threads_that_come_between_leave_nothing() {
    let (shared, files) = shared_directory();
    let both = |one: &(dyn Fn() + std::marker::Sync), other: &(dyn Fn() + std::marker::Sync)| {
        let start = std::sync::Barrier::new(2);
        std::thread::scope(|scope| {
            for act in [one, other] {
                scope.spawn(|| {
                    start.wait();
                    act();
                });
            }
        });
    };
    for _ in 0..300 {
        // Two names of one file, of which each may be the last.
        let node = make(&files, c"a", 0o100_600);
        std::fs::hard_link(shared.path().join("a"), shared.path().join("b")).unwrap();
        files.let_go(node, Gone::Lookups(1));
        both(&|| files.unlink("a").unwrap(), &|| files.unlink("b").unwrap());
        assert_eq!(files.table.len(), 0, "unlink and unlink");
        let node = make(&files, c"a", 0o100_600);
        both(&|| files.unlink("a").unwrap(), &|| files.let_go(node, Gone::Lookups(1)));
        assert_eq!((files.table.len(), files.nodes.pinned()), (0, 0), "unlink and forget");
        let node = make(&files, c"a", 0o100_600);
        files.unlink("a").unwrap();
        let name = XattrName::new(c"user.a").unwrap();
        let set = || drop(files.xattr(&ASKER, node, Xattr::Set { name, value: b"", how: XattrSet::Any }));
        both(&set, &|| files.let_go(node, Gone::Lookups(1)));
        assert_eq!(files.table.len(), 0, "set and forget");
    }
}

#[test]
fn a_mode_that_cannot_be_kept_is_not_set() {
    let (shared, files) = shared_directory();
    std::fs::write(shared.path().join("a"), "").unwrap();
    let node = files.find(NodeId::ROOT, "a").unwrap().node;
    files.fill(MAX_FILES);
    let change = SetAttributes { mode: Some(0o6751), ..SetAttributes::default() };
    assert_eq!(files.attributes(&ASKER, node, None, Some(&change)), Err(Errno::ENOSPC));
    let (_, directory) = files.directory(NodeId::ROOT).unwrap();
    let host = sys::stat_at(directory.as_fd(), c"a").unwrap();
    assert_ne!(host.attributes.mode & 0o777, 0o751);
}

const READ: Opening = Opening::File { access: Access::Read, flags: OpenFlags::empty() };

#[test]
fn a_file_that_nobody_has_open_loses_its_name_without_a_descriptor_and_is_told_as_it_was() {
    let (shared, files) = shared_directory();
    let path = |number: usize| shared.path().join(number.to_string());
    for number in 0..20 {
        std::fs::write(path(number), "12345").unwrap();
    }
    let find = |number: usize| files.find(NodeId::ROOT, &number.to_string()).unwrap();
    let entries: Vec<Entry> = (0..20).map(find).collect();
    (0..20).for_each(|number| files.unlink(&number.to_string()).unwrap());
    assert_eq!(files.nodes.pinned(), 0);
    std::fs::write(path(0), "another").unwrap();
    for entry in &entries {
        let found = files.attributes(&ASKER, entry.node, None, None).unwrap().attributes;
        assert_eq!((found.links, found.size, found.ino), (0, 5, entry.stat.attributes.ino));
        assert_eq!(files.open(&ASKER, entry.node, READ).unwrap_err(), Errno::ESTALE);
    }
    assert_ne!(find(0).node, entries[0].node);
    // A file that keeps its name after all is told as it is.
    std::fs::write(path(30), "1").unwrap();
    let entry = find(30);
    let node = files.nodes.get(entry.node).unwrap();
    files.nodes.remember(&node, &files.found(&node).unwrap());
    assert_eq!(find(30).node, entry.node);
    std::fs::write(path(30), "12345").unwrap();
    let found = files.attributes(&ASKER, entry.node, None, None).unwrap().attributes;
    assert_eq!((found.links, found.size), (1, 5));
    // A file that was found just before its name went stays without.
    files.nodes.remember(&node, &files.found(&node).unwrap());
    std::fs::remove_file(path(30)).unwrap();
    files.nodes.moved(node.identity, files.nodes.root(), c"30");
    assert!(node.is_gone());
    assert_eq!(files.attributes(&ASKER, entry.node, None, None).unwrap().attributes.links, 0);
}

/// A program found the file by that name, and opens it now.
#[test]
fn a_file_whose_name_has_become_anothers_is_opened_all_the_same() {
    let (shared, files) = shared_directory();
    let path = |name: &str| shared.path().join(name);
    let rename = |to: &'static CStr| {
        let (from, to_parent, how) = (name(c"new"), NodeId::ROOT, RenameHow::Replace);
        files.names(&ASKER, NodeId::ROOT, NameChange::Rename { from, to_parent, to: name(to), how }).unwrap();
    };
    std::fs::write(path("a"), "old").unwrap();
    std::fs::write(path("new"), "longer").unwrap();
    let old = files.find(NodeId::ROOT, "a").unwrap();
    rename(c"a");
    let opened = files.open(&ASKER, old.node, READ).unwrap();
    let found = files.attributes(&ASKER, old.node, None, None).unwrap().attributes;
    assert_eq!((found.size, found.links, files.nodes.pinned()), (3, 0, 1));
    files.let_go(old.node, Gone::File(opened.handle));
    files.let_go(old.node, Gone::Lookups(1));
    assert_eq!(files.nodes.pinned(), 0);
    assert_eq!(files.find(NodeId::ROOT, "a").unwrap().stat.attributes.size, 6);
    // There are four descriptors for such files: those beyond are told as they were.
    let nodes: Vec<NodeId> = (0..8)
        .map(|_| {
            std::fs::write(path("new"), "x").unwrap();
            let node = files.find(NodeId::ROOT, "a").unwrap().node;
            rename(c"a");
            node
        })
        .collect();
    assert!(files.nodes.pinned() <= 5);
    for node in nodes {
        assert_eq!(files.attributes(&ASKER, node, None, None).unwrap().attributes.links, 0);
    }
}

#[test]
fn a_file_that_was_open_when_it_lost_its_name_is_itself_after_it_is_closed() {
    let (_shared, files) = shared_directory();
    let creation =
        Creation { mode: 0o640, access: Access::ReadWrite, flags: OpenFlags::empty(), exclusive: true };
    let (entry, opened) = files.create(&ASKER, NodeId::ROOT, Some(name(c"a")), creation).unwrap();
    files.unlink("a").unwrap();
    let longer = SetAttributes { size: Some(100), ..SetAttributes::default() };
    files.attributes(&ASKER, entry.node, Some(opened.handle), Some(&longer)).unwrap();
    files.let_go(entry.node, Gone::File(opened.handle));
    let found = files.attributes(&ASKER, entry.node, None, None).unwrap().attributes;
    assert_eq!((found.links, found.size, files.nodes.pinned()), (0, 100, 1));
    files.let_go(entry.node, Gone::Lookups(1));
    assert_eq!((files.nodes.pinned(), files.table.len()), (0, 0));
}

#[test]
fn pages_are_kept_of_contents_that_have_not_changed_and_cannot_have_without_a_word() {
    let (shared, files) = shared_directory();
    let path = shared.path().join("a");
    std::fs::write(&path, "one").unwrap();
    let node = files.find(NodeId::ROOT, "a").unwrap().node;
    let keeps = || {
        let opened = files.open(&ASKER, node, READ).unwrap();
        files.let_go(node, Gone::File(opened.handle));
        opened.cache.contains(Cache::KEEP)
    };
    // A change in this very moment would not show.
    assert!(!keeps() && !keeps());
    // The clock that files are stamped with, three seconds on.
    let then = sys::current_time().seconds + 3;
    while sys::current_time().seconds < then {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(!keeps(), "nothing is known of the pages there are");
    assert!(keeps() && keeps());
    std::fs::write(&path, "two").unwrap();
    assert!(!keeps() && !keeps(), "of the same size, in the same second");
}

#[test]
fn caching_is_what_the_options_say() {
    let shared = tempfile::tempdir().unwrap();
    std::fs::write(shared.path().join("a"), "a").unwrap();
    let hour = Duration::from_secs(3600);
    let moment = Duration::from_millis(1500);
    for (caching, valid, file, directory) in [
        (Caching::None, Duration::ZERO, Cache::DIRECT, Cache::empty()),
        (Caching::Auto, moment, Cache::empty(), Cache::empty()),
        (Caching::Always, hour, Cache::KEEP, Cache::KEEP | Cache::DIRECTORY),
    ] {
        let files = HostFs::new(shared.path(), Options { caching, valid: moment, ..Options::default() });
        let files = files.unwrap();
        let entry = files.find(NodeId::ROOT, "a").unwrap();
        assert_eq!((entry.valid, entry.stat.valid), (valid, valid));
        assert_eq!(files.attributes(&ASKER, NodeId::ROOT, None, None).unwrap().valid, valid);
        assert_eq!(files.open(&ASKER, entry.node, READ).unwrap().cache, file);
        assert_eq!(files.open(&ASKER, NodeId::ROOT, Opening::Directory).unwrap().cache, directory);
    }
}
