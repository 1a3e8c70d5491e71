//! The entries of a directory, and the metadata of a file.
//!
//! Entries are sent sorted by name, so their names are needed at once, but those of a large directory do not fit into
//! memory. A directory is therefore read several times if need be: each time the least names that are left are kept,
//! as many as [`NAMES_LIMIT`] allows, and sent. Up to some ten thousand entries once is enough.

use std::collections::BinaryHeap;
use std::ffi::{CStr, CString};
use std::mem::take;
use std::os::fd::AsFd;

use guest_protocol::frame::DATA_CHUNK;
use guest_protocol::{FileEntry, FileReply};
use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat};
use rustix::io::Errno;

use super::{Act, CHECK_EVERY, Stop, Trying, guest_path, split};
use crate::stream::Stream;

/// Most memory for names, bytes.
const NAMES_LIMIT: usize = 4 << 20;

/// Bytes of memory for a name beside its own: its place in the heap, its allocation.
const NAME_COST: usize = 48;

/// Most bytes of an encoded entry beside name and target.
const ENTRY_COST: usize = 64;

/// Sends a directory's entries.
pub(super) fn list(stream: Stream<'_>, path: &str) -> Act {
    let path = guest_path(path)?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let directory = rustix::fs::open(path.as_c_str(), flags, Mode::empty()).trying("open", &path)?;
    let mut names = Names { entries: Dir::read_from(&directory).trying("list", &path)?, last: None };
    loop {
        let (least, more) = names.least(stream, &path, NAMES_LIMIT)?;
        send(stream, &directory, &path, &least)?;
        if !more {
            // The end of the list.
            return Ok(stream.reply(&FileReply::Ok(Vec::<FileEntry>::new()))?);
        }
    }
}

/// Sends one file's entry.
pub(super) fn stat(stream: Stream<'_>, path: &str, follow: bool) -> Act {
    let path = guest_path(path)?;
    let flags = if follow { AtFlags::empty() } else { AtFlags::SYMLINK_NOFOLLOW };
    let status = rustix::fs::statat(CWD, path.as_c_str(), flags).trying("stat", &path)?;
    let (_, name) = split(&path);
    let entry = entry(CWD, &path, name.to_vec(), &status);
    stream.reply(&FileReply::Ok(entry))?;
    Ok(())
}

/// A directory's names, least first.
struct Names {
    entries: Dir,
    /// The greatest name that was given out.
    last: Option<CString>,
}

impl Names {
    /// The least names that are left, about `limit` bytes of them, and whether there are more.
    fn least(&mut self, stream: Stream<'_>, path: &CStr, limit: usize) -> Result<(Vec<CString>, bool), Stop> {
        let mut least = BinaryHeap::new();
        let (mut size, mut more) = (0, false);
        self.entries.rewind();
        for count in 0usize.. {
            if count % CHECK_EVERY == 0 {
                stream.check()?;
            }
            let Some(found) = self.entries.read() else { break };
            let found = found.trying("list", path)?;
            let name = found.file_name();
            let given = self.last.as_deref().is_some_and(|last| name <= last);
            if name == c"." || name == c".." || given {
                continue;
            }
            // After a name was put back, only names before the kept ones matter.
            if more && least.peek().is_some_and(|greatest: &CString| name >= greatest.as_c_str()) {
                continue;
            }
            size += cost(name);
            least.push(name.to_owned());
            while size > limit && least.len() > 1 {
                size -= least.pop().as_deref().map_or(0, cost);
                more = true;
            }
        }
        let mut least = least.into_sorted_vec();
        // A directory that changes while it is read may give a name twice.
        least.dedup();
        self.last = least.last().cloned();
        Ok((least, more))
    }
}

fn cost(name: &CStr) -> usize {
    name.count_bytes() + NAME_COST
}

/// Sends the entries of these names; files that are gone by now are left out.
fn send(stream: Stream<'_>, directory: impl AsFd, path: &CStr, names: &[CString]) -> Act {
    let mut entries = Vec::new();
    let mut size = 0;
    for name in names {
        let status = match rustix::fs::statat(&directory, name.as_c_str(), AtFlags::SYMLINK_NOFOLLOW) {
            Ok(status) => status,
            Err(Errno::NOENT) => continue,
            Err(errno) => return Err(errno).trying("stat an entry of", path),
        };
        let entry = entry(&directory, name, name.as_bytes().to_vec(), &status);
        size += entry.name.len() + entry.target.len() + ENTRY_COST;
        entries.push(entry);
        if size >= DATA_CHUNK {
            stream.reply(&FileReply::Ok(take(&mut entries)))?;
            size = 0;
        }
    }
    if !entries.is_empty() {
        stream.reply(&FileReply::Ok(entries))?;
    }
    Ok(())
}

/// The wire's form of a status, and a link's target.
fn entry(directory: impl AsFd, path: &CStr, name: Vec<u8>, status: &Stat) -> FileEntry {
    let target = match FileType::from_raw_mode(status.st_mode) {
        // A file that is no link any more has no target.
        FileType::Symlink => rustix::fs::readlinkat(directory, path, Vec::new()).unwrap_or_default(),
        _ => CString::default(),
    };
    FileEntry {
        name,
        size: u64::try_from(status.st_size).unwrap_or(0),
        mode: status.st_mode,
        uid: status.st_uid,
        gid: status.st_gid,
        mtime_s: status.st_mtime,
        mtime_ns: u32::try_from(status.st_mtime_nsec).unwrap_or(0),
        target: target.into_bytes(),
    }
}
