//! The PID and mount namespaces of one program.
//!
//! A program that was requested as the first of its namespace is its PID 1, whose end is the end of every process in it
//! (pid_namespaces(7)). Any other program has a PID 1 of the agent's beside it: a bare clone of the agent that only waits
//! to be killed. Its death kills every process in the namespace, and as it ignores SIGCHLD the kernel reaps its orphans.
//! The program itself is PID 2 and the *agent's* child, made by a thread that has entered the PID namespace. Therefore
//!
//! * the program dies of signals as anywhere else (a PID 1 ignores signals without a handler, so `kill -9 $$` would have
//!   no effect), and its status reaches the agent directly;
//! * nothing waits for the PID 1, which need not even have run before the program does.

use std::ffi::c_int;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{Signal, WaitId, WaitIdOptions};
use rustix::thread::ThreadNameSpaceType;

use super::child::close_range;
use crate::signals;

/// A pair of namespaces. Dropping it, in the thread that made it, kills every process inside and waits for their end.
pub(super) struct Namespace {
    init: OwnedFd,
}

impl Namespace {
    /// Makes the namespaces, and has the calling thread's next children born in the PID namespace. All signals must
    /// be blocked in the thread, which can make no more threads afterwards.
    pub(super) fn enter() -> Result<Self, Errno> {
        let namespace = Self { init: clone_init()? };
        // setns(2), on a PID namespace: "the calling process … [is] not moved"; only its later children are born
        // there.
        rustix::thread::move_into_thread_name_spaces(namespace.init(), ThreadNameSpaceType::PROCESS_ID)?;
        Ok(namespace)
    }

    /// The namespaces that a program was born in as their PID 1.
    pub(super) fn led_by(program: OwnedFd) -> Self {
        Self { init: program }
    }

    /// The PID 1, as a pidfd: readable once every process in the namespace is dead.
    pub(super) fn init(&self) -> BorrowedFd<'_> {
        self.init.as_fd()
    }

    /// Kills every process inside.
    pub(super) fn kill(&self) {
        // The PID 1 is our child; once it is reaped, the signal reaches nobody.
        let _ = rustix::process::pidfd_send_signal(&self.init, Signal::KILL);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        self.kill();
        // The PID 1 ends once every process inside is reaped, and a program can have made children of this thread's
        // (CLONE_PARENT) that nobody else reaps. __WALL: a PID 1 of the agent's was made without an exit signal.
        let own = WaitIdOptions::from_bits_retain((libc::__WNOTHREAD | libc::__WALL).cast_unsigned());
        let reap = || rustix::process::waitid(WaitId::All, WaitIdOptions::EXITED | own);
        while rustix::io::retry_on_intr(reap).is_ok() {}
    }
}

/// Clones the agent into new PID and mount namespaces, as their PID 1.
fn clone_init() -> Result<OwnedFd, Errno> {
    let flags = libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_PIDFD;
    let mut pidfd: c_int = -1;
    // SAFETY: without CLONE_VM this is a fork: the child has its own copy of all memory, this stack included, and runs
    // nothing but `be_init`, which is async-signal-safe. The kernel writes one c_int to `pidfd`, in the parent.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, &raw mut pidfd, 0, 0) };
    match pid {
        0 => be_init(),
        // SAFETY: on success the kernel has stored a fresh descriptor, which nobody else owns.
        1.. => Ok(unsafe { OwnedFd::from_raw_fd(pidfd) }),
        _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
    }
}

/// The PID 1's body. All signals are blocked, as in the thread that was cloned; SIGKILL from the agent ends it.
fn be_init() -> ! {
    // SAFETY: this process has its own copy of the descriptor table and uses none of it afterwards.
    unsafe { close_range(0, libc::c_uint::MAX) };
    // wait(2): with SIGCHLD set to SIG_IGN "children that terminate do not become zombies".
    signals::ignore(libc::SIGCHLD);
    // The thread that made it waits for it, so this matters only if the agent itself is killed (a test run, say).
    // SAFETY: no memory is involved.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    loop {
        // SAFETY: no memory is involved.
        unsafe { libc::pause() };
    }
}
