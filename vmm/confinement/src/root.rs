//! A root directory in which a process finds the files that it needs, and no others.
//!
//! Landlock forbids opening files; their names, sizes and owners stay visible, and not every kernel has Landlock. In a
//! mount namespace whose root is a small file system in memory, only files that are mounted there have a name at all.
//! Not here: the namespace (`namespaces`), and the files that a child needs (each program).

use std::fs::{self, File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount, mount_change,
    mount_remount, move_mount, open_tree, unmount,
};
use rustix::process::{chdir, geteuid, pivot_root, umask};

/// The directory on which the new root is mounted. It exists on every host, and is no longer needed at that moment.
const BASE: &str = "/proc";

/// Longest file of which the child gets a copy; the new root holds a few.
const MAX_COPY: u64 = 512 << 20;
const OPTIONS: &std::ffi::CStr = c"mode=755,size=1100m";

/// The thing that stands at a place of the new root.
#[derive(Debug)]
enum Source {
    /// A directory of the host's.
    Directory(OwnedFd),
    /// A file of the host's.
    File(OwnedFd),
    /// A copy of this file's contents, because only its own user may open it, or because it has no place on the host.
    Copy(File),
}

/// Makes the root directory of this process one with nothing in it but `paths` of the host's, and `files` at the given
/// places, all of them to read only. Paths below another of `paths` come with that one.
///
/// Only a process with one thread may call this function, after [`crate::isolate_children`] or
/// [`crate::isolate_children_as_user`], and before the process gives up its user or its capabilities. After an error
/// its root is the host's.
pub fn enter_root(paths: &[PathBuf], files: &[(PathBuf, BorrowedFd<'_>)]) -> io::Result<()> {
    own_mounts()?;
    let mut sources = Vec::new();
    for path in paths {
        if !paths.iter().any(|other| other != path && path.starts_with(other)) {
            sources.push((path.clone(), of_host(path)?));
        }
    }
    for (path, file) in files {
        sources.push((path.clone(), reopenable(*file)?));
    }
    enter_filled(&sources)
}

/// A directory of the host's for a process that sees no other.
#[derive(Debug)]
pub struct Shared<'a> {
    /// The directory.
    pub directory: BorrowedFd<'a>,
    /// Whether the process may only read the directory.
    pub readonly: bool,
}

/// Makes the root directory of this process one with nothing in it but `shared`, with everything that is mounted below;
/// returns a descriptor of each, which may only name files. No file below is executed, and no device is opened.
/// Descriptors that were opened before stay open, and are to be closed.
///
/// Only a process with one thread may call this function, after [`crate::isolate`], and before the process gives up its
/// user or its capabilities. After an error its root is the host's.
pub fn enter_shared(shared: &[Shared<'_>]) -> io::Result<Vec<OwnedFd>> {
    own_mounts()?;
    let place = |number: usize| PathBuf::from(format!("/{number}"));
    let sources = shared.iter().enumerate().map(|(number, shared)| {
        let clone = clone_of_open(shared.directory)?;
        let readonly = if shared.readonly { libc::MOUNT_ATTR_RDONLY } else { 0 };
        let never = libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV | libc::MOUNT_ATTR_NOEXEC;
        restrict(&clone, readonly | never)?;
        Ok((place(number), Source::Directory(clone)))
    });
    enter_filled(&sources.collect::<io::Result<Vec<_>>>()?)?;
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let opened = (0..shared.len()).map(|number| Ok(rustix::fs::open(place(number), flags, Mode::empty())?));
    opened.collect()
}

/// A mount of the part of `/proc` with this process's own descriptors, which is attached nowhere, so nothing is above
/// it. A process whose root has no `/proc` opens files by this mount.
pub fn own_descriptors() -> io::Result<OwnedFd> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    Ok(open_tree(CWD, "/proc/self/fd", flags)?)
}

/// Keeps later mounts of this process from appearing on the host.
fn own_mounts() -> io::Result<()> {
    Ok(mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?)
}

/// A mount of the open directory. The descriptor may have come from another mount namespace, in which nothing can be
/// cloned; then the mount is of the directory at the same path, if that is the same directory.
fn clone_of_open(directory: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let path = fs::read_link(format!("/proc/self/fd/{}", directory.as_raw_fd()))?;
    let clone = clone_of(&path)?;
    let (wanted, found) = (rustix::fs::fstat(directory)?, rustix::fs::fstat(&clone)?);
    if (wanted.st_dev, wanted.st_ino) == (found.st_dev, found.st_ino) {
        return Ok(clone);
    }
    Err(io::Error::new(io::ErrorKind::NotFound, format!("{} is another directory by now", path.display())))
}

/// Enters a new root that contains these sources.
fn enter_filled(sources: &[(PathBuf, Source)]) -> io::Result<()> {
    mount("tmpfs", BASE, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, OPTIONS)?;
    let entered = fill(sources).and_then(|()| {
        mount_remount(
            BASE,
            MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV,
            "",
        )?;
        chdir(BASE)?;
        // pivot_root(2): with the same directory twice, the old root ends up on top of the new one, and can be
        // unmounted.
        Ok(pivot_root(".", ".")?)
    });
    if let Err(error) = entered {
        let _ = unmount(BASE, UnmountFlags::DETACH);
        return Err(error);
    }
    unmount(".", UnmountFlags::DETACH)?;
    Ok(chdir("/")?)
}

fn of_host(path: &Path) -> io::Result<Source> {
    let clone = clone_of(path)?;
    let kind = fs::metadata(path)?.file_type();
    // A source that is a device is to work as one.
    let nodev = if kind.is_dir() || kind.is_file() { libc::MOUNT_ATTR_NODEV } else { 0 };
    restrict(&clone, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | nodev)?;
    Ok(if kind.is_dir() { Source::Directory(clone) } else { Source::File(clone) })
}

/// A mount of the file or directory at `path`, with everything mounted below, which is attached nowhere yet.
fn clone_of(path: &Path) -> io::Result<OwnedFd> {
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    Ok(open_tree(CWD, path, flags)?)
}

/// An inherited file that the child opens again by its name. The file may have come from another mount namespace, so
/// its own mount cannot be cloned; the file at its path is taken if it is the same file, and otherwise a copy is made.
fn reopenable(file: BorrowedFd<'_>) -> io::Result<Source> {
    let link = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let file = File::from(file.try_clone_to_owned()?);
    let metadata = file.metadata()?;
    // Root can open every file, but the child will be another user, in no group to which files belong.
    let readable = match geteuid().is_root() {
        true => metadata.mode() & 0o004 != 0,
        false => File::open(&link).is_ok(),
    };
    let same = |other: &fs::Metadata| (other.dev(), other.ino()) == (metadata.dev(), metadata.ino());
    let path = fs::read_link(&link)?;
    if readable && fs::metadata(&path).is_ok_and(|found| same(&found)) {
        let clone = clone_of(&path)?;
        restrict(&clone, libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOSUID | libc::MOUNT_ATTR_NODEV)?;
        if same(&File::from(clone.try_clone()?).metadata()?) {
            return Ok(Source::File(clone));
        }
    }
    Ok(Source::Copy(file))
}

/// Sets attributes of a mount and of all mounts below. A kernel before 5.12 cannot; on such a kernel only the files'
/// permissions and the child's filter, which allows no opening to write, protect the files.
fn restrict(mount: &OwnedFd, attributes: u64) -> io::Result<()> {
    let set = libc::mount_attr { attr_set: attributes, attr_clr: 0, propagation: 0, userns_fd: 0 };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is an empty C string, and the kernel reads as many bytes of `set` as it is told there are.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const set,
            size_of::<libc::mount_attr>(),
        )
    };
    match result {
        0 => Ok(()),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            error => Err(error),
        },
    }
}

fn fill(sources: &[(PathBuf, Source)]) -> io::Result<()> {
    let before = umask(Mode::from_raw_mode(0o022));
    let filled = sources.iter().try_for_each(|(path, source)| place(path, source));
    umask(before);
    filled
}

fn place(path: &Path, source: &Source) -> io::Result<()> {
    let target = Path::new(BASE).join(path.strip_prefix("/").unwrap_or(path));
    if let (Source::File(_) | Source::Copy(_), Some(directory)) = (source, target.parent()) {
        fs::create_dir_all(directory)?;
    }
    match source {
        Source::Directory(mount) => {
            fs::create_dir_all(&target)?;
            put(mount, &target)
        }
        Source::File(mount) => {
            File::create(&target)?;
            put(mount, &target)
        }
        Source::Copy(file) => {
            let mut copy = File::create(&target)?;
            if io::copy(&mut at_start(file)?.take(MAX_COPY + 1), &mut copy)? > MAX_COPY {
                return Err(io::ErrorKind::FileTooLarge.into());
            }
            copy.set_permissions(Permissions::from_mode(0o444))
        }
    }
}

fn at_start(file: &File) -> io::Result<&File> {
    io::Seek::rewind(&mut &*file)?;
    Ok(file)
}

fn put(mount: &OwnedFd, target: &Path) -> io::Result<()> {
    Ok(move_mount(mount.as_fd(), "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?)
}
