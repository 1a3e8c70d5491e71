//! The list as a file: a mark, then each record as its length and itself, then the number of records.
//!
//! A list appears under its name when it is whole, so one that ends early is damaged.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufReader, BufWriter, Read, Write};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{Mode, OFlags, RenameFlags};

use crate::contents::{LIST, NEW_LIST};
use crate::{Base, Error, Place, Record, Result, There};

/// The first bytes: what it is, and the version.
const MARK: &[u8; 8] = b"matchch\x01";

/// Most bytes of a record: contents of a small file, and three paths.
const MAX_RECORD: usize = 40 << 10;

/// Most bytes of a list.
const MAX_LIST: u64 = 256 << 20;

/// In place of the length of one more record.
const END: u32 = 0;

/// Writes a list.
#[derive(Debug)]
pub struct Writer<'a> {
    directory: &'a OwnedFd,
    to: BufWriter<File>,
    count: u64,
    len: u64,
}

impl<'a> Writer<'a> {
    /// Begins a list in a directory.
    pub fn new(directory: &'a OwnedFd) -> Result<Self> {
        let flags = OFlags::CREATE | OFlags::TRUNC | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, NEW_LIST, flags, Mode::RUSR | Mode::WUSR);
        let mut to = BufWriter::new(File::from(file.map_err(Error::at(&NEW_LIST))?));
        to.write_all(MARK).map_err(Error::at(&NEW_LIST))?;
        Ok(Self { directory, to, count: 0, len: 0 })
    }

    /// Adds a record.
    pub fn add(&mut self, record: &Record) -> Result<()> {
        let bytes = postcard::to_stdvec(record).map_err(|_| Error::TooLong)?;
        let len = u32::try_from(bytes.len()).map_err(|_| Error::TooLong)?;
        self.len = self.len.saturating_add(u64::from(len)).saturating_add(4);
        if bytes.len() > MAX_RECORD || self.len > MAX_LIST {
            return Err(Error::TooLong);
        }
        self.count += 1;
        let written = self.to.write_all(&len.to_le_bytes()).and_then(|()| self.to.write_all(&bytes));
        written.map_err(Error::at(&NEW_LIST))
    }

    /// Ends the list, which takes the place of an earlier one.
    pub fn end(mut self) -> Result<()> {
        let end = [&END.to_le_bytes()[..], &self.count.to_le_bytes()].concat();
        self.to.write_all(&end).and_then(|()| self.to.flush()).map_err(Error::at(&NEW_LIST))?;
        // The call that takes flags is the one that the process may make.
        let (directory, none) = (self.directory, RenameFlags::empty());
        rustix::fs::renameat_with(directory, NEW_LIST, directory, LIST, none).map_err(Error::at(&LIST))
    }
}

/// All of a list.
#[derive(Debug, Default)]
pub struct List {
    pub(crate) gone: BTreeMap<Place, Base>,
    pub(crate) there: BTreeMap<Place, There>,
    /// Paths that are not in the list because they are too long.
    pub left_out: u64,
}

impl List {
    /// Reads a list.
    pub fn read(from: impl Read) -> Result<Self> {
        let mut from = BufReader::new(from.take(MAX_LIST.saturating_add(64)));
        let mut mark = [0; MARK.len()];
        exactly(&mut from, &mut mark)?;
        if mark != *MARK {
            return Err(Error::List("it has another mark"));
        }
        let (mut list, mut count, mut buffer) = (Self::default(), 0u64, Vec::new());
        loop {
            let mut len = [0; 4];
            exactly(&mut from, &mut len)?;
            let len = u32::from_le_bytes(len);
            if len == END {
                break;
            }
            let len = usize::try_from(len).ok().filter(|len| *len <= MAX_RECORD);
            buffer.resize(len.ok_or(Error::List("a record is too long"))?, 0);
            exactly(&mut from, &mut buffer)?;
            let (record, rest) =
                postcard::take_from_bytes(&buffer).map_err(|_| Error::List("a record has no meaning"))?;
            if !rest.is_empty() {
                return Err(Error::List("a record has a rest"));
            }
            list.take(record)?;
            count += 1;
        }
        let mut told = [0; 8];
        exactly(&mut from, &mut told)?;
        if u64::from_le_bytes(told) != count { Err(Error::List("records are missing")) } else { Ok(list) }
    }

    fn take(&mut self, record: Record) -> Result<()> {
        let is_new = match record {
            Record::Gone(gone) => self.gone.insert(gone.place, gone.was).is_none(),
            Record::There(there) => self.there.insert(there.place.clone(), there).is_none(),
            Record::LeftOut(count) => {
                self.left_out = self.left_out.saturating_add(count);
                true
            }
        };
        if is_new { Ok(()) } else { Err(Error::List("a path comes twice")) }
    }

    /// Writes the list into a directory again.
    pub fn write(&self, directory: &OwnedFd) -> Result<()> {
        let mut writer = Writer::new(directory)?;
        for (place, was) in &self.gone {
            writer.add(&Record::Gone(crate::Gone { place: place.clone(), was: *was }))?;
        }
        self.there.values().try_for_each(|there| writer.add(&Record::There(there.clone())))?;
        if self.left_out > 0 {
            writer.add(&Record::LeftOut(self.left_out))?;
        }
        writer.end()
    }

    /// Reads the list of a directory, if it has one.
    pub fn of(directory: impl AsFd) -> Result<Option<Self>> {
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::openat(directory, LIST, flags, Mode::empty()) {
            Ok(file) => Self::read(File::from(file)).map(Some),
            Err(rustix::io::Errno::NOENT) => Ok(None),
            Err(errno) => Err(Error::at(&LIST)(errno)),
        }
    }
}

fn exactly(from: &mut impl Read, buffer: &mut [u8]) -> Result<()> {
    match from.read_exact(buffer) {
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Err(Error::List("it ends early")),
        result => result.map_err(Error::at(&LIST)),
    }
}
