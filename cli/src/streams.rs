//! This program's standard streams, which may be shared and non-blocking.
//!
//! Other processes share the open file behind a stream, and may have made it non-blocking, as node's runtime, curl
//! and ssh do. Reads and writes wait for it all the same, and leave the file's flags, which are shared too, alone.
//! Not here: the bytes.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

/// Standard input, unbuffered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stdin;

/// Standard output, unbuffered.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stdout;

/// Standard error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Stderr;

impl Read for Stdin {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        read(io::stdin().as_fd(), buffer)
    }
}

impl Write for Stdout {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write(io::stdout().as_fd(), bytes)
    }

    /// Writes all bytes, with none of another thread's in between.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let lock = io::stdout().lock();
        write_all(lock.as_fd(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Write for Stderr {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        write(io::stderr().as_fd(), bytes)
    }

    /// Writes all bytes, with none of another thread's in between.
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let lock = io::stderr().lock();
        write_all(lock.as_fd(), bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn write_all(fd: BorrowedFd<'_>, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match write(fd, bytes)? {
            0 => return Err(io::ErrorKind::WriteZero.into()),
            length => bytes = bytes.get(length..).unwrap_or_default(),
        }
    }
    Ok(())
}

fn read(fd: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<usize> {
    waiting(fd, PollFlags::IN, || rustix::io::read(fd, &mut *buffer))
}

fn write(fd: BorrowedFd<'_>, bytes: &[u8]) -> io::Result<usize> {
    waiting(fd, PollFlags::OUT, || rustix::io::write(fd, bytes))
}

/// The result of a system call that is repeated while it would block or is interrupted.
fn waiting(
    fd: BorrowedFd<'_>,
    until: PollFlags,
    mut call: impl FnMut() -> Result<usize, Errno>,
) -> io::Result<usize> {
    loop {
        match call() {
            // Another process may have been faster; then there is more to wait for.
            Err(Errno::AGAIN) => match poll(&mut [PollFd::from_borrowed_fd(fd, until)], None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(errno) => return Err(errno.into()),
            },
            Err(Errno::INTR) => {}
            result => return Ok(result?),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::pipe;
    use std::thread;
    use std::time::Duration;

    use rustix::fs::{OFlags, fcntl_getfl};
    use rustix::io::ioctl_fionbio;

    use super::*;

    #[test]
    fn a_non_blocking_pipe_is_read_to_its_end() {
        let (reader, mut writer) = pipe().unwrap();
        ioctl_fionbio(&reader, true).unwrap();
        thread::scope(|scope| {
            let reading = scope.spawn(|| {
                let (mut seen, mut buffer) = (Vec::new(), [0; 64]);
                loop {
                    match read(reader.as_fd(), &mut buffer).unwrap() {
                        0 => return seen,
                        length => seen.extend_from_slice(&buffer[..length]),
                    }
                }
            });
            for piece in ["late", " and later"] {
                thread::sleep(Duration::from_millis(50));
                writer.write_all(piece.as_bytes()).unwrap();
            }
            drop(writer);
            assert_eq!(reading.join().unwrap(), b"late and later");
        });
        assert!(fcntl_getfl(&reader).unwrap().contains(OFlags::NONBLOCK), "others have these flags too");
    }

    #[test]
    fn a_full_non_blocking_pipe_gets_everything() {
        let (mut reader, writer) = pipe().unwrap();
        ioctl_fionbio(&writer, true).unwrap();
        let bytes: Vec<u8> = (0..1_000_000_u32).map(|n| n.to_le_bytes()[0]).collect();
        thread::scope(|scope| {
            let writing = scope.spawn(|| {
                let result = write_all(writer.as_fd(), &bytes);
                drop(writer);
                result
            });
            thread::sleep(Duration::from_millis(50));
            let mut seen = Vec::new();
            reader.read_to_end(&mut seen).unwrap();
            assert!(seen == bytes);
            writing.join().unwrap().unwrap();
        });
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_an_error() {
        let (reader, writer) = pipe().unwrap();
        ioctl_fionbio(&writer, true).unwrap();
        drop(reader);
        assert_eq!(write_all(writer.as_fd(), b"x").unwrap_err().kind(), io::ErrorKind::BrokenPipe);
    }
}
