//! Between clone and execve.
//!
//! The child shares the agent's memory, as after vfork, while other threads of the agent go on: everything here is a
//! bare system call over data that was prepared before. No allocation, no lock, no libc function that keeps state
//! (setuid and its kin tell other threads; rustix' thread calls do not). A failure is stored for the parent.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use rustix::fs::Mode;
use rustix::io::Errno;
use rustix::process::{Resource, Rlimit};
use rustix::thread::ThreadNameSpaceType;
use rustix::thread::{Gid, Uid};

use super::filter::Filter;
use super::restrict;
use crate::{shield, signals};

/// Open files a program may have unless it raises the limit itself: what programs expect.
const OPEN_FILES_SOFT: u64 = 1024;

/// Everything the child needs, prepared by the parent, which waits until the child has executed or exited.
pub(super) struct Plan<'a> {
    /// Standard input, output, error. None of the three descriptors is 0, 1 or 2 itself.
    pub(super) stdio: [BorrowedFd<'a>; 3],
    /// Whether standard input is to be the controlling terminal.
    pub(super) terminal: bool,
    /// The namespace's PID 1.
    pub(super) init: BorrowedFd<'a>,
    /// User and groups, if they change.
    pub(super) identity: Option<Credentials<'a>>,
    /// The filter of system calls, for a program without privilege.
    pub(super) filter: Option<&'a Filter>,
    /// Working directory.
    pub(super) directory: &'a CStr,
    /// Paths to try.
    pub(super) candidates: &'a [std::ffi::CString],
    /// Null-terminated arrays of C strings.
    pub(super) arguments: *const *const c_char,
    /// Null-terminated arrays of C strings.
    pub(super) environment: *const *const c_char,
    /// Where the child stores what went wrong.
    pub(super) report: &'a Report,
}

/// User and groups in the kernel's types.
pub(super) struct Credentials<'a> {
    pub(super) uid: Uid,
    pub(super) gid: Gid,
    pub(super) groups: &'a [Gid],
}

/// What the child was doing when it failed.
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

/// The child's last words.
#[derive(Default)]
pub(super) struct Report {
    step: AtomicU32,
    errno: AtomicI32,
}

impl Report {
    fn store(&self, step: Step, errno: Errno) {
        self.errno.store(errno.raw_os_error(), Ordering::Relaxed);
        self.step.store(step as u32, Ordering::Relaxed);
    }

    /// What failed; `None` if the program was executed.
    pub(super) fn failure(&self) -> Option<(Step, Errno)> {
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
        let step = self.step.load(Ordering::Relaxed);
        let step = STEPS.into_iter().find(|known| *known as u32 == step)?;
        Some((step, Errno::from_raw_os_error(self.errno.load(Ordering::Relaxed))))
    }
}

/// The child's start, for clone(2).
pub(super) extern "C" fn main(plan: *mut c_void) -> c_int {
    // SAFETY: the parent passes a pointer to a `Plan` that lives until it goes on, that is until this process is gone
    // or has executed; all fields are only read, the report through atomics.
    let plan = unsafe { &*plan.cast::<Plan<'_>>() };
    let Err((step, errno)) = enter(plan);
    plan.report.store(step, errno);
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
    rustix::process::umask(Mode::from_raw_mode(0o022));
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum.map_or(Some(OPEN_FILES_SOFT), |hard| Some(hard.min(OPEN_FILES_SOFT)));
    rustix::process::setrlimit(Resource::Nofile, Rlimit { ..limit }).map_err(at(Step::Restrict))?;
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
    rustix::process::chdir(plan.directory).map_err(at(Step::WorkingDir))?;
    close_others().map_err(at(Step::Stdio))?;
    // The agent ignores SIGPIPE and has blocked everything for the clone; execve would keep both.
    signals::reset(libc::SIGPIPE);
    signals::block(&signals::none());
    if let Some(filter) = plan.filter {
        rustix::thread::set_no_new_privs(true).map_err(at(Step::Restrict))?;
        restrict::install(filter).map_err(at(Step::Restrict))?;
    }
    Err((Step::Exec, execute(plan)))
}

/// Joins the mount namespace and puts the PID namespace's own /proc over the agent's.
fn enter_mount_namespace(plan: &Plan<'_>) -> Result<(), Errno> {
    rustix::thread::move_into_thread_name_spaces(plan.init, ThreadNameSpaceType::MOUNT)?;
    match plan.filter {
        Some(_) => shield::mount_proc_covered(),
        None => shield::mount_proc_and_lower(),
    }
}

/// Lets execve close everything but the standard streams. The agent's own descriptors are marked so anyway; this is for
/// those that it was started with.
fn close_others() -> Result<(), Errno> {
    let flags = c_int::try_from(libc::CLOSE_RANGE_CLOEXEC).unwrap_or(0);
    // SAFETY: descriptors are only marked, in this process' own table.
    match unsafe { libc::close_range(3, libc::c_uint::MAX, flags) } {
        0 => Ok(()),
        _ => Err(last_error()),
    }
}

/// Tries the candidates like execvp(3): goes on while a file is not there; a file that may not be executed is
/// remembered in case no later one can.
fn execute(plan: &Plan<'_>) -> Errno {
    let mut error = Errno::NOENT;
    for path in plan.candidates {
        // SAFETY: path and arrays are null-terminated, and live in the parent, which waits.
        unsafe { libc::execve(path.as_ptr(), plan.arguments, plan.environment) };
        // The errno of the thread-locals that the child borrows from the waiting parent; reading it allocates nothing.
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
