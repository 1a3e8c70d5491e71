//! Moving bytes directly between files and guest memory.
//!
//! Guest memory changes while the host looks at it, so no Rust slice may refer to it; the kernel is told addresses
//! instead. Not here: which file, and what the bytes mean.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use vm_memory::VolatileSlice;

/// Most buffers of one system call: Linux' `UIO_MAXIOV`, Darwin's `IOV_MAX`.
pub(crate) const MAX_BUFFERS: usize = 1024;

/// Fills `buffers`, in order, from `offset` of `file` on. A file that ends too early is an error.
pub fn read_exact_at(file: BorrowedFd<'_>, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
    let (wanted, moved) = read(file, buffers.iter().copied(), offset);
    moved.all(wanted, io::ErrorKind::UnexpectedEof)
}

/// Stores `buffers`, in order, from `offset` of `file` on.
pub fn write_all_at(file: BorrowedFd<'_>, buffers: &[VolatileSlice<'_>], offset: u64) -> io::Result<()> {
    let (wanted, moved) = write(file, buffers.iter().copied(), offset);
    moved.all(wanted, io::ErrorKind::WriteZero)
}

/// Fills `buffers`, in order, from `offset` of `file` on, up to the file's end. Returns the number of bytes read; an
/// error is returned only if it comes before the first byte.
pub fn read_at<'a>(
    file: BorrowedFd<'_>,
    buffers: impl Iterator<Item = VolatileSlice<'a>>,
    offset: u64,
) -> io::Result<usize> {
    read(file, buffers, offset).1.some()
}

/// Stores `buffers`, in order, from `offset` of `file` on, as far as the host takes them. Returns the number of bytes
/// stored; an error is returned only if it comes before the first byte.
pub fn write_at<'a>(
    file: BorrowedFd<'_>,
    buffers: impl Iterator<Item = VolatileSlice<'a>>,
    offset: u64,
) -> io::Result<usize> {
    write(file, buffers, offset).1.some()
}

/// Reads into `buffers`, and says how many bytes were to be read and how far the transfer came.
fn read<'a>(
    file: BorrowedFd<'_>,
    buffers: impl Iterator<Item = VolatileSlice<'a>>,
    offset: u64,
) -> (usize, Moved) {
    let guards: Vec<_> = buffers.map(|buffer| buffer.ptr_guard_mut()).collect();
    let vectors = guards.iter().map(|guard| vector(guard.as_ptr(), guard.len())).collect();
    transfer(vectors, offset, |vectors, count, offset| {
        // SAFETY: the first `count` elements of `vectors` are valid for reads, and each names memory that `buffers`
        // keeps mapped and writable for the length of this call; nothing else in Rust refers to that memory.
        unsafe { libc::preadv(file.as_raw_fd(), vectors, count, offset) }
    })
}

/// Writes from `buffers`, and says how many bytes were to be written and how far the transfer came.
fn write<'a>(
    file: BorrowedFd<'_>,
    buffers: impl Iterator<Item = VolatileSlice<'a>>,
    offset: u64,
) -> (usize, Moved) {
    let guards: Vec<_> = buffers.map(|buffer| buffer.ptr_guard()).collect();
    let vectors = guards.iter().map(|guard| vector(guard.as_ptr().cast_mut(), guard.len())).collect();
    transfer(vectors, offset, |vectors, count, offset| {
        // SAFETY: the first `count` elements of `vectors` are valid for reads, and each names memory that `buffers`
        // keeps mapped for the length of this call; the system only reads it.
        unsafe { libc::pwritev(file.as_raw_fd(), vectors, count, offset) }
    })
}

/// How far a transfer came.
#[derive(Default)]
struct Moved {
    count: usize,
    /// Why the transfer came no farther; `None` at the file's end.
    error: Option<io::Error>,
}

impl Moved {
    fn all(self, wanted: usize, stuck: io::ErrorKind) -> io::Result<()> {
        match self.error {
            Some(error) => Err(error),
            None if self.count < wanted => Err(stuck.into()),
            None => Ok(()),
        }
    }

    fn some(self) -> io::Result<usize> {
        match self.error {
            Some(error) if self.count == 0 => Err(error),
            _ => Ok(self.count),
        }
    }
}

pub(crate) fn vector(start: *mut u8, len: usize) -> libc::iovec {
    libc::iovec { iov_base: start.cast(), iov_len: len }
}

/// Calls `step` until every vector is used up, or until a step moves nothing.
fn transfer(
    mut vectors: Vec<libc::iovec>,
    offset: u64,
    step: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t,
) -> (usize, Moved) {
    vectors.retain(|vector| vector.iov_len != 0);
    let wanted = vectors.iter().map(|vector| vector.iov_len).sum();
    let mut moved = Moved::default();
    let mut rest = vectors.as_mut_slice();
    while !rest.is_empty() {
        match once(rest, offset, moved.count, &step) {
            Ok(0) => break,
            Ok(count) => {
                moved.count += count;
                rest = advance(rest, count);
            }
            Err(error) => {
                moved.error = Some(error);
                break;
            }
        }
    }
    (wanted, moved)
}

/// Calls `step` for as many vectors as one system call takes, `done` bytes behind `offset`.
fn once(
    vectors: &[libc::iovec],
    offset: u64,
    done: usize,
    step: impl Fn(*const libc::iovec, libc::c_int, libc::off_t) -> libc::ssize_t,
) -> io::Result<usize> {
    let at = u64::try_from(done).ok().and_then(|done| libc::off_t::try_from(offset.checked_add(done)?).ok());
    let count = libc::c_int::try_from(vectors.len().min(MAX_BUFFERS)).ok();
    let (Some(at), Some(count)) = (at, count) else { return Err(io::ErrorKind::InvalidInput.into()) };
    uninterrupted(|| step(vectors.as_ptr(), count, at))
}

/// Makes a system call, again if a signal came first; returns how many bytes it moved.
pub(crate) fn uninterrupted(mut call: impl FnMut() -> libc::ssize_t) -> io::Result<usize> {
    loop {
        match usize::try_from(call()) {
            Ok(moved) => return Ok(moved),
            Err(_) => match io::Error::last_os_error() {
                error if error.kind() == io::ErrorKind::Interrupted => {}
                error => return Err(error),
            },
        }
    }
}

/// The vectors without their first `moved` bytes.
fn advance(vectors: &mut [libc::iovec], mut moved: usize) -> &mut [libc::iovec] {
    let whole = vectors
        .iter()
        .position(|vector| {
            let part = moved < vector.iov_len;
            if !part {
                moved -= vector.iov_len;
            }
            part
        })
        .unwrap_or(vectors.len());
    let rest = &mut vectors[whole..];
    if let Some(first) = rest.first_mut() {
        first.iov_base = first.iov_base.wrapping_byte_add(moved);
        first.iov_len -= moved;
    }
    rest
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
    fn what_is_there_is_read_and_an_error_before_it_is_told() {
        let mut memory = [0u8; 8];
        {
            let slices: Vec<_> = memory.chunks_mut(3).map(VolatileSlice::from).collect();
            let slices = || slices.iter().copied();
            assert_eq!(read_at(file(b"..seven b").as_fd(), slices(), 2).unwrap(), 7);
            assert_eq!(read_at(file(b"x").as_fd(), slices(), 1).unwrap(), 0);
            assert!(read_at(file(b"x").as_fd(), slices(), u64::MAX).is_err());
            let target = file(b"");
            assert_eq!(write_at(target.as_fd(), slices(), 1).unwrap(), 8);
            let readonly = std::fs::File::open("/proc/self/exe").unwrap();
            assert!(write_at(readonly.as_fd(), slices(), 0).is_err());
            assert_eq!(read_at(target.as_fd(), slices(), 0).unwrap(), 8);
        }
        assert_eq!(memory, *b"\0seven b");
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
