//! The product's default kernel, through the program `stock-kernel`, because xtask links none of the product's crates,
//! which take long to build.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::build::{self, Profile};
use crate::sh;

/// The kernel, in the store of the tests' cache.
pub(crate) struct Kernel {
    /// The image.
    pub(crate) path: PathBuf,
    program: PathBuf,
    cache: PathBuf,
}

impl Kernel {
    /// Finds the kernel, or fetches it.
    pub(crate) fn provide(profile: Profile) -> Result<Self> {
        let program = build::stock_kernel(profile)?;
        let cache = sh::target().join("cache");
        let path = sh::output(sh::command(&program).arg(&cache))?;
        Ok(Self { path: PathBuf::from(path.trim_end()), program, cache })
    }

    /// Packs an archive for this kernel at `archive`: modules with their dependencies, and files under the given names.
    pub(crate) fn pack(&self, modules: &[&str], files: &[(&str, &Path)], archive: &Path) -> Result<()> {
        let mut command = sh::command(&self.program);
        command.arg(&self.cache).arg("--initramfs").arg(archive);
        for module in modules {
            command.args(["--module", module]);
        }
        for (name, path) in files {
            command.arg("--file").arg(format!("{name}={}", path.display()));
        }
        sh::output(&mut command).map(drop)
    }
}
