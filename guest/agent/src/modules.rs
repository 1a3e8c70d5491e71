//! Kernel modules.
//!
//! Modules that the guest itself needs are in the initramfs: `/modules` lists their paths, one a line, in load order,
//! in three groups, so that the host is answered early and the root does not wait for modules that it does not need.
//! Without the list everything is built into the kernel. If programs may load others, a partition holds all of them,
//! and is mounted where modprobe(8) looks. Not here: choosing modules, and their dependencies, which the host has
//! resolved.

use std::os::fd::OwnedFd;
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{FsMountFlags, FsOpenFlags};

use crate::boot::{AtStep, Failure};
use crate::{disks, files, log, system};

/// The list.
const LIST: &str = "/modules";

/// Largest list that is read.
const LIST_LIMIT: usize = 64 << 10;

/// The control stream can be opened once these modules, and all before them, are loaded.
const TRANSPORT: [&str; 3] = ["virtio_mmio", "virtio_pci", "vmw_vsock_virtio_transport"];

/// Modules that nothing before readiness uses, loaded after it.
const LATE: [&str; 3] = ["virtio_console", "virtio_rng", "virtio_balloon"];

/// The module for mounts that are added, loaded after readiness too, unless the one for mounts from the start needs it.
const FUSE: &str = "fuse";
const NEEDS_FUSE: &str = "virtiofs";

/// Modules yet to load, in order.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Modules {
    transport: Vec<String>,
    needed: Vec<String>,
    late: Vec<String>,
}

impl Modules {
    /// The modules of the initramfs.
    pub(crate) fn read() -> Result<Self, Failure> {
        match files::read_regular(LIST, LIST_LIMIT) {
            Ok(list) => Ok(Self::sort(&String::from_utf8_lossy(&list))),
            Err(Errno::NOENT) => Ok(Self::default()),
            Err(errno) => Err(Failure::new("read /modules", errno)),
        }
    }

    fn sort(list: &str) -> Self {
        let paths = list.lines().map(str::trim).filter(|line| !line.is_empty());
        let needs_fuse = paths.clone().any(|path| name(path) == NEEDS_FUSE);
        let is_late = |name: &str| LATE.contains(&name) || name == FUSE && !needs_fuse;
        let (late, now): (Vec<_>, Vec<_>) = paths.map(str::to_owned).partition(|path| is_late(&name(path)));
        let transport =
            now.iter().rposition(|path| TRANSPORT.contains(&&*name(path))).map_or(0, |last| last + 1);
        let (transport, needed) = now.split_at(transport);
        Self { transport: transport.to_vec(), needed: needed.to_vec(), late }
    }

    /// Loads the modules for the control stream.
    pub(crate) fn load_transport(&mut self, initramfs: &OwnedFd) -> Result<(), Failure> {
        load_all(&mut self.transport, initramfs)
    }

    /// Loads the modules for the root.
    pub(crate) fn load_needed(&mut self, initramfs: &OwnedFd) -> Result<(), Failure> {
        load_all(&mut self.needed, initramfs)
    }

    /// Loads the rest. A failure is only logged.
    fn load_late(&mut self, initramfs: &OwnedFd) {
        // One that fails keeps no other from being loaded.
        for path in self.late.drain(..) {
            if let Err(errno) = load(initramfs, &path) {
                log::line(&Failure::new(format!("load {path}"), errno).to_string());
            }
        }
    }
}

/// Modules that nothing before readiness uses, and the files that they are in.
#[derive(Debug)]
pub(crate) struct Late {
    modules: Mutex<Modules>,
    initramfs: OwnedFd,
}

impl Late {
    /// The rest of `modules`, whose files are in `initramfs`.
    pub(crate) fn new(modules: Modules, initramfs: OwnedFd) -> Self {
        Self { modules: Mutex::new(modules), initramfs }
    }

    /// Loads them, unless they are loaded. A request that needs one calls this, too: the thread that does so anyway waits for
    /// an idle CPU.
    pub(crate) fn load(&self) {
        self.modules.lock().unwrap_or_else(PoisonError::into_inner).load_late(&self.initramfs);
    }

    /// The initramfs.
    pub(crate) fn initramfs(&self) -> &OwnedFd {
        &self.initramfs
    }
}

fn load_all(paths: &mut Vec<String>, initramfs: &OwnedFd) -> Result<(), Failure> {
    paths.drain(..).try_for_each(|path| {
        load(initramfs, &path).map_err(|errno| Failure::new(format!("load {path}"), errno))
    })
}

fn load(initramfs: &OwnedFd, path: &str) -> Result<(), Errno> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(initramfs, path.trim_start_matches('/'), flags, Mode::empty())?;
    match rustix::system::finit_module(&file, c"", 0) {
        // The module is built in, or loaded already.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(errno) => Err(errno),
    }
}

/// The program that the kernel starts to load a module.
const MODPROBE: system::Setting = ("/proc/sys/kernel/modprobe", b"/sbin/modprobe\n");

/// Devices whose modules the kernel loads when they are opened: name, permissions (as udev(7) gives them), major and
/// minor number.
const OPENED: [(&str, u32, u32, u32); 3] =
    [("fuse", 0o666, 10, 229), ("net/tun", 0o666, 10, 200), ("loop-control", 0o600, 10, 237)];

/// Lets programs load modules of the kernel `release`, all of which are on the partition after the layers. In most
/// images of today `/lib` is a link to `/usr/lib`.
pub(crate) fn offer_all(layers: u16, release: &str) -> Result<(), Failure> {
    const STEP: &str = "mount the kernel's modules";
    let mount = || {
        let context = rustix::mount::fsopen("erofs", FsOpenFlags::FSOPEN_CLOEXEC)?;
        rustix::mount::fsconfig_set_string(&context, "source", format!("/dev/vda{}", layers + 1))?;
        rustix::mount::fsconfig_set_flag(&context, "ro")?;
        rustix::mount::fsconfig_create(&context)?;
        rustix::mount::fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, disks::ATTRIBUTES)
    };
    let tree = mount().at(STEP)?;
    let link = rustix::fs::statat(CWD, "/lib", AtFlags::SYMLINK_NOFOLLOW);
    let is_link = link.is_ok_and(|status| FileType::from_raw_mode(status.st_mode) == FileType::Symlink);
    let library = if is_link { "/usr/lib" } else { "/lib" };
    disks::put(&tree, &format!("{library}/modules/{release}"), STEP)?;
    files::put_directory("/dev/net", 0o755).at("make /dev/net")?;
    for (name, mode, major, minor) in OPENED {
        let path = format!("/dev/{name}");
        let (mode, device) = (Mode::from_raw_mode(mode), rustix::fs::makedev(major, minor));
        match rustix::fs::mknodat(CWD, &path, FileType::CharacterDevice, mode, device) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(Failure::new(format!("make {path}"), errno)),
        }
        // The umask has taken bits of the mode that mknod(2) was given.
        rustix::fs::chmod(&path, mode).at(&format!("set the mode of {path}"))?;
    }
    system::set(&[MODPROBE])
}

/// The module's name: `virtio_rng` for `/lib/modules-min/003-virtio-rng.ko`.
fn name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap_or_default();
    let file = file.strip_suffix(".ko").unwrap_or(file);
    file.trim_start_matches(|letter: char| letter.is_ascii_digit()).trim_start_matches('-').replace('-', "_")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names() {
        assert_eq!(name("/lib/modules-min/003-virtio-rng.ko"), "virtio_rng");
        assert_eq!(name("/a/12-9p.ko"), "9p");
        assert_eq!(name("overlay.ko"), "overlay");
        assert_eq!(name(""), "");
    }

    #[test]
    fn three_groups() {
        let list = "/m/1-virtio.ko\n/m/2-virtio-rng.ko\n/m/3-vsock.ko\n/m/4-vmw_vsock_virtio_transport.ko\n/m/5-virtio_mmio.ko\n\n/m/6-erofs.ko\n/m/7-virtio_console.ko\n/m/8-overlay.ko\n";
        let modules = Modules::sort(list);
        assert_eq!(
            modules.transport,
            ["/m/1-virtio.ko", "/m/3-vsock.ko", "/m/4-vmw_vsock_virtio_transport.ko", "/m/5-virtio_mmio.ko"]
        );
        assert_eq!(modules.needed, ["/m/6-erofs.ko", "/m/8-overlay.ko"]);
        assert_eq!(modules.late, ["/m/2-virtio-rng.ko", "/m/7-virtio_console.ko"]);
        assert_eq!(Modules::sort(""), Modules::default());
        // A module comes before the one that needs it.
        assert_eq!(Modules::sort("/m/1-erofs.ko\n/m/2-fuse.ko\n").late, ["/m/2-fuse.ko"]);
        let shares = Modules::sort("/m/2-fuse.ko\n/m/3-virtiofs.ko\n");
        assert_eq!((shares.needed.len(), shares.late.len()), (2, 0));
        assert_eq!(Modules::sort("/m/1-erofs.ko").needed, ["/m/1-erofs.ko"]);
    }
}
