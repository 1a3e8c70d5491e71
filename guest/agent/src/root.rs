//! The guest's root: read-only EROFS layers under a writable upper file system, joined by overlayfs.
//!
//! ```text
//!  /dev/vda1..n  erofs ─┐ lowerdir=n:…:1 (top layer first)
//!  /dev/vdb      ext4  ─┤ or tmpfs: upperdir, workdir
//!                       └▶ overlay ─▶ moved over the initramfs, chroot
//! ```
//!
//! The overlay keeps private copies of the mounts that it is made of, so these are detached again: a program's mount
//! namespace then copies only mounts that it sees, and the old root cannot be reached. All paths here are the
//! initramfs' own; the image's contents are read first by `mounts`, inside the new root.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use guest_protocol::{BootConfig, UpperDisk};
use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::boot::{AtStep, Failure};
use crate::files;

/// overlayfs' own limit (OVL_MAX_STACK).
const LAYERS_LIMIT: u16 = 500;

/// Marks the root of a layer whose image does not describe its root.
const IMPLIED_ROOT: &str = "trusted.overlay.matchlock";

/// The mount point of the parts; detaching this mount takes all of them along.
const PARTS: &str = "/parts";

/// The mount point of the overlay before it becomes the root.
const ROOT: &str = "/root";

/// Makes the root of `config` this process' root. Returns the upper file system, which is closed at the end.
pub(crate) fn assemble(config: &BootConfig) -> Result<OwnedFd, Failure> {
    if config.layers == 0 || config.layers > LAYERS_LIMIT {
        return Err(Failure::because(
            "mount layers",
            format!("{} of them, 1 to {LAYERS_LIMIT} work", config.layers),
        ));
    }
    files::make_directory(PARTS, 0o755).at("make /parts")?;
    files::make_directory(ROOT, 0o755).at("make /root")?;
    rustix::mount::mount("parts", PARTS, "tmpfs", MountFlags::empty(), None).at("mount /parts")?;
    rustix::process::chdir(PARTS).at("enter /parts")?;
    mount_upper(config.upper)?;
    let mut lower = Vec::with_capacity(usize::from(config.layers));
    let mut described = false;
    for layer in (1..=config.layers).rev() {
        mount_layer(layer)?;
        described = described || describe_root(layer)?;
        lower.push(layer.to_string());
    }
    // Relative names: the options of mount(2) are one page, enough for all the layers that overlayfs takes.
    // redirect_dir: without it a directory of the image cannot be renamed (EXDEV). xino: all files are of one device,
    // and their inode numbers stay, as `du -x` and archivers expect.
    let options = format!(
        "redirect_dir=on,xino=on,lowerdir={},upperdir=upper/data,workdir=upper/work\0",
        lower.join(":")
    );
    let options = std::ffi::CStr::from_bytes_with_nul(options.as_bytes());
    let options = options.map_err(|_| Failure::because("mount the root", "bad options"))?;
    rustix::mount::mount("overlay", ROOT, "overlay", MountFlags::NODEV, options).at("mount the root")?;
    let upper = open_path("upper").at("open the upper file system")?;
    become_root()?;
    Ok(upper)
}

fn mount_upper(upper: UpperDisk) -> Result<(), Failure> {
    files::make_directory("upper", 0o755).at("make /parts/upper")?;
    match upper {
        UpperDisk::Ext4 => {
            // noinit_itable: no background thread that fills a sparse disk with zeroes.
            let options = Some(c"noinit_itable");
            let flags = MountFlags::NOATIME | MountFlags::NODEV | MountFlags::NOSUID;
            rustix::mount::mount("/dev/vdb", "upper", "ext4", flags, options).at("mount /dev/vdb")?;
        }
        UpperDisk::Memory => {
            rustix::mount::mount("upper", "upper", "tmpfs", MountFlags::empty(), c"mode=0755")
                .at("mount the upper tmpfs")?;
        }
    }
    files::make_directory("upper/data", 0o755).at("make the upper directory")?;
    files::make_directory("upper/work", 0o755).at("make the work directory")
}

fn mount_layer(layer: u16) -> Result<(), Failure> {
    let device = format!("/dev/vda{layer}");
    let place = layer.to_string();
    files::make_directory(&place, 0o755).at("make a layer's directory")?;
    rustix::mount::mount(device.as_str(), place.as_str(), "erofs", MountFlags::RDONLY, None)
        .at(&format!("mount {device}"))
}

/// Gives the new root the mode and owner of a layer's root, if that layer describes it; returns whether it does.
fn describe_root(layer: u16) -> Result<bool, Failure> {
    let place = layer.to_string();
    if rustix::fs::getxattr(place.as_str(), IMPLIED_ROOT, &mut [0_u8; 0]).is_ok() {
        return Ok(false);
    }
    let status = rustix::fs::stat(place.as_str()).at(&format!("look at the root of layer {layer}"))?;
    let (uid, gid) = (Uid::from_raw(status.st_uid), Gid::from_raw(status.st_gid));
    rustix::fs::chown("upper/data", Some(uid), Some(gid)).at("give the root to its owner")?;
    // Set after the owner, as a change of owner clears the set-user-ID bit.
    let mode = Mode::from_raw_mode(status.st_mode & 0o7777);
    rustix::fs::chmod("upper/data", mode).at("set the mode of the root")?;
    Ok(true)
}

/// Detaches the parts of the overlay, and moves it over the initramfs.
fn become_root() -> Result<(), Failure> {
    rustix::process::chdir(ROOT).at("enter the root")?;
    rustix::mount::unmount(PARTS, UnmountFlags::DETACH).at("detach /parts")?;
    rustix::mount::unmount("/dev", UnmountFlags::DETACH).at("detach /dev")?;
    rustix::mount::mount_move(".", "/").at("move the root")?;
    rustix::process::chroot(".").at("change the root")?;
    rustix::process::chdir("/").at("enter the root")
}

fn open_path(path: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::open(path, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// Deletes the files of the initramfs, which take memory.
pub(crate) fn empty_initramfs(directory: &OwnedFd) {
    if let Ok(status) = rustix::fs::fstat(directory) {
        empty(directory.as_fd(), status.st_dev);
    }
}

/// Deletes every file below `directory` on the same file system. After an error some files stay, which does no harm.
fn empty(directory: BorrowedFd<'_>, device: u64) {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let Ok(readable) = rustix::fs::openat(directory, ".", flags, Mode::empty()) else { return };
    let Ok(entries) = rustix::fs::Dir::new(readable) else { return };
    for entry in entries.flatten() {
        let name = entry.file_name();
        if name == c"." || name == c".." {
            continue;
        }
        let Ok(status) = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
        if status.st_dev != device {
            continue;
        }
        if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
            if let Ok(below) = rustix::fs::openat(directory, name, flags, Mode::empty()) {
                empty(below.as_fd(), device);
            }
            let _ = rustix::fs::unlinkat(directory, name, AtFlags::REMOVEDIR);
        } else {
            let _ = rustix::fs::unlinkat(directory, name, AtFlags::empty());
        }
    }
}
