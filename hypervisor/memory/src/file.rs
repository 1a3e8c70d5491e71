//! Moving bytes between files and guest memory, straight.
//!
//! Guest memory changes while the host looks at it, so no Rust slice may refer to it; the kernel is told addresses
//! instead. Not here: which file, and what the bytes mean.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

/// Most buffers of one call to the system: Linux' `UIO_MAXIOV`, Darwin's `IOV_MAX`.
pub(crate) const MAX_BUFFERS: usize = 1024;

/// Fills `buffers`, in order, from `offset` of `file` on. The file must have that many bytes.
pub fn read_exact_at(file: BorrowedFd<'_>, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
    let guards: Vec<_> = buffers.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let vectors = guards.iter().map(|guard| vector(guard.as_ptr(), guard.len())).collect();
    transfer(vectors, offset, io::ErrorKind::UnexpectedEof, |vectors, count, offset| {
        // SAFETY: the first `count` elements of `vectors` are valid for reads, and each names memory that `buffers`
        // keeps mapped and writable for the length of this call; nothing else in Rust refers to that memory.
        unsafe { libc::preadv(file.as_raw_fd(), vectors, count, offset) }
    })
}

/// Stores `buffers`, in order, from `offset` of `file` on.
pub fn write_all_at(file: BorrowedFd<'_>, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
    let guards: Vec<_> = buffers.iter().map(VolatileSlice::ptr_guard).collect();
    let vectors = guards.iter().map(|guard| vector(guard.as_ptr().cast_mut(), guard.len())).collect();
    transfer(vectors, offset, io::ErrorKind::WriteZero, |vectors, count, offset| {
        // SAFETY: the first `count` elements of `vectors` are valid for reads, and each names memory that `buffers`
        // keeps mapped for the length of this call; the system only reads it.
        unsafe { libc::pwritev(file.as_raw_fd(), vectors, count, offset) }
    })
}

pub(crate) fn vector(start: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: start.cast(), iov_len: len }
}

/// Calls `step` until every vector is used up. A step that moves nothing is an error of kind `stuck`.
fn transfer(
    mut vectors: Vec<libc::iovec>,
    offset: u64,
    stuck: io::ErrorKind,
    step: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t,
) -> io::Result<()> {
    let mut offset = libc::off_t::try_from(offset).map_err(|_| io::ErrorKind::InvalidInput)?;
    vectors.retain(|vector| vector.iov_len != 0);
    let mut rest = vectors.as_mut_slice();
    while !rest.is_empty() {
        let count =
            libc::c_int::try_from(rest.len().min(MAX_BUFFERS)).map_err(|_| io::ErrorKind::InvalidInput)?;
        let moved = step(rest.as_ptr(), count, offset);
        let mut moved = match usize::try_from(moved) {
            Ok(0) => return Err(stuck.into()),
            Ok(moved) => moved,
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => continue,
                error => return Err(error),
            },
        };
        offset = libc::off_t::try_from(moved)
            .ok()
            .and_then(|moved| offset.checked_add(moved))
            .ok_or(io::ErrorKind::InvalidInput)?;
        let done = rest
            .iter()
            .position(|vector| {
                let part = moved < vector.iov_len;
                if !part {
                    moved -= vector.iov_len;
                }
                part
            })
            .unwrap_or(rest.len());
        rest = &mut rest[done..];
        if let Some(first) = rest.first_mut() {
            first.iov_base = first.iov_base.wrapping_byte_add(moved);
            first.iov_len -= moved;
        }
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::io::{Read, Seek};
    use std::os::fd::AsFd;

    use super::*;

    fn file(contents: &[u8]) -> std::fs::File {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        rustix::io::pwrite(&fd, contents, 0).unwrap();
        fd.into()
    }

    #[test]
    fn reads_fill_buffers_in_order_and_past_the_vector_limit() {
        let contents: Vec<u8> = (0..9000u32).map(|byte| u8::try_from(byte % 251).unwrap()).collect();
        let mut memory = vec![0u8; 8000];
        {
            let slices: Vec<_> = memory.chunks_mut(3).map(VolatileSlice::from).collect();
            assert!(slices.len() > 2 * MAX_BUFFERS);
            read_exact_at(file(&contents).as_fd(), &slices, 500).unwrap();
        }
        assert_eq!(memory, contents[500..8500]);
    }

    #[test]
    fn a_file_that_ends_early_is_an_error() {
        let mut memory = [0u8; 8];
        let slices = [VolatileSlice::from(&mut memory[..])];
        let error = read_exact_at(file(b"seven b").as_fd(), &slices, 0).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(read_exact_at(file(b"x").as_fd(), &slices, u64::MAX).is_err());
    }

    #[test]
    fn writes_store_buffers_in_order_and_skip_empty_ones() {
        let (mut first, mut none, mut second) = (*b"abc", [0u8; 0], *b"defg");
        let slices = [&mut first[..], &mut none[..], &mut second[..]].map(VolatileSlice::from);
        let mut file = file(b"..........");
        write_all_at(file.as_fd(), &slices, 2).unwrap();
        let mut text = String::new();
        file.rewind().unwrap();
        file.read_to_string(&mut text).unwrap();
        assert_eq!(text, "..abcdefg.");
    }
}
