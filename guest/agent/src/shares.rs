//! Directories of the host, each mounted at its place in the new root.
//!
//! ```text
//!  virtiofs device ─▶ mounted in the initramfs, which nobody sees ─▶ each entry cloned and moved to its place ─▶ detached
//! ```
//!
//! The device has an entry for each share, its number, and each is a file system of its own. Image and host directory
//! are untrusted: a place is reached as a disk's is (`disks`). Not here: what is in a share, which the host serves.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use guest_protocol::{SHARES_TAG, ShareMount};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_remount,
    move_mount, open_tree, unmount,
};

use crate::boot::{AtStep, Failure};
use crate::disks;

/// The place of the device in the initramfs, until its shares have theirs.
const PLACE: &str = "shares";

/// How much the kernel reads ahead of a program that reads in order, in KiB: as much as one request may move. Without a
/// word it is an eighth of that.
const READ_AHEAD_KIB: &[u8] = b"1024";

/// Mounts all shares. `initramfs` is the root that was there before.
pub(crate) fn mount_all(shares: &[ShareMount], initramfs: &OwnedFd) -> Result<(), Failure> {
    const STEP: &str = "mount the shared folders";
    if shares.is_empty() {
        return Ok(());
    }
    let device = open().and_then(|device| place(&device, initramfs).map(|()| device)).at(STEP)?;
    let outcome = shares.iter().enumerate().try_for_each(|(number, share)| mount(&device, number, share));
    // The shares have mounts of their own by now, and nobody needs the directory of all.
    let detached = unmount(by_descriptor(&device).as_str(), UnmountFlags::DETACH).at(STEP);
    outcome.and(detached)
}

/// Opens the device's file system, which is mounted nowhere yet.
fn open() -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("virtiofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", SHARES_TAG)?;
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, disks::ATTRIBUTES)
}

/// Mounts the device where nobody sees it: its entries become mounts only in a mount namespace.
fn place(device: &OwnedFd, initramfs: &OwnedFd) -> Result<(), Errno> {
    match rustix::fs::mkdirat(initramfs, PLACE, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    move_mount(device, "", initramfs, PLACE, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn mount(device: &OwnedFd, number: usize, share: &ShareMount) -> Result<(), Failure> {
    let step = format!("mount a shared folder at {}", share.path);
    // Opening the tree makes the entry a mount, and the clone has no place yet.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = open_tree(device, number.to_string(), flags).at(&step)?;
    disks::put(&tree, &share.path, &step)?;
    if share.readonly {
        let flags = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NODEV | MountFlags::NOSUID;
        mount_remount(by_descriptor(&tree).as_str(), flags, "").at(&step)?;
    }
    // Slower without, but not wrong.
    let _ = read_ahead(&tree);
    Ok(())
}

fn read_ahead(tree: &OwnedFd) -> Result<(), Errno> {
    let device = rustix::fs::fstat(tree)?.st_dev;
    let (major, minor) = (rustix::fs::major(device), rustix::fs::minor(device));
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, READ_AHEAD_KIB).map(drop)
}

/// A path of what a descriptor is of.
fn by_descriptor(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd())
}
