//! A mount on the host itself: requests come through `/dev/fuse`, and threads of this process serve them.
//!
//! Decoder and providers are those that guests reach. Not here: mounting without privilege, which is
//! another program's (`fusermount3`).

use std::ffi::CString;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;

use fuse::{Coherence, FileSystem, MAX_REPLY_LEN, MAX_REQUEST_LEN, Scratch, Session};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::{MountFlags, UnmountFlags};
use vm_memory::VolatileSlice;

/// Why nothing is mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The device is not there, or not for this user.
    #[error("cannot open /dev/fuse: {0}")]
    Device(std::io::Error),
    /// The mount was refused.
    #[error("cannot mount on {path}: {source}")]
    Mount {
        /// Where.
        path: PathBuf,
        /// The system's words.
        source: std::io::Error,
    },
    /// No thread was to be had.
    #[error("cannot start a thread: {0}")]
    Thread(std::io::Error),
}

/// A file system that is mounted until this is dropped.
#[derive(Debug)]
pub struct Mounted {
    path: PathBuf,
    threads: Vec<JoinHandle<()>>,
}

impl Mounted {
    /// Mounts `files` on a directory, for all users, with the permissions that the files have. Each of `threads` threads
    /// calls `enter` before its first request.
    pub fn new<F: FileSystem + 'static>(
        files: F,
        coherence: Coherence,
        path: &Path,
        threads: usize,
        enter: impl Fn() + Send + Sync + 'static,
    ) -> Result<Self, MountError> {
        let flags = OFlags::RDWR | OFlags::CLOEXEC;
        let device = rustix::fs::open("/dev/fuse", flags, Mode::empty());
        let device = Arc::new(device.map_err(|errno| MountError::Device(errno.into()))?);
        let options = format!(
            "fd={},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other",
            device.as_raw_fd()
        );
        let refused = |source| MountError::Mount { path: path.to_owned(), source };
        let options = CString::new(options).map_err(|error| refused(error.into()))?;
        rustix::mount::mount(
            "matchlock",
            path,
            "fuse.matchlock",
            MountFlags::NODEV | MountFlags::NOSUID,
            options.as_c_str(),
        )
        .map_err(|errno| refused(errno.into()))?;
        let mut mounted = Self { path: path.to_owned(), threads: Vec::new() };
        let session = Arc::new(Session::new(files, coherence));
        let enter = Arc::new(enter);
        for number in 0..threads.max(1) {
            let (device, session, enter) = (device.clone(), session.clone(), enter.clone());
            let thread = std::thread::Builder::new().name(format!("fuse-{number}"));
            let thread = thread.spawn(move || {
                enter();
                serve(&device, &session);
            });
            mounted.threads.push(thread.map_err(MountError::Thread)?);
        }
        Ok(mounted)
    }
}

impl Drop for Mounted {
    /// Takes the mount away, at once from where it is, and from programs that use it when they end.
    fn drop(&mut self) {
        let gone = rustix::mount::unmount(&self.path, UnmountFlags::DETACH);
        // Threads end when the last user of the mount is gone.
        for thread in self.threads.drain(..).filter(|_| gone.is_ok()) {
            let _ = thread.join();
        }
    }
}

/// Serves requests until the mount is gone.
fn serve<F: FileSystem>(device: &OwnedFd, session: &Session<F>) {
    let (mut scratch, mut request, mut reply) =
        (Scratch::default(), vec![0; MAX_REQUEST_LEN], vec![0; MAX_REPLY_LEN]);
    loop {
        let len = match rustix::io::read(device.as_fd(), &mut request[..]) {
            Ok(len) => len,
            // A request that was taken back before it was read.
            Err(Errno::NOENT | Errno::INTR | Errno::AGAIN) => continue,
            Err(_) => return,
        };
        let asked = [VolatileSlice::from(&mut request[..len])];
        let len = session.serve(&mut scratch, &asked, &[VolatileSlice::from(&mut reply[..])]);
        if len > 0 {
            // The kernel may have given the request up.
            let _ = rustix::io::write(device.as_fd(), &reply[..len]);
        }
    }
}
