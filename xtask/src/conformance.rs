//! `cargo xtask conformance`: runs other projects' test suites against parts of the product, and proofs that are too long
//! for every test run.

use anyhow::Result;
use clap::ValueEnum;

use crate::test::{self, Counts};
use crate::{sh, tools};

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
            let pjdfstest = steps.take("build pjdfstest", || tools::installed(tools::PJDFSTEST))?;
            let fsx = steps.take("build fsx", || tools::installed(tools::FSX))?;
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
