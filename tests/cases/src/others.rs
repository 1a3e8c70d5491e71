//! Cases of owners, modes, space, and folders that are only read.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown, symlink};
use std::path::Path;

use rustix::fs::{XattrFlags, setxattr, statvfs};
use rustix::io::Errno;

use crate::{Acts, Case, Shared, USER, as_user};

pub(crate) const CASES: &[Case] = &[
    (17, "a program stays one", Acts::Both(a_program_stays_one)),
    (18, "special bits", Acts::Guest(special_bits)),
    (19, "owners", Acts::Guest(owners)),
    (19, "files of the host in directories of others", Acts::Both(files_of_the_host)),
    (21, "nothing is changed where nothing may be", Acts::ReadOnly(nothing_is_changed)),
    (30, "space", Acts::Guest(space)),
    (32, "twenty groups", Acts::Guest(twenty_groups)),
];

fn mode(path: &Path) -> u32 {
    fs::symlink_metadata(path).unwrap().mode() & 0o7777
}

fn set(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// As `git reset --hard` writes a script anew.
fn a_program_stays_one(shared: &mut Shared<'_>) {
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o755).open(shared.at("new")).unwrap();
    file.write_all(b"#!/bin/sh\n").unwrap();
    drop(file);
    fs::rename(shared.at("new"), shared.at("script")).unwrap();
    assert_eq!(mode(&shared.at("script")), 0o755);
    // Where the host sees the guest's files, it sees a program.
    let seen = shared.host.ask(&format!("mode\t{}/script\t", shared.path));
    assert!(seen == "755" || seen.contains("No such file"), "{seen}");
}

fn special_bits(directory: &Path) {
    let (inner, file) = (directory.join("inner"), directory.join("file"));
    fs::create_dir(&inner).unwrap();
    fs::write(&file, "").unwrap();
    for bits in [0o2770, 0o4755, 0o1777, 0o7777, 0o644] {
        for path in [&inner, &file] {
            set(path, bits);
            assert_eq!(mode(path), bits);
        }
    }
    chown(&inner, Some(USER), Some(42)).unwrap();
    set(&inner, 0o2777);
    as_user(USER, &[], || {
        fs::write(inner.join("file"), "").unwrap();
        fs::create_dir(inner.join("directory")).unwrap();
    });
    assert_eq!(fs::metadata(inner.join("file")).unwrap().gid(), 42);
    assert_eq!(fs::metadata(inner.join("directory")).unwrap().gid(), 42);
    assert_eq!(mode(&inner.join("directory")) & 0o2000, 0o2000);
    // A write by the owner, who has no privilege, takes the privilege away.
    chown(&file, Some(USER), Some(USER)).unwrap();
    set(&file, 0o4755);
    as_user(USER, &[], || {
        OpenOptions::new().append(true).open(&file).unwrap().write_all(b"x").unwrap();
    });
    assert_eq!(mode(&file), 0o755);
}

fn owners(directory: &Path) {
    set(directory, 0o755);
    for (name, user) in [("web", 33), ("user", USER)] {
        let path = directory.join(name);
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), "file").unwrap();
        chown(path.join("file"), Some(user), Some(user)).unwrap();
        chown(&path, Some(user), Some(user)).unwrap();
        let found = fs::metadata(path.join("file")).unwrap();
        assert_eq!((found.uid(), found.gid()), (user, user));
    }
    as_user(USER, &[], || {
        let at = |name: &str| directory.join("user").join(name);
        fs::write(at("new"), "new").unwrap();
        fs::write(at("file"), "changed").unwrap();
        assert_eq!(fs::metadata(at("new")).unwrap().uid(), USER);
        fs::remove_file(at("new")).unwrap();
        fs::remove_file(at("file")).unwrap();
        let other = fs::write(directory.join("web/file"), "");
        assert_eq!(other.unwrap_err().raw_os_error(), Some(13));
        assert_eq!(fs::remove_file(directory.join("web/file")).unwrap_err().raw_os_error(), Some(13));
    });
}

fn files_of_the_host(shared: &mut Shared<'_>) {
    fs::create_dir(shared.at("taken")).unwrap();
    chown(&shared.guest, Some(USER), Some(USER)).unwrap();
    shared.host("write", "file", "text");
    assert_eq!(fs::read(shared.at("file")).unwrap(), b"text");
    let (file, moved) = (shared.at("file"), shared.at("moved"));
    as_user(USER, &[], || {
        fs::rename(&file, &moved).unwrap();
        fs::remove_file(&moved).unwrap();
    });
}

fn nothing_is_changed(folder: &Path) {
    let (file, new) = (folder.join("file"), folder.join("new"));
    let text = fs::read(&file).unwrap();
    let refused = |what: &str, result: std::io::Result<()>| {
        assert_eq!(result.unwrap_err().raw_os_error(), Some(30), "{what}");
    };
    let open = |options: &mut OpenOptions, path: &Path| options.open(path).map(drop);
    refused("write", open(OpenOptions::new().write(true), &file));
    refused("append", open(OpenOptions::new().append(true), &file));
    refused("truncate", open(OpenOptions::new().write(true).truncate(true), &file));
    refused("create", open(OpenOptions::new().write(true).create(true), &new));
    refused(
        "create to read",
        rustix::fs::open(&new, rustix::fs::OFlags::CREATE, 0o644.into()).map(drop).map_err(Into::into),
    );
    refused("mkdir", fs::create_dir(&new));
    refused("symlink", symlink("x", &new));
    refused("link", fs::hard_link(&file, &new));
    refused("rename", fs::rename(&file, &new));
    refused("remove", fs::remove_file(&file));
    refused("chmod", fs::set_permissions(&file, Permissions::from_mode(0o777)));
    refused("chown", chown(&file, Some(7), Some(7)));
    let times = File::open(&file).unwrap().set_modified(std::time::SystemTime::now());
    refused("times", times);
    assert_eq!(setxattr(&file, "user.a", b"x", XattrFlags::empty()), Err(Errno::ROFS));
    assert_eq!(fs::read(&file).unwrap(), text);
    assert!(!new.exists());
}

fn space(directory: &Path) {
    let told = statvfs(directory).unwrap();
    assert_eq!((told.f_frsize, told.f_bsize), (4096, 4096));
    assert!(told.f_blocks > 0 && told.f_bfree <= told.f_blocks && told.f_bavail <= told.f_bfree);
    assert_eq!(told.f_namemax, 255);
}

fn twenty_groups(directory: &Path) {
    let groups: Vec<u32> = (2000..2020).collect();
    chown(directory, Some(0), Some(2019)).unwrap();
    set(directory, 0o770);
    as_user(USER, &groups, || {
        let at = |name: &str| directory.join(name);
        fs::write(at("file"), "file").unwrap();
        fs::create_dir(at("directory")).unwrap();
        symlink("file", at("link")).unwrap();
        chown(at("file"), None, Some(2007)).unwrap();
        assert_eq!(fs::read(at("link")).unwrap(), b"file");
        let other = chown(at("file"), None, Some(3000));
        assert_eq!(other.unwrap_err().raw_os_error(), Some(1));
    });
    as_user(USER + 1, &[], || assert!(File::open(directory.join("file")).is_err()));
}
