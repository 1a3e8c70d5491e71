//! Attributes that are kept for files go when the files do.

use fuse::{Access, OpenFlags, XattrName, XattrSet};

use super::*;

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
