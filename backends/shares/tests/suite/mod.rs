//! Suites of others, for the conformance tests of every provider: pjdfstest and fsx on a provider that is mounted on this
//! host.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use fuse::{Coherence, FileSystem};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use shares::{MountError, Mounted};

/// A user who has no privilege.
pub const USER: u32 = 1001;

/// Set for the settings that not every run of the tests takes the time for.
const LONG: &str = "LONG_PROOFS";

/// The beginning of a line that `cargo xtask conformance shares` puts into docs/shares.md.
const ROW: &str = "conformance: ";

/// Cases of pjdfstest 0.2.2.
const CASES: usize = 398;

/// Those that pass when root asks: all but one, which wants a limit of links that no call tells.
const PASS_FOR_ROOT: usize = 397;

/// Those that pass when a user without privilege asks: the others take on other users, mount, or make devices.
const PASS_FOR_USER: usize = 254;

/// A case that fails now and then: `open(O_RDONLY | O_TRUNC)` of a program that runs. Linux has a FUSE server cut the file
/// before it looks whether the file is run; a program that has not quite begun dies of it, and then the file may be opened.
const RACE: &str = "open::etxtbsy";

/// The programs of the suites, in a directory that every user may enter.
pub struct Suites {
    pjdfstest: PathBuf,
    fsx: PathBuf,
    _directory: tempfile::TempDir,
}

/// A folder that is mounted until this is dropped.
pub struct Place {
    _mounted: Mounted,
    directory: tempfile::TempDir,
}

impl Place {
    /// Where.
    pub fn path(&self) -> &Path {
        self.directory.path()
    }
}

/// A directory of a file system of its own, on which devices do nothing, until this is dropped.
pub struct Tmpfs(tempfile::TempDir);

impl Tmpfs {
    /// Mounts one, for which root is needed.
    pub fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        mount("none", directory.path(), "tmpfs", MountFlags::NODEV, None).unwrap();
        Self(directory)
    }

    /// Where.
    pub fn path(&self) -> &Path {
        self.0.path()
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        // A test that fails is told of by its own words.
        let _ = unmount(self.path(), UnmountFlags::DETACH);
    }
}

/// Mounts `files`, served by threads that call `enter` first; or gives a reason why the test is skipped.
pub fn mounted<F: FileSystem + 'static>(
    files: F,
    coherence: Coherence,
    enter: impl Fn() + Send + Sync + 'static,
) -> Option<Place> {
    let directory = tempfile::tempdir().unwrap();
    match Mounted::new(files, coherence, directory.path(), 2, enter) {
        Ok(mounted) => Some(Place { _mounted: mounted, directory }),
        Err(MountError::Device(error)) => {
            skip::skip("fuse", format!("/dev/fuse: {error}"));
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// The outcome of the cases.
#[derive(Debug, Default)]
struct Outcome {
    passed: BTreeSet<String>,
    failed: BTreeSet<String>,
}

/// Whether settings are tried that not every run takes the time for.
pub fn is_long() -> bool {
    if std::env::var_os(LONG).is_some() {
        return true;
    }
    skip::skip("long-proofs", format!("further settings take a minute; set {LONG}"));
    false
}

impl Suites {
    /// The suites, or a reason why the test is skipped.
    pub fn found() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            skip::skip("root", "pjdfstest takes on users, and mounts need root");
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let pjdfstest = program("pjdfstest", "PJDFSTEST", directory.path())?;
        let fsx = program("fsx", "FSX", directory.path())?;
        Some(Self { pjdfstest, fsx, _directory: directory })
    }

    /// Mounts `files`, served by threads that call `enter` first, and holds them to the suites: as root and as a user without
    /// privilege.
    pub fn hold<F: FileSystem + 'static>(
        &self,
        what: &str,
        files: F,
        coherence: Coherence,
        enter: impl Fn() + Send + Sync + 'static,
    ) {
        let Some(place) = mounted(files, coherence, enter) else { return };
        fs::set_permissions(place.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let complaint = self.exercise(&place.path().join("fsx"));
        let root = self.cases(place.path(), None);
        let user = self.cases(place.path(), Some(USER));
        drop(place);
        assert_eq!(complaint, None, "{what}: fsx");
        for (asked_by, mut outcome, pass) in [("root", root, PASS_FOR_ROOT), ("a user", user, PASS_FOR_USER)]
        {
            let lost_race = usize::from(outcome.failed.remove(RACE));
            let (passed, failed) = (outcome.passed.len() + lost_race, outcome.failed.len());
            let unrun = CASES - passed - failed;
            println!("\n{ROW}| {what} | {asked_by} | {passed} | {failed} | {unrun} |");
            assert!(outcome.failed.is_empty(), "{what}, asked by {asked_by}: {:?}", outcome.failed);
            assert_eq!(passed, pass, "{what}, asked by {asked_by}");
        }
    }

    /// Reads, writes, maps, copies and cuts a file at random, against what it should contain. Returns a complaint.
    pub fn exercise(&self, file: &Path) -> Option<String> {
        let output = Command::new(&self.fsx).args(["-N", "5000", "-S", "7"]).arg(file).output().unwrap();
        (!output.status.success()).then(|| String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Runs all cases.
    fn cases(&self, path: &Path, asked_by: Option<u32>) -> Outcome {
        let mut outcome = Outcome::default();
        self.matching(&[], path, asked_by, &mut outcome);
        // These cases mount everything read-only, which only root may do, and which the kernel refuses while other cases
        // remove files.
        if asked_by.is_none() {
            self.matching(&["erofs"], path, None, &mut outcome);
        }
        outcome
    }

    /// Runs the cases whose name has one of these patterns, or all of them without remounting.
    fn matching(&self, patterns: &[&str], path: &Path, asked_by: Option<u32>, outcome: &mut Outcome) {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let configuration = directory.path().join("pjdfstest.toml");
        let text = format!(
            "[features]\nposix_fallocate = {{}}\nutime_now = {{}}\nutimensat = {{}}\nrename_ctime = {{}}\n\
             [settings]\nnaptime = 0.03\nallow_remount = {}\n\
             [dummy_auth]\nentries = [[\"nobody\", \"nogroup\"], [\"daemon\", \"daemon\"]]\n",
            !patterns.is_empty()
        );
        fs::write(&configuration, text).unwrap();
        let mut command = Command::new(&self.pjdfstest);
        command.arg("-c").arg(&configuration).arg("-p").arg(path).arg("-s").arg(directory.path());
        if let Some(user) = asked_by {
            command.uid(user).gid(user);
        }
        let output = command.args(patterns).output().unwrap();
        for line in String::from_utf8_lossy(&output.stdout).lines() {
            let name = line.split_whitespace().next().unwrap_or_default().to_owned();
            match () {
                () if line.ends_with(" ok") => drop(outcome.passed.insert(name)),
                () if line.ends_with(" FAILED") => drop(outcome.failed.insert(name)),
                () => {}
            }
        }
    }
}

/// A copy of a program that a variable names, or that is in the path.
fn program(name: &'static str, variable: &str, directory: &Path) -> Option<PathBuf> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let in_path = || std::env::split_paths(&path).map(|part| part.join(name)).find(|path| path.is_file());
    let Some(program) = named.or_else(in_path) else {
        skip::skip(name, format!("{name} is not installed (cargo install {name})"));
        return None;
    };
    let copy = directory.join(name);
    fs::copy(&program, &copy).unwrap_or_else(|error| panic!("{}: {error}", program.display()));
    Some(copy)
}
