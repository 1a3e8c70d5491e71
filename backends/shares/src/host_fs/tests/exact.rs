//! Answers that are Linux's to requests that a guest's kernel refuses before they arrive, and changes of contents that it leaves
//! to the file system.

use fuse::{Allocation, Source, WriteHow};
use vm_memory::VolatileSlice;

use super::*;

const FIFO: u32 = 0o010_644;

fn directory(files: &HostFs, parent: NodeId, new: &'static CStr) -> NodeId {
    files.entry(&ASKER, parent, name(new), How::Directory { mode: 0o755 }).unwrap().node
}

fn fifo(files: &HostFs, parent: NodeId, new: &'static CStr) -> Result<NodeId> {
    let how = How::Node { mode: FIFO, device: fuse::Device::default() };
    files.entry(&ASKER, parent, name(new), how).map(|entry| entry.node)
}

type Place = (NodeId, &'static CStr);

fn rename(files: &HostFs, from: Place, to: Place, how: RenameHow) -> Result<()> {
    let change = NameChange::Rename { from: name(from.1), to_parent: to.0, to: name(to.1), how };
    files.names(&ASKER, from.0, change)
}

fn has(files: &HostFs, (directory, old): Place) -> Option<NodeId> {
    let found = files.entry(&ASKER, directory, name(old), How::Existing).ok()?;
    files.let_go(found.node, Gone::Lookups(1));
    Some(found.node)
}

#[test]
fn a_removed_directory_gets_no_name_that_only_the_guest_would_have() {
    let (_shared, files) = shared_directory();
    let removed = directory(&files, NodeId::ROOT, c"d");
    let outside = fifo(&files, NodeId::ROOT, c"fifo").unwrap();
    files.names(&ASKER, NodeId::ROOT, NameChange::RemoveDirectory(name(c"d"))).unwrap();
    assert_eq!(fifo(&files, removed, c"new"), Err(Errno::ENOENT));
    let link = files.entry(&ASKER, removed, name(c"new"), How::HardLink { node: outside });
    assert_eq!(link.unwrap_err(), Errno::ENOENT);
    for how in [RenameHow::Replace, RenameHow::Keep, RenameHow::Exchange] {
        let renamed = rename(&files, (NodeId::ROOT, c"fifo"), (removed, c"new"), how);
        assert_eq!(renamed, Err(Errno::ENOENT), "{how:?}");
    }
    assert_eq!(has(&files, (NodeId::ROOT, c"fifo")), Some(outside));
}

#[test]
fn a_special_file_without_a_name_gets_none() {
    let (_shared, files) = shared_directory();
    let node = fifo(&files, NodeId::ROOT, c"fifo").unwrap();
    files.unlink("fifo").unwrap();
    let link = files.entry(&ASKER, NodeId::ROOT, name(c"again"), How::HardLink { node });
    assert_eq!(link.unwrap_err(), Errno::ENOENT);
}

#[test]
fn a_file_that_is_to_stay_nameless_does() {
    let (_shared, files) = shared_directory();
    for (exclusive, expected) in [(true, Some(Errno::ENOENT)), (false, None)] {
        let flags = OpenFlags::empty();
        let creation = Creation { mode: 0o640, access: Access::ReadWrite, flags, exclusive };
        let (entry, _) = files.create(&ASKER, NodeId::ROOT, None, creation).unwrap();
        let link = files.entry(&ASKER, NodeId::ROOT, name(c"a"), How::HardLink { node: entry.node });
        assert_eq!(link.err(), expected);
    }
}

#[test]
fn only_a_regular_file_has_a_size_to_be_set() {
    let (shared, files) = shared_directory();
    std::os::unix::fs::symlink("target", shared.path().join("link")).unwrap();
    let link = files.find(NodeId::ROOT, "link").unwrap().node;
    let directory = directory(&files, NodeId::ROOT, c"d");
    let special = fifo(&files, NodeId::ROOT, c"fifo").unwrap();
    let change = SetAttributes { size: Some(5), mode: Some(0o600), ..SetAttributes::default() };
    for (node, expected) in [(special, Errno::EINVAL), (link, Errno::EINVAL), (directory, Errno::EISDIR)] {
        let before = files.attributes(&ASKER, node, None, None).unwrap();
        assert_eq!(files.attributes(&ASKER, node, None, Some(&change)), Err(expected));
        assert_eq!(files.attributes(&ASKER, node, None, None), Ok(before));
    }
}

const CAPABILITIES: &CStr = c"security.capability";

fn give_capabilities(files: &HostFs, node: NodeId) {
    let name = XattrName::new(CAPABILITIES).unwrap();
    files.xattr(&ASKER, node, Xattr::Set { name, value: b"all", how: XattrSet::Any }).unwrap();
}

fn has_capabilities(files: &HostFs, node: NodeId) -> bool {
    files.xattr(&ASKER, node, Xattr::Get(XattrName::new(CAPABILITIES).unwrap())).is_ok()
}

/// Linux asks for set-user-ID bits to be cleared, but never for capabilities.
#[test]
fn capabilities_go_with_every_change_of_contents_and_of_the_owner() {
    let (_shared, files) = shared_directory();
    let node = make(&files, c"a", 0o104_755);
    let opening = |flags| Opening::File { access: Access::ReadWrite, flags };
    let handle = files.open(&ASKER, node, opening(OpenFlags::empty())).unwrap().handle;
    let change = |change: SetAttributes| files.attributes(&ASKER, node, None, Some(&change)).map(drop);
    let sized = SetAttributes { size: Some(3), ..SetAttributes::default() };
    let write = |data: &mut [u8]| {
        let slices = [VolatileSlice::from(data)];
        let from = Source::new(&slices, 0, usize::MAX);
        files.data(&ASKER, node, handle, Data::Write { offset: 0, from, how: WriteHow::empty() }).map(drop)
    };
    let how = Allocation::Reserve { keep_size: true };
    let reserve = || files.data(&ASKER, node, handle, Data::Allocate { offset: 0, len: 1, how }).map(drop);
    let truncate = || files.open(&ASKER, node, opening(OpenFlags::TRUNCATE)).map(drop);
    let given = SetAttributes { mode: Some(0o755), ..owned_by(7) };
    let acts: [(&str, &dyn Fn() -> Result<()>); 6] = [
        ("write", &|| write(&mut [1])),
        ("size", &|| change(sized)),
        ("open", &truncate),
        ("reserve", &reserve),
        ("owner", &|| change(owned_by(8))),
        ("owner and mode", &|| change(given)),
    ];
    for (what, act) in acts {
        give_capabilities(&files, node);
        assert_eq!(act(), Ok(()), "{what}");
        assert!(!has_capabilities(&files, node), "{what}");
    }
    give_capabilities(&files, node);
    write(&mut []).unwrap();
    change(SetAttributes { mode: Some(0o4755), ..SetAttributes::default() }).unwrap();
    // Privileges are cleared with contents only, whatever a kernel says besides.
    let opened = files.open(&ASKER, node, opening(OpenFlags::KILL_PRIVILEGES)).unwrap();
    files.let_go(node, Gone::File(opened.handle));
    assert!(has_capabilities(&files, node));
    assert_eq!(files.attributes(&ASKER, node, None, None).unwrap().attributes.mode, 0o104_755);
    let special = fifo(&files, NodeId::ROOT, c"fifo").unwrap();
    give_capabilities(&files, special);
    files.attributes(&ASKER, special, None, Some(&owned_by(7))).unwrap();
    assert!(!has_capabilities(&files, special));
}

#[test]
fn a_directory_with_names_that_only_the_guest_has_is_renamed_as_any_other() {
    let (_shared, files) = shared_directory();
    let (a, b) = (directory(&files, NodeId::ROOT, c"a"), directory(&files, NodeId::ROOT, c"b"));
    let fifo = fifo(&files, a, c"fifo").unwrap();
    let regular = make(&files, c"file", 0o100_644);
    let replace = |from, to| rename(&files, from, to, RenameHow::Replace);
    const ROOT: NodeId = NodeId::ROOT;
    assert_eq!(replace((ROOT, c"a"), (ROOT, c"a")), Ok(()), "to itself");
    assert_eq!(replace((ROOT, c"a"), (a, c"fifo")), Err(Errno::EINVAL), "below itself");
    assert_eq!(replace((ROOT, c"b"), (a, c"fifo")), Err(Errno::ENOTDIR));
    assert_eq!(replace((a, c"fifo"), (ROOT, c"a")), Err(Errno::ENOTEMPTY), "over its own directory");
    assert_eq!(replace((a, c"fifo"), (ROOT, c"b")), Err(Errno::EISDIR));
    assert_eq!(replace((ROOT, c"b"), (ROOT, c"a")), Err(Errno::ENOTEMPTY));
    assert_eq!(replace((ROOT, c"file"), (ROOT, c"a")), Err(Errno::EISDIR));
    assert_eq!(replace((ROOT, c"none"), (a, c"fifo")), Err(Errno::ENOENT));
    let keep = |from, to| rename(&files, from, to, RenameHow::Keep);
    assert_eq!(keep((ROOT, c"none"), (a, c"fifo")), Err(Errno::ENOENT));
    assert_eq!(keep((ROOT, c"file"), (a, c"fifo")), Err(Errno::EEXIST));
    let found = |place| has(&files, place);
    assert_eq!((found((a, c"fifo")), found((ROOT, c"file"))), (Some(fifo), Some(regular)));
    assert_eq!((found((ROOT, c"a")), found((ROOT, c"b"))), (Some(a), Some(b)));
    // The way down leads through what has been renamed.
    assert_eq!(replace((ROOT, c"a"), (b, c"c")), Ok(()));
    assert_eq!(found((a, c"fifo")), Some(fifo));
}

#[test]
fn files_that_the_host_does_not_have_change_places_with_others() {
    let (shared, files) = shared_directory();
    let d = directory(&files, NodeId::ROOT, c"d");
    let (one, other) = (fifo(&files, NodeId::ROOT, c"one").unwrap(), fifo(&files, d, c"other").unwrap());
    let regular = make(&files, c"file", 0o100_644);
    let exchange = |from, to| rename(&files, from, to, RenameHow::Exchange);
    const ROOT: NodeId = NodeId::ROOT;
    let found = || [(ROOT, c"one"), (ROOT, c"file"), (d, c"other")].map(|place| has(&files, place));
    assert_eq!(exchange((ROOT, c"one"), (d, c"other")), Ok(()));
    assert_eq!(found(), [Some(other), Some(regular), Some(one)]);
    assert_eq!(exchange((ROOT, c"one"), (ROOT, c"file")), Ok(()));
    assert_eq!(found(), [Some(regular), Some(other), Some(one)]);
    assert!(shared.path().join("one").is_file() && !shared.path().join("file").exists());
    assert_eq!(exchange((ROOT, c"one"), (d, c"other")), Ok(()));
    assert_eq!(found(), [Some(one), Some(other), Some(regular)]);
    // The file is reached at its new place once its descriptor is closed.
    assert!(files.open(&ASKER, regular, READ).is_ok());
    assert_eq!(exchange((ROOT, c"one"), (d, c"none")), Err(Errno::ENOENT));
    assert_eq!(exchange((ROOT, c"d"), (d, c"other")), Err(Errno::EINVAL), "below itself");
    assert_eq!(exchange((ROOT, c"one"), (ROOT, c"one")), Ok(()));
    assert_eq!(exchange((ROOT, c"d"), (ROOT, c"one")), Ok(()));
    assert_eq!(found()[0], Some(d));
}
