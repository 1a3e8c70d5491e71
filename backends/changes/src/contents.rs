//! The directory that a list is in, with the contents of files beside it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Cursor, Read, Seek, SeekFrom};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags};
use rustix::path::Arg;

use crate::{Change, Contents, Error, Host, List, Place, Result, Stored, There, What};

/// The list's name.
pub(crate) const LIST: &str = "list";

/// Its name until it is whole.
pub(crate) const NEW_LIST: &str = "list.new";

/// The rest of an overlay: a list, and files by number.
#[derive(Debug)]
pub struct Kept(OwnedFd);

/// Contents to be read.
#[derive(Debug)]
pub(crate) enum Source {
    Bytes(Cursor<Vec<u8>>),
    File(File),
}

impl Kept {
    /// The rest that is in a directory.
    #[must_use]
    pub fn new(directory: OwnedFd) -> Self {
        Self(directory)
    }

    /// The list, if there is one.
    pub fn list(&self) -> Result<Option<List>> {
        List::of(&self.0)
    }

    /// Opens contents, which may still be those of `origin` in the host's directory.
    pub(crate) fn open(
        &self,
        contents: &Contents,
        origin: Option<&Place>,
        host: &Host,
    ) -> io::Result<Source> {
        match &contents.stored {
            Stored::Inline(bytes) => Ok(Source::Bytes(Cursor::new(bytes.clone()))),
            Stored::File(number) => open(&self.0, number.to_string()).map(Source::File),
            Stored::Below => host.open_file(origin.ok_or(io::ErrorKind::NotFound)?).map(Source::File),
        }
    }

    /// Reads contents, at most `most` bytes; nothing if there are more.
    pub fn read(
        &self,
        contents: &Contents,
        origin: Option<&Place>,
        host: &Host,
        most: u64,
    ) -> io::Result<Option<Vec<u8>>> {
        if contents.len > most {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        self.open(contents, origin, host)?.take(contents.len).read_to_end(&mut bytes)?;
        bytes.resize(usize::try_from(contents.len).unwrap_or(bytes.len()), 0);
        Ok(Some(bytes))
    }

    /// Takes changes out of the list, and removes the contents that no other has.
    pub fn discard(&self, mut list: List, gone: &[Change]) -> Result<()> {
        let gone: BTreeSet<_> = gone.iter().map(Change::key).collect();
        let mut files: BTreeSet<u64> = list.there.values().filter_map(number).collect();
        // Records that are no change stand for what the directory would be without them.
        let left: Vec<Change> =
            crate::changes(&list).into_iter().filter(|change| !gone.contains(&change.key())).collect();
        let taken: BTreeSet<&Place> = left.iter().filter_map(Change::taken).collect();
        list.gone.retain(|place, _| taken.contains(place));
        list.there =
            left.iter().filter_map(|change| Some((change.place.clone(), change.now.clone()?))).collect();
        list.there.values().filter_map(number).for_each(|number| {
            files.remove(&number);
        });
        list.write(&self.0)?;
        for number in files {
            let name = number.to_string();
            match rustix::fs::unlinkat(&self.0, &name, AtFlags::empty()) {
                Ok(()) | Err(rustix::io::Errno::NOENT) => {}
                Err(errno) => return Err(Error::at(&name)(errno)),
            }
        }
        Ok(())
    }
}

/// The file beside the list that has a file's contents.
fn number(there: &There) -> Option<u64> {
    match &there.what {
        What::File(Contents { stored: Stored::File(number), .. }) => Some(*number),
        _ => None,
    }
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Bytes(bytes) => bytes.read(buffer),
            Self::File(file) => file.read(buffer),
        }
    }
}

impl Source {
    /// Copies the contents to a file that is empty, holes left out.
    pub(crate) fn copy(&mut self, len: u64, to: &File) -> io::Result<()> {
        match self {
            Self::Bytes(bytes) => {
                io::copy(&mut bytes.take(len), &mut &*to)?;
            }
            Self::File(file) => {
                if !crate::sys::clone(file, to) {
                    copy_file(file, len, to)?;
                }
            }
        }
        to.set_len(len)
    }

    /// Whether another file has the same bytes.
    pub(crate) fn equals(self, len: u64, other: File) -> io::Result<bool> {
        let (mut one, mut other) = (self.chain(io::repeat(0)).take(len), other.take(len.saturating_add(1)));
        let (mut a, mut b) = (Vec::new(), Vec::new());
        loop {
            a.clear();
            b.clear();
            one.by_ref().take(COPY_LEN).read_to_end(&mut a)?;
            other.by_ref().take(COPY_LEN).read_to_end(&mut b)?;
            if a != b {
                return Ok(false);
            }
            if a.is_empty() {
                return Ok(true);
            }
        }
    }
}

/// Bytes that are read at once.
const COPY_LEN: u64 = 128 << 10;

fn copy_file(file: &File, len: u64, to: &File) -> io::Result<()> {
    let (mut from, mut into) = (file, to);
    let mut at = 0;
    while at < len {
        match rustix::fs::seek(file, rustix::fs::SeekFrom::Data(at)) {
            Ok(data) => at = data,
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => {}
        }
        let end = rustix::fs::seek(file, rustix::fs::SeekFrom::Hole(at)).unwrap_or(len).min(len);
        if at >= end {
            break;
        }
        from.seek(SeekFrom::Start(at))?;
        into.seek(SeekFrom::Start(at))?;
        if io::copy(&mut from.take(end - at), &mut into)? == 0 {
            break;
        }
        at = end;
    }
    Ok(())
}

/// Opens a regular file, and nothing else that may have its name.
pub(crate) fn open(directory: &OwnedFd, name: impl Arg) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat(directory, name, flags, Mode::empty())?);
    if file.metadata()?.is_file() { Ok(file) } else { Err(io::ErrorKind::InvalidInput.into()) }
}
