//! Contents of files, out and in. Only regular files: opening another kind of file may block or have an effect.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use guest_protocol::frame::{DATA_CHUNK, FrameError, HEAD, Head, Kind, Splitter};
use guest_protocol::{FileFailure, WriteAt};
use rustix::fs::{FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{Act, Stop, Trying, guest_path, make_parents, permissions};
use crate::stream::{HungUp, INPUT_CHUNK, Stream};

/// The greatest offset in a file that the kernel takes.
const LAST_POSITION: u64 = i64::MAX.cast_unsigned();

/// Sends a file's bytes from `offset` on, `length` of them at most.
pub(super) fn read(stream: Stream<'_>, path: &str, offset: u64, length: u64, size_limit: Option<u64>) -> Act {
    let path = guest_path(path)?;
    let too_large = |size: u64| match size_limit {
        Some(limit) if size > limit => Err(Stop::Failed(FileFailure::TooLarge)),
        _ => Ok(()),
    };
    let (file, status) = open_regular(&path, OFlags::RDONLY, Mode::empty()).trying_to_open(&path)?;
    too_large(size(&status))?;
    let end = offset.saturating_add(length).min(LAST_POSITION);
    let mut frame = vec![0; HEAD + DATA_CHUNK];
    let mut at = offset;
    while at < end {
        let wanted = usize::try_from(end - at).unwrap_or(DATA_CHUNK).min(DATA_CHUNK);
        let (head, data) = frame.split_at_mut(HEAD);
        let read = || rustix::io::pread(&file, data.get_mut(..wanted).unwrap_or_default(), at);
        let count = rustix::io::retry_on_intr(read).trying("read", &path)?;
        if count == 0 {
            break;
        }
        at = at.saturating_add(count as u64);
        // Files of procfs have no size, and others grow.
        too_large(at)?;
        head.copy_from_slice(&Head::bytes(Kind::Stdout, count).ok_or(HungUp)?);
        stream.send(frame.get(..HEAD + count).unwrap_or_default())?;
    }
    Ok(())
}

/// Takes a file's new bytes from the stream.
pub(super) fn write(stream: Stream<'_>, mut input: Splitter, path: &str, mode: u32, at: WriteAt) -> Act {
    let path = guest_path(path)?;
    let file = open_for_writing(&path, mode, at)?;
    let mut position = match at {
        WriteAt::Truncate => Some(0),
        WriteAt::Append => None,
        WriteAt::Offset(offset) => Some(offset),
    };
    let mut room = vec![MaybeUninit::uninit(); INPUT_CHUNK];
    loop {
        while let Some((kind, payload)) = input.next_frame().map_err(HungUp::from)? {
            match (kind, payload) {
                (Kind::Stdin, []) => return Ok(()),
                (Kind::Stdin, bytes) => put(&file, &mut position, bytes).trying("write", &path)?,
                (other, _) => return Err(HungUp::from(FrameError::Kind(other as u8)).into()),
            }
        }
        stream.receive(&mut input, &mut room)?;
    }
}

/// Opens a file for writing, making or emptying it as `at` says.
fn open_for_writing(path: &CStr, mode: u32, at: WriteAt) -> Result<OwnedFd, Stop> {
    let mut flags = OFlags::WRONLY | OFlags::CREATE;
    flags.set(OFlags::APPEND, at == WriteAt::Append);
    let opened = match open_regular(path, flags, permissions(mode)) {
        Err(Unopened::System(Errno::NOENT)) => {
            make_parents(path)?;
            open_regular(path, flags, permissions(mode))
        }
        opened => opened,
    };
    let (file, status) = opened.trying_to_open(path)?;
    if at == WriteAt::Truncate && size(&status) > 0 {
        rustix::fs::ftruncate(&file, 0).trying("truncate", path)?;
    }
    Ok(file)
}

/// Writes all bytes, at an offset or at the file's end.
fn put(file: &OwnedFd, position: &mut Option<u64>, mut bytes: &[u8]) -> Result<(), Errno> {
    while !bytes.is_empty() {
        let written = rustix::io::retry_on_intr(|| match *position {
            Some(at) if at > LAST_POSITION => Err(Errno::FBIG),
            Some(at) => rustix::io::pwrite(file, bytes, at),
            None => rustix::io::write(file, bytes),
        })?;
        if written == 0 {
            return Err(Errno::IO);
        }
        if let Some(at) = position {
            *at = at.saturating_add(written as u64);
        }
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

/// The reason why a file was not opened.
enum Unopened {
    NotRegular,
    System(Errno),
}

impl From<Errno> for Unopened {
    fn from(errno: Errno) -> Self {
        Self::System(errno)
    }
}

/// Adds the path to an [`Unopened`].
trait TryingToOpen<T> {
    fn trying_to_open(self, path: &CStr) -> Result<T, Stop>;
}

impl<T> TryingToOpen<T> for Result<T, Unopened> {
    fn trying_to_open(self, path: &CStr) -> Result<T, Stop> {
        self.or_else(|unopened| match unopened {
            Unopened::NotRegular => Err(Stop::Failed(FileFailure::NotRegular)),
            Unopened::System(errno) => Err(errno).trying("open", path),
        })
    }
}

/// Opens a regular file, following symbolic links, without waiting for anything.
fn open_regular(path: &CStr, flags: OFlags, mode: Mode) -> Result<(OwnedFd, Stat), Unopened> {
    let check = |status: &Stat| match FileType::from_raw_mode(status.st_mode) {
        FileType::RegularFile => Ok(()),
        _ => Err(Unopened::NotRegular),
    };
    // Checked before, as opening a device may have an effect. If the file does not exist, open(2) says so, or makes
    // it.
    if let Ok(status) = rustix::fs::stat(path) {
        check(&status)?;
    }
    // Checked again afterwards, as the file may have been replaced. O_NONBLOCK: opening a FIFO must not wait for its
    // other end.
    let flags = flags | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = rustix::fs::open(path, flags, mode)?;
    let status = rustix::fs::fstat(&file)?;
    check(&status)?;
    Ok((file, status))
}

fn size(status: &Stat) -> u64 {
    u64::try_from(status.st_size).unwrap_or(0)
}
