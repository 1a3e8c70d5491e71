//! The child between clone and execve.
//!
//! The child is a copy of one thread of the agent, as after fork, and locks of other threads stay locked in it:
//! everything here is a bare system call over data that was prepared before. No allocation, no lock, no libc function
//! that keeps state (setuid and its kin notify other threads; rustix' thread calls do not). A failure is written to a
//! pipe.

use std::ffi::{CStr, CString, c_char, c_int};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::pipe::PipeFlags;
use rustix::process::{Resource, Rlimit};
use rustix::thread::ThreadNameSpaceType;
use rustix::thread::{Gid, Uid};

use super::filter::Filter;
use super::restrict;
use crate::stream::{HungUp, Stream};
use crate::{shield, signals};

/// The limit on open files that programs expect; a program may raise its own.
const OPEN_FILES_SOFT: u64 = 1024;

/// Longest path of Linux, its NUL included.
const PATH_MAX: usize = 4096;

/// Everything the child needs, prepared by the parent.
pub(super) struct Plan<'a> {
    /// Standard input, output and error. None of the three descriptors is 0, 1 or 2 itself.
    pub(super) stdio: [BorrowedFd<'a>; 3],
    /// Whether standard input becomes the controlling terminal.
    pub(super) terminal: bool,
    /// The PID 1 whose mount namespace the child joins; `None` for a child that was born in one of its own.
    pub(super) init: Option<BorrowedFd<'a>>,
    /// The user and groups to change to.
    pub(super) identity: Option<Credentials<'a>>,
    /// The filter of system calls, for a program without privilege.
    pub(super) filter: Option<&'a Filter>,
    /// Working directory.
    pub(super) directory: &'a CStr,
    /// The paths to try.
    pub(super) candidates: &'a [CString],
    /// Null-terminated arrays of C strings.
    pub(super) arguments: *const *const c_char,
    /// Null-terminated arrays of C strings.
    pub(super) environment: *const *const c_char,
    /// The pipe for the report of a failure.
    pub(super) report: BorrowedFd<'a>,
}

/// User and groups in the kernel's types.
pub(super) struct Credentials<'a> {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    pub(super) groups: &'a [Gid],
}

/// The step that failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Step {
    Session = 1,
    Terminal,
    Namespace,
    Stdio,
    User,
    Restrict,
    WorkingDir,
    Exec,
}

/// The report of a child: a pipe that stays empty if the program was executed.
pub(super) struct Report(OwnedFd);

/// A step's number and an error's, each a native `u32`.
const REPORT_LENGTH: usize = 8;

impl Report {
    /// A report, and the child's end of it.
    pub(super) fn new() -> Result<(Self, OwnedFd), Errno> {
        let (read, write) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
        Ok((Self(read), write))
    }

    /// Waits until the child has executed the program or failed, and returns the failure. Only the child may still
    /// have its end of the pipe. If the host hangs up first, the child is killed, as execve(2) may wait for the
    /// holder of a lease on the file.
    pub(super) fn failure(&self, host: Stream<'_>, kill: impl FnOnce()) -> Option<(Step, Errno)> {
        if let Err(HungUp) = host.wait_for(self.0.as_fd(), PollFlags::IN) {
            kill();
            let wait =
                || rustix::event::poll(&mut [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)], None);
            let _ = rustix::io::retry_on_intr(wait);
        }
        self.words()
    }

    fn words(&self) -> Option<(Step, Errno)> {
        const STEPS: [Step; 8] = [
            Step::Session,
            Step::Terminal,
            Step::Namespace,
            Step::Stdio,
            Step::User,
            Step::Restrict,
            Step::WorkingDir,
            Step::Exec,
        ];
        let mut words = [0; REPORT_LENGTH];
        rustix::io::read(&self.0, &mut words).ok().filter(|length| *length == REPORT_LENGTH)?;
        let [a, b, c, d, e, f, g, h] = words;
        let step = u32::from_ne_bytes([a, b, c, d]);
        let step = STEPS.into_iter().find(|known| *known as u32 == step)?;
        Some((step, Errno::from_raw_os_error(i32::from_ne_bytes([e, f, g, h]))))
    }
}

/// The child from its first instruction on. Returns its exit status if the program could not be executed.
pub(super) fn main(plan: &Plan<'_>) -> c_int {
    let Err((step, errno)) = enter(plan);
    let [a, b, c, d] = (step as u32).to_ne_bytes();
    let [e, f, g, h] = errno.raw_os_error().to_ne_bytes();
    let _ = rustix::io::write(plan.report, &[a, b, c, d, e, f, g, h]);
    127
}

fn enter(plan: &Plan<'_>) -> Result<std::convert::Infallible, (Step, Errno)> {
    let at = |step: Step| move |errno: Errno| (step, errno);
    rustix::process::setsid().map_err(at(Step::Session))?;
    if plan.terminal {
        rustix::process::ioctl_tiocsctty(plan.stdio[0]).map_err(at(Step::Terminal))?;
    }
    enter_mount_namespace(plan).map_err(at(Step::Namespace))?;
    let [input, output, errors] = plan.stdio;
    rustix::stdio::dup2_stdin(input).map_err(at(Step::Stdio))?;
    rustix::stdio::dup2_stdout(output).map_err(at(Step::Stdio))?;
    rustix::stdio::dup2_stderr(errors).map_err(at(Step::Stdio))?;
    close_others(plan.report).map_err(at(Step::Stdio))?;
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum.map_or(Some(OPEN_FILES_SOFT), |hard| Some(hard.min(OPEN_FILES_SOFT)));
    rustix::process::setrlimit(Resource::Nofile, Rlimit { ..limit }).map_err(at(Step::Restrict))?;
    // Still as root, so that a directory closed to the program's user can be its working directory.
    let entered = enter_directory(plan);
    if plan.filter.is_some() {
        restrict::drop_capabilities().map_err(at(Step::Restrict))?;
    }
    if let Some(identity) = &plan.identity {
        rustix::thread::set_thread_groups(identity.groups).map_err(at(Step::User))?;
        rustix::thread::set_thread_res_gid(identity.gid, identity.gid, identity.gid)
            .map_err(at(Step::User))?;
        rustix::thread::set_thread_res_uid(identity.uid, identity.uid, identity.uid)
            .map_err(at(Step::User))?;
    }
    // A file system that a user has mounted may be closed to root and open to that user.
    entered.or_else(|_| rustix::process::chdir(plan.directory)).map_err(at(Step::WorkingDir))?;
    // The agent ignores SIGPIPE and has blocked all signals for the clone; execve would keep both.
    signals::reset(libc::SIGPIPE);
    signals::block(&signals::none());
    if let Some(filter) = plan.filter {
        rustix::thread::set_no_new_privs(true).map_err(at(Step::Restrict))?;
        restrict::install(filter).map_err(at(Step::Restrict))?;
    }
    Err((Step::Exec, execute(plan)))
}

/// Enters the working directory, making it if it does not exist.
fn enter_directory(plan: &Plan<'_>) -> Result<(), Errno> {
    // A relative path begins here.
    rustix::process::chdir(c"/")?;
    match rustix::process::chdir(plan.directory) {
        Err(Errno::NOENT) => {}
        entered => return entered,
    }
    make_directories(plan.directory)?;
    rustix::process::chdir(plan.directory)
}

/// Makes a directory and all directories above it.
fn make_directories(directory: &CStr) -> Result<(), Errno> {
    let mut path = [0; PATH_MAX];
    let bytes = directory.to_bytes_with_nul();
    path.get_mut(..bytes.len()).ok_or(Errno::NAMETOOLONG)?.copy_from_slice(bytes);
    for (index, byte) in bytes.iter().enumerate().skip(1).filter(|(_, byte)| matches!(byte, b'/' | 0)) {
        path[index] = 0;
        let above = CStr::from_bytes_until_nul(&path).map_err(|_| Errno::INVAL)?;
        match rustix::fs::mkdir(above, Mode::from_raw_mode(0o755)) {
            Ok(()) | Err(Errno::EXIST) => {}
            Err(errno) => return Err(errno),
        }
        path[index] = *byte;
    }
    Ok(())
}

/// Joins the mount namespace, unless it is the child's own, and mounts the PID namespace's /proc over the agent's.
fn enter_mount_namespace(plan: &Plan<'_>) -> Result<(), Errno> {
    if let Some(init) = plan.init {
        rustix::thread::move_into_thread_name_spaces(init, ThreadNameSpaceType::MOUNT)?;
    }
    // Mounts that the agent makes later come in, and none of this namespace's gets out.
    let inwards = MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC;
    rustix::mount::mount_change(c"/", inwards)?;
    match plan.filter {
        Some(_) => shield::mount_proc_covered(),
        None => shield::mount_proc_and_lower(),
    }
}

/// Closes every descriptor but the standard streams and the report, which execve closes. The agent has directories
/// open that a program must not reach, and a path of the image's could lead to one of them: /proc/self/fd/9 as the
/// working directory, or in PATH.
fn close_others(report: BorrowedFd<'_>) -> Result<(), Errno> {
    let report = report.as_raw_fd().cast_unsigned();
    for (first, last) in [(3, report.saturating_sub(1)), (report.saturating_add(1).max(3), libc::c_uint::MAX)]
    {
        // SAFETY: this process has its own copy of the descriptor table, and uses none of these descriptors
        // afterwards.
        if first <= last && unsafe { close_range(first, last) } != 0 {
            return Err(last_error());
        }
    }
    Ok(())
}

/// close_range(2), for which not every C library has a function.
///
/// # Safety
///
/// Nothing in this process uses a descriptor from `first` to `last` afterwards.
pub(super) unsafe fn close_range(first: libc::c_uint, last: libc::c_uint) -> libc::c_long {
    // SAFETY: the call takes three integers and touches no memory; the caller vouches for the descriptors.
    unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) }
}

/// Tries the candidates as execvp(3) does: a missing file leads to the next one; the error of a file that may not be
/// executed is kept in case no later one can be.
fn execute(plan: &Plan<'_>) -> Errno {
    let mut error = Errno::NOENT;
    for path in plan.candidates {
        // SAFETY: path and arrays are null-terminated, and live as long as the plan.
        unsafe { libc::execve(path.as_ptr(), plan.arguments, plan.environment) };
        match last_error() {
            absent @ (Errno::NOENT | Errno::NOTDIR) if error != Errno::ACCESS => error = absent,
            Errno::NOENT | Errno::NOTDIR => {}
            Errno::ACCESS => error = Errno::ACCESS,
            other => return other,
        }
    }
    error
}

fn last_error() -> Errno {
    Errno::from_raw_os_error(std::io::Error::last_os_error().raw_os_error().unwrap_or(libc::EINVAL))
}
