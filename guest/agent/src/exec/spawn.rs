//! Starting one program: its streams, its identity, its namespaces, and the clone that leads to [`super::child`].

use std::ffi::{CString, c_int};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use guest_protocol::{ExecFailure, ExecRequest, Stdio, TerminalSize};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::pipe::PipeFlags;
use rustix::process::{Pid, Signal};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use rustix::thread::{Gid, Uid};

use super::child::{self, Credentials, Plan, Report, Step};
use super::filter::Filter;
use super::namespace::Namespace;
use super::program::Strings;
use super::user::{self, Identity};
use crate::cgroups::{Cgroups, Group};
use crate::service::Agent;
use crate::stream::Stream;
use crate::{signals, words};

/// clone3(2): the child is born in the control group of this descriptor.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A running program, seen from the agent. Dropping it kills every process of its namespace, and waits for their end.
pub(super) struct Child<'a> {
    /// The program's process and process group.
    pub(super) pid: Pid,
    /// Readable once the program has ended.
    pub(super) pidfd: OwnedFd,
    /// The program's namespaces.
    pub(super) namespace: Namespace,
    /// The program's control group; dropped after the namespaces, so that it is empty by then.
    pub(super) group: Option<Group<'a>>,
}

impl Child<'_> {
    /// Kills the program and every process of its namespace.
    pub(super) fn kill(&self) {
        if let Some(group) = &self.group {
            group.kill();
        }
        self.namespace.kill();
    }
}

/// The agent's ends, none of which blocks.
pub(super) enum Streams {
    Pipes {
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// The controlling side, twice.
    Terminal {
        input: OwnedFd,
        output: OwnedFd,
    },
}

/// Starts the request's program. The calling thread can make no more threads afterwards.
pub(super) fn start<'a>(
    stream: BorrowedFd<'_>,
    request: &ExecRequest,
    agent: &'a Agent,
) -> Result<(Child<'a>, Streams), ExecFailure> {
    let identity = match request.user.as_str() {
        "" => None,
        spec => Some(user::look_up(spec).map_err(ExecFailure::User)?),
    };
    let home = identity.as_ref().and_then(|identity| identity.home.clone());
    let strings = Strings::new(request, home)?;
    let ends =
        Ends::open(request.stdio, identity.as_ref(), agent).map_err(|errno| other("streams", errno))?;
    let groups: Vec<Gid> =
        identity.iter().flat_map(|identity| &identity.groups).map(|gid| Gid::from_raw(*gid)).collect();
    let (report, child_end) = Report::new().map_err(|errno| other("pipe", errno))?;
    let group = agent.cgroups.as_ref().map(Cgroups::group).transpose();
    let group = group.map_err(|errno| other("control group", errno))?;

    let blocked = BlockedSignals::new();
    let namespace = match request.first {
        true => None,
        false => Some(Namespace::enter().map_err(|errno| other("namespaces", errno))?),
    };
    let plan = Plan {
        stdio: ends.child(agent),
        terminal: matches!(request.stdio, Stdio::Terminal(_)),
        init: namespace.as_ref().map(Namespace::init),
        identity: identity.as_ref().map(|identity| Credentials {
            uid: Uid::from_raw(identity.uid),
            gid: Gid::from_raw(identity.gid),
            groups: &groups,
        }),
        filter: (!request.privileged).then(Filter::get),
        directory: &strings.directory,
        candidates: &strings.candidates,
        arguments: strings.arguments(),
        environment: strings.environment(),
        report: child_end.as_fd(),
    };
    let (pid, pidfd) = clone_child(&plan, group.as_ref()).map_err(|errno| other("clone", errno))?;
    drop(blocked);
    drop(child_end);
    let kill = || {
        let _ = rustix::process::pidfd_send_signal(&pidfd, Signal::KILL);
    };
    match report.failure(Stream::new(stream), kill) {
        None => {
            let led = || rustix::io::fcntl_dupfd_cloexec(&pidfd, 0).map(Namespace::led_by);
            let namespace = namespace.map_or_else(led, Ok).map_err(|errno| other("process", errno))?;
            Ok((Child { pid, pidfd, namespace, group }, ends.agent()))
        }
        Some((step, errno)) => {
            super::reap(pidfd.as_fd());
            Err(failure(step, errno, request, &strings))
        }
    }
}

fn other(what: &str, errno: Errno) -> ExecFailure {
    ExecFailure::Other(format!("{what}: {}", words(errno)))
}

/// The message for the user if the child could not become the program.
fn failure(step: Step, errno: Errno, request: &ExecRequest, strings: &Strings) -> ExecFailure {
    match (step, errno) {
        (Step::WorkingDir, _) => {
            ExecFailure::WorkingDir(format!("{}: {}", request.working_dir, words(errno)))
        }
        (Step::User, _) => ExecFailure::User(format!("user {}: {}", request.user, words(errno))),
        (Step::Exec, Errno::NOENT | Errno::NOTDIR) => ExecFailure::NotFound(not_found(errno, strings)),
        (Step::Exec, _) => ExecFailure::NotExecutable(format!("{}: {}", strings.name, words(errno))),
        (Step::Session, _) => other("session", errno),
        (Step::Terminal, _) => other("terminal", errno),
        (Step::Namespace, _) => other("mount namespace", errno),
        (Step::Stdio, _) => other("standard streams", errno),
        (Step::Restrict, _) => other("restrictions", errno),
    }
}

/// The file that is missing.
fn not_found(errno: Errno, strings: &Strings) -> String {
    let there = |path: &CString| rustix::fs::stat(path.as_c_str()).is_ok();
    match strings.name.as_str() {
        "" => "no program given".to_owned(),
        name if strings.candidates.iter().any(there) => format!("{name}: its interpreter does not exist"),
        name if name.contains('/') => format!("{name}: {}", words(errno)),
        name => format!("{name}: not found in PATH"),
    }
}

/// Both ends of a program's streams.
enum Ends {
    Pipes { stdin: Option<(OwnedFd, OwnedFd)>, stdout: (OwnedFd, OwnedFd), stderr: (OwnedFd, OwnedFd) },
    Terminal { user: OwnedFd, input: OwnedFd, output: OwnedFd },
}

impl Ends {
    fn open(stdio: Stdio, identity: Option<&Identity>, agent: &Agent) -> Result<Self, Errno> {
        match stdio {
            Stdio::Null | Stdio::Pipe => {
                let stdin = match stdio {
                    Stdio::Pipe => Some(pipe(identity)?),
                    _ => None,
                };
                let (stdout, stderr) = (pipe(identity)?, pipe(identity)?);
                // Only the agent's ends: a pipe has two open file descriptions, so the program's are not affected.
                for end in [Some(&stdout.0), Some(&stderr.0), stdin.as_ref().map(|(_, write)| write)] {
                    end.map_or(Ok(()), |end| rustix::fs::fcntl_setfl(end, OFlags::NONBLOCK))?;
                }
                Ok(Self::Pipes { stdin, stdout, stderr })
            }
            Stdio::Terminal(size) => {
                let (controller, user) = open_terminal(size, agent)?;
                if let Some(identity) = identity {
                    rustix::fs::fchown(&user, Some(Uid::from_raw(identity.uid)), None)?;
                }
                let output = rustix::io::fcntl_dupfd_cloexec(&controller, 0)?;
                Ok(Self::Terminal { user, input: controller, output })
            }
        }
    }

    /// The program's standard streams.
    fn child<'a>(&'a self, agent: &'a Agent) -> [BorrowedFd<'a>; 3] {
        match self {
            Self::Pipes { stdin, stdout, stderr } => {
                let stdin = stdin.as_ref().map_or(agent.null.as_fd(), |(read, _)| read.as_fd());
                [stdin, stdout.1.as_fd(), stderr.1.as_fd()]
            }
            Self::Terminal { user, .. } => [user.as_fd(); 3],
        }
    }

    /// Keeps only the agent's ends, so that the program's close with the program.
    fn agent(self) -> Streams {
        match self {
            Self::Pipes { stdin, stdout, stderr } => {
                Streams::Pipes { stdin: stdin.map(|(_, write)| write), stdout: stdout.0, stderr: stderr.0 }
            }
            Self::Terminal { input, output, .. } => Streams::Terminal { input, output },
        }
    }
}

fn pipe(identity: Option<&Identity>) -> Result<(OwnedFd, OwnedFd), Errno> {
    let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC)?;
    if let Some(identity) = identity {
        // Lets the program open /dev/stdin and its kin, whose permissions are checked as files' are.
        rustix::fs::fchown(&read, Some(Uid::from_raw(identity.uid)), None)?;
    }
    Ok((read, write))
}

/// Opens a terminal of the agent's devpts: the controlling side, which does not block, and the program's.
fn open_terminal(size: TerminalSize, agent: &Agent) -> Result<(OwnedFd, OwnedFd), Errno> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let controller = rustix::fs::openat(&agent.terminals, c"ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&controller)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let user = rustix::pty::ioctl_tiocgptpeer(&controller, flags)?;
    resize_terminal(&controller, size)?;
    Ok((controller, user))
}

/// Sets a terminal's size; the programs on it get SIGWINCH.
pub(super) fn resize_terminal(controller: impl AsFd, size: TerminalSize) -> Result<(), Errno> {
    let size = Winsize { ws_row: size.rows, ws_col: size.cols, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(controller, size)
}

/// Clones the calling thread as fork does: the child runs [`child::main`] in a copy of its memory. The child is born
/// in its control group, which costs less than moving there.
fn clone_child(plan: &Plan<'_>, group: Option<&Group<'_>>) -> Result<(Pid, OwnedFd), Errno> {
    let mut pidfd: c_int = -1;
    let mut flags = libc::CLONE_PIDFD;
    if plan.init.is_none() {
        flags |= libc::CLONE_NEWPID | libc::CLONE_NEWNS;
    }
    // SAFETY: all-zero is a valid clone_args.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = u64::from(flags.cast_unsigned());
    arguments.pidfd = std::ptr::from_mut(&mut pidfd).expose_provenance() as u64;
    arguments.exit_signal = u64::from(libc::SIGCHLD.cast_unsigned());
    if let Some(group) = group {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = u64::from(group.directory().as_raw_fd().cast_unsigned());
    }
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of all memory, this stack included, and runs
    // nothing but `child::main`, which is async-signal-safe. The kernel writes one c_int to `pidfd`, in the parent.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const arguments, size_of::<libc::clone_args>()) };
    if pid == 0 {
        let status = child::main(plan);
        // SAFETY: the call runs no handler and does not return.
        unsafe { libc::_exit(status) };
    }
    let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw).filter(|_| pid > 0) else {
        return Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL));
    };
    // SAFETY: on success the kernel has stored a fresh descriptor, which nobody else owns.
    Ok((pid, unsafe { OwnedFd::from_raw_fd(pidfd) }))
}

/// Blocks all signals of this thread until it is dropped.
struct BlockedSignals {
    before: signals::Set,
}

impl BlockedSignals {
    fn new() -> Self {
        Self { before: signals::block(&signals::all()) }
    }
}

impl Drop for BlockedSignals {
    fn drop(&mut self) {
        signals::block(&self.before);
    }
}
