//! The packages that a host must have, and their installation.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

use crate::{kernel, sh};

/// A program or a file, and the Debian package that contains it.
pub(crate) struct Need {
    /// A program's name, or the path of a file.
    what: &'static str,
    package: &'static str,
    why: &'static str,
}

impl Need {
    const fn program(what: &'static str, package: &'static str, why: &'static str) -> Self {
        Self { what, package, why }
    }

    const fn file(what: &'static str, package: &'static str, why: &'static str) -> Self {
        Self { what, package, why }
    }

    fn is_there(&self) -> bool {
        if self.what.starts_with('/') { Path::new(self.what).exists() } else { sh::have(self.what) }
    }
}

/// Needs of running sandboxes.
pub(crate) const RUN: &[Need] = &[
    Need::program("qemu-system-x86_64", "qemu-system-x86", "vCPU engine of the software machine"),
    Need::program("mke2fs", "e2fsprogs", "the writable disk"),
    Need::program("cc", "build-essential", "linking, and SQLite"),
];

/// Further needs of the emulated host.
pub(crate) const EMULATED: &[Need] =
    &[Need::program("busybox", "busybox-static", "the emulated host's programs")];

/// Further needs of the tests.
pub(crate) const TEST: &[Need] = &[
    Need::program("fsck.erofs", "erofs-utils", "checks the EROFS writer"),
    Need::program("sfdisk", "fdisk", "checks partition tables"),
    Need::program("iasl", "acpica-tools", "checks ACPI tables"),
    Need::program("cpio", "cpio", "checks the initramfs"),
    Need::program("modprobe", "kmod", "checks the indexes of kernel modules"),
    Need::program("busybox", "busybox-static", "programs for the agent's tests"),
    Need::program("python3", "python3", "the Python package"),
    Need::program("docker-registry", "docker-registry", "a registry to pull from"),
    Need::program("skopeo", "skopeo", "fills that registry"),
    Need::program("buildah", "buildah", "a builder of images"),
    Need::program("mmdebstrap", "mmdebstrap", "images to pull"),
    Need::program("umoci", "umoci", "images to pull"),
    Need::program("openssl", "openssl", "certificates for that registry"),
    Need::program("sudo", "sudo", "sandboxes of a user behind sudo"),
    Need::program("ip", "iproute2", "makes and takes back network interfaces"),
];

/// Needs of measuring shared folders beside virtiofsd.
pub(crate) const SHARES: &[Need] = &[
    Need::file("/usr/include/cap-ng.h", "libcap-ng-dev", "builds virtiofsd"),
    Need::file("/usr/include/seccomp.h", "libseccomp-dev", "builds virtiofsd"),
    Need::program("strace", "strace", "counts system calls"),
];

/// Needs of building the slim kernel.
pub(crate) const KERNEL: &[Need] = &[
    Need::program("cc", "build-essential", "kernel build"),
    Need::program("flex", "flex", "kernel build"),
    Need::program("bison", "bison", "kernel build"),
    Need::program("bc", "bc", "kernel build"),
    Need::program("make", "make", "kernel build"),
    Need::program("perl", "perl-base", "kernel build"),
    Need::program("xz", "xz-utils", "unpacks the kernel's source"),
    Need::file("/usr/include/gelf.h", "libelf-dev", "objtool of the kernel build"),
    Need::file(kernel::SOURCE, "linux-source-6.12", "the kernel's source"),
];

/// Installs the packages for all `needs` that are missing, after printing them.
pub(crate) fn provide(needs: &[&[Need]], install: bool) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().copied().flatten().filter(|need| !need.is_there()).collect();
    if missing.is_empty() {
        eprintln!("nothing to install: the packages needed are there");
        return Ok(());
    }
    for need in &missing {
        eprintln!("missing: {} (package {}): {}", need.what, need.package, need.why);
    }
    let packages: BTreeSet<&str> = missing.iter().map(|need| need.package).collect();
    let packages: Vec<&str> = packages.into_iter().collect();
    add(&packages, install)
}

fn add(packages: &[&str], install: bool) -> Result<()> {
    if !install || !sh::have("apt-get") {
        bail!("missing packages: {}", packages.join(" "));
    }
    eprintln!("installing: {}", packages.join(" "));
    sh::run(apt().arg("update").arg("-q=2"))?;
    sh::run(apt().args(["install", "-y", "-q=2", "--no-install-recommends"]).args(packages))
}

/// An apt-get command that runs as root.
pub(crate) fn apt() -> Command {
    let mut command = if rustix::process::geteuid().is_root() {
        sh::command("apt-get")
    } else {
        let mut sudo = sh::command("sudo");
        sudo.args(["--preserve-env=DEBIAN_FRONTEND", "apt-get"]);
        sudo
    };
    command.env("DEBIAN_FRONTEND", "noninteractive");
    command
}

/// Installs Python's virtual environments, which Debian keeps in a package of their own that has no program to look
/// for.
pub(crate) fn provide_venv() -> Result<()> {
    let there = sh::try_output(sh::command("python3").args(["-c", "import ensurepip, venv"])).is_ok();
    if there { Ok(()) } else { add(&["python3-venv"], true) }
}
