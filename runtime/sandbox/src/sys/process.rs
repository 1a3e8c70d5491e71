//! A process held by a descriptor, so that its number cannot come to mean another process.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

/// A held process.
#[derive(Debug)]
pub(crate) struct ProcessHandle {
    pid: Pid,
    descriptor: OwnedFd,
}

impl ProcessHandle {
    /// Opens the process that has this number now, if there is one.
    pub(crate) fn open(pid: u32) -> io::Result<Option<Self>> {
        let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => Ok(Some(Self { pid, descriptor })),
            Err(Errno::SRCH) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Whether the process holds the lock (flock) on this file. If its number has come to mean another process
    /// meanwhile, the answer is about that one, and the handle holds a process that has ended.
    pub(crate) fn holds(&self, file: &File) -> io::Result<bool> {
        let wanted = file.metadata()?;
        self.locks(|descriptor| {
            let found = fs::metadata(descriptor)?;
            Ok((found.dev(), found.ino()) == (wanted.dev(), wanted.ino()))
        })
    }

    /// Whether the process holds the lock on a removed file that had this absolute path.
    pub(crate) fn holds_removed(&self, path: &Path) -> io::Result<bool> {
        // proc_pid_fd(5): "the string ' (deleted)' is appended".
        let mut wanted = path.as_os_str().to_owned();
        wanted.push(" (deleted)");
        self.locks(|descriptor| Ok(fs::read_link(descriptor)?.as_os_str() == wanted))
    }

    /// Whether the process holds a lock on any wanted file; each is given as its descriptor's path.
    fn locks(&self, wanted: impl Fn(&Path) -> io::Result<bool>) -> io::Result<bool> {
        let process = format!("/proc/{}", self.pid.as_raw_nonzero());
        let holds = |descriptor: &OsStr| -> io::Result<bool> {
            if !wanted(&Path::new(&process).join("fd").join(descriptor))? {
                return Ok(false);
            }
            let info = fs::read_to_string(Path::new(&process).join("fdinfo").join(descriptor))?;
            // proc_pid_fdinfo(5): a line for each lock.
            Ok(info.lines().any(|line| line.starts_with("lock:") && line.contains(" FLOCK ")))
        };
        match fs::read_dir(format!("{process}/fd")) {
            Ok(entries) => {
                for entry in entries {
                    match holds(&entry?.file_name()) {
                        Ok(true) => return Ok(true),
                        Ok(false) => {}
                        // The descriptor was closed meanwhile.
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        Err(error) => return Err(error),
                    }
                }
                Ok(false)
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Kills the process, and returns whether it was gone within the limit.
    pub(crate) fn kill(&self, limit: Duration) -> io::Result<bool> {
        match pidfd_send_signal(&self.descriptor, Signal::KILL) {
            Ok(()) | Err(Errno::SRCH) => {}
            Err(errno) => return Err(errno.into()),
        }
        let limit = Timespec::try_from(limit).map_err(io::Error::other)?;
        let mut polled = [PollFd::new(&self.descriptor, PollFlags::IN)];
        Ok(rustix::io::retry_on_intr(|| poll(&mut polled, Some(&limit)))? > 0)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use super::*;

    #[test]
    fn a_killed_process_is_gone() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let handle = ProcessHandle::open(child.id()).unwrap().unwrap();
        assert!(handle.kill(Duration::from_secs(10)).unwrap());
        child.wait().unwrap();
        assert!(handle.kill(Duration::ZERO).unwrap(), "twice is once");
        assert!(ProcessHandle::open(child.id()).unwrap().is_none());
        assert!(ProcessHandle::open(0).unwrap().is_none());
    }

    #[test]
    fn locks_are_seen() {
        let open = tempfile::tempfile().unwrap();
        let mut child =
            std::process::Command::new("sleep").arg("1000").stdin(open.try_clone().unwrap()).spawn().unwrap();
        let handle = ProcessHandle::open(child.id()).unwrap().unwrap();
        assert!(!handle.holds(&open).unwrap(), "open, but not locked");
        open.lock().unwrap();
        assert!(handle.holds(&open).unwrap());
        assert!(!handle.holds(&tempfile::tempfile().unwrap()).unwrap());
        let removed = fs::read_link(format!("/proc/self/fd/{}", open.as_raw_fd())).unwrap();
        let removed = removed.to_str().unwrap().strip_suffix(" (deleted)").unwrap();
        assert!(handle.holds_removed(Path::new(removed)).unwrap());
        assert!(!handle.holds_removed(Path::new("/other")).unwrap());
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(!handle.holds(&open).unwrap());
    }
}
