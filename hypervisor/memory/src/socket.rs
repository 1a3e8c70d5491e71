//! Moving bytes directly between stream sockets and guest memory, without waiting.
//!
//! Not here: which socket, what the bytes mean, and descriptors that travel beside them.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

use crate::file::{MAX_BUFFERS, uninterrupted, vector};
use crate::sys;

/// Receives up to as many bytes as `buffers` hold, in order, without waiting. Returns 0 at the end of the stream (or if
/// `buffers` have no room).
pub fn receive(socket: BorrowedFd<'_>, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let buffers = &buffers[..buffers.len().min(MAX_BUFFERS)];
    let guards: Vec<_> = buffers.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let vectors = guards.iter().map(|guard| vector(guard.as_ptr(), guard.len())).collect();
    transfer(vectors, |message| {
        // SAFETY: the vectors of `message` are valid, and each names memory that `buffers` keeps mapped and writable
        // for the length of this call; nothing else in Rust refers to that memory.
        unsafe { libc::recvmsg(socket.as_raw_fd(), message, libc::MSG_DONTWAIT) }
    })
}

/// Sends as many bytes of `buffers`, in order, as the socket takes without waiting. A peer that has hung up causes an
/// error, never a signal.
pub fn send(socket: BorrowedFd<'_>, buffers: &[VolatileSlice<'_>]) -> io::Result<usize> {
    let buffers = &buffers[..buffers.len().min(MAX_BUFFERS)];
    let guards: Vec<_> = buffers.iter().map(VolatileSlice::ptr_guard).collect();
    let vectors = guards.iter().map(|guard| vector(guard.as_ptr().cast_mut(), guard.len())).collect();
    transfer(vectors, |message| {
        // SAFETY: the vectors of `message` are valid, and each names memory that `buffers` keeps mapped for the length
        // of this call; the system only reads it.
        unsafe { libc::sendmsg(socket.as_raw_fd(), message, libc::MSG_DONTWAIT | sys::NO_SIGNAL) }
    })
}

fn transfer(
    mut vectors: Vec<libc::iovec>,
    call: impl Fn(*mut libc::msghdr) -> libc::ssize_t,
) -> io::Result<usize> {
    // SAFETY: a message header consists of numbers and pointers; all zeroes mean no name, no vectors, no control data.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = vectors.as_mut_ptr();
    #[allow(
        clippy::cast_possible_truncation,
        reason = "at most MAX_BUFFERS; the field's type differs by platform"
    )]
    {
        message.msg_iovlen = vectors.len() as _;
    }
    uninterrupted(|| call(&raw mut message))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;

    use super::*;

    #[test]
    fn receives_in_order_what_is_there() {
        let (mut ours, theirs) = UnixStream::pair().unwrap();
        let (mut first, mut none, mut second) = ([0; 3], [0; 0], [0; 10]);
        let slices = [&mut first[..], &mut none[..], &mut second[..]].map(VolatileSlice::from);
        assert_eq!(receive(theirs.as_fd(), &slices).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        ours.write_all(b"abcdefg").unwrap();
        assert_eq!(receive(theirs.as_fd(), &slices).unwrap(), 7);
        drop(ours);
        assert_eq!(receive(theirs.as_fd(), &slices).unwrap(), 0);
        assert_eq!((&first, &second[..5]), (b"abc", &b"defg\0"[..]));
    }

    #[test]
    fn sends_what_the_socket_takes() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (mut first, mut second) = (*b"abc", vec![b'd'; 1 << 20]);
        let slices = [&mut first[..], &mut second[..]].map(VolatileSlice::from);
        let sent = send(ours.as_fd(), &slices).unwrap();
        assert!((3..1 << 20).contains(&sent));
        assert_eq!(send(ours.as_fd(), &slices).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(ours);
        let mut received = String::new();
        theirs.read_to_string(&mut received).unwrap();
        assert!(received.len() == sent && received.starts_with("abcddd"));
    }

    #[test]
    fn a_peer_that_hung_up_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        let mut bytes = *b"abc";
        let slices = [VolatileSlice::from(&mut bytes[..])];
        assert_eq!(send(ours.as_fd(), &slices).unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
