//! macOS: guest memory is private to its process. Other systems share it for vhost-user, which needs eventfd(2), and
//! macOS has none.

use std::ffi::c_void;
use std::fs::File;
use std::io;

use rustix::io::Errno;
use rustix::mm::Advice;

use super::Pages;

/// No advice: macOS takes none that is useful for guest memory.
pub(crate) const ADVICE: [Advice; 0] = [];

/// No flag: macOS suppresses the signal by a socket option (`SO_NOSIGPIPE`), set when a socket is made.
pub(crate) const NO_SIGNAL: libc::c_int = 0;

/// A file behind shared memory, of which macOS has none.
#[derive(Debug)]
pub enum SharedFile {}

impl SharedFile {
    /// Refuses to make a file.
    pub fn new() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// The kind of pages in which the host keeps the file.
    #[must_use]
    pub fn pages(&self) -> &Pages {
        match *self {}
    }

    /// The file, after it has been given its final length.
    pub(crate) fn with_len(self, _len: u64) -> Result<File, (&'static str, Errno)> {
        match self {}
    }
}

/// Refuses: memory that a hypervisor has mapped goes back only by mapping it anew, which is that hypervisor's work.
///
/// # Safety
///
/// This function asks for nothing.
pub(crate) unsafe fn give_back(_start: *mut c_void, _len: usize, _shared: bool) -> io::Result<()> {
    Err(io::ErrorKind::Unsupported.into())
}
