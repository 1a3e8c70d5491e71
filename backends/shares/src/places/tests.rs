//! Places in a directory of the host and in a folder in memory, through the seam that guests reach.

use std::fs;
use std::path::Path;

use fuse::{Access, OpenFlags, SetTime};
use overlay::Files;

use super::*;
use crate::{HostFs, Options};

const ROOT: NodeId = NodeId::ROOT;

const ASKER: Context<'static> = Context { uid: 5, gid: 6, pid: 1, extensions: fuse::Extensions::NONE };

fn place(path: &str, is_file: bool) -> Place {
    Place { path: path.split('/').map(|name| CString::new(name).unwrap()).collect(), is_file }
}

/// The acts of a guest's kernel, in short words.
struct Guest<'a>(&'a Places);

impl Guest<'_> {
    fn entry(&self, parent: NodeId, name: &str, how: How<'_>) -> Result<Entry> {
        let name = CString::new(name).unwrap();
        self.0.entry(&ASKER, parent, Name::new(&name).unwrap(), how)
    }

    fn look_up(&self, parent: NodeId, name: &str) -> Result<NodeId> {
        self.entry(parent, name, How::Existing).map(|entry| entry.node)
    }

    fn make_directory(&self, parent: NodeId, name: &str) -> Result<NodeId> {
        self.entry(parent, name, How::Directory { mode: 0o700 }).map(|entry| entry.node)
    }

    fn remove(&self, parent: NodeId, name: &str) -> Result<()> {
        let name = CString::new(name).unwrap();
        let name = Name::new(&name).unwrap();
        match self.0.names(&ASKER, parent, NameChange::Unlink(name)) {
            Err(Errno::EISDIR) => self.0.names(&ASKER, parent, NameChange::RemoveDirectory(name)),
            other => other,
        }
    }

    fn rename(&self, from: (NodeId, &str), to: (NodeId, &str), how: RenameHow) -> Result<()> {
        let (from_name, to_name) = (CString::new(from.1).unwrap(), CString::new(to.1).unwrap());
        let (from_name, to_name) = (Name::new(&from_name).unwrap(), Name::new(&to_name).unwrap());
        let change = NameChange::Rename { from: from_name, to_parent: to.0, to: to_name, how };
        self.0.names(&ASKER, from.0, change)
    }

    fn stat(&self, node: NodeId) -> Attributes {
        self.0.attributes(&ASKER, node, None, None).unwrap().attributes
    }

    fn create(&self, parent: NodeId, name: &str) -> Result<()> {
        let name = CString::new(name).unwrap();
        let creation =
            Creation { mode: 0o600, access: Access::Write, flags: OpenFlags::empty(), exclusive: false };
        let (entry, opened) = self.0.create(&ASKER, parent, Some(Name::new(&name).unwrap()), creation)?;
        self.0.let_go(entry.node, Gone::File(opened.handle));
        Ok(())
    }

    /// All names, with so much room for a list, and with nodes or without.
    fn names(&self, node: NodeId, room: usize, nodes: bool) -> Vec<String> {
        let handle = self.0.open(&ASKER, node, Opening::Directory).unwrap().handle;
        let (mut names, mut cookie, mut bytes) = (Vec::new(), 0, Vec::new());
        loop {
            let mut listing = Listing::new(&mut bytes, room, nodes);
            self.0.list(&ASKER, node, handle, cookie, &mut listing).unwrap();
            let before = names.len();
            for one in listing.entries() {
                names.push((String::from_utf8(one.name.to_vec()).unwrap(), one.kind));
                cookie = one.cookie;
            }
            if names.len() == before {
                break;
            }
        }
        self.0.let_go(node, Gone::Directory(handle));
        let mut names: Vec<String> = names
            .into_iter()
            .filter(|(name, _)| ![".", ".."].contains(&&**name))
            .map(|(name, kind)| format!("{name}:{kind}"))
            .collect();
        names.sort();
        names
    }
}

fn of_host(path: &Path, places: &[Place]) -> Places {
    Places::new(Box::new(HostFs::new(path, Options::default()).unwrap()), places, false).unwrap()
}

fn tree(path: &Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in fs::read_dir(path).unwrap() {
        let path = entry.unwrap().path();
        all.push(path.display().to_string());
        if path.is_dir() {
            all.extend(tree(&path));
        }
    }
    all.sort();
    all
}

#[test]
fn places_are_there_and_nothing_is_made_on_the_host() {
    let shared = tempfile::tempdir().unwrap();
    let at = |name: &str| shared.path().join(name);
    fs::write(at("file"), "file").unwrap();
    fs::create_dir_all(at("real/hidden")).unwrap();
    fs::write(at("real/other"), "other").unwrap();
    fs::write(at("real/hidden/secret"), "secret").unwrap();
    fs::write(at("taken"), "a file where a directory is needed").unwrap();
    std::os::unix::fs::symlink("/etc", at("link")).unwrap();
    let before = tree(shared.path());
    let places = ["new", "real/hidden", "real/x/y", "taken/z", "link/w"].map(|path| place(path, false));
    let places = of_host(shared.path(), &[&places[..], &[place("conf", true)]].concat());
    let guest = Guest(&places);

    let names = ["conf:8", "file:8", "link:4", "new:4", "real:4", "taken:4"];
    for (room, nodes) in [(300, true), (100, false), (1 << 16, true), (1 << 16, false)] {
        assert_eq!(guest.names(ROOT, room, nodes), names, "{room} {nodes}");
    }
    let real = guest.look_up(ROOT, "real").unwrap();
    assert_eq!(guest.names(real, 1 << 16, true), ["hidden:4", "other:8", "x:4"]);
    assert_eq!(guest.stat(real).mode, 0o040_000 | mode_of(&at("real")));
    let hidden = guest.look_up(real, "hidden").unwrap();
    assert_eq!(guest.names(hidden, 1 << 16, true), [""; 0]);
    assert_eq!(guest.look_up(hidden, "secret"), Err(Errno::ENOENT));
    for (parent, name) in [(ROOT, "new"), (ROOT, "taken"), (ROOT, "link"), (real, "x"), (real, "hidden")] {
        let node = guest.look_up(parent, name).unwrap();
        let told = guest.stat(node);
        assert_eq!((told.mode, told.uid, told.gid), (0o040_755, 0, 0), "{name}");
        assert_eq!(guest.look_up(parent, name), Ok(node));
        assert_eq!(guest.create(node, "new").err(), Some(Errno::EROFS), "{name}");
        assert_eq!(guest.make_directory(node, "new"), Err(Errno::EROFS), "{name}");
        let change = SetAttributes { mtime: Some(SetTime::Now), ..SetAttributes::default() };
        assert_eq!(places.attributes(&ASKER, node, None, Some(&change)).err(), Some(Errno::EROFS));
    }
    let conf = guest.look_up(ROOT, "conf").unwrap();
    assert_eq!((guest.stat(conf).mode, guest.stat(conf).size), (0o100_644, 0));
    let reading = Opening::File { access: Access::Read, flags: OpenFlags::empty() };
    assert_eq!(places.open(&ASKER, conf, reading).err(), Some(Errno::ENXIO));
    assert_eq!(tree(shared.path()), before);
    assert_eq!(fs::read(at("taken")).unwrap(), b"a file where a directory is needed");
}

fn mode_of(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt;
    fs::metadata(path).unwrap().permissions().mode() & 0o7777
}

#[test]
fn no_name_on_the_way_is_taken_away() {
    let shared = tempfile::tempdir().unwrap();
    fs::create_dir_all(shared.path().join("a/b/c")).unwrap();
    fs::write(shared.path().join("file"), "file").unwrap();
    let places = of_host(shared.path(), &[place("a/b/c", false), place("conf", true)]);
    let guest = Guest(&places);
    let a = guest.look_up(ROOT, "a").unwrap();
    let b = guest.look_up(a, "b").unwrap();
    for (parent, name) in [(ROOT, "a"), (a, "b"), (b, "c"), (ROOT, "conf")] {
        assert_eq!(guest.remove(parent, name), Err(Errno::EBUSY), "{name}");
        assert_eq!(guest.make_directory(parent, name), Err(Errno::EEXIST));
        assert_eq!(guest.create(parent, name), Err(Errno::EEXIST));
        for how in [RenameHow::Replace, RenameHow::Keep, RenameHow::Exchange] {
            assert_eq!(guest.rename((parent, name), (ROOT, "z"), how), Err(Errno::EBUSY));
            let taken = if how == RenameHow::Keep { Errno::EEXIST } else { Errno::EBUSY };
            assert_eq!(guest.rename((ROOT, "file"), (parent, name), how), Err(taken));
        }
        let node = guest.look_up(parent, name).unwrap();
        assert_eq!(guest.entry(ROOT, "link", How::HardLink { node }).err(), Some(Errno::EPERM));
    }
    // All else goes on as ever, in these directories and from one to another.
    guest.create(b, "new").unwrap();
    guest.rename((b, "new"), (a, "newer"), RenameHow::Replace).unwrap();
    guest.rename((ROOT, "file"), (b, "moved"), RenameHow::Replace).unwrap();
    assert_eq!(guest.names(b, 1 << 16, true), ["c:4", "moved:8"]);
    let moved = guest.look_up(b, "moved").unwrap();
    assert_eq!(guest.entry(ROOT, "again", How::HardLink { node: moved }).unwrap().node, moved);
    assert!(shared.path().join("a/newer").exists() && shared.path().join("again").exists());
    for node in [OWN | 99, OWN | 1 << 46, u64::MAX] {
        assert_eq!(guest.look_up(NodeId(node), "x"), Err(Errno::ESTALE));
        places.let_go(NodeId(node), Gone::Lookups(9));
    }
}

#[test]
fn a_name_on_the_way_stays_the_same_node_whatever_the_host_does() {
    let shared = tempfile::tempdir().unwrap();
    let at = |name: &str| shared.path().join(name);
    let places = of_host(shared.path(), &[place("a/place", false)]);
    let guest = Guest(&places);
    let a = guest.look_up(ROOT, "a").unwrap();
    let inside = guest.look_up(a, "place").unwrap();
    let same = || {
        assert_eq!(guest.look_up(ROOT, "a"), Ok(a));
        assert_eq!(guest.look_up(a, "place"), Ok(inside));
    };
    same();
    fs::create_dir(at("a")).unwrap();
    fs::write(at("a/of the host"), "").unwrap();
    same();
    assert_eq!(guest.names(a, 1 << 16, true), ["of the host:8", "place:4"]);
    guest.create(a, "of the guest").unwrap();
    assert!(at("a/of the guest").exists());
    let handle = places.open(&ASKER, a, Opening::Directory).unwrap().handle;
    fs::rename(at("a"), at("elsewhere")).unwrap();
    fs::write(at("a"), "a file").unwrap();
    same();
    assert_eq!(guest.stat(a).mode, 0o040_755);
    assert_eq!(guest.names(a, 1 << 16, true), ["place:4"]);
    places.let_go(a, Gone::Directory(handle));
    let mut bytes = Vec::new();
    let listed = places.list(&ASKER, a, handle, 0, &mut Listing::new(&mut bytes, 4096, false));
    assert_eq!(listed, Err(Errno::EBADF));
}

#[test]
fn where_nobody_else_looks_directories_on_the_way_are_made() {
    let options = overlay::Options { limit: 1 << 20, mode: 0o1777, uid: 0, gid: 0 };
    let memory = Files::in_memory(options).unwrap();
    let places = Places::new(Box::new(memory), &[place("a/b/place", false), place("c", true)], true).unwrap();
    let guest = Guest(&places);
    let a = guest.look_up(ROOT, "a").unwrap();
    assert_eq!((guest.stat(a).mode, guest.stat(a).uid), (0o040_755, 0));
    guest.create(a, "new").unwrap();
    assert_eq!(guest.names(a, 1 << 16, true), ["b:4", "new:8"]);
    places.let_go(ROOT, Gone::Everything);
    assert_eq!(guest.names(a, 1 << 16, false), ["b:4", "new:8"]);
}

#[test]
fn a_change_in_a_directory_on_the_way_is_listed() {
    let memory = Files::in_memory(overlay::Options { limit: 1 << 20, mode: 0o755, uid: 0, gid: 0 }).unwrap();
    let below: Arc<dyn FileSystem> = Arc::new(memory);
    let host = Places::new(Box::new(below.clone()), &[], false).unwrap();
    let a = Guest(&host).make_directory(ROOT, "a").unwrap();
    Guest(&host).create(a, "f").unwrap();

    let kept = tempfile::tempdir().unwrap();
    let over = Files::over_kept(below, 1 << 20, fs::File::open(kept.path()).unwrap().into()).unwrap();
    let over = Arc::new(over);
    let places = Places::new(Box::new(over.clone()), &[place("a/x", false)], false).unwrap();
    let guest = Guest(&places);
    let f = guest.look_up(guest.look_up(ROOT, "a").unwrap(), "f").unwrap();
    let writing = Opening::File { access: Access::Write, flags: OpenFlags::TRUNCATE };
    let handle = places.open(&ASKER, f, writing).unwrap().handle;
    places.let_go(f, Gone::File(handle));
    over.keep().unwrap();
    let list = changes::List::of(fs::File::open(kept.path()).unwrap()).unwrap().unwrap();
    let changed: Vec<_> = changes::changes(&list).into_iter().map(|change| change.place).collect();
    assert_eq!(changed, [changes::Place::new(b"a/f").unwrap()]);
}

#[test]
fn a_directory_on_the_way_has_no_other_node() {
    let shared = tempfile::tempdir().unwrap();
    let at = |name: &str| shared.path().join(name);
    fs::create_dir_all(at("a/hidden")).unwrap();
    fs::write(at("a/hidden/secret"), "").unwrap();
    let places = of_host(shared.path(), &[place("a/hidden", false)]);
    let guest = Guest(&places);
    let a = guest.look_up(ROOT, "a").unwrap();
    let real = places.real(1).unwrap().node();
    assert!(real.0 < 100);
    for node in (2..100).map(NodeId) {
        assert_eq!(guest.look_up(node, "hidden"), Err(Errno::ESTALE));
        assert_eq!(guest.make_directory(node, "hidden"), Err(Errno::ESTALE));
        assert_eq!(places.open(&ASKER, node, Opening::Directory).err(), Some(Errno::ESTALE));
        places.let_go(node, Gone::Lookups(9));
    }
    assert_eq!(places.real(1).unwrap().node(), real);
    // Where the host moves it, it is a directory like others.
    fs::rename(at("a"), at("b")).unwrap();
    let b = guest.look_up(ROOT, "b").unwrap();
    assert_eq!((b, guest.look_up(b, "hidden").is_ok()), (real, true));
    assert_eq!(guest.names(a, 1 << 16, true), ["hidden:4"]);
    assert!(guest.look_up(b, "hidden").is_ok());
}

#[test]
fn a_handle_is_of_the_node_that_opened_it() {
    let shared = tempfile::tempdir().unwrap();
    fs::create_dir_all(shared.path().join("a/hidden")).unwrap();
    fs::create_dir_all(shared.path().join("b")).unwrap();
    let places = of_host(shared.path(), &[place("a/hidden", false), place("b/x", false)]);
    let guest = Guest(&places);
    let [a, b] = ["a", "b"].map(|name| guest.look_up(ROOT, name).unwrap());
    let handle = places.open(&ASKER, a, Opening::Directory).unwrap().handle;
    for other in [b, ROOT, guest.look_up(a, "hidden").unwrap()] {
        let mut bytes = Vec::new();
        let mut listing = Listing::new(&mut bytes, 4096, false);
        assert_eq!(places.list(&ASKER, other, handle, 0, &mut listing), Err(Errno::EBADF));
        assert_eq!(listing.entries().count(), 0);
        assert_eq!(places.sync(&ASKER, other, Sync::Directory { handle }), Err(Errno::EBADF));
        places.let_go(other, Gone::Directory(handle));
    }
    assert_eq!(places.sync(&ASKER, a, Sync::Directory { handle }), Ok(()));
    let mut bytes = Vec::new();
    assert_eq!(places.list(&ASKER, a, handle, 0, &mut Listing::new(&mut bytes, 4096, false)), Ok(()));
}

#[test]
fn what_the_kernel_knows_in_a_directory_on_the_way_stays_known() {
    let shared = tempfile::tempdir().unwrap();
    let at = |name: &str| shared.path().join(name);
    fs::create_dir_all(at("a/d")).unwrap();
    fs::write(at("a/d/f"), "f").unwrap();
    for number in 0..20 {
        fs::create_dir(at(&format!("other-{number}"))).unwrap();
    }
    let options = Options { budget: crate::Budget { nodes: 2, handles: 9 }, ..Options::default() };
    let files = Box::new(HostFs::new(shared.path(), options).unwrap());
    let places = Places::new(files, &[place("a/x", false)], false).unwrap();
    let guest = Guest(&places);
    let d = guest.look_up(guest.look_up(ROOT, "a").unwrap(), "d").unwrap();
    assert!(guest.look_up(d, "f").is_ok());
    // Its descriptor and that of its directory are closed, as others need theirs.
    for number in 0..20 {
        let other = guest.look_up(ROOT, &format!("other-{number}")).unwrap();
        assert_eq!(guest.look_up(other, "nothing"), Err(Errno::ENOENT));
    }
    assert!(guest.look_up(d, "f").is_ok());
}

#[test]
fn places_that_are_none_are_refused() {
    let refused = |places: &[Place]| {
        let memory = Files::in_memory(overlay::Options { limit: 1 << 20, mode: 0o755, uid: 0, gid: 0 });
        Places::new(Box::new(memory.unwrap()), places, true).err()
    };
    for path in ["..", "a/../b", "", "a//b", "."] {
        assert!(refused(&[place(path, false)]).is_some(), "{path}");
    }
    for (one, other) in [("a", "a"), ("a", "a/b"), ("a/b", "a")] {
        let places = [place(one, false), place(other, false)];
        assert_eq!(refused(&places), Some(Errno::EINVAL), "{one} {other}");
    }
    assert_eq!(refused(&[Place { path: Vec::new(), is_file: false }]), Some(Errno::EINVAL));
    assert_eq!(refused(&[]), None);
}
