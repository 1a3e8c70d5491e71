//! `cargo xtask conformance`: runs other projects' test suites against parts of the product, and proofs that are too long
//! for every test run.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::ValueEnum;

use crate::steps::Steps;
use crate::test::{self, Counts};
use crate::{sh, tools, vm};

/// A part of the product that suites test.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum Subject {
    /// Shared folders: mounted on this host in every setting, and of sandboxes that end at 200 moments
    Shares,
    /// The egress policy: every address of IPv4, a million questions against a second policy
    Network,
}

/// The page with the tables of shared folders, and the beginning of the lines that tests print for it.
const PAGE: &str = "docs/shares.md";
const ROW: &str = "conformance: ";

/// The table, between which lines of the page it is.
const BEGIN: &str = "<!-- written by `cargo xtask conformance shares` -->\n";
const END: &str = "<!-- end -->\n";
const HEAD: &str = "| files | asked for by | passed | failed | not run |\n| --- | --- | --- | --- | --- |\n";

/// The programs of the suites of file systems, by the variables that tests find them with.
pub(crate) fn suites() -> Result<[(&'static str, PathBuf); 2]> {
    Ok([("PJDFSTEST", tools::installed(tools::PJDFSTEST)?), ("FSX", tools::installed(tools::FSX)?)])
}

/// Runs the suites of one subject; a missing requirement of a suite is an error.
pub(crate) fn run(subject: Subject) -> Result<()> {
    test::told(|steps| match subject {
        Subject::Shares => shares(steps),
        Subject::Network => {
            let mut cargo = sh::cargo();
            cargo.args(["test", "--package", "egress_policy", "--tests"]).args(sh::quiet());
            cargo.env("LONG_PROOFS", "1").env("REQUIRE", "long-proofs");
            steps.take("egress policy", || Counts::of_run(&mut cargo))
        }
    })
}

fn shares(steps: &mut Steps) -> Result<Counts> {
    let suites = steps.take("build of the suites", suites)?;
    let mut cargo = sh::cargo();
    cargo.args(["test", "--package", "shares", "--test", "conformance", "--test", "cases"]).args(sh::quiet());
    cargo.args(["--", "--nocapture"]).envs(suites);
    cargo.env("LONG_PROOFS", "1").env("REQUIRE", "root,fuse,pjdfstest,fsx,long-proofs");
    let mut rows = BTreeSet::new();
    let mut counts = steps.take("suites", || {
        Counts::of_run_and(&mut cargo, |line| {
            rows.extend(line.strip_prefix(ROW).map(|row| format!("{row}\n")));
        })
    })?;
    if counts.failed == 0 {
        let page = sh::root().join(PAGE);
        let text = fs::read_to_string(&page)?;
        let text = with_table(&text, &rows).with_context(|| format!("{PAGE} has no place for the table"))?;
        fs::write(&page, text)?;
    }
    counts.add(&vm::long(&["wiped::", "cases::"], steps)?);
    Ok(counts)
}

/// The page with these rows in its table.
fn with_table(page: &str, rows: &BTreeSet<String>) -> Option<String> {
    let (before, rest) = page.split_once(BEGIN)?;
    let (_, after) = rest.split_once(END)?;
    let rows: String = rows.iter().map(String::as_str).collect();
    Some(format!("{before}{BEGIN}{HEAD}{rows}{END}{after}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_is_replaced_by_another_one() {
        let rows = BTreeSet::from(["| b |\n".to_owned(), "| a |\n".to_owned()]);
        let page = |rows: &str| format!("before\n{BEGIN}{HEAD}{rows}{END}after\n");
        assert_eq!(with_table(&page("| old |\n"), &rows), Some(page("| a |\n| b |\n")));
        assert_eq!(with_table("no table\n", &rows), None);
    }
}
