//! Starting a child process.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use command_fds::{CommandFdExt, FdMapping};
use confinement::{ChildDomain, Filter};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{PidfdFlags, Resource, Signal, getpid, getrlimit, pidfd_open};

use crate::{CHANNEL_FD, Channel, Child, Error, Result};

/// The only variables that a child inherits.
const ENVIRONMENT: [&str; 2] = ["PATH", "RUST_BACKTRACE"];

/// Variables for programs of this project. One malloc arena is enough for them, and with one glibc never counts the
/// CPUs, for which it would open a file long after the program has confined itself.
const OUR_PROGRAMS: [(&str, &str); 1] = [("MALLOC_ARENA_MAX", "1")];

/// A process to start. Its input is `/dev/null`, and it leads a session of its own, so that a terminal's ^C does not
/// reach it. Neither the process nor its own children leave a core file: the guest's memory would be in it.
#[derive(Debug)]
pub struct Spawn {
    /// The program's file.
    pub program: PathBuf,
    /// Arguments after the program's name.
    pub args: Vec<OsString>,
    /// Standard output; `/dev/null` if none.
    pub stdout: Option<OwnedFd>,
    /// Standard error; `/dev/null` if none.
    pub stderr: Option<OwnedFd>,
    /// Descriptors that the child inherits, with their numbers in the child.
    pub inherit: Vec<(OwnedFd, RawFd)>,
    /// A second protection (`PR_SET_PDEATHSIG`): SIGKILL when the calling *thread* ends. It is only for a child that
    /// the main thread starts.
    pub dies_with_thread: bool,
    /// The powers that are taken from the child before its program runs.
    pub confinement: Confinement,
}

/// The powers that are taken from a child, and from it alone, before its program runs.
#[derive(Debug, Default)]
pub struct Confinement {
    /// A Landlock domain. The parent must have given up new privileges.
    pub landlock: Option<ChildDomain>,
    /// A seccomp filter. It must allow execve(2), and write(2), which reports a failed execve(2).
    pub seccomp: Option<Filter>,
}

impl Spawn {
    /// A program without arguments or anything else to inherit.
    #[must_use]
    pub fn new(program: &Path) -> Self {
        Self {
            program: program.to_path_buf(),
            args: Vec::new(),
            stdout: None,
            stderr: None,
            inherit: Vec::new(),
            dies_with_thread: false,
            confinement: Confinement::default(),
        }
    }
}

/// Starts a program of this project, with a channel at [`CHANNEL_FD`].
pub fn spawn(mut spawn: Spawn) -> Result<(Child, Channel)> {
    let (ours, theirs) = Channel::pair()?;
    spawn.inherit.push((theirs.into(), CHANNEL_FD));
    Ok((start(spawn, &OUR_PROGRAMS)?, ours))
}

/// Starts a program that knows nothing of channels. Its parent must end it.
pub fn spawn_without_channel(spawn: Spawn) -> Result<Child> {
    start(spawn, &[])
}

fn start(spawn: Spawn, environment: &[(&str, &str)]) -> Result<Child> {
    let Spawn { program, args, stdout, stderr, inherit, dies_with_thread, confinement } = spawn;
    let start_error =
        |source: io::Error| Error::Start { program: program.to_string_lossy().into_owned(), source };
    let highest = inherit.iter().map(|(_, number)| *number).max();
    let collision = inherit
        .iter()
        .map(|(_, number)| *number)
        .find(|number| *number <= 2 || inherit.iter().filter(|(_, other)| other == number).count() > 1);
    if let Some(number) = collision {
        return Err(Error::Collision(number));
    }

    let mut command = Command::new(&program);
    command.args(args).stdin(Stdio::null());
    command.stdout(stdout.map_or_else(Stdio::null, Stdio::from));
    command.stderr(stderr.map_or_else(Stdio::null, Stdio::from));
    command.env_clear().current_dir("/");
    command.envs(ENVIRONMENT.iter().filter_map(|name| std::env::var_os(name).map(|value| (name, value))));

    command.envs(environment.iter().copied());

    let parent = dies_with_thread.then(|| pidfd_open(getpid(), PidfdFlags::empty())).transpose();
    let parent = parent.map_err(io::Error::from).map_err(start_error)?;
    let Confinement { landlock, seccomp } = confinement;
    let isolate = move || isolate(parent.as_ref(), landlock.as_ref());
    // SAFETY: `isolate` makes system calls only; it neither allocates nor takes a lock, as is required between fork and
    // exec in a process that may have other threads.
    unsafe { command.pre_exec(isolate) };
    // These mappings run after `isolate`, which marks every descriptor close-on-exec, and take the mark from the mapped
    // ones.
    let mappings =
        inherit.into_iter().map(|(parent_fd, child_fd)| FdMapping { parent_fd, child_fd }).collect();
    command.fd_mappings(mappings).map_err(|_| Error::Collision(CHANNEL_FD))?;
    if let Some(filter) = seccomp {
        // SAFETY: as for `isolate`: the closure makes one system call.
        unsafe { command.pre_exec(move || filter.install()) };
    }

    let reserved = highest.map(reserve_up_to).transpose().map_err(start_error)?;
    let child = command.spawn().map_err(start_error)?;
    drop(reserved);
    Child::adopt(child).map_err(start_error)
}

/// The steps of the child before exec. `parent` is given if the child is to end with its parent.
fn isolate(parent: Option<&OwnedFd>, landlock: Option<&ChildDomain>) -> io::Result<()> {
    rustix::process::setsid()?;
    confinement::deny_core()?;
    if let Some(parent) = parent {
        rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have ended before the line above. Its process id would not show that: in another process
        // namespace the parent has none.
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        if poll(&mut [PollFd::new(parent, PollFlags::IN)], Some(&now))? > 0 {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
    }
    if let Some(landlock) = landlock {
        landlock.enter()?;
    }
    keep_descriptors()
}

/// `nr_open` of proc(5), as every kernel sets it: the highest number of descriptors if there is no limit.
const MAX_DESCRIPTORS: RawFd = 1 << 20;

/// Marks every descriptor after the standard ones close-on-exec: the caller's open files are no business of the
/// child's.
fn keep_descriptors() -> io::Result<()> {
    // SAFETY: the call takes three integers, touches no memory, and closes nothing in this process.
    let marked = unsafe {
        libc::syscall(libc::SYS_close_range, CHANNEL_FD, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC)
    };
    if marked == 0 {
        return Ok(());
    }
    // On a kernel before 5.11 each descriptor is marked by a call of its own.
    let limit = getrlimit(Resource::Nofile).current.and_then(|limit| RawFd::try_from(limit).ok());
    for number in CHANNEL_FD..limit.unwrap_or(MAX_DESCRIPTORS) {
        // SAFETY: the call takes integers and touches no memory. A number that is no descriptor is refused.
        unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

/// Holds every free descriptor number up to `highest`, so that the standard library's own exec-error pipe does not
/// get one that a mapping will overwrite: then a program that cannot be executed would count as started.
fn reserve_up_to(highest: RawFd) -> io::Result<Vec<OwnedFd>> {
    let filler = std::fs::File::open("/dev/null")?;
    let mut held = Vec::new();
    loop {
        let next = rustix::io::fcntl_dupfd_cloexec(filler.as_fd(), 0)?;
        if next.as_raw_fd() > highest {
            return Ok(held);
        }
        held.push(next);
    }
}
