//! Suites of others, for the conformance tests of every provider: pjdfstest and fsx on a provider that is mounted on this
//! host.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use fuse::{Coherence, FileSystem};
use shares::{MountError, Mounted};

/// Cases of pjdfstest 0.2.2 that pass: all 398 but one, which wants a limit of links that no call tells.
const PASS: usize = 397;

/// A case that fails now and then: `open(O_RDONLY | O_TRUNC)` of a program that runs. Linux has a FUSE server cut the file
/// before it looks whether the file is run; a program that has not quite begun dies of it, and then the file may be opened.
const RACE: &str = "open::etxtbsy";

/// The programs of the suites.
pub struct Suites {
    pjdfstest: String,
    fsx: String,
}

/// The outcome of the cases.
#[derive(Debug, Default)]
struct Outcome {
    /// The complaint of fsx.
    contents: Option<String>,
    passed: BTreeSet<String>,
    failed: BTreeSet<String>,
}

impl Suites {
    /// The suites, or a reason why the test is skipped.
    pub fn found() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip::skip("root", "pjdfstest takes on users, and mounts need root");
            return None;
        }
        Some(Self { pjdfstest: program("pjdfstest", "PJDFSTEST")?, fsx: program("fsx", "FSX")? })
    }

    /// Mounts `files`, served by threads that call `enter` first, and holds them to the suites.
    pub fn hold<F: FileSystem + 'static>(
        &self,
        what: &str,
        files: F,
        coherence: Coherence,
        enter: impl Fn() + Send + Sync + 'static,
    ) {
        let place = tempfile::tempdir().unwrap();
        let mounted = match Mounted::new(files, coherence, place.path(), 2, enter) {
            Ok(mounted) => mounted,
            Err(MountError::Device(error)) => return skip::skip("fuse", format!("/dev/fuse: {error}")),
            Err(error) => panic!("{error}"),
        };
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let mut outcome = Outcome { contents: exercise(&self.fsx, place.path()), ..Outcome::default() };
        suite(&self.pjdfstest, place.path(), &[], &mut outcome);
        // These cases mount everything read-only, which the kernel refuses while other cases remove files.
        suite(&self.pjdfstest, place.path(), &["erofs"], &mut outcome);
        drop(mounted);
        println!("{what}: {} passed, failed: {:?}", outcome.passed.len(), outcome.failed);
        assert_eq!(outcome.contents, None, "{what}");
        let lost_race = outcome.failed.remove(RACE);
        assert!(outcome.failed.is_empty(), "{what}: {:?}", outcome.failed);
        assert_eq!(outcome.passed.len() + usize::from(lost_race), PASS, "{what}");
    }
}

/// A program that a variable names, or that is in the path.
fn program(name: &'static str, variable: &str) -> Option<String> {
    let program = std::env::var(variable).unwrap_or_else(|_| name.to_owned());
    match Command::new(&program).arg("--version").output() {
        Ok(_) => Some(program),
        Err(error) => {
            skip::skip(name, format!("{program}: {error} (cargo install {name})"));
            None
        }
    }
}

/// Reads, writes, maps, copies and cuts a file at random, against what it should contain.
fn exercise(fsx: &str, path: &Path) -> Option<String> {
    let output = Command::new(fsx).args(["-N", "5000", "-S", "7"]).arg(path.join("fsx")).output().unwrap();
    (!output.status.success()).then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

/// Runs the cases whose name has one of these patterns, or all of them without remounting.
fn suite(program: &str, path: &Path, patterns: &[&str], outcome: &mut Outcome) {
    let directory = tempfile::tempdir().unwrap();
    let configuration = directory.path().join("pjdfstest.toml");
    let text = format!(
        "[features]\nposix_fallocate = {{}}\nutime_now = {{}}\nutimensat = {{}}\nrename_ctime = {{}}\n\
         [settings]\nnaptime = 0.01\nallow_remount = {}\n\
         [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n",
        !patterns.is_empty()
    );
    fs::write(&configuration, text).unwrap();
    let mut command = Command::new(program);
    command.arg("-c").arg(&configuration).arg("-p").arg(path).arg("-s").arg(directory.path()).args(patterns);
    let output = command.output().unwrap();
    for line in String::from_utf8_lossy(&output.stdout).lines() {
        let name = line.split_whitespace().next().unwrap_or_default().to_owned();
        match () {
            () if line.ends_with(" ok") => drop(outcome.passed.insert(name)),
            () if line.ends_with(" FAILED") => drop(outcome.failed.insert(name)),
            () => {}
        }
    }
}
