//! Programs of other projects that suites and measurements take. Each is built once, into the target directory, and is no part
//! of the product.

use std::path::PathBuf;

use anyhow::Result;

use crate::sh;

/// A program: its name and version on crates.io.
pub(crate) type Tool = (&'static str, &'static str);

/// The suite of file systems.
pub(crate) const PJDFSTEST: Tool = ("pjdfstest", "0.2.2");

/// The suite of file contents: it makes random changes to a file and compares its contents with a model.
pub(crate) const FSX: Tool = ("fsx", "0.3.2");

/// The server of shared folders that ours is measured beside.
pub(crate) const VIRTIOFSD: Tool = ("virtiofsd", "1.14.0");

/// Builds a tool, unless it is already built; returns the path of its program.
pub(crate) fn installed((name, version): Tool) -> Result<PathBuf> {
    let root = sh::target().join("suites").join(format!("{name}-{version}"));
    let program = root.join("bin").join(name);
    if !program.exists() {
        let mut cargo = sh::cargo();
        cargo.args(["install", name, "--locked", "--version", version, "--root"]).arg(&root);
        cargo.arg("--target-dir").arg(root.join("build")).args(sh::quiet());
        sh::run(&mut cargo)?;
    }
    Ok(program)
}
