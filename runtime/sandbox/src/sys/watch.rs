//! Waits until something in directories changes.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::agent::descriptors;

/// Room for some events, whose content does not matter.
const BUFFER: usize = 4 << 10;

/// Directories in which files are written, added, moved and removed.
#[derive(Debug)]
pub(crate) struct DirectoryWatch(AsyncFd<OwnedFd>);

impl DirectoryWatch {
    /// Watches from now on. Needs a tokio runtime with I/O around it.
    pub(crate) fn new(directories: &[&Path]) -> io::Result<Self> {
        let descriptor = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let changes = WatchFlags::MODIFY | WatchFlags::CREATE | WatchFlags::MOVE | WatchFlags::DELETE;
        for directory in directories {
            inotify::add_watch(&descriptor, *directory, changes | WatchFlags::ONLYDIR)?;
        }
        Ok(Self(descriptors::watched(descriptor, Interest::READABLE)?))
    }

    /// Waits for changes since the last call. The call may be dropped at its await.
    pub(crate) async fn changed(&mut self) -> io::Result<()> {
        loop {
            let mut ready = self.0.readable().await?;
            let mut buffer = [MaybeUninit::uninit(); BUFFER];
            let mut events = inotify::Reader::new(self.0.get_ref(), &mut buffer);
            let mut any = false;
            loop {
                match events.next() {
                    Ok(_) => any = true,
                    Err(Errno::WOULDBLOCK) => break,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(errno.into()),
                }
            }
            ready.clear_ready();
            if any {
                return Ok(());
            }
        }
    }
}
