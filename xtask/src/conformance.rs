//! `cargo xtask conformance`: suites of others, held against what is ours. Their programs are built once, into the target
//! directory, and are no part of the product.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

use crate::sh;
use crate::test::{self, Counts};

/// The suite of file systems: its name and version on crates.io.
const PJDFSTEST: (&str, &str) = ("pjdfstest", "0.2.2");

/// Random acts on the contents of a file, against what it should contain.
const FSX: (&str, &str) = ("fsx", "0.3.2");

/// A part of the product that is held against suites.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Subject {
    /// Shared folders, mounted on this host: as root, and as a user without privilege
    Shares,
}

/// Runs the suites of one subject; nothing that they need may be missing.
pub(crate) fn run(subject: Subject) -> Result<()> {
    test::told(|steps| match subject {
        Subject::Shares => {
            let pjdfstest = steps.take("build pjdfstest", || installed(PJDFSTEST))?;
            let fsx = steps.take("build fsx", || installed(FSX))?;
            let mut cargo = sh::cargo();
            cargo.args(["test", "--package", "shares", "--test", "conformance"]).args(sh::quiet());
            cargo.args(["--", "--nocapture"]);
            cargo.env("PJDFSTEST", pjdfstest).env("FSX", fsx).env("REQUIRE", "root,fuse,pjdfstest,fsx");
            steps.take("shares", || Counts::of_run(&mut cargo))
        }
    })
}

/// A program of crates.io, built if it is not there.
fn installed((name, version): (&str, &str)) -> Result<PathBuf> {
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
