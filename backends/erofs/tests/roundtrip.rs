//! Random trees, written and read back in three ways: by this crate's reader, by `fsck.erofs`, by the running kernel.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;
use std::process::{Command, Stdio};

use erofs::{
    Attributes, Entry, Extent, Image, InodeKind, NodeId, Options, Special, Timestamp, Writer, reader,
};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use proptest::sample::Index;

#[derive(Debug, Clone)]
enum Kind {
    Dir,
    File(Vec<u8>),
    /// Pieces (the gap before the bytes, the bytes), and the gap at the end.
    Sparse(Vec<(u64, Vec<u8>)>, u64),
    Symlink(Vec<u8>),
    Special(Special),
    Link(Index),
}

#[derive(Debug, Clone)]
struct Item {
    parent: Index,
    name: Vec<u8>,
    attributes: Attributes,
    kind: Kind,
}

/// The expected inode of each path. `None` stands for a directory.
type Model = BTreeMap<Vec<u8>, (Attributes, Option<Kind>)>;

fn name() -> impl Strategy<Value = Vec<u8>> {
    let byte = any::<u8>().prop_map(|byte| if matches!(byte, 0 | b'/') { b'x' } else { byte });
    let odd = vec(byte, 1..=255);
    prop_oneof![4 => "[a-c!.]{1,3}".prop_map(String::into_bytes), 1 => odd, 1 => "[a-z]{200,255}".prop_map(String::into_bytes)]
        .prop_map(|name| if matches!(name.as_slice(), b"." | b"..") { b"dots".to_vec() } else { name })
}

fn contents() -> impl Strategy<Value = Vec<u8>> {
    let edge = prop_oneof![Just(0usize), Just(4096), Just(4032), Just(4033), Just(65536), Just(65537)];
    let len = prop_oneof![3 => 0usize..5000, 1 => edge, 1 => 60_000usize..150_000];
    (len, any::<u8>(), any::<bool>()).prop_map(|(len, seed, zero)| {
        (0u8..=250).cycle().map(|byte| if zero { 0 } else { byte.wrapping_add(seed) }).take(len).collect()
    })
}

fn attributes() -> impl Strategy<Value = Attributes> {
    let key = prop_oneof![
        "user\\.[a-z]{1,20}".prop_map(String::into_bytes),
        "trusted\\.[a-z]{1,20}".prop_map(String::into_bytes),
    ];
    let value = prop_oneof![8 => vec(any::<u8>(), 0..64), 1 => vec(any::<u8>(), 1000..3000)];
    let xattrs = prop_oneof![3 => Just(BTreeMap::new()), 1 => btree_map(key, value, 1..4)];
    let time = (-1_000_000_000_000i64..1_000_000_000_000, 0u32..1_000_000_000);
    (0u16..0o10000, any::<u32>(), any::<u32>(), time, xattrs).prop_map(|(mode, uid, gid, time, xattrs)| {
        Attributes {
            mode,
            // The highest id means "none" to the kernel.
            uid: uid.min(u32::MAX - 1),
            gid: gid.min(u32::MAX - 1),
            mtime: Timestamp { seconds: time.0, nanoseconds: time.1 },
            xattrs,
        }
    })
}

fn kind() -> impl Strategy<Value = Kind> {
    let device = (0u32..4096, 0u32..1 << 20);
    let piece = (0u64..40_000, vec(any::<u8>(), 0..9000));
    prop_oneof![
        4 => Just(Kind::Dir),
        4 => contents().prop_map(Kind::File),
        1 => (vec(piece, 0..5), 0u64..100_000).prop_map(|(pieces, end)| Kind::Sparse(pieces, end)),
        1 => vec(1u8..=255, 1..200).prop_map(Kind::Symlink),
        1 => vec(1u8..=255, 3900..=4095).prop_map(Kind::Symlink),
        1 => device.clone().prop_map(|(major, minor)| Kind::Special(Special::CharDevice { major, minor })),
        1 => device.prop_map(|(major, minor)| Kind::Special(Special::BlockDevice { major, minor })),
        1 => Just(Kind::Special(Special::Fifo)),
        1 => Just(Kind::Special(Special::Socket)),
        1 => any::<Index>().prop_map(Kind::Link),
    ]
}

fn items(max: usize) -> impl Strategy<Value = Vec<Item>> {
    let item = (any::<Index>(), name(), attributes(), kind());
    let item = item.prop_map(|(parent, name, attributes, kind)| Item { parent, name, attributes, kind });
    vec(item, 0..max)
}

fn sparse(pieces: &[(u64, Vec<u8>)], end: u64) -> (u64, Vec<Extent>, Vec<u8>) {
    let (mut at, mut extents, mut data) = (0, Vec::new(), Vec::new());
    for (gap, bytes) in pieces {
        extents.push(Extent { offset: at + gap, len: bytes.len() as u64 });
        at += gap + bytes.len() as u64;
        data.extend_from_slice(bytes);
    }
    (at + end, extents, data)
}

fn expand(pieces: &[(u64, Vec<u8>)], end: u64) -> Vec<u8> {
    let mut whole = Vec::new();
    for (gap, bytes) in pieces {
        whole.resize(whole.len() + usize::try_from(*gap).unwrap(), 0);
        whole.extend_from_slice(bytes);
    }
    whole.resize(whole.len() + usize::try_from(end).unwrap(), 0);
    whole
}

/// Writes the items, later ones in place of earlier ones of the same name, and returns the expected result.
fn write(items: &[Item]) -> (Vec<u8>, Model) {
    let mut writer = Writer::new(Vec::new(), Options { uuid: [7; 16], max_len: 1 << 40 });
    let mut model = Model::new();
    let root = writer.tree().root();
    model.insert(Vec::new(), (writer.tree().attributes(root).clone(), None));
    let mut nodes: Vec<(NodeId, Attributes, Kind)> = Vec::new();
    for item in items {
        let dirs: Vec<Vec<u8>> =
            model.iter().filter(|(_, (_, kind))| kind.is_none()).map(|(path, _)| path.clone()).collect();
        let parent_path = item.parent.get(&dirs);
        let mut parent = root;
        for part in parent_path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
            parent = match writer.tree().entry(parent, part) {
                Some(Entry::Dir(dir)) => dir,
                other => panic!("{other:?}"),
            };
        }
        let slash: &[u8] = if parent_path.is_empty() { b"" } else { b"/" };
        let path = [parent_path, slash, &item.name].concat();
        let below = [&path[..], b"/"].concat();
        let made = add(&mut writer, item, &nodes);
        model.retain(|other, _| *other != path && !other.starts_with(&below));
        match made {
            None => {
                writer.tree_mut().make_dir(parent, &item.name, item.attributes.clone()).unwrap();
                model.insert(path, (item.attributes.clone(), None));
            }
            Some((node, attributes, kind)) => {
                writer.tree_mut().link(parent, &item.name, node).unwrap();
                nodes.push((node, attributes.clone(), kind.clone()));
                model.insert(path, (attributes, Some(kind)));
            }
        }
    }
    let (image, summary) = writer.finish().unwrap();
    assert_eq!(summary.len, image.len() as u64);
    (image, model)
}

fn add(
    writer: &mut Writer<Vec<u8>>,
    item: &Item,
    nodes: &[(NodeId, Attributes, Kind)],
) -> Option<(NodeId, Attributes, Kind)> {
    let at = &item.attributes;
    let node = match &item.kind {
        Kind::Dir => return None,
        Kind::Link(_) if nodes.is_empty() => return None,
        Kind::Link(index) => return Some(index.get(nodes).clone()),
        Kind::File(data) => writer.file(at, data.len() as u64, &mut data.as_slice()),
        Kind::Sparse(pieces, end) => {
            let (size, extents, data) = sparse(pieces, *end);
            writer.sparse_file(at, size, &extents, &mut data.as_slice())
        }
        Kind::Symlink(target) => writer.symlink(at, target),
        Kind::Special(special) => writer.special(at, *special),
    };
    Some((node.unwrap(), at.clone(), item.kind.clone()))
}

fn expected(kind: &Option<Kind>) -> (u16, Vec<u8>) {
    match kind {
        None => (0o04, Vec::new()),
        Some(Kind::File(data)) => (0o10, data.clone()),
        Some(Kind::Sparse(pieces, end)) => (0o10, expand(pieces, *end)),
        Some(Kind::Symlink(target)) => (0o12, target.clone()),
        Some(Kind::Special(Special::CharDevice { .. })) => (0o02, Vec::new()),
        Some(Kind::Special(Special::BlockDevice { .. })) => (0o06, Vec::new()),
        Some(Kind::Special(Special::Fifo)) => (0o01, Vec::new()),
        Some(Kind::Special(Special::Socket)) => (0o14, Vec::new()),
        Some(other) => panic!("{other:?}"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn reads_back(items in items(60)) {
        let (image, model) = write(&items);
        let found = reader::read(&image);
        prop_assert_eq!(found.keys().collect::<Vec<_>>(), model.keys().collect::<Vec<_>>());
        for (path, (attributes, kind)) in &model {
            let inode = &found[path];
            let (file_type, data) = expected(kind);
            prop_assert_eq!(&inode.attributes, attributes);
            prop_assert_eq!(inode.st_mode >> 12, file_type);
            prop_assert!(inode.data == data, "contents of {:?}", String::from_utf8_lossy(path));
        }
        let opened = Image::open(&image[..], image.len() as u64).unwrap();
        for (path, inode) in &found {
            let mut here = opened.root().unwrap();
            for part in path.split(|byte| *byte == b'/').filter(|part| !part.is_empty()) {
                here = opened.lookup(&here, part).unwrap().unwrap();
            }
            prop_assert_eq!((here.nid, &here.attributes), (inode.nid, &inode.attributes));
            prop_assert!(inode.st_mode >> 12 == 0o04 || opened.lookup(&here, b"x").is_err());
            let mut data = Vec::new();
            match here.kind {
                InodeKind::Dir => {
                    let mut below = (0..).map_while(|block| opened.entries(&here, block).unwrap()).flatten().map(|entry| entry.name).collect::<Vec<_>>();
                    prop_assert!(below.is_sorted());
                    let slash: &[u8] = if path.is_empty() { b"" } else { b"/" };
                    below.iter_mut().for_each(|name| *name = [path, slash, name].concat());
                    let prefix = [path, slash].concat();
                    let children = found.keys().filter(|other| {
                        let rest = other.strip_prefix(prefix.as_slice());
                        rest.is_some_and(|rest| !rest.is_empty() && !rest.contains(&b'/'))
                    });
                    prop_assert!(children.eq(below.iter()));
                    prop_assert!(opened.lookup(&here, b"no such name").unwrap().is_none());
                }
                InodeKind::Symlink => data = opened.target(&here).unwrap(),
                InodeKind::File => {
                    opened.data(&here).read_to_end(&mut data).unwrap();
                    let mut filled = vec![0; data.len()];
                    for extent in opened.extents(&here).unwrap().into_iter().flatten() {
                        let range = usize::try_from(extent.offset).unwrap()..usize::try_from(extent.offset + extent.len).unwrap();
                        let mut part = opened.data(&here);
                        part.seek(extent.offset);
                        part.read_exact(&mut filled[range]).unwrap();
                    }
                    prop_assert!(opened.extents(&here).unwrap().is_none() || filled == data);
                }
                InodeKind::Special(special) => {
                    let kind = &model[path].1;
                    prop_assert!(matches!(kind, Some(Kind::Special(written)) if *written == special));
                }
            }
            prop_assert!(data == inode.data, "contents of {:?}", String::from_utf8_lossy(path));
        }
        // The same calls make the same bytes.
        prop_assert!(write(&items).0 == image);
    }
}

#[test]
fn holes_take_no_blocks() {
    let mut writer = Writer::new(Vec::new(), Options { uuid: [0; 16], max_len: 1 << 30 });
    let extents = [Extent { offset: 1 << 33, len: 4096 }];
    let node =
        writer.sparse_file(&Attributes::default(), 1 << 34, &extents, &mut [1; 4096].as_slice()).unwrap();
    let root = writer.tree().root();
    writer.tree_mut().link(root, b"sparse", node).unwrap();
    let (image, _) = writer.finish().unwrap();
    // 16 GiB in 65536 chunks of 256 KiB: one chunk and the map of the others.
    assert!(image.len() < 1 << 20, "{} bytes", image.len());
}

#[test]
fn zero_blocks_become_holes_of_the_output() {
    let dir = tempfile::tempdir().unwrap();
    let file = fs::File::create_new(dir.path().join("image")).unwrap();
    let mut writer = Writer::new(file, Options { uuid: [0; 16], max_len: 1 << 30 });
    let node = writer.file(&Attributes::default(), 64 << 20, &mut std::io::repeat(0).take(64 << 20));
    let root = writer.tree().root();
    writer.tree_mut().link(root, b"zeroes", node.unwrap()).unwrap();
    let (file, summary) = writer.finish().unwrap();
    let metadata = file.metadata().unwrap();
    assert_eq!(metadata.len(), summary.len);
    assert!(metadata.blocks() * 512 < 1 << 20, "{} KiB in use", metadata.blocks() / 2);
}

#[test]
fn limits_are_errors() {
    let options = Options { uuid: [0; 16], max_len: 1 << 20 };
    let at = Attributes::default();
    let mut writer = Writer::new(Vec::new(), options);
    let too_large = writer.file(&at, 1 << 20, &mut std::io::repeat(1));
    assert!(matches!(too_large, Err(erofs::Error::ImageSize { limit: 1_048_576 })), "{too_large:?}");
    let short = writer.file(&at, 5000, &mut [1; 4999].as_slice());
    assert!(matches!(short, Err(erofs::Error::ShortData { missing: 1 })), "{short:?}");
    let backwards = [Extent { offset: 10, len: 5 }, Extent { offset: 12, len: 5 }];
    let bad = writer.sparse_file(&at, 100, &backwards, &mut [1; 10].as_slice());
    assert!(matches!(bad, Err(erofs::Error::Extents)), "{bad:?}");
    let beyond = [Extent { offset: u64::MAX, len: 5 }];
    assert!(matches!(writer.sparse_file(&at, 100, &beyond, &mut [].as_slice()), Err(erofs::Error::Extents)));
    assert!(matches!(writer.symlink(&at, &[b'a'; 4096]), Err(erofs::Error::SymlinkTarget(4096))));
    assert!(matches!(writer.symlink(&at, b""), Err(erofs::Error::SymlinkTarget(0))));
    let node = writer.special(&at, Special::Fifo).unwrap();
    let root = writer.tree().root();
    for name in [&b""[..], b".", b"..", b"a/b", b"a\0", &[b'a'; 256]] {
        assert!(matches!(writer.tree_mut().link(root, name, node), Err(erofs::Error::Name(_))));
    }
    let xattr = |name: &[u8], len: usize| Attributes {
        xattrs: [(name.to_vec(), vec![0; len])].into(),
        ..Attributes::default()
    };
    assert!(matches!(writer.special(&xattr(b"user.", 1), Special::Fifo), Err(erofs::Error::XattrName(_))));
    assert!(matches!(writer.special(&xattr(b"btrfs.a", 1), Special::Fifo), Err(erofs::Error::XattrName(_))));
    let value = writer.special(&xattr(b"user.a", 65536), Special::Fifo);
    assert!(matches!(value, Err(erofs::Error::XattrValue(65536))), "{value:?}");
}

/// A tree with everything that the tools below can show, the same in every run.
fn sample() -> (Vec<u8>, Model) {
    use proptest::strategy::ValueTree;
    use proptest::test_runner::TestRunner;
    let mut runner = TestRunner::deterministic();
    let mut all = Vec::new();
    for _ in 0..6 {
        all.extend(items(150).new_tree(&mut runner).unwrap().current());
    }
    // A directory of many blocks, with a name of its own.
    let at = Attributes { mode: 0o755, ..Attributes::default() };
    let dir = all.len();
    for i in 0..3000 {
        let kind = if i == 0 { Kind::Dir } else { Kind::File(format!("{i}").into_bytes()) };
        let name = format!("many-{i:05}").into_bytes();
        all.push(Item { parent: all[dir.min(all.len() - 1)].parent, name, attributes: at.clone(), kind });
    }
    write(&all)
}

fn tool(name: &str) -> bool {
    let found = Command::new(name).arg("--help").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok();
    if !found {
        skip::skip("erofs-utils", format!("{name} is not installed (package erofs-utils)"));
    }
    found
}

#[test]
fn fsck_agrees() {
    if !tool("fsck.erofs") {
        return;
    }
    let (image, model) = sample();
    let dir = tempfile::tempdir().unwrap();
    let (path, out) = (dir.path().join("image"), dir.path().join("out"));
    fs::write(&path, image).unwrap();
    let checked = Command::new("fsck.erofs").arg(&path).output().unwrap();
    assert!(checked.status.success(), "{checked:?}");
    let extract = format!("--extract={}", out.display());
    let extracted =
        Command::new("fsck.erofs").arg(extract).arg("--no-preserve-owner").arg(&path).output().unwrap();
    assert!(extracted.status.success(), "{extracted:?}");
    for (relative, (_, kind)) in &model {
        let path = out.join(std::ffi::OsStr::from_bytes(relative));
        match kind {
            // Version 1.5 leaves holes out of the files that it extracts, so only the kernel's reading of sparse files
            // is compared.
            Some(Kind::File(_)) => assert!(fs::read(&path).unwrap() == expected(kind).1, "{path:?}"),
            Some(Kind::Symlink(target)) => {
                assert_eq!(fs::read_link(&path).unwrap().as_os_str().as_bytes(), target.as_slice());
            }
            None => assert!(path.is_dir(), "{path:?}"),
            _ => {}
        }
    }
}

#[test]
fn the_kernel_agrees() {
    let root = rustix::process::geteuid().is_root();
    let known = fs::read_to_string("/proc/filesystems").is_ok_and(|known| known.contains("\terofs\n"));
    if !root || !known {
        skip::skip("erofs", format!("mounting needs root ({root}) and a kernel with erofs ({known})"));
        return;
    }
    let (image, model) = sample();
    let dir = tempfile::tempdir().unwrap();
    let (path, mount) = (dir.path().join("image"), dir.path().join("mount"));
    fs::write(&path, image).unwrap();
    fs::create_dir(&mount).unwrap();
    // A mount namespace of its own keeps the mount from outlasting the test. The shell holds the namespace open, and
    // the test reaches its files through /proc.
    let mut holder = Command::new("unshare")
        .args(["--mount", "sh", "-c", "mount -t erofs -o loop,ro \"$0\" \"$1\" && echo ok && read line"])
        .args([&path, &mount])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(holder.stdout.take().unwrap()), &mut line)
        .unwrap();
    assert_eq!(line, "ok\n", "mounted");
    let view =
        Path::new("/proc").join(holder.id().to_string()).join("root").join(mount.strip_prefix("/").unwrap());
    let mut seen = 0;
    for (relative, (attributes, kind)) in &model {
        check(&view.join(std::ffi::OsStr::from_bytes(relative)), attributes, kind);
        seen += 1;
    }
    assert_eq!(count(&view), seen, "nothing else is there");
    drop(holder.stdin.take());
    holder.wait().unwrap();
}

fn count(dir: &Path) -> usize {
    1 + fs::read_dir(dir)
        .unwrap()
        .map(|entry| entry.unwrap())
        .map(|entry| if entry.file_type().unwrap().is_dir() { count(&entry.path()) } else { 1 })
        .sum::<usize>()
}

fn check(path: &Path, attributes: &Attributes, kind: &Option<Kind>) {
    let metadata = fs::symlink_metadata(path).unwrap();
    let (file_type, data) = expected(kind);
    assert_eq!(metadata.mode(), u32::from(file_type) << 12 | u32::from(attributes.mode), "{path:?}");
    assert_eq!((metadata.uid(), metadata.gid()), (attributes.uid, attributes.gid), "{path:?}");
    let time = (metadata.mtime(), metadata.mtime_nsec());
    assert_eq!(time, (attributes.mtime.seconds, i64::from(attributes.mtime.nanoseconds)), "{path:?}");
    match kind {
        Some(Kind::File(_) | Kind::Sparse(..)) => assert!(fs::read(path).unwrap() == data, "{path:?}"),
        Some(Kind::Symlink(_)) => assert_eq!(fs::read_link(path).unwrap().as_os_str().as_bytes(), data),
        Some(Kind::Special(Special::CharDevice { major, minor } | Special::BlockDevice { major, minor })) => {
            assert_eq!(metadata.rdev(), rustix::fs::makedev(*major, *minor), "{path:?}");
        }
        Some(Kind::Special(Special::Fifo)) => assert!(metadata.file_type().is_fifo()),
        _ => {}
    }
    let mut names = vec![0; 64 << 10];
    let len = rustix::fs::llistxattr(path, names.as_mut_slice()).unwrap();
    let mut found = BTreeMap::new();
    for name in names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 64 << 10];
        let got = rustix::fs::lgetxattr(path, std::ffi::OsStr::from_bytes(name), value.as_mut_slice());
        // The kernel lists user attributes of symbolic links and devices, but refuses to read them.
        if let Ok(len) = got {
            value.truncate(len);
            found.insert(name.to_vec(), value);
        }
    }
    let plain = metadata.is_file() || metadata.is_dir();
    let wanted = attributes.xattrs.iter().filter(|(name, _)| plain || !name.starts_with(b"user."));
    assert!(found.iter().eq(wanted), "attributes of {path:?}");
}
