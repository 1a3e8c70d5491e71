//! macOS: guest memory is private to its process. vhost-user, for which other systems share it, needs eventfd(2).

use std::ffi::c_void;
use std::fs::File;
use std::io;

use rustix::io::Errno;
use rustix::mm::Advice;

use super::Pages;

/// The system takes no advice that guest memory has a use for.
pub(crate) const ADVICE: [Advice; 0] = [];

/// A socket is told so when it is made (`SO_NOSIGPIPE`); a single call has no flag for it.
pub(crate) const NO_SIGNAL: libc::c_int = 0;

/// There is none.
#[derive(Debug)]
pub enum SharedFile {}

impl SharedFile {
    /// Refuses.
    pub fn new() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// In which pages the host keeps it.
    #[must_use]
    pub fn pages(&self) -> &Pages {
        match *self {}
    }

    /// The file with its length, which stays.
    pub(crate) fn with_len(self, _len: u64) -> Result<File, (&'static str, Errno)> {
        match self {}
    }
}

/// Refuses: memory that a hypervisor has mapped goes back only by mapping it anew, which is that hypervisor's to do.
///
/// # Safety
///
/// None is asked for.
pub(crate) unsafe fn give_back(_start: *mut c_void, _len: usize, _shared: bool) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
