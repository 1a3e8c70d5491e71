//! `cargo xtask test`: all checks, with the time that each step took and one count at the end.

use std::collections::BTreeSet;
use std::fmt;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, bail};

use crate::steps::Steps;
use crate::{conformance, cross, host, sh, tidy, vm};

/// Tests run so far.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    pub(crate) skipped: u32,
    pub(crate) skipped_cells: u32,
    /// Tests of the running program that reported that they were skipped: the harness counts them as passed.
    unrun: BTreeSet<String>,
}

impl Counts {
    pub(crate) fn add(&mut self, other: &Self) {
        self.passed += other.passed;
        self.failed += other.failed;
        self.skipped += other.skipped;
        self.skipped_cells += other.skipped_cells;
    }

    /// Counts the closing line of a test program, if `line` is one.
    pub(crate) fn read(&mut self, line: &str) {
        // libtest and libtest-mimic: "test result: ok. 6 passed; 0 failed; 0 ignored; 0 measured; …"
        // tests/sdk/run.py, for all its parts: "python: 6 passed, 0 failed, 0 skipped"
        let line = line.trim_start();
        if let Some((test, _)) = line.strip_prefix(skip::MARK).and_then(|rest| rest.split_once(": ")) {
            self.unrun.insert(test.to_owned());
            return;
        }
        let result = line.strip_prefix("test result: ").or_else(|| line.strip_prefix("python: "));
        let Some(result) = result else { return };
        let count = |what: &str| {
            let before = result.split(what).next().filter(|before| before.len() < result.len())?;
            before.trim_end().rsplit([' ', ';', ',']).next()?.parse::<u32>().ok()
        };
        let unrun = u32::try_from(std::mem::take(&mut self.unrun).len()).unwrap_or(u32::MAX);
        self.passed += count(" passed").unwrap_or(0).saturating_sub(unrun);
        self.skipped += unrun;
        self.failed += count(" failed").unwrap_or(0);
        self.skipped += count(" ignored").or_else(|| count(" skipped")).unwrap_or(0);
    }

    /// Runs tests, shows their output, and counts them.
    pub(crate) fn of_run(command: &mut Command) -> Result<Self> {
        Self::of_run_and(command, |_| ())
    }

    /// Does the same, and has `note` see each line.
    pub(crate) fn of_run_and(command: &mut Command, mut note: impl FnMut(&str)) -> Result<Self> {
        let mut child = command.stdout(Stdio::piped()).stdin(Stdio::null()).spawn().context("tests")?;
        let output = child.stdout.take().context("the tests' output")?;
        let mut counts = Self::default();
        for line in BufReader::new(output).lines() {
            let line = line?;
            println!("{line}");
            note(&line);
            counts.read(&line);
        }
        let status = child.wait()?;
        if !status.success() && counts.failed == 0 {
            bail!("the tests ended with {status} before they were counted");
        }
        Ok(counts)
    }

    pub(crate) fn verdict(&self) -> Result<()> {
        if self.failed > 0 {
            bail!("{} tests failed", self.failed);
        }
        if self.passed == 0 {
            bail!("no test ran");
        }
        Ok(())
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} passed, {} failed, {} skipped",
            self.passed,
            self.failed,
            self.skipped + self.skipped_cells
        )
    }
}

/// Runs the checks that need no virtual machine.
pub(crate) fn fast() -> Result<()> {
    told(without_vms)
}

/// Runs all checks.
pub(crate) fn all(vms: bool) -> Result<()> {
    told(|steps| {
        let mut counts = without_vms(steps)?;
        if vms && counts.failed == 0 {
            let matrix = vm::all(steps)?;
            println!("VM tests: {matrix}");
            counts.add(&matrix);
        }
        Ok(counts)
    })
}

/// Runs tests; prints at the end where the time went, and how many passed.
pub(crate) fn told(tests: impl FnOnce(&mut Steps) -> Result<Counts>) -> Result<()> {
    let mut steps = Steps::default();
    let counts = tests(&mut steps);
    print!("{steps}");
    let counts = counts?;
    println!("{counts}");
    counts.verdict()
}

fn without_vms(steps: &mut Steps) -> Result<Counts> {
    steps.take("packages", || {
        host::provide(&[host::RUN, host::TEST], true)?;
        host::provide_venv()
    })?;
    steps.take("tidy", tidy::run)?;
    let cargo = |words: &[&str]| {
        let mut cargo = sh::cargo();
        cargo.args(words);
        cargo
    };
    steps.take("format", || sh::run(&mut cargo(&["fmt", "--all", "--check"])))?;
    steps.take("lints", || {
        let mut clippy = cargo(&["clippy", "--workspace", "--all-targets"]);
        sh::run(clippy.args(sh::quiet()).args(["--", "-D", "warnings"]))
    })?;
    steps.take("documentation", || {
        let mut doc = cargo(&["doc", "--workspace", "--no-deps", "--document-private-items"]);
        sh::run(doc.args(sh::quiet()).env("RUSTDOCFLAGS", "-D warnings"))
    })?;
    let mut counts = cross::all(steps)?;
    // The black-box suite belongs to the VM matrix.
    let tests = ["test", "--workspace", "--exclude", "blackbox"];
    steps.take("build of the tests", || sh::run(cargo(&tests).arg("--no-run").args(sh::quiet())))?;
    let suites = steps.take("build of the suites", conformance::suites)?;
    let mut tests = cargo(&tests);
    tests.arg("--no-fail-fast").envs(suites);
    counts.add(&steps.take("tests", || Counts::of_run(&mut tests))?);
    counts.add(&steps.take("Python checks", || Counts::of_run(python().arg("check")))?);
    Ok(counts)
}

/// A command that runs the Python suites.
pub(crate) fn python() -> Command {
    let mut python = sh::command("python3");
    python.arg(sh::root().join("tests/sdk/run.py"));
    python
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closing_lines_are_counted() {
        let mut counts = Counts::default();
        counts.read(
            "test result: ok. 6 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s",
        );
        counts.read("test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out");
        counts.read("test a ... ok");
        assert_eq!((counts.passed, counts.failed, counts.skipped), (7, 3, 2));
        for line in ["SKIP in a::b: no cpio", "SKIP in a::b: no tar", "SKIP in c: not root"] {
            counts.read(line);
        }
        counts.read("test result: ok. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out");
        assert_eq!((counts.passed, counts.failed, counts.skipped), (10, 3, 4));
        counts.read("mypy --strict: 1 passed, 0 failed, 0 skipped");
        counts.read("python: 5 passed, 1 failed, 4 skipped");
        assert_eq!((counts.passed, counts.failed, counts.skipped), (15, 4, 8));
    }
}
