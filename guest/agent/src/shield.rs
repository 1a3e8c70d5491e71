//! The shield: programs without privilege see and write only parts of the kernel's file systems, and few devices.
//!
//! ```text
//!  /proc   sys, sysrq-trigger, … read-only; kcore, keys, … empty     each program's own /proc gets the same
//!  /sys    read-only with all below it                               over a writable one
//!  /dev    six harmless devices, terminals, shared memory            over all devices
//! ```
//!
//! The agent raises the shield in its own mount namespace, before the first program; a program's namespace is a copy of
//! that one. A program with privilege removes the covers. Root's other ways to the covered files are closed elsewhere:
//! mount(2) and its kin by capabilities and the filter of system calls, device nodes of its own by `nodev` on every file
//! system.

use std::ffi::CStr;

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};

use crate::boot::{AtStep, Failure};
use crate::{files, system};

const NOTHING: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);
const READ_ONLY: MountFlags = NOTHING.union(MountFlags::RDONLY);

/// Files of /proc that the kernel obeys when they are written. Each program pays for each of these.
const PROC_READ_ONLY: [&CStr; 6] =
    [c"/proc/bus", c"/proc/dynamic_debug", c"/proc/fs", c"/proc/irq", c"/proc/sys", c"/proc/sysrq-trigger"];

/// Files of /proc that reveal the kernel's memory or others' secrets, or lead to hardware.
const PROC_MASKED: [&CStr; 9] = [
    c"/proc/acpi",
    c"/proc/asound",
    c"/proc/kcore",
    c"/proc/keys",
    c"/proc/latency_stats",
    c"/proc/sched_debug",
    c"/proc/scsi",
    c"/proc/timer_list",
    c"/proc/timer_stats",
];

/// Files of /sys of the same kinds.
const SYS_MASKED: [&CStr; 2] = [c"/sys/firmware", c"/sys/devices/virtual/powercap"];

/// File systems that are read-only for programs without privilege; the last two only if they exist.
const SYS: [&CStr; 3] = [c"/sys", c"/sys/fs/cgroup", c"/sys/fs/bpf"];

/// Devices for all programs.
const NODES: [&str; 6] = ["null", "zero", "full", "random", "urandom", "tty"];

/// File systems below /dev.
const BELOW_DEV: [&str; 3] = ["pts", "shm", "mqueue"];

/// Links that programs expect in /dev: target and name.
const LINKS: [(&str, &str); 5] = [
    ("pts/ptmx", "/dev/ptmx"),
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Programs that the kernel would start by itself, outside of all namespaces and with all capabilities. A core goes
/// to a file, as by the kernel's own default; modules and devices start no program.
const HELPERS: [system::Setting; 3] = [
    ("/proc/sys/kernel/core_pattern", b"core\n"),
    ("/proc/sys/kernel/modprobe", b"\n"),
    ("/proc/sys/kernel/hotplug", b"\n"),
];

/// Keeps the kernel from starting programs of the image, whose root it shares as soon as the agent changes its own.
pub(crate) fn forget_helpers() -> Result<(), Failure> {
    system::set(&HELPERS)
}

/// Makes the links of /dev.
pub(crate) fn link_standard_streams() -> Result<(), Failure> {
    for (target, link) in LINKS {
        match rustix::fs::symlink(target, link) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Failure::new(format!("link {link}"), errno)),
        }
    }
    Ok(())
}

/// Raises the shield in the calling process' mount namespace. All devices are hidden afterwards.
///
/// # Errors
///
/// If a part cannot be covered. A part that the kernel does not have needs no cover.
pub fn raise() -> Result<(), Failure> {
    cover_devices()?;
    for path in PROC_READ_ONLY {
        cover(path, |path| {
            rustix::mount::mount_bind(path, path)?;
            rustix::mount::mount_remount(path, READ_ONLY | MountFlags::BIND, c"")
        })?;
    }
    PROC_MASKED.iter().try_for_each(|path| cover(path, mask))?;
    // /sys is bound over itself once more: a program with privilege removes that, and finds the writable one.
    rustix::mount::mount_bind_recursive(c"/sys", c"/sys").at("cover /sys")?;
    for path in SYS {
        match rustix::mount::mount_remount(path, READ_ONLY | MountFlags::BIND, c"") {
            Err(Errno::INVAL | Errno::NOENT) if path != c"/sys" => {}
            remounted => remounted.at(&format!("protect {path:?}"))?,
        }
    }
    SYS_MASKED.iter().try_for_each(|path| cover(path, mask))
}

fn cover(path: &CStr, by: impl FnOnce(&CStr) -> Result<(), Errno>) -> Result<(), Failure> {
    match by(path) {
        Ok(()) | Err(Errno::NOENT) => Ok(()),
        Err(errno) => Err(Failure::new(format!("cover {}", path.to_string_lossy()), errno)),
    }
}

/// Covers a file or a directory with an empty one.
fn mask(path: &CStr) -> Result<(), Errno> {
    let status = rustix::fs::statat(CWD, path, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(status.st_mode) == FileType::Directory {
        rustix::mount::mount(c"masked", path, c"tmpfs", READ_ONLY, c"mode=0555,size=4k")
    } else {
        rustix::mount::mount_bind(c"/dev/null", path)
    }
}

/// Mounts another /dev over the one with all devices.
fn cover_devices() -> Result<(), Failure> {
    // The covered devices can only be reached from here.
    rustix::process::chdir(c"/dev").at("enter /dev")?;
    let devices = rustix::fs::stat(c".").at("look at /dev")?.st_dev;
    rustix::mount::mount(c"devices", c"/dev", c"tmpfs", NOTHING, c"mode=0755,size=64k").at("cover /dev")?;
    for name in NODES {
        show_device(name).at(&format!("show /dev/{name}"))?;
    }
    for name in BELOW_DEV {
        // A directory that is no file system of its own belongs to the one that can have devices.
        let own = rustix::fs::stat(name).is_ok_and(|status| status.st_dev != devices);
        if own {
            let place = format!("/dev/{name}");
            files::make_directory(&place, 0o755).at(&format!("make {place}"))?;
            rustix::mount::mount_bind(name, &place).at(&format!("show {place}"))?;
        }
    }
    rustix::process::chdir(c"/").at("leave /dev")?;
    link_standard_streams()
}

/// Binds a device of the working directory to its name in /dev, where a node would not work.
fn show_device(name: &str) -> Result<(), Errno> {
    let place = format!("/dev/{name}");
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    drop(rustix::fs::open(&place, flags, Mode::from_raw_mode(0o666))?);
    rustix::mount::mount_bind(name, &place)
}

/// Mounts the PID namespace's own /proc for a program without privilege, with the covers of the agent's. For a child
/// between clone and execve: no allocation, no lock. Leaves the working directory in the /proc below.
pub(crate) fn mount_proc_covered() -> Result<(), Errno> {
    rustix::process::chdir(c"/proc")?;
    mount_proc()?;
    for path in PROC_READ_ONLY.iter().chain(&PROC_MASKED) {
        // From there the names of the agent's covers are relative paths. A bound mount is as read-only as its source.
        let name = path.to_bytes_with_nul().get(c"/proc/".count_bytes()..).unwrap_or_default();
        let name = CStr::from_bytes_with_nul(name).map_err(|_| Errno::INVAL)?;
        match rustix::mount::mount_bind(name, *path) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

/// Mounts the PID namespace's own /proc for a program with privilege, and removes every cover in the calling thread's
/// mount namespace. For a child between clone and execve: no allocation, no lock.
pub(crate) fn mount_proc_and_lower() -> Result<(), Errno> {
    mount_proc()?;
    rustix::mount::unmount(c"/dev", UnmountFlags::DETACH)?;
    rustix::mount::unmount(c"/sys", UnmountFlags::DETACH)?;
    // mount(2): with `BIND` only this mount's flags change. Device nodes work then.
    rustix::mount::mount_remount(c"/", MountFlags::BIND, c"")
}

fn mount_proc() -> Result<(), Errno> {
    rustix::mount::mount(c"proc", c"/proc", c"proc", NOTHING, None)
}
