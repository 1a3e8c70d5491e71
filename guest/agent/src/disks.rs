//! Further disks: ext4 images of the host's, each mounted at its place in the new root.
//!
//! ```text
//!  /dev/vdc, /dev/vdd, …   ext4 ─▶ mounted nowhere ─▶ given to its owner ─▶ moved to its place
//! ```
//!
//! Image and disks are untrusted. A place is reached from the root, one directory at a time, and none of them may be a
//! symbolic link, so that a disk is mounted where the host said and nowhere else. Not here: the root's own two disks.

use std::os::fd::{AsFd, OwnedFd};

use guest_protocol::DiskMount;
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags};

use crate::boot::{AtStep, Failure};
use crate::{shutdown, words};

/// Letters of the devices behind the root's own two.
const LETTERS: std::ops::RangeInclusive<char> = 'c'..='z';

/// No disk grants a device or another user's rights.
pub(crate) const ATTRIBUTES: MountAttrFlags =
    MountAttrFlags::MOUNT_ATTR_NODEV.union(MountAttrFlags::MOUNT_ATTR_NOSUID);

/// Mounts all disks, and returns the writable ones, which are closed at the end. If one fails, the others stay as
/// they are.
pub(crate) fn mount_all(disks: &[DiskMount]) -> Result<Vec<OwnedFd>, Failure> {
    if disks.len() > LETTERS.count() {
        return Err(Failure::because("mount the disks", format!("{} are too many", disks.len())));
    }
    let mut in_order: Vec<_> = disks.iter().zip(LETTERS).collect();
    // A disk within another is mounted after it.
    in_order.sort_by(|(one, _), (other, _)| one.path.cmp(&other.path));
    let mut writable = Vec::new();
    for (disk, letter) in in_order {
        let result = open(disk, letter).and_then(|file_system| {
            if !disk.readonly {
                // Databases want a new volume to be empty. A `lost+found` with something in it stays; e2fsck makes
                // another when it needs one.
                let _ = rustix::fs::unlinkat(&file_system, "lost+found", AtFlags::REMOVEDIR);
            }
            let moved = give(&file_system, disk).and_then(|()| put(&file_system, &disk.path, &step(disk)));
            if !disk.readonly {
                writable.push(file_system);
            }
            moved
        });
        if let Err(failure) = result {
            shutdown::close(&writable);
            return Err(failure);
        }
    }
    Ok(writable)
}

fn step(disk: &DiskMount) -> String {
    format!("mount a disk at {}", disk.path)
}

/// Opens the file system, which is mounted nowhere yet.
fn open(disk: &DiskMount, letter: char) -> Result<OwnedFd, Failure> {
    let mount = || {
        let context = rustix::mount::fsopen("ext4", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&context, "source", format!("/dev/vd{letter}"))?;
        // Overrides the image's setting: a broken disk becomes read-only, and ends no guest.
        rustix::mount::fsconfig_set_string(&context, "errors", "remount-ro")?;
        if disk.readonly {
            rustix::mount::fsconfig_set_flag(&context, "ro")?;
        }
        rustix::mount::fsconfig_create(&context)?;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, ATTRIBUTES)
    };
    mount().at(&step(disk))
}

/// Gives the root directory to the owner that the host named.
fn give(file_system: &OwnedFd, disk: &DiskMount) -> Result<(), Failure> {
    let (uid, gid) = (disk.uid.map(Uid::from_raw), disk.gid.map(Gid::from_raw));
    if uid.is_none() && gid.is_none() {
        return Ok(());
    }
    rustix::fs::chownat(file_system, "", uid, gid, AtFlags::EMPTY_PATH)
        .at(&format!("set the owner of the disk at {}", disk.path))
}

/// Whether a place that is missing is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Missing {
    /// It is made, with directories on the way.
    Made,
    /// It is an error.
    Refused,
}

/// Moves a file system to its place, or a file.
pub(crate) fn put(tree: &OwnedFd, path: &str, step: &str) -> Result<(), Failure> {
    let kind = FileType::from_raw_mode(rustix::fs::fstat(tree).at(step)?.st_mode);
    put_as(tree, kind == FileType::Directory, path, Missing::Made, step)
}

/// The same where nobody may be asked for the tree's type yet.
pub(crate) fn put_as(
    tree: &OwnedFd,
    is_directory: bool,
    path: &str,
    missing: Missing,
    step: &str,
) -> Result<(), Failure> {
    let root = root().at(step)?;
    let place = if is_directory { place(root, path, missing) } else { file_place(root, path, missing) };
    let place = place.map_err(|why| Failure::because(step, why))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree, "", &place, "", flags).at(step)
}

/// The root directory.
pub(crate) fn root() -> Result<OwnedFd, Errno> {
    rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The directory at `path` below `root`; missing directories on the way are made, or an error. The error names the
/// obstacle.
pub(crate) fn place(root: OwnedFd, path: &str, missing: Missing) -> Result<OwnedFd, String> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut directory = root;
    let mut so_far = String::new();
    for name in path.split('/').filter(|name| !name.is_empty()) {
        so_far = format!("{so_far}/{name}");
        let refused = |errno: Errno| format!("{so_far}: {}", words(errno));
        if [".", ".."].contains(&name) {
            return Err(refused(Errno::INVAL));
        }
        if missing == Missing::Made {
            match rustix::fs::mkdirat(&directory, name, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => {}
                Err(errno) => return Err(refused(errno)),
            }
        }
        directory = match rustix::fs::openat(&directory, name, flags, Mode::empty()) {
            Ok(next) => next,
            Err(Errno::NOTDIR | Errno::LOOP) if is_link(&directory, name) => {
                return Err(format!("{so_far} is a symbolic link"));
            }
            Err(errno) => return Err(refused(errno)),
        };
    }
    Ok(directory)
}

/// The file at `path` below `root`; a missing one is made, and so are directories on the way, or that is an error.
fn file_place(root: OwnedFd, path: &str, missing: Missing) -> Result<OwnedFd, String> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    let directory = place(root, parent, missing)?;
    let refused = |errno: Errno| format!("{path}: {}", words(errno));
    if ["", ".", ".."].contains(&name) {
        return Err(refused(Errno::INVAL));
    }
    if missing == Missing::Made {
        let make = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        match rustix::fs::openat(&directory, name, make, Mode::from_raw_mode(0o644)) {
            Ok(_) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(refused(errno)),
        }
    }
    let named = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(&directory, name, named, Mode::empty()).map_err(refused)?;
    match FileType::from_raw_mode(rustix::fs::fstat(&file).map_err(refused)?.st_mode) {
        FileType::Symlink => Err(format!("{path} is a symbolic link")),
        FileType::Directory => Err(refused(Errno::ISDIR)),
        _ => Ok(file),
    }
}

fn is_link(directory: impl AsFd, name: &str) -> bool {
    let status = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW);
    status.is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Symlink)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::fs;
    use std::os::unix::fs::{MetadataExt, symlink};

    use super::*;

    #[test]
    fn places_are_made_and_links_lead_nowhere() {
        let root = tempfile::tempdir().unwrap();
        let outside = tempfile::tempdir().unwrap();
        let root = root.path();
        fs::create_dir_all(root.join("there/already")).unwrap();
        fs::write(root.join("file"), "").unwrap();
        symlink(outside.path(), root.join("out")).unwrap();
        symlink("there", root.join("in")).unwrap();
        symlink("nothing", root.join("dangling")).unwrap();
        let at = |path: &str| {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let place = place(rustix::fs::open(root, flags, Mode::empty()).unwrap(), path, Missing::Made)?;
            Ok::<_, String>(rustix::fs::fstat(place).unwrap().st_ino)
        };
        for path in ["/there", "/there/already", "/new", "/there/new/deep", "//there//"] {
            let inode = at(path).unwrap();
            let expected = root.join(path.trim_start_matches('/')).metadata().unwrap();
            assert_eq!((inode, expected.is_dir()), (expected.ino(), true), "{path}");
        }
        for (path, why) in [
            ("/out", "/out is a symbolic link"),
            ("/out/below", "/out is a symbolic link"),
            ("/in/already", "/in is a symbolic link"),
            ("/dangling", "/dangling is a symbolic link"),
            ("/file", "/file: not a directory"),
            ("/file/below", "/file: not a directory"),
            ("/../there", "/..: invalid argument"),
            ("/there/./already", "/there/.: invalid argument"),
        ] {
            assert_eq!(at(path), Err(why.to_owned()), "{path}");
        }
        let not_made = |path: &str| {
            let root = rustix::fs::open(root, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
            place(root, path, Missing::Refused).map(drop)
        };
        assert_eq!(not_made("/there/already"), Ok(()));
        assert_eq!(not_made("/there/missing"), Err("/there/missing: no such file or directory".to_owned()));
        assert_eq!(not_made("/out"), Err("/out is a symbolic link".to_owned()));
        let file_at = |path: &str| {
            let flags = OFlags::PATH | OFlags::DIRECTORY;
            let root = rustix::fs::open(root, flags, Mode::empty()).unwrap();
            let place = file_place(root, path, Missing::Made)?;
            Ok::<_, String>(rustix::fs::fstat(place).unwrap().st_ino)
        };
        for path in ["/file", "/made", "/there/made", "/newer/deep/made"] {
            let inode = file_at(path).unwrap();
            let expected = root.join(path.trim_start_matches('/')).metadata().unwrap();
            assert_eq!((inode, expected.is_file()), (expected.ino(), true), "{path}");
        }
        for (path, why) in [
            ("/there", "/there: is a directory"),
            ("/out", "/out is a symbolic link"),
            ("/out/made", "/out is a symbolic link"),
            ("/dangling", "/dangling is a symbolic link"),
            ("/file/made", "/file: not a directory"),
            ("/there/..", "/there/..: invalid argument"),
            ("/there/", "/there/: invalid argument"),
        ] {
            assert_eq!(file_at(path), Err(why.to_owned()), "{path}");
        }
        assert!(!root.join("nothing").exists());
        assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    }

    #[test]
    fn there_are_letters_for_so_many() {
        let disk = |_| DiskMount { path: "/d".into(), readonly: false, uid: None, gid: None };
        let failure = mount_all(&(0..25).map(disk).collect::<Vec<_>>()).unwrap_err();
        assert_eq!(failure.to_string(), "mount the disks: 25 are too many");
        assert!(mount_all(&[]).unwrap().is_empty());
    }
}
