//! Directories and files that the host serves, each mounted at its place in the new root.
//!
//! ```text
//!  virtiofs device ─▶ mounted in the initramfs, which nobody sees ─▶ each entry cloned and moved to its place ─▶ detached
//! ```
//!
//! A device has an entry for each mount, its number; a directory is a file system of its own. Image and host are
//! untrusted: a place is reached as a disk's is (`disks`). Not here: what is in a mount, which the host serves.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use guest_protocol::{ShareDevice, ShareMount};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags, mount_remount,
    move_mount, open_tree, unmount,
};

use crate::boot::{AtStep, Failure};
use crate::disks;
use crate::host_changes::Folders;

/// How much the kernel reads ahead of a program that reads in order, in KiB: as much as one request may move. Linux's
/// default is an eighth of that.
const READ_AHEAD_KIB: &[u8] = b"1024";

/// How much of the memory for data that is yet to be written a device may take, in percent. Linux's default for FUSE is
/// one percent, with which a program waits for the host after some hundred KiB.
const UNWRITTEN_PERCENT: &[u8] = b"50";

/// A device's file system, mounted in the initramfs.
type Device = (ShareDevice, OwnedFd);

/// The shares' own descriptors.
pub(crate) struct Mounted {
    /// The devices, which are to stay open: all file systems of a device have their reading ahead and writing later from
    /// the device's own, and lose both with it.
    pub(crate) devices: Vec<OwnedFd>,
    /// The folders that the host may change.
    pub(crate) folders: Folders,
}

/// Mounts all shares. `initramfs` is the root that was there before.
pub(crate) fn mount_all(shares: &[ShareMount], initramfs: &OwnedFd) -> Result<Mounted, Failure> {
    const STEP: &str = "mount the shared folders";
    let mut devices: Vec<Device> = Vec::new();
    for device in ShareDevice::ALL {
        if shares.iter().any(|share| share.device == device) {
            devices.push((device, open(device).at(STEP)?));
        }
    }
    devices.iter().try_for_each(|(device, files)| place(*device, files, initramfs)).at(STEP)?;
    let mut in_order: Vec<_> = shares.iter().collect();
    // A share within another is mounted after it.
    in_order.sort_by(|one, other| one.path.cmp(&other.path));
    let outcome = in_order.into_iter().try_for_each(|share| mount(&devices, share));
    let folders = folders(&devices, shares);
    // The shares have mounts of their own by now, and nobody is to see the directory of all.
    let detach = |(_, files): &Device| unmount(by_descriptor(files).as_str(), UnmountFlags::DETACH);
    let detached = devices.iter().try_for_each(detach).at(STEP);
    outcome.and(detached)?;
    let devices = devices.into_iter().map(|(_, files)| files).collect::<Vec<_>>();
    for device in &devices {
        // Slower without, but not wrong.
        let _ = rustix::fs::fstat(device).and_then(|status| tune(status.st_dev));
    }
    Ok(Mounted { devices, folders })
}

/// Mounts of the same folders in which the host's changes are repeated: they can be written to, and nobody else has them.
fn folders(devices: &[Device], shares: &[ShareMount]) -> Folders {
    let Some((_, device)) = devices.iter().find(|(device, _)| *device == ShareDevice::Shared) else {
        return Folders::new();
    };
    // Without its mount, nobody who watches a folder hears of what the host does there.
    let folder = |share: &ShareMount| Some((share.number, clone_of(device, share.number).ok()?));
    shares.iter().filter(|share| share.device == ShareDevice::Shared).filter_map(folder).collect()
}

/// A mount, which has no place yet, of an entry of a device.
fn clone_of(device: &OwnedFd, number: u16) -> Result<OwnedFd, Errno> {
    // Opening the tree makes a directory a mount.
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    open_tree(device, number.to_string(), flags)
}

/// Opens a device's file system, which is mounted nowhere yet.
fn open(device: ShareDevice) -> Result<OwnedFd, Errno> {
    let context = rustix::mount::fsopen("virtiofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
    rustix::mount::fsconfig_set_string(&context, "source", device.tag())?;
    rustix::mount::fsconfig_create(&context)?;
    rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, disks::ATTRIBUTES)
}

/// Mounts the device where nobody sees it: its entries become mounts only in a mount namespace. The place is the
/// initramfs' until the shares have theirs.
fn place(device: ShareDevice, files: &OwnedFd, initramfs: &OwnedFd) -> Result<(), Errno> {
    let place = device.tag();
    match rustix::fs::mkdirat(initramfs, place, Mode::from_raw_mode(0o700)) {
        Ok(()) | Err(Errno::EXIST) => {}
        Err(errno) => return Err(errno),
    }
    move_mount(files, "", initramfs, place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
}

fn mount(devices: &[Device], share: &ShareMount) -> Result<(), Failure> {
    let step = format!("mount a shared folder at {}", share.path);
    let device = devices.iter().find(|(device, _)| *device == share.device);
    let (_, device) = device.ok_or(Errno::NODEV).at(&step)?;
    let tree = clone_of(device, share.number).at(&step)?;
    disks::put(&tree, &share.path, &step)?;
    // The device's own attributes are those of every share, unless it says otherwise.
    if share.readonly || share.set_ids {
        let mut flags = MountFlags::BIND | MountFlags::NODEV;
        flags.set(MountFlags::RDONLY, share.readonly);
        flags.set(MountFlags::NOSUID, !share.set_ids);
        mount_remount(by_descriptor(&tree).as_str(), flags, "").at(&step)?;
    }
    Ok(())
}

/// Has the kernel read and write the file system with this device number in pieces that are worth a request.
pub(crate) fn tune(number: u64) -> Result<(), Errno> {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    for (name, value) in [("read_ahead_kb", READ_AHEAD_KIB), ("max_ratio", UNWRITTEN_PERCENT)] {
        let path = format!("/sys/class/bdi/{major}:{minor}/{name}");
        let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(&file, value)?;
    }
    Ok(())
}

/// A path of what a descriptor is of.
pub(crate) fn by_descriptor(descriptor: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", descriptor.as_fd().as_raw_fd())
}
