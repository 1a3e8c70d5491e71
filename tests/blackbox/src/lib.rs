//! The common parts of black-box tests: homes, the `matchlock` program, and checks that nothing is left behind.
//!
//! Tests use the program only, and know nothing of its insides. Environment: `MATCHLOCK_BIN` (the program, without
//! which no test can run), `MATCHLOCK_TEST_MACHINE` (`software`, `kvm`), `MATCHLOCK_TEST_KERNEL` (a kernel reference,
//! empty = the default). Not here: the tests.

#![allow(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a test's helper fails the test")]

mod limit;
pub mod rpc;
mod terminal;

pub use limit::within_limit;
pub use terminal::Terminal;

use std::ffi::OsStr;
use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, Signal, kill_process};

/// How long processes may take to notice that their sandbox has ended.
const LINGER_LIMIT: Duration = Duration::from_secs(10);

/// How long a guest may take to print something.
const INPUT_LIMIT: Duration = Duration::from_secs(120);

/// The built-in image.
pub const IMAGE: &str = "busybox:latest";

/// The program under test, if there is one.
#[must_use]
pub fn program() -> Option<PathBuf> {
    std::env::var_os("MATCHLOCK_BIN").map(PathBuf::from)
}

/// Whether this host can fetch Debian packages.
#[must_use]
pub fn fetches_packages() -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join("apt-get").is_file())
}

/// The machine that the tests run on.
#[must_use]
pub fn machine() -> String {
    std::env::var("MATCHLOCK_TEST_MACHINE").unwrap_or_else(|_| "software".to_owned())
}

/// A user's home directory, with images and kernels of the real one.
#[derive(Debug)]
pub struct Home {
    directory: tempfile::TempDir,
    mark: String,
}

/// The result of a command.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Done {
    /// Exit status; 128 + n for signal n.
    pub status: i32,
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
}

impl Home {
    /// An empty home whose cache is the real one's.
    #[must_use]
    pub fn new() -> Self {
        let home = Self::bare();
        fs::create_dir_all(real_cache()).unwrap();
        symlink(real_cache(), home.cache()).unwrap();
        home
    }

    /// An empty home with an image store of its own; the rest of the cache is the real one's.
    #[must_use]
    pub fn with_own_images() -> Self {
        Self::with_parts_of_the_cache(&["kernels", "uppers"])
    }

    /// An empty home with volumes of its own; the rest of the cache is the real one's.
    #[must_use]
    pub fn with_own_volumes() -> Self {
        Self::with_parts_of_the_cache(&["images", "kernels", "uppers"])
    }

    fn with_parts_of_the_cache(parts: &[&str]) -> Self {
        let home = Self::bare();
        fs::create_dir(home.cache()).unwrap();
        for name in parts {
            let real = real_cache().join(name);
            fs::create_dir_all(&real).unwrap();
            symlink(real, home.cache().join(name)).unwrap();
        }
        home
    }

    fn bare() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir_all(directory.path().join(".cache")).unwrap();
        fs::create_dir(directory.path().join("tmp")).unwrap();
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let mark = format!("/matchlock-test-{}-{number}/", std::process::id());
        limit::add_mark(&mark);
        Self { directory, mark }
    }

    /// The directory of images and kernels.
    #[must_use]
    pub fn cache(&self) -> PathBuf {
        self.directory.path().join(".cache/matchlock")
    }

    /// The directory of the sandboxes' files.
    #[must_use]
    pub fn vms(&self) -> PathBuf {
        self.directory.path().join(".matchlock/vms")
    }

    /// The program with these arguments.
    #[must_use]
    pub fn matchlock<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = Command::new(program().unwrap());
        command.args(args).stdin(Stdio::null());
        // Under sudo the program would use another home.
        command.env_remove("SUDO_USER");
        // A test that wants another kernel sets this itself.
        command.env_remove("MATCHLOCK_KERNEL");
        command.env("HOME", self.directory.path()).env("TMPDIR", self.directory.path().join("tmp"));
        // Every process of a sandbox inherits PATH, so it carries the mark by which they are found.
        let path = std::env::var("PATH").unwrap();
        command.env("PATH", format!("{path}:{}", self.mark));
        command
    }

    /// `matchlock run` on the machine and kernel under test, with the built-in image and no network.
    #[must_use]
    pub fn run<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Command {
        let mut command = self.matchlock([
            "run",
            "--machine",
            &machine(),
            "--image",
            IMAGE,
            "--memory",
            "256",
            "--no-network",
        ]);
        let args: Vec<_> = args.into_iter().collect();
        let own_kernel = args.iter().any(|arg| arg.as_ref() == "--kernel");
        let kernel = std::env::var("MATCHLOCK_TEST_KERNEL").unwrap_or_default();
        if !kernel.is_empty() && !own_kernel {
            command.args(["--kernel", &kernel]);
        }
        command.args(args);
        command
    }

    /// Runs the program to its end.
    pub fn done<S: AsRef<OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Done {
        done(&mut self.matchlock(args))
    }

    /// Runs `matchlock run` with these options and an image that does not exist: what is refused is refused before anything is
    /// prepared.
    pub fn run_without_image<S: AsRef<OsStr>>(&self, options: impl IntoIterator<Item = S>) -> Done {
        let mut run = self.matchlock(["run", "--machine", &machine(), "--image", "no/such:image"]);
        done(run.args(options).args(["--", "true"]))
    }

    /// Starts a sandbox that stays, and returns its id.
    #[must_use]
    pub fn detached(&self, args: &[&str]) -> String {
        let done = done(self.run(["-d"]).args(args));
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
        let id = done.stdout.trim_end().to_owned();
        assert!(id.starts_with("vm-") && id.len() == 11, "{done:?}");
        id
    }

    /// Processes of sandboxes of this home.
    #[must_use]
    pub fn processes(&self) -> Vec<String> {
        let shown = |process: String| {
            let name = fs::read_to_string(Path::new("/proc").join(&process).join("comm")).unwrap_or_default();
            format!("{process} {}", name.trim())
        };
        marked(&self.mark).into_iter().map(shown).collect()
    }

    /// Waits until no process of this home is left.
    pub fn assert_no_process(&self) {
        self.assert_processes_of(0);
    }

    /// Waits until only the processes of this many sandboxes are left.
    pub fn assert_processes_of(&self, sandboxes: usize) {
        let start = Instant::now();
        loop {
            let processes = self.processes();
            // Each sandbox has one owner.
            if processes.iter().filter(|process| process.ends_with(" matchlock")).count() == sandboxes
                && (sandboxes != 0 || processes.is_empty())
            {
                return;
            }
            assert!(start.elapsed() < LINGER_LIMIT, "still there: {processes:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Checks that no process, no file of a sandbox and no temporary file is left.
    pub fn assert_nothing_left(&self) {
        self.assert_no_process();
        assert_eq!(names(&self.vms()), Vec::<String>::new(), "sandbox directories");
        assert_eq!(names(&self.directory.path().join("tmp")), Vec::<String>::new(), "temporary files");
        assert_eq!(self.done(["list", "--json"]).stdout.trim(), "[]", "records");
    }
}

impl Default for Home {
    fn default() -> Self {
        Self::new()
    }
}

/// The numbers of the processes with this mark in their environment.
pub(crate) fn marked(mark: &str) -> Vec<String> {
    let marked = |process: &String| {
        // A zombie has no environment, and its parent has to reap it.
        let environment = fs::read(Path::new("/proc").join(process).join("environ")).unwrap_or_default();
        environment.windows(mark.len()).any(|window| window == mark.as_bytes())
    };
    names(Path::new("/proc")).into_iter().filter(marked).collect()
}

/// The real cache, whose images and kernels tests share.
#[must_use]
pub fn real_cache() -> PathBuf {
    PathBuf::from(std::env::var_os("HOME").unwrap()).join(".cache/matchlock")
}

/// The names in a directory, sorted; none if it does not exist.
#[must_use]
pub fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// Checks a refusal: status 1, no output, and besides hints one line, which begins like this.
#[track_caller]
pub fn refused(done: &Done, start: &str) {
    assert_eq!((done.status, done.stdout.as_str()), (1, ""), "{done:?}");
    assert!(done.stderr.starts_with(&format!("matchlock: {start}")), "{done:?} instead of {start}");
    assert_eq!(done.stderr.lines().filter(|line| !line.starts_with("hint: ")).count(), 1, "{done:?}");
}

/// Runs a command to its end.
pub fn done(command: &mut Command) -> Done {
    command.output().unwrap().into()
}

/// Runs a command to its end with these bytes on its standard input.
pub fn done_with_input(command: &mut Command, input: &[u8]) -> Done {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    std::thread::scope(|scope| {
        // The command may end before it has read everything.
        scope.spawn(move || stdin.write_all(input));
        child.wait_with_output().unwrap().into()
    })
}

/// Starts a command whose output is collected.
pub fn spawn(command: &mut Command) -> Child {
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

/// Waits for this text in the command's output, and returns the output so far.
pub fn read_until(child: &mut Child, text: &str) -> String {
    let stdout = child.stdout.as_mut().unwrap();
    let mut seen = String::new();
    let mut byte = [0];
    while !seen.contains(text) {
        wait_for_input(&*stdout, &seen);
        assert_eq!(stdout.read(&mut byte).unwrap(), 1, "ended after {seen:?}");
        seen.push(char::from(byte[0]));
    }
    seen
}

/// Waits for bytes to read.
pub(crate) fn wait_for_input(from: impl AsFd, seen: &str) {
    let limit = rustix::event::Timespec { tv_sec: INPUT_LIMIT.as_secs().cast_signed(), tv_nsec: 0 };
    let mut polled = [PollFd::new(&from, PollFlags::IN)];
    assert_eq!(poll(&mut polled, Some(&limit)).unwrap(), 1, "nothing more after {seen:?}");
}

/// Sends a signal.
pub fn signal(child: &Child, signal: Signal) {
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    kill_process(pid, signal).unwrap();
}

/// Kills a process that is no child of ours, and waits until it has released everything: its memory goes before its
/// locks.
pub fn kill_and_wait(pid: Pid) {
    let process = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    kill_process(pid, Signal::KILL).unwrap();
    wait_for_input(&process, "SIGKILL");
}

/// Waits for a command's end.
pub fn end(child: Child) -> Done {
    child.wait_with_output().unwrap().into()
}

impl From<Output> for Done {
    fn from(output: Output) -> Self {
        Self {
            status: status(output.status),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

fn status(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap()
}
