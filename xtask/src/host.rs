//! What a host must have, and putting it there through the distribution's packages.

use std::process::Command;

use anyhow::{Result, bail};

use crate::sh;

/// A program and the Debian package it comes in.
pub(crate) struct Need {
    program: &'static str,
    package: &'static str,
    why: &'static str,
}

/// What running sandboxes takes.
pub(crate) const RUN: &[Need] = &[
    Need {
        program: "qemu-system-x86_64",
        package: "qemu-system-x86",
        why: "vCPU engine of the software machine",
    },
    Need { program: "mke2fs", package: "e2fsprogs", why: "the writable disk" },
    Need { program: "cc", package: "build-essential", why: "linking, and SQLite" },
];

/// What the tests take besides.
pub(crate) const TEST: &[Need] = &[
    Need { program: "fsck.erofs", package: "erofs-utils", why: "checks the EROFS writer" },
    Need { program: "sfdisk", package: "fdisk", why: "checks partition tables" },
    Need { program: "iasl", package: "acpica-tools", why: "checks ACPI tables" },
    Need { program: "cpio", package: "cpio", why: "checks the initramfs" },
    Need { program: "busybox", package: "busybox-static", why: "programs for the agent's tests" },
    Need { program: "python3", package: "python3", why: "the Python package" },
    Need { program: "docker-registry", package: "docker-registry", why: "a registry to pull from" },
    Need { program: "skopeo", package: "skopeo", why: "fills that registry" },
    Need { program: "buildah", package: "buildah", why: "a builder of images" },
    Need { program: "mmdebstrap", package: "mmdebstrap", why: "images to pull" },
    Need { program: "umoci", package: "umoci", why: "images to pull" },
    Need { program: "openssl", package: "openssl", why: "certificates for that registry" },
    Need { program: "sudo", package: "sudo", why: "sandboxes of a user behind sudo" },
];

/// What building the slim kernel takes besides.
pub(crate) const KERNEL: &[Need] = &[
    Need { program: "flex", package: "flex", why: "kernel build" },
    Need { program: "bison", package: "bison", why: "kernel build" },
    Need { program: "bc", package: "bc", why: "kernel build" },
    Need { program: "make", package: "make", why: "kernel build" },
];

/// Installs what is missing of `needs`, after saying what.
pub(crate) fn provide(needs: &[&[Need]], install: bool) -> Result<()> {
    let missing: Vec<&Need> =
        needs.iter().copied().flatten().filter(|need| !sh::have(need.program)).collect();
    if missing.is_empty() {
        eprintln!("nothing to install: the packages needed are there");
        return Ok(());
    }
    for need in &missing {
        eprintln!("missing: {} (package {}): {}", need.program, need.package, need.why);
    }
    let packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
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

fn apt() -> Command {
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

/// Python's virtual environments, which Debian keeps in a package of their own without a program to look for.
pub(crate) fn provide_venv() -> Result<()> {
    let there = sh::output(sh::command("python3").args(["-c", "import ensurepip, venv"])).is_ok();
    if there { Ok(()) } else { add(&["python3-venv"], true) }
}
