//! A tar stream as typed entries, with a limit on everything that is held in memory.
//!
//! The `tar` crate parses the fields of a header. Data that spans headers is parsed here, because layers are hostile:
//! PAX records (with binary values), GNU long names, the four ways to store a sparse file. Not here: the effect of an
//! entry (`layer`).

use std::io::{self, Read};

use erofs::{Extent, Timestamp};

use crate::error::{EntryError, LayerError};

const BLOCK: usize = 512;

/// Most bytes of extended headers and GNU long names before one entry.
const MAX_EXTENDED_BYTES: u64 = 1 << 20;

/// Most PAX records before one entry.
const MAX_EXTENDED_RECORDS: usize = 4096;

/// Longest path, Linux' `PATH_MAX`.
const MAX_PATH_LEN: usize = 4096;

/// Most data pieces of one sparse file.
pub(crate) const MAX_SPARSE_EXTENTS: usize = 1 << 16;

/// Prefix of the PAX records that are extended attributes.
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

/// One entry of a tar.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TarEntry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: TarKind,
    pub(crate) mode: u16,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) mtime: Timestamp,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// The type of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TarKind {
    /// A regular file of this size; its data follows.
    File(u64),
    /// A regular file of this size; the data of these extents follows.
    Sparse(u64, Vec<Extent>),
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    CharDevice(u32, u32),
    BlockDevice(u32, u32),
    Directory,
    Fifo,
}

/// A stream that can skip bytes.
pub(crate) trait Source: Read {
    /// Skips `len` bytes.
    fn skip(&mut self, len: u64) -> io::Result<()>;

    /// Bytes that have been read or skipped, for sources that count them.
    fn position(&self) -> u64 {
        0
    }
}

impl<S: Source + ?Sized> Source for &mut S {
    fn skip(&mut self, len: u64) -> io::Result<()> {
        (**self).skip(len)
    }

    fn position(&self) -> u64 {
        (**self).position()
    }
}

impl Source for &[u8] {
    fn skip(&mut self, len: u64) -> io::Result<()> {
        let rest = usize::try_from(len).ok().and_then(|len| self.get(len..));
        *self = rest.ok_or(io::ErrorKind::UnexpectedEof)?;
        Ok(())
    }
}

/// Reads entries; the data of each is read from the stream ([`Read`]) after it.
pub(crate) struct TarStream<S> {
    source: S,
    /// Bytes of the entry's data that are left.
    data: u64,
    /// Bytes from the end of the data to the next block.
    padding: u64,
}

/// Extended headers, which are about the entry after them.
#[derive(Default)]
struct Extended {
    /// Bytes of all the headers.
    bytes: u64,
    records: Vec<(Vec<u8>, Vec<u8>)>,
    long_name: Option<Vec<u8>>,
    long_link: Option<Vec<u8>>,
}

impl Extended {
    /// POSIX.1-2017 pax: a later record replaces an earlier one.
    fn get(&self, key: &[u8]) -> Option<&[u8]> {
        self.records.iter().rev().find(|(known, _)| known == key).map(|(_, value)| value.as_slice())
    }

    fn number<T: std::str::FromStr>(&self, key: &[u8]) -> Result<Option<T>, LayerError> {
        let parse = |value| std::str::from_utf8(value).ok()?.parse().ok();
        self.get(key).map(|value| parse(value).ok_or(LayerError::Tar("a number in a PAX record"))).transpose()
    }
}

impl<S: Source> TarStream<S> {
    pub(crate) fn new(source: S) -> Self {
        Self { source, data: 0, padding: 0 }
    }

    /// The offset of the entry's data in the source.
    pub(crate) fn position(&self) -> u64 {
        self.source.position()
    }

    /// The next entry; `None` at the end.
    pub(crate) fn next(&mut self) -> Result<Option<TarEntry>, LayerError> {
        let mut extended = Extended::default();
        loop {
            self.source.skip(std::mem::take(&mut self.data)).map_err(read_error)?;
            let padding = usize::try_from(std::mem::take(&mut self.padding)).unwrap_or(BLOCK);
            let mut block = [0; BLOCK];
            // Some writers leave out the padding of the last entry.
            if padding > 0 && !self.fill(block.get_mut(..padding).unwrap_or_default())? {
                return Ok(None);
            }
            let Some(header) = self.header()? else { return Ok(None) };
            let size = or_blank(header.entry_size(), &header.as_old().size);
            let size = size.ok_or(LayerError::Tar("the size of an entry"))?;
            match header.entry_type().as_byte() {
                b'x' => parse_pax(&self.extended(size, &mut extended)?, &mut extended.records)?,
                b'L' => extended.long_name = Some(until_nul(self.extended(size, &mut extended)?)),
                b'K' => extended.long_link = Some(until_nul(self.extended(size, &mut extended)?)),
                // Global records and volume labels are not about files; image tools skip them too.
                b'g' | b'V' => self.set_data(size)?,
                kind => return self.entry(&header, kind, size, &extended).map(Some),
            }
        }
    }

    fn header(&mut self) -> Result<Option<tar::Header>, LayerError> {
        let mut block = [0; BLOCK];
        // The end marker is often missing; the stream may also end between two entries.
        if !self.fill(&mut block)? || block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let header = tar::Header::from_byte_slice(&block).clone();
        // POSIX.1-2017 pax, ustar: "the sum of the unsigned values of all the bytes in the header", with its own
        // field read as spaces.
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        let own: u32 = header.as_old().cksum.iter().map(|byte| u32::from(*byte)).sum();
        let stored = header.cksum().map_err(|_| LayerError::Tar("the checksum of a header"))?;
        if sum - own + 8 * u32::from(b' ') != stored {
            return Err(LayerError::Tar("the checksum of a header"));
        }
        Ok(Some(header))
    }

    /// Fills `block`; returns whether the stream had not ended before.
    fn fill(&mut self, block: &mut [u8]) -> Result<bool, LayerError> {
        let mut filled = 0;
        while filled < block.len() {
            match self.source.read(block.get_mut(filled..).unwrap_or_default()) {
                Ok(0) if filled == 0 => return Ok(false),
                Ok(0) => return Err(LayerError::Truncated),
                Ok(len) => filled += len,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(read_error(error)),
            }
        }
        Ok(true)
    }

    fn set_data(&mut self, size: u64) -> Result<(), LayerError> {
        // Larger sizes could overflow.
        if size > 1 << 62 {
            return Err(LayerError::Tar("the size of an entry"));
        }
        self.data = size;
        self.padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(())
    }

    /// The whole data of an extended header, which counts together with those before it.
    fn extended(&mut self, size: u64, before: &mut Extended) -> Result<Vec<u8>, LayerError> {
        before.bytes = before.bytes.saturating_add(size);
        if before.bytes > MAX_EXTENDED_BYTES {
            let what = "bytes in the extended headers of an entry";
            return Err(LayerError::Limit { what, limit: MAX_EXTENDED_BYTES });
        }
        self.set_data(size)?;
        let mut bytes = Vec::new();
        self.take(size).read_to_end(&mut bytes).map_err(read_error)?;
        Ok(bytes)
    }

    fn entry(
        &mut self,
        header: &tar::Header,
        kind: u8,
        header_size: u64,
        extended: &Extended,
    ) -> Result<TarEntry, LayerError> {
        let path = match (extended.get(b"GNU.sparse.name"), extended.get(b"path"), &extended.long_name) {
            (Some(name), _, _) | (None, Some(name), _) => name.to_vec(),
            (None, None, Some(name)) => name.clone(),
            (None, None, None) => header.path_bytes().into_owned(),
        };
        let entry_error = |why| LayerError::Entry { path: show(&path), why };
        let link = match (extended.get(b"linkpath"), &extended.long_link) {
            (Some(name), _) => name.to_vec(),
            (None, Some(name)) => name.clone(),
            (None, None) => header.link_name_bytes().unwrap_or_default().into_owned(),
        };
        if path.len() > MAX_PATH_LEN || link.len() > MAX_PATH_LEN {
            return Err(LayerError::Limit { what: "bytes in a path", limit: MAX_PATH_LEN as u64 });
        }
        let size = extended.number(b"size")?.unwrap_or(header_size);
        let device = || {
            let number = |value: io::Result<Option<u32>>| value.ok().map(Option::unwrap_or_default);
            let numbers = number(header.device_major()).zip(number(header.device_minor()));
            numbers.ok_or_else(|| entry_error(EntryError::Field("device number")))
        };
        let kind = match kind {
            // Before POSIX, a directory was a file whose name ends in a slash.
            0 if path.ends_with(b"/") => TarKind::Directory,
            b'0' | 0 | b'7' | b'S' => self.file(header, kind, size, extended)?,
            b'1' => TarKind::HardLink(link),
            b'2' => TarKind::Symlink(link),
            b'3' => device().map(|(major, minor)| TarKind::CharDevice(major, minor))?,
            b'4' => device().map(|(major, minor)| TarKind::BlockDevice(major, minor))?,
            b'5' => TarKind::Directory,
            b'6' => TarKind::Fifo,
            other => return Err(entry_error(EntryError::Type(char::from(other)))),
        };
        let old = header.as_old();
        let id = |key: &[u8], value: Option<u64>, name| {
            let id = extended.number(key)?.or(value).and_then(|id: u64| u32::try_from(id).ok());
            id.ok_or_else(|| entry_error(EntryError::Field(name)))
        };
        let mode = or_blank(header.mode().map(u64::from), &old.mode);
        let mode = mode.ok_or_else(|| entry_error(EntryError::Field("mode")))?;
        let mtime = match extended.get(b"mtime") {
            Some(text) => parse_time(text).ok_or_else(|| entry_error(EntryError::Field("time")))?,
            None => {
                // Times before 1970 are two's complement in the base-256 form.
                let seconds = or_blank(header.mtime(), &old.mtime);
                let seconds = seconds.ok_or_else(|| entry_error(EntryError::Field("time")))?;
                Timestamp { seconds: seconds.cast_signed(), nanoseconds: 0 }
            }
        };
        let xattr = |(key, value): &(Vec<u8>, Vec<u8>)| {
            Some((key.strip_prefix(XATTR_PREFIX)?.to_vec(), value.clone()))
        };
        Ok(TarEntry {
            kind,
            mode: (mode & 0o7777) as u16,
            uid: id(b"uid", or_blank(header.uid(), &old.uid), "user id")?,
            gid: id(b"gid", or_blank(header.gid(), &old.gid), "group id")?,
            mtime,
            xattrs: extended.records.iter().filter_map(xattr).collect(),
            path,
        })
    }

    /// A regular file, in any of the forms that store holes.
    fn file(
        &mut self,
        header: &tar::Header,
        kind: u8,
        size: u64,
        extended: &Extended,
    ) -> Result<TarKind, LayerError> {
        self.set_data(size)?;
        let version =
            (extended.number::<u32>(b"GNU.sparse.major")?, extended.number::<u32>(b"GNU.sparse.minor")?);
        let real_size = match extended.number(b"GNU.sparse.realsize")? {
            Some(size) => Some(size),
            None => extended.number(b"GNU.sparse.size")?,
        };
        let (real_size, extents) = match (kind, version, real_size) {
            (b'S', _, _) => self.gnu_sparse(header)?,
            (_, (Some(1), Some(0)), Some(real_size)) => (real_size, self.sparse_map_in_data()?),
            (_, (None | Some(0), _), Some(real_size)) => (real_size, sparse_map_in_records(extended)?),
            _ => return Ok(TarKind::File(size)),
        };
        let stored = extents.iter().try_fold(0u64, |sum, extent| sum.checked_add(extent.len));
        if stored != Some(self.data) {
            return Err(LayerError::Tar("a sparse file whose map does not match its data"));
        }
        Ok(TarKind::Sparse(real_size, extents))
    }

    /// The map of the old GNU format: in the header, and in blocks after it.
    fn gnu_sparse(&mut self, header: &tar::Header) -> Result<(u64, Vec<Extent>), LayerError> {
        let bad = LayerError::Tar("a GNU sparse header");
        let gnu = header.as_gnu().ok_or(LayerError::Tar("a GNU sparse header"))?;
        let Ok(real_size) = gnu.real_size() else { return Err(bad) };
        let mut extents = Vec::new();
        let mut push = |sparse: &tar::GnuSparseHeader| -> Result<(), LayerError> {
            if !sparse.is_empty() {
                let (Ok(offset), Ok(len)) = (sparse.offset(), sparse.length()) else {
                    return Err(LayerError::Tar("a GNU sparse header"));
                };
                push_extent(&mut extents, Extent { offset, len })?;
            }
            Ok(())
        };
        gnu.sparse.iter().try_for_each(&mut push)?;
        let mut more = gnu.is_extended();
        while more {
            // These blocks precede the data and are not counted in its size.
            let mut next = tar::GnuExtSparseHeader::new();
            self.source.read_exact(next.as_mut_bytes()).map_err(read_error)?;
            next.sparse().iter().try_for_each(&mut push)?;
            more = next.is_extended();
        }
        Ok((real_size, extents))
    }

    /// The map of PAX sparse format 1.0: decimal lines before the data, up to a whole block.
    fn sparse_map_in_data(&mut self) -> Result<Vec<Extent>, LayerError> {
        let before = self.data;
        let count = self.decimal_line()?;
        let mut extents = Vec::new();
        for _ in 0..count {
            let (offset, len) = (self.decimal_line()?, self.decimal_line()?);
            push_extent(&mut extents, Extent { offset, len })?;
        }
        let used = before - self.data;
        let padding = used.next_multiple_of(BLOCK as u64) - used;
        let mut pad = [0; BLOCK];
        let pad = pad.get_mut(..usize::try_from(padding).unwrap_or(BLOCK)).unwrap_or_default();
        self.read_exact(pad).map_err(read_error)?;
        Ok(extents)
    }

    fn decimal_line(&mut self) -> Result<u64, LayerError> {
        let mut value = 0u64;
        loop {
            let mut byte = [0];
            self.read_exact(&mut byte).map_err(read_error)?;
            let digit = match byte {
                [b'\n'] => return Ok(value),
                [digit @ b'0'..=b'9'] => u64::from(digit - b'0'),
                _ => return Err(LayerError::Tar("the map of a sparse file")),
            };
            let next = value.checked_mul(10).and_then(|value| value.checked_add(digit));
            value = next.ok_or(LayerError::Tar("the map of a sparse file"))?;
        }
    }
}

impl<S: Source> Read for TarStream<S> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.data).unwrap_or(usize::MAX));
        if want == 0 {
            return Ok(0);
        }
        let len = self.source.read(buffer.get_mut(..want).unwrap_or_default())?;
        if len == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.data -= len as u64;
        Ok(len)
    }
}

/// A number in a header; a blank field is 0, as for other readers.
fn or_blank(value: io::Result<u64>, field: &[u8]) -> Option<u64> {
    let blank = field.iter().all(|byte| matches!(byte, 0 | b' '));
    if blank { Some(0) } else { value.ok() }
}

/// The maps of PAX sparse formats 0.0 and 0.1.
fn sparse_map_in_records(extended: &Extended) -> Result<Vec<Extent>, LayerError> {
    let mut numbers = Vec::new();
    let mut push = |text: &[u8]| {
        let number = std::str::from_utf8(text).ok().and_then(|text| text.parse::<u64>().ok());
        number.map(|number| numbers.push(number)).ok_or(LayerError::Tar("the map of a sparse file"))
    };
    match extended.get(b"GNU.sparse.map") {
        Some(map) => {
            map.split(|byte| *byte == b',').filter(|text| !text.is_empty()).try_for_each(&mut push)?
        }
        None => {
            let keys: [&[u8]; 2] = [b"GNU.sparse.offset", b"GNU.sparse.numbytes"];
            for (_, value) in extended.records.iter().filter(|(key, _)| keys.contains(&key.as_slice())) {
                push(value)?;
            }
        }
    }
    let mut extents = Vec::new();
    for pair in numbers.chunks(2) {
        let [offset, len] = pair else { return Err(LayerError::Tar("the map of a sparse file")) };
        push_extent(&mut extents, Extent { offset: *offset, len: *len })?;
    }
    Ok(extents)
}

fn push_extent(extents: &mut Vec<Extent>, extent: Extent) -> Result<(), LayerError> {
    if extents.len() >= MAX_SPARSE_EXTENTS {
        return Err(LayerError::Limit { what: "pieces of a sparse file", limit: MAX_SPARSE_EXTENTS as u64 });
    }
    extents.push(extent);
    Ok(())
}

/// Appends PAX records. POSIX.1-2017 pax: `"%d %s=%s\n", <length>, <keyword>, <value>`; the length is the whole
/// record's.
fn parse_pax(mut bytes: &[u8], records: &mut Vec<(Vec<u8>, Vec<u8>)>) -> Result<(), LayerError> {
    let bad = || LayerError::Tar("a PAX record");
    while !bytes.is_empty() {
        let digits = bytes.iter().position(|byte| *byte == b' ').ok_or_else(bad)?;
        let len =
            bytes.get(..digits).and_then(|digits| std::str::from_utf8(digits).ok()?.parse::<usize>().ok());
        let (record, rest) = len.and_then(|len| bytes.split_at_checked(len)).ok_or_else(bad)?;
        let body = record.get(digits + 1..).and_then(|body| body.strip_suffix(b"\n")).ok_or_else(bad)?;
        let equals = body.iter().position(|byte| *byte == b'=').ok_or_else(bad)?;
        let (key, value) = body.split_at_checked(equals).ok_or_else(bad)?;
        if records.len() >= MAX_EXTENDED_RECORDS {
            let what = "extended records of an entry";
            return Err(LayerError::Limit { what, limit: MAX_EXTENDED_RECORDS as u64 });
        }
        records.push((key.to_vec(), value.get(1..).unwrap_or_default().to_vec()));
        bytes = rest;
    }
    Ok(())
}

/// A PAX time: seconds with a fraction, which may be negative.
fn parse_time(text: &[u8]) -> Option<Timestamp> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits = fraction.bytes().chain(std::iter::repeat(b'0')).take(9);
    let nanoseconds = digits.fold(0, |value, digit| value * 10 + u32::from(digit - b'0'));
    // A timestamp's nanoseconds count up from its seconds.
    match (whole.starts_with('-'), nanoseconds) {
        (true, 1..) => {
            Some(Timestamp { seconds: seconds.checked_sub(1)?, nanoseconds: 1_000_000_000 - nanoseconds })
        }
        _ => Some(Timestamp { seconds, nanoseconds }),
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    bytes.truncate(end);
    bytes
}

/// A path for an error message.
pub(crate) fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).chars().take(200).collect()
}

/// An error of reading a stream.
pub(crate) fn read_error(error: io::Error) -> LayerError {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => LayerError::Truncated,
        _ => LayerError::Read(error),
    }
}
