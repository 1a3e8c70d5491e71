//! `cargo xtask conformance`: runs other projects' test suites against parts of the product, and proofs that are too long
//! for every test run. The suites' programs are built once, into the target directory, and are no part of the product.

use std::path::PathBuf;

use anyhow::Result;
use clap::ValueEnum;

use crate::sh;
use crate::test::{self, Counts};

/// The suite of file systems: its name and version on crates.io.
const PJDFSTEST: (&str, &str) = ("pjdfstest", "0.2.2");

/// The suite of file contents: it makes random changes to a file and compares its contents with a model.
const FSX: (&str, &str) = ("fsx", "0.3.2");

/// A part of the product that suites test.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Subject {
    /// Shared folders, mounted on this host: as root, and as a user without privilege
    Shares,
    /// The egress policy: every address of IPv4, a million questions against a second policy
    Network,
}

/// Runs the suites of one subject; a missing requirement of a suite is an error.
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
        Subject::Network => {
            let mut cargo = sh::cargo();
            cargo.args(["test", "--package", "egress_policy", "--tests"]).args(sh::quiet());
            cargo.env("LONG_PROOFS", "1").env("REQUIRE", "long-proofs");
            steps.take("egress policy", || Counts::of_run(&mut cargo))
        }
    })
}

/// Builds a program of crates.io, unless it is already built; returns its path.
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
