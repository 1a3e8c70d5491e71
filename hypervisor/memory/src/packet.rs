//! Moving whole packets between descriptors that keep their borders (a TAP, a packet socket) and guest memory.
//!
//! Not here: which descriptor, and what the bytes mean.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

use crate::file::{uninterrupted, vector};

/// Reads one packet into `buffers`, in order, with one system call. Returns its length; of a packet that is longer than
/// the buffers, the rest is lost. More than 1024 buffers are an error.
pub fn read_packet(source: BorrowedFd<'_>, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let guards: Vec<_> = buffers.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let vectors: Vec<_> = guards.iter().map(|guard| vector(guard.as_ptr(), guard.len())).collect();
    whole(&vectors, |vectors, count| {
        // SAFETY: the first `count` elements of `vectors` are valid for reads, and each names memory that `buffers`
        // keeps mapped and writable for the length of this call; nothing else in Rust refers to that memory.
        unsafe { libc::readv(source.as_raw_fd(), vectors, count) }
    })
}

/// Writes `buffers`, in order, as one packet with one system call. More than 1024 buffers are an error.
pub fn write_packet(target: BorrowedFd<'_>, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let guards: Vec<_> = buffers.iter().map(VolatileSlice::ptr_guard).collect();
    let vectors: Vec<_> = guards.iter().map(|guard| vector(guard.as_ptr().cast_mut(), guard.len())).collect();
    whole(&vectors, |vectors, count| {
        // SAFETY: the first `count` elements of `vectors` are valid for reads, and each names memory that `buffers`
        // keeps mapped for the length of this call; the system only reads it.
        unsafe { libc::writev(target.as_raw_fd(), vectors, count) }
    })
}

/// Calls `call` with all vectors.
fn whole(
    vectors: &[libc::iovec],
    call: impl Fn(*const libc::iovec, libc::c_int) -> libc::ssize_t,
) -> io::Result<usize> {
    let count = libc::c_int::try_from(vectors.len()).map_err(|_| io::ErrorKind::InvalidInput)?;
    uninterrupted(|| call(vectors.as_ptr(), count))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixDatagram;

    use super::*;

    #[test]
    fn packets_keep_their_borders() {
        let (near, far) = UnixDatagram::pair().unwrap();
        let (mut first, mut second) = (*b"abc", *b"defg");
        let slices = [&mut first[..], &mut second[..]].map(VolatileSlice::from);
        assert_eq!(write_packet(near.as_fd(), &slices).unwrap(), 7);
        assert_eq!(write_packet(near.as_fd(), &slices[..1]).unwrap(), 3);
        let (mut head, mut tail) = ([0; 2], [0; 8]);
        let places = [&mut head[..], &mut tail[..]].map(VolatileSlice::from);
        assert_eq!(read_packet(far.as_fd(), &places).unwrap(), 7);
        assert_eq!(read_packet(far.as_fd(), &places[..1]).unwrap(), 2);
        far.set_nonblocking(true).unwrap();
        assert_eq!(read_packet(far.as_fd(), &places).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert_eq!((&head, &tail[..5]), (b"ab", &b"cdefg"[..]));
    }

    #[test]
    fn more_buffers_than_the_system_takes_are_an_error() {
        let (near, _far) = UnixDatagram::pair().unwrap();
        let mut bytes = [0; 1025];
        let slices: Vec<_> = bytes.chunks_mut(1).map(VolatileSlice::from).collect();
        assert_eq!(write_packet(near.as_fd(), &slices).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
