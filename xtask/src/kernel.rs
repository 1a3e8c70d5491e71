//! The slim guest kernel: the distribution's source in this project's configuration, with everything built in. It
//! serves to measure the time of a boot; nothing but the bench needs it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::{host, sh};

/// The distribution's source, at the path of its package.
pub(crate) const SOURCE: &str = "/usr/src/linux-source-6.12.tar.xz";
/// The top directory of the source archive.
const TREE: &str = "linux-source-6.12";
const FRAGMENT: &str = "xtask/kernel/x86_64.config";

/// The kernel image, if it has been built.
pub(crate) fn built() -> Option<PathBuf> {
    Some(image()).filter(|image| image.is_file())
}

fn image() -> PathBuf {
    sh::target().join("kernel").join("vmlinux-slim")
}

/// Builds the kernel; returns the image: an ELF file with a PVH entry, stripped.
pub(crate) fn run() -> Result<PathBuf> {
    host::provide(&[host::KERNEL], true)?;
    let work = sh::target().join("kernel");
    let tree = source(&work)?;
    let make = || {
        let mut make = Command::new("make");
        make.current_dir(&tree).args(["-s", "KBUILD_BUILD_TIMESTAMP=@0", "KBUILD_BUILD_USER=matchlock"]);
        make.arg("KBUILD_BUILD_HOST=matchlock");
        make
    };
    sh::run(make().arg("allnoconfig"))?;
    let fragment = sh::root().join(FRAGMENT);
    let mut merge = Command::new("scripts/kconfig/merge_config.sh");
    sh::run(merge.current_dir(&tree).args(["-Q", "-n", "-m", ".config"]).arg(&fragment))?;
    sh::run(make().arg("olddefconfig"))?;
    let jobs = std::thread::available_parallelism().map_or(1, usize::from);
    sh::run(make().arg(format!("-j{jobs}")).arg("vmlinux"))?;
    let mut strip = Command::new("strip");
    sh::run(strip.args(["--strip-all", "-o"]).arg(image()).arg(tree.join("vmlinux")))?;
    Ok(image())
}

/// The unpacked source tree.
fn source(work: &Path) -> Result<PathBuf> {
    let tree = work.join(TREE);
    if tree.is_dir() {
        return Ok(tree);
    }
    fs::create_dir_all(work)?;
    // The source is unpacked beside its place and then moved, so that a half-unpacked tree never counts as one.
    let unpacked = tempfile::tempdir_in(work)?;
    sh::run(Command::new("tar").arg("-C").arg(unpacked.path()).args(["-xf", SOURCE]))?;
    fs::rename(unpacked.path().join(TREE), &tree).context("the kernel's source")?;
    Ok(tree)
}
