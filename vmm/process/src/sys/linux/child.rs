//! A child process, held by its pidfd: signals reach this process or none, even after its pid is reused.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use rustix::io::Errno;
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitIdStatus, pidfd_open, pidfd_send_signal, waitid,
};

/// A child process. Its descriptor is readable once the process has ended. Dropping the value kills and reaps the
/// process.
#[derive(Debug)]
pub struct Child {
    pidfd: OwnedFd,
    pid: u32,
    status: Option<ExitStatus>,
}

impl Child {
    /// Takes over a child that nobody has waited for.
    pub(crate) fn adopt(mut child: std::process::Child) -> io::Result<Self> {
        let pid = child.id();
        // The child is not reaped yet, so its pid is still its own.
        let raw = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Errno::SRCH)?;
        match pidfd_open(raw, PidfdFlags::empty()) {
            Ok(pidfd) => Ok(Self { pidfd, pid, status: None }),
            Err(error) => {
                // Only the pid is left to end the process by; it is not reaped yet.
                let _ = child.kill();
                let _ = child.wait();
                Err(error.into())
            }
        }
    }

    /// The child's process id, for messages. After the child's end the id may be another process's.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends SIGKILL. A process that has already ended is no error.
    pub fn kill(&self) -> io::Result<()> {
        match pidfd_send_signal(&self.pidfd, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits for the child's end.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            if let Some(status) = self.reap(WaitIdOptions::EXITED)? {
                return Ok(status);
            }
        }
    }

    /// How the child ended, if it has.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.reap(WaitIdOptions::EXITED | WaitIdOptions::NOHANG)
    }

    fn reap(&mut self, options: WaitIdOptions) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            self.status = match waitid(WaitId::PidFd(self.pidfd.as_fd()), options) {
                Ok(status) => status.map(|status| exit_status(&status)),
                Err(Errno::INTR) => None,
                Err(error) => return Err(error.into()),
            };
        }
        Ok(self.status)
    }
}

/// waitid(2)'s account in the form of wait(2), which the standard library uses.
fn exit_status(status: &WaitIdStatus) -> ExitStatus {
    const CORE_DUMPED: i32 = 0x80;
    let raw = match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code << 8,
        (None, Some(signal)) if status.dumped() => signal | CORE_DUMPED,
        (None, Some(signal)) => signal,
        (None, None) => 0,
    };
    ExitStatus::from_raw(raw)
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.status.is_none() {
            let _ = self.kill();
            let _ = self.wait();
        }
    }
}
