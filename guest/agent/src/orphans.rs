//! Orphans: processes that lost their parent become PID 1's children, which has to reap them.
//!
//! The kernel gives them to the *main* thread of PID 1, and the programs of `exec` belong to the threads that started
//! them. The main thread may therefore reap all children of its own (`__WNOTHREAD`), and never takes a status that a
//! stream's thread waits for.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};

use rustix::io::Errno;
use rustix::process::{WaitId, WaitIdOptions};

use crate::signals;

/// SIGCHLD as a descriptor.
pub(crate) struct Orphans {
    signals: OwnedFd,
}

impl Orphans {
    /// Blocks SIGCHLD in this thread, and so in all that it starts later. For the main thread, before it starts any.
    pub(crate) fn watch() -> Result<Self, Errno> {
        let child_ended = signals::child_ended();
        signals::block(&child_ended);
        // SAFETY: the set is only read.
        let fd =
            unsafe { libc::signalfd(-1, &raw const child_ended, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) };
        match fd {
            -1 => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::INVAL)),
            // SAFETY: a fresh descriptor, which nobody else owns.
            fd => Ok(Self { signals: unsafe { OwnedFd::from_raw_fd(fd) } }),
        }
    }

    /// Readable when there may be orphans to reap.
    pub(crate) fn readiness(&self) -> BorrowedFd<'_> {
        self.signals.as_fd()
    }

    /// Reaps all ended orphans.
    pub(crate) fn reap(&self) {
        let mut signal = [MaybeUninit::<u8>::uninit(); size_of::<libc::signalfd_siginfo>()];
        // Equal signals are merged, so one read takes all.
        let _ = rustix::io::read(&self.signals, &mut signal);
        let own = WaitIdOptions::from_bits_retain((libc::__WNOTHREAD | libc::__WALL).cast_unsigned());
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | own;
        while let Ok(Some(_)) = rustix::process::waitid(WaitId::All, options) {}
    }
}
