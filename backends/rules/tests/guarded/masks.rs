//! Names that are hidden, and names that are protected.

use fuse::{
    Access, Errno, FileSystem, Gone, OpenFlags, RenameHow, SetAttributes, SetTime, Xattr, XattrName, XattrSet,
};

use crate::guest::{ROOT, USER, folder, masks};

const NONE: OpenFlags = OpenFlags::empty();

fn chmod(mode: u32) -> SetAttributes {
    SetAttributes { mode: Some(mode), ..SetAttributes::default() }
}

#[test]
fn what_is_hidden_is_not_there_and_cannot_be_made() {
    let (host, guest) = folder(masks(&[".env*", "/secret"], &[], false));
    let [sub, secret] = ["sub", "secret"].map(|name| host.mkdir(ROOT, name).unwrap());
    host.write(ROOT, ".env", "key").unwrap();
    host.write(sub, ".env.local", "key").unwrap();
    host.write(secret, "file", "key").unwrap();
    host.write(sub, "seen", "text").unwrap();

    let sub = guest.look_up(ROOT, "sub").unwrap();
    for (parent, name) in
        [(ROOT, ".env"), (ROOT, ".ENV"), (ROOT, "secret"), (sub, ".env.local"), (sub, ".environment")]
    {
        assert_eq!(guest.look_up(parent, name), Err(Errno::ENOENT), "{name}");
        assert_eq!(guest.unlink(parent, name), Err(Errno::ENOENT), "{name}");
        assert_eq!(guest.rmdir(parent, name), Err(Errno::ENOENT), "{name}");
        assert_eq!(guest.mkdir(parent, name), Err(Errno::EPERM), "{name}");
        assert_eq!(guest.mknod(parent, name), Err(Errno::EPERM), "{name}");
        assert_eq!(guest.create(parent, name), Err(Errno::EPERM), "{name}");
        assert_eq!(guest.symlink(parent, name, "seen"), Err(Errno::EPERM), "{name}");
        let seen = guest.look_up(sub, "seen").unwrap();
        assert_eq!(guest.link(seen, parent, name), Err(Errno::EPERM), "{name}");
        assert_eq!(
            guest.rename((sub, "seen"), (parent, name), RenameHow::Replace),
            Err(Errno::EPERM),
            "{name}"
        );
        assert_eq!(
            guest.rename((sub, "seen"), (parent, name), RenameHow::Exchange),
            Err(Errno::ENOENT),
            "{name}"
        );
        assert_eq!(
            guest.rename((parent, name), (sub, "mine"), RenameHow::Replace),
            Err(Errno::ENOENT),
            "{name}"
        );
    }
    assert_eq!(guest.read(guest.walk("sub/seen").unwrap()).as_deref(), Ok("text"));
    // Only the root's `secret` is meant.
    guest.write(sub, "secret", "mine").unwrap();
    assert_eq!(guest.names(ROOT), ["sub"]);
    assert_eq!(guest.names(sub), ["secret", "seen"]);
    // A directory with hidden names only is not empty.
    guest.unlink(sub, "secret").unwrap();
    guest.unlink(sub, "seen").unwrap();
    assert_eq!(guest.rmdir(ROOT, "sub"), Err(Errno::ENOTEMPTY));
    assert_eq!(host.names(ROOT), [".env", "secret", "sub"]);
}

#[test]
fn lists_leave_out_what_is_hidden_and_count_right() {
    for plus in [false, true] {
        let (host, guest) = folder(masks(&["hidden*"], &[], false));
        let mut expected = Vec::new();
        for number in 0..40 {
            host.write(ROOT, &format!("hidden{number}"), "").unwrap();
            // Long runs of hidden names fill buffers alone.
            if number % 13 == 0 {
                host.write(ROOT, &format!("seen{number}"), "").unwrap();
                expected.push(format!("seen{number}"));
            }
        }
        host.0.let_go(ROOT, Gone::Everything);
        expected.sort();
        let listed = guest.list(ROOT, plus).unwrap();
        assert_eq!(listed.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>(), expected);
        assert!(listed.iter().all(|(_, node)| node.is_some() == plus));
        let nodes: Vec<_> = listed.into_iter().filter_map(|(_, node)| node).collect();
        assert_eq!(host.0.references(), i64::try_from(nodes.len()).unwrap(), "plus: {plus}");
        // Each was really looked up for the guest: it can be opened, and given back.
        for node in nodes {
            assert_eq!(guest.read(node).as_deref(), Ok(""));
            guest.forget(node, 1);
            assert_eq!(guest.read(node), Err(Errno::ESTALE));
        }
        assert_eq!(host.0.references(), 0);
    }
    let (host, guest) = folder(masks(&["*"], &[], false));
    for number in 0..40 {
        host.write(ROOT, &number.to_string(), "").unwrap();
    }
    assert_eq!(guest.names(ROOT), [""; 0]);
}

#[test]
fn what_is_read_only_can_be_read_and_nothing_else() {
    let (host, guest) = folder(masks(&[], &["locked", "/top/file"], false));
    let [locked, top, free] = ["locked", "top", "free"].map(|name| host.mkdir(ROOT, name).unwrap());
    host.write(locked, "inside", "text").unwrap();
    host.write(top, "file", "text").unwrap();
    host.write(free, "file", "text").unwrap();

    let free = guest.walk("free").unwrap();
    for (parent, name) in [("locked", "inside"), ("top", "file")] {
        let parent = guest.walk(parent).unwrap();
        let node = guest.look_up(parent, name).unwrap();
        assert_eq!(guest.read(node).as_deref(), Ok("text"));
        let rofs = Err(Errno::EROFS);
        for (access, flags) in
            [(Access::Write, NONE), (Access::ReadWrite, NONE), (Access::Read, OpenFlags::TRUNCATE)]
        {
            assert_eq!(guest.open(node, access, flags), Err(Errno::EROFS));
        }
        assert_eq!(guest.change(node, chmod(0o777)), rofs);
        assert_eq!(guest.change(node, SetAttributes { size: Some(0), ..SetAttributes::default() }), rofs);
        assert_eq!(
            guest.change(node, SetAttributes { mtime: Some(SetTime::Now), ..SetAttributes::default() }),
            rofs
        );
        let set = Xattr::Set { name: XattrName::new(c"user.a").unwrap(), value: b"v", how: XattrSet::Any };
        assert_eq!(guest.0.xattr(&USER, node, set), Err(Errno::EROFS));
        assert_eq!(
            guest.0.xattr(&USER, node, Xattr::Remove(XattrName::new(c"user.a").unwrap())),
            Err(Errno::EROFS)
        );
        assert_eq!(guest.0.xattr(&USER, node, Xattr::List), Ok(Vec::new()));
        assert_eq!(guest.unlink(parent, name), rofs);
        assert_eq!(guest.create(parent, name), Err(Errno::EROFS));
        assert_eq!(guest.link(node, free, "other"), Err(Errno::EROFS));
        for how in [RenameHow::Replace, RenameHow::Keep, RenameHow::Exchange] {
            assert_eq!(guest.rename((parent, name), (free, "mine"), how), rofs);
            assert_eq!(guest.rename((free, "file"), (parent, name), how), rofs);
        }
    }
    let locked = guest.walk("locked").unwrap();
    for refused in
        [guest.mkdir(locked, "new"), guest.mknod(locked, "new"), guest.symlink(locked, "new", "inside")]
    {
        assert_eq!(refused, Err(Errno::EROFS));
    }
    assert_eq!(guest.rmdir(ROOT, "locked"), Err(Errno::EROFS));
    assert_eq!(guest.change(locked, chmod(0o777)), Err(Errno::EROFS));
    // Beside it, all is as ever.
    guest.write(guest.walk("top").unwrap(), "other", "mine").unwrap();
    guest.write(free, "file", "mine").unwrap();
    guest.mv("free/file", "free/renamed").unwrap();
    assert_eq!(host.names(host.walk("free").unwrap()), ["renamed"]);
    assert_eq!(host.read(host.walk("locked/inside").unwrap()).as_deref(), Ok("text"));
}

/// Each is a way by which a guest could have its own file where git of the host looks for a hook.
#[test]
fn hooks_of_git_are_out_of_reach() {
    let (host, guest) = folder(masks(&[], &[], true));
    let git = host.mkdir(ROOT, ".git").unwrap();
    let hooks = host.mkdir(git, "hooks").unwrap();
    host.write(hooks, "pre-commit", "host").unwrap();
    host.write(git, "config", "host").unwrap();
    host.write(git, "HEAD", "ref").unwrap();
    host.mkdir(ROOT, "sub").unwrap();

    let git = guest.walk(".git").unwrap();
    let evil = guest.mkdir(ROOT, "evil").unwrap();
    let evil_hooks = guest.mkdir(evil, "hooks").unwrap();
    guest.write(evil_hooks, "pre-commit", "guest").unwrap();
    // Out of the way, changed, and back: `mv .git x; write x/hooks/y; mv x .git`.
    assert_eq!(guest.mv(".git", "x"), Err(Errno::EXDEV));
    assert_eq!(guest.mv(".git", "evil/.git"), Err(Errno::EXDEV));
    // Another directory in its place, or in that of hooks.
    assert_eq!(guest.mv("evil", ".git"), Err(Errno::EXDEV));
    assert_eq!(guest.rename((ROOT, "evil"), (ROOT, ".git"), RenameHow::Exchange), Err(Errno::EXDEV));
    assert_eq!(guest.mv("evil", "sub/.git"), Err(Errno::EXDEV));
    assert_eq!(guest.mv("evil/hooks", ".git/hooks"), Err(Errno::EROFS));
    assert_eq!(guest.mv(".git/hooks", "x"), Err(Errno::EROFS));
    assert_eq!(guest.mv("evil/hooks/pre-commit", ".git/hooks/pre-commit"), Err(Errno::EROFS));
    // Links that the host follows.
    for name in [".git", ".GIT"] {
        assert_eq!(guest.symlink(guest.walk("sub").unwrap(), name, "../evil"), Err(Errno::EPERM));
    }
    assert_eq!(guest.symlink(git, "worktrees", "../evil"), Err(Errno::EPERM));
    let link = guest.symlink(evil, "link", ".").unwrap();
    assert_eq!(guest.link(link, guest.walk("sub").unwrap(), ".git"), Err(Errno::EPERM));
    // Files that say where git looks.
    for name in ["commondir", "config.worktree"] {
        assert_eq!(guest.create(git, name).err(), Some(Errno::EROFS));
    }
    assert_eq!(guest.create(guest.walk("sub").unwrap(), ".git").err(), Some(Errno::EPERM));
    // The file by another name.
    let hook = guest.walk(".git/hooks/pre-commit").unwrap();
    assert_eq!(guest.link(hook, evil, "alias"), Err(Errno::EROFS));
    // A handle, opened before the file gets there.
    let (file, handle) = guest.create(evil, "open").unwrap();
    assert_eq!(guest.mv("evil/open", ".git/config"), Err(Errno::EROFS));
    guest.write_to(file, handle, b"guest").unwrap();
    guest.close(file, handle);
    // A file without a name, which gets one later.
    let (access, flags) = (Access::ReadWrite, OpenFlags::empty());
    let nameless = fuse::Creation { mode: 0o600, access, flags, exclusive: true };
    assert_eq!(guest.0.create(&USER, ROOT, None, nameless).err(), Some(Errno::EOPNOTSUPP));
    // A repository of the guest's own is one without hooks and without settings.
    let own = guest.mkdir(guest.walk("sub").unwrap(), ".git").unwrap();
    guest.write(own, "HEAD", "ref").unwrap();
    assert_eq!(guest.mkdir(own, "hooks"), Err(Errno::EROFS));
    assert_eq!(guest.create(own, "config").err(), Some(Errno::EROFS));
    assert_eq!(guest.mv("sub/.git", ".git"), Err(Errno::EXDEV));
    // Git of the guest works: what it renames stays where it is allowed.
    guest.write(git, "HEAD.lock", "new").unwrap();
    guest.mv(".git/HEAD.lock", ".git/HEAD").unwrap();
    guest.write(git, "config.lock", "new").unwrap();
    assert_eq!(guest.mv(".git/config.lock", ".git/config"), Err(Errno::EROFS));
    // A whole repository may move: what is in it is masked there as well.
    guest.mv("sub", "moved").unwrap();
    assert_eq!(guest.create(guest.walk("moved/.git").unwrap(), "config").err(), Some(Errno::EROFS));
    assert_eq!(host.read(host.walk(".git/hooks/pre-commit").unwrap()).as_deref(), Ok("host"));
    assert_eq!(host.read(host.walk(".git/config").unwrap()).as_deref(), Ok("host"));
    assert_eq!(host.read(host.walk(".git/HEAD").unwrap()).as_deref(), Ok("new"));
}

#[test]
fn a_directory_that_moved_keeps_its_masks_before_it_is_looked_up_again() {
    let (_, guest) = folder(masks(&[], &["locked/below"], false));
    let a = guest.mkdir(ROOT, "a").unwrap();
    let deep = guest.mkdir(a, "deep").unwrap();
    let locked = guest.mkdir(deep, "locked").unwrap();
    guest.mv("a", "b").unwrap();
    guest.rename((guest.walk("b").unwrap(), "deep"), (ROOT, "shallow"), RenameHow::Replace).unwrap();
    // By the number that it had before: what was found by old names is found by them no more.
    assert_eq!(guest.mkdir(locked, "below"), Err(Errno::EROFS));
    assert_eq!(guest.rename((deep, "locked"), (ROOT, "x"), RenameHow::Replace), Err(Errno::EXDEV));
    assert_eq!(guest.rename((ROOT, "b"), (deep, "locked"), RenameHow::Replace), Err(Errno::EXDEV));
    assert_eq!(guest.look_up(a, "deep"), Err(Errno::ENOENT));
    assert_eq!(guest.walk("shallow/locked"), Ok(locked));
}

#[test]
fn a_node_whose_directory_was_forgotten_has_no_path_and_no_way_out() {
    let (host, guest) = folder(masks(&[], &["locked"], false));
    let a = guest.mkdir(ROOT, "a").unwrap();
    let file = guest.write(a, "file", "text").unwrap();
    guest.forget(a, 1);
    assert_eq!(guest.open(file, Access::Write, NONE), Err(Errno::ESTALE));
    assert_eq!(guest.mkdir(a, "locked"), Err(Errno::ESTALE));
    assert_eq!(guest.link(file, ROOT, "other"), Err(Errno::ESTALE));
    assert_eq!(guest.walk("a/file"), Ok(file));
    assert_eq!(guest.read(file).as_deref(), Ok("text"));
    guest.0.let_go(ROOT, Gone::Everything);
    assert_eq!(guest.open(file, Access::Read, NONE), Err(Errno::ESTALE));
    assert_eq!(host.0.references(), 0);
}
