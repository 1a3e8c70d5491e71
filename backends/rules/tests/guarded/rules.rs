//! Operations that rules block, each by the request that it is.

use std::ffi::CString;

use ::rules::{Guard, Guarded};
use fuse::{
    Access, Allocation, Creation, Data, Errno, FileSystem, How, Name, OpenFlags, RenameHow, SetAttributes,
    SetTime, Sync, Xattr,
};

use crate::guest::{ROOT, USER, View, blocks, events, folder, masks};

type Guest = View<Guarded>;

/// An operation, and a request that is one.
type Act<'a> = (&'a str, &'a dyn Fn(&Guest) -> fuse::Result<()>);

/// The same of a name that is made.
type Making<'a> = (&'a str, &'a dyn Fn(&Guest, &str) -> fuse::Result<()>);

const PERM: Option<Errno> = Some(Errno::EPERM);
const NONE: OpenFlags = OpenFlags::empty();

/// A folder with a file and a directory, and the guest whose `ops` at `/w/x` are blocked.
fn blocked(ops: &[&str]) -> Guest {
    let (host, guest) = folder(blocks(&[(ops, "/w/x")]));
    host.write(ROOT, "x", "text").unwrap();
    host.write(ROOT, "y", "text").unwrap();
    host.mkdir(ROOT, "d").unwrap();
    guest
}

fn set(change: impl FnOnce(&mut SetAttributes)) -> SetAttributes {
    let mut attributes = SetAttributes::default();
    change(&mut attributes);
    attributes
}

#[test]
fn each_operation_is_blocked_as_itself_and_no_other() {
    let sync = |guest: &Guest, node| {
        let handle = guest.open(node, Access::Read, NONE)?;
        guest.0.sync(&USER, node, Sync::File { handle, data_only: true })
    };
    let allocate = |guest: &Guest, node| {
        let handle = guest.open(node, Access::Write, NONE)?;
        let how = Allocation::Reserve { keep_size: true };
        guest.0.data(&USER, node, handle, Data::Allocate { offset: 0, len: 1, how }).map(drop)
    };
    let write = |guest: &Guest, node| {
        let handle = guest.open(node, Access::Write, NONE)?;
        guest.write_to(node, handle, b"text").map(drop)
    };
    let acts: [Act<'_>; 13] = [
        ("stat", &|guest| guest.walk("x").map(drop)),
        ("open", &|guest| guest.open(guest.walk("x")?, Access::Read, NONE).map(drop)),
        ("read", &|guest| guest.read(guest.walk("x")?).map(drop)),
        ("write", &|guest| write(guest, guest.walk("x")?)),
        ("write", &|guest| allocate(guest, guest.walk("x")?)),
        ("sync", &|guest| sync(guest, guest.walk("x")?)),
        ("chmod", &|guest| guest.change(guest.walk("x")?, set(|to| to.mode = Some(0o600)))),
        ("truncate", &|guest| guest.change(guest.walk("x")?, set(|to| to.size = Some(1)))),
        ("truncate", &|guest| guest.open(guest.walk("x")?, Access::Write, OpenFlags::TRUNCATE).map(drop)),
        ("", &|guest| guest.change(guest.walk("x")?, set(|to| to.mtime = Some(SetTime::Now)))),
        ("", &|guest| guest.0.xattr(&USER, guest.walk("x")?, Xattr::List).map(drop)),
        ("rename", &|guest| guest.mv("x", "z")),
        ("remove", &|guest| guest.unlink(ROOT, "x")),
    ];
    for (op, act) in acts {
        let needs: &[&str] = match op {
            "read" | "write" | "sync" => &[op, "open", "stat"],
            "stat" | "rename" | "remove" => &[op],
            _ => &[op, "stat"],
        };
        for other in [
            "stat", "open", "read", "write", "sync", "chmod", "truncate", "rename", "remove", "create",
            "close",
        ] {
            let expected = if needs.contains(&other) { PERM } else { None };
            let opened = op == "truncate" && other == "open";
            // One of the two is by way of opening.
            if !opened {
                assert_eq!(act(&blocked(&[other])).err(), expected, "{op} where {other} is blocked");
            }
        }
        assert_eq!(act(&blocked(&[])).err(), PERM, "{op} where all is blocked");
    }
}

#[test]
fn names_are_blocked_where_they_are_made() {
    let acts: [Making<'_>; 6] = [
        ("create", &|guest, name| guest.create(ROOT, name).map(drop)),
        ("create", &|guest, name| guest.mknod(ROOT, name).map(drop)),
        ("create", &|guest, name| guest.link(guest.walk("y")?, ROOT, name).map(drop)),
        ("mkdir", &|guest, name| guest.mkdir(ROOT, name).map(drop)),
        ("symlink", &|guest, name| guest.symlink(ROOT, name, "y").map(drop)),
        ("rename", &|guest, name| guest.mv("y", name)),
    ];
    for (op, act) in acts {
        for blocked in ["create", "mkdir", "symlink", "rename", "write", "stat"] {
            let (host, guest) = folder(blocks(&[(&[blocked], "/w/new?")]));
            host.write(ROOT, "y", "text").unwrap();
            assert_eq!(act(&guest, "new1").err(), if op == blocked { PERM } else { None }, "{op}, {blocked}");
        }
    }
}

#[test]
fn a_file_that_is_there_is_opened_by_making_it_only_where_it_may_be_opened() {
    let cut = OpenFlags::TRUNCATE;
    let exist = Some(Errno::EEXIST);
    for (op, flags, exclusive, expected) in [
        ("open", NONE, false, PERM),
        ("open", cut, false, PERM),
        ("open", cut, true, exist),
        ("truncate", NONE, false, None),
        ("truncate", cut, false, PERM),
        ("truncate", cut, true, exist),
        ("write", NONE, false, None),
    ] {
        let (host, guest) = folder(blocks(&[(&[op], "/w/?")]));
        let there = host.write(ROOT, "x", "text").unwrap();
        let creation = Creation { mode: 0o640, access: Access::ReadWrite, flags, exclusive };
        let create = |name| guest.0.create(&USER, ROOT, Some(Name::new(name).unwrap()), creation).err();
        assert_eq!(create(c"x"), expected, "{op} is blocked, {flags:?}, exclusive: {exclusive}");
        assert_eq!(host.read(there).as_deref(), Ok("text"), "{op} is blocked, {flags:?}");
        // A new file is made, neither opened nor cut.
        assert_eq!(create(c"y"), None, "{op} is blocked, {flags:?}, exclusive: {exclusive}");
    }
}

#[test]
fn directories_and_links() {
    let (host, guest) = folder(blocks(&[(&["readdir"], "/w/d"), (&["readlink", "remove"], "/w/d/*")]));
    let d = host.mkdir(ROOT, "d").unwrap();
    host.symlink(d, "link", "target").unwrap();
    host.mkdir(d, "e").unwrap();
    let d = guest.walk("d").unwrap();
    assert_eq!(guest.list(d, false).err(), PERM);
    assert_eq!(guest.names(ROOT), ["d"]);
    assert_eq!(guest.0.read_link(&USER, guest.walk("d/link").unwrap()).err(), PERM);
    assert_eq!(guest.rmdir(d, "e").err(), PERM);
    // Down to one level only: `*` ends at a slash.
    let f = guest.mkdir(guest.walk("d/e").unwrap(), "f").unwrap();
    guest.symlink(f, "link", "target").unwrap();
    assert_eq!(guest.0.read_link(&USER, guest.walk("d/e/f/link").unwrap()), Ok(b"target".to_vec()));
}

#[test]
fn a_name_that_may_not_be_looked_up_is_listed_without_being_looked_up() {
    let (host, guest) = folder(blocks(&[(&["stat"], "/w/x*")]));
    for name in ["a", "x1", "x2"] {
        host.write(ROOT, name, "").unwrap();
    }
    let listed = guest.list(ROOT, true).unwrap();
    let known: Vec<_> = listed.iter().map(|(name, node)| (name.as_str(), node.is_some())).collect();
    assert_eq!(known, [("a", true), ("x1", false), ("x2", false)]);
    assert_eq!(guest.walk("x1").err(), PERM);
}

#[test]
fn the_path_is_where_the_file_is_now() {
    let (host, guest) = folder(blocks(&[(&["write"], "/w/d/*")]));
    let d = host.mkdir(ROOT, "d").unwrap();
    host.write(d, "x", "text").unwrap();
    let x = guest.walk("d/x").unwrap();
    let handle = guest.open(x, Access::Write, NONE).unwrap();
    assert_eq!(guest.write_to(x, handle, b"1").err(), PERM);
    guest.mv("d", "e").unwrap();
    guest.write_to(x, handle, b"1").unwrap();
    guest.rename((ROOT, "e"), (ROOT, "d"), RenameHow::Keep).unwrap();
    assert_eq!(guest.write_to(x, handle, b"1").err(), PERM);
    // An exchange gives both another path.
    guest.mkdir(ROOT, "f").unwrap();
    guest.rename((ROOT, "f"), (ROOT, "d"), RenameHow::Exchange).unwrap();
    guest.write_to(x, handle, b"1").unwrap();
    assert_eq!(
        guest
            .create(guest.walk("d").unwrap(), "y")
            .and_then(|(y, handle)| guest.write_to(y, handle, b"1"))
            .err(),
        PERM
    );
}

#[test]
fn copies_are_read_and_written() {
    for (op, expected) in [("read", [PERM, None]), ("write", [None, PERM]), ("open", [None, None])] {
        let (_, guest) = folder(blocks(&[(&[op], "/w/x")]));
        let open = |name: &str| guest.create(ROOT, name).unwrap();
        let ((x, x_handle), (y, y_handle)) = (open("x"), open("y"));
        let copy = |from: (_, _), to: (_, _)| {
            let act = Data::Copy { offset: 0, to_node: to.0, to: to.1, to_offset: 0, len: 1 };
            guest.0.data(&USER, from.0, from.1, act).err()
        };
        assert_eq!(
            [copy((x, x_handle), (y, y_handle)), copy((y, y_handle), (x, x_handle))],
            expected,
            "{op}"
        );
    }
}

#[test]
fn without_anything_to_be_done_there_is_no_layer() {
    // A path can be too long for the layer, and for nothing else.
    let dig = |guard: Guard| {
        let (host, _) = folder(Guard::default());
        let files = guard.over("/w", Box::new(host.0.clone()));
        let name = CString::new(vec![b'n'; 255]).unwrap();
        (0..20).try_fold(ROOT, |parent, _| {
            let how = How::Directory { mode: 0o755 };
            files.entry(&USER, parent, Name::new(&name)?, how).map(|entry| entry.node)
        })
    };
    assert!(dig(Guard::default()).is_ok());
    for guard in [blocks(&[(&[], "/w/x")]), masks(&["x"], &[], false), events().0] {
        assert_eq!(dig(guard), Err(Errno::ENAMETOOLONG));
    }
}
