//! Changes held against the directory as it is now: some it has already, and for some it is too late.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io;

use crate::host::Facts;
use crate::{Base, Change, Error, Host, Kept, Kind, Place, Result, What};

/// The reason why a change cannot be taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Conflict {
    /// The file was changed on the host.
    Changed,
    /// The file was removed on the host.
    Removed,
    /// Something has the path on the host.
    Appeared,
    /// The directory on the host has something that the sandbox did not remove.
    NotEmpty(Vec<u8>),
    /// The directory that the path is in is gone on the host.
    NoDirectory,
    /// Another file system is mounted there.
    OtherFileSystem,
}

impl fmt::Display for Conflict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Changed => f.write_str("changed on the host meanwhile"),
            Self::Removed => f.write_str("removed on the host meanwhile"),
            Self::Appeared => f.write_str("made on the host meanwhile"),
            Self::NotEmpty(name) => {
                write!(f, "{} is in it on the host", String::from_utf8_lossy(name))
            }
            Self::NoDirectory => f.write_str("its directory is gone on the host"),
            Self::OtherFileSystem => f.write_str("another file system of the host's is mounted there"),
        }
    }
}

/// The changes that the directory does not have yet, each with the objection to it.
pub fn judge(changes: Vec<Change>, host: &Host, kept: &Kept) -> Result<Vec<Change>> {
    let court = Court { host, kept, taken: taken(&changes) };
    let mut judged = Vec::new();
    for change in changes {
        match court.judge(&change)? {
            Verdict::Done => {}
            Verdict::Good => judged.push(Change { conflict: None, ..change }),
            Verdict::Bad(conflict) => judged.push(Change { conflict: Some(conflict), ..change }),
        }
    }
    Ok(judged)
}

/// The names that leave each directory, by its path.
fn taken(changes: &[Change]) -> BTreeMap<Option<Place>, BTreeSet<Vec<u8>>> {
    let mut taken: BTreeMap<_, BTreeSet<_>> = BTreeMap::new();
    for place in changes.iter().filter_map(Change::taken) {
        taken.entry(place.parent()).or_default().insert(place.name().to_vec());
    }
    taken
}

enum Verdict {
    /// The directory is so already.
    Done,
    Good,
    Bad(Conflict),
}

struct Court<'a> {
    host: &'a Host,
    kept: &'a Kept,
    taken: BTreeMap<Option<Place>, BTreeSet<Vec<u8>>>,
}

impl Court<'_> {
    fn judge(&self, change: &Change) -> Result<Verdict> {
        let found = match (change.kind, &change.origin) {
            (Kind::Added, _) | (_, None) => None,
            (_, Some(origin)) => self.host.look(origin)?,
        };
        if self.is_done(change, found)? {
            return Ok(Verdict::Done);
        }
        let against_taking = match (change.kind, change.was) {
            (Kind::Added, _) | (_, None) => None,
            (_, Some(was)) => self.against_taking(change, &was, found)?,
        };
        let conflict = match (against_taking, change.kind) {
            (None, Kind::Added | Kind::Renamed) => self.against_putting(change)?,
            (conflict, _) => conflict,
        };
        Ok(conflict.map_or(Verdict::Good, Verdict::Bad))
    }

    /// The objection to changing or taking away the file that a change began with.
    fn against_taking(&self, change: &Change, was: &Base, found: Option<Facts>) -> Result<Option<Conflict>> {
        let Some(found) = found else { return Ok(Some(Conflict::Removed)) };
        if !self.host.is_own(&found) {
            return Ok(Some(Conflict::OtherFileSystem));
        }
        if !is_unchanged(&found.base, was) {
            return Ok(Some(Conflict::Changed));
        }
        let is_emptied = was.is_directory() && matches!(change.kind, Kind::Deleted | Kind::Modified);
        let (true, Some(origin)) = (is_emptied, &change.origin) else { return Ok(None) };
        let nothing = BTreeSet::new();
        let names = self.taken.get(&Some(origin.clone())).unwrap_or(&nothing);
        let names = names.iter().map(Vec::as_slice).collect();
        Ok(self.host.other_name(origin, &names)?.map(Conflict::NotEmpty))
    }

    /// The objection to giving a file a path.
    fn against_putting(&self, change: &Change) -> Result<Option<Conflict>> {
        // In a directory that is new nothing is in the way.
        let Some(place) = &change.on_host else { return Ok(None) };
        if self.host.look(place)?.is_some() && !self.is_taken(place) {
            return Ok(Some(Conflict::Appeared));
        }
        let Some(parent) = place.parent() else { return Ok(None) };
        Ok(match self.host.look(&parent)? {
            Some(found) if !self.host.is_own(&found) => Some(Conflict::OtherFileSystem),
            Some(found) if found.base.is_directory() => None,
            _ => Some(Conflict::NoDirectory),
        })
    }

    fn is_taken(&self, place: &Place) -> bool {
        self.taken.get(&place.parent()).is_some_and(|names| names.contains(place.name()))
    }

    /// Whether the directory is as the guest had it.
    fn is_done(&self, change: &Change, found: Option<Facts>) -> Result<bool> {
        let Some(there) = &change.now else { return Ok(found.is_none()) };
        let has_mode = |base: &Base| base.mode & 0o777 == there.mode & 0o777;
        if change.kind == Kind::Attributes {
            return Ok(found.is_some_and(|found| has_mode(&found.base)));
        }
        let Some(place) = &change.on_host else { return Ok(false) };
        let at_place = match self.host.look(place)? {
            Some(_) if change.kind == Kind::Added && self.is_taken(place) => return Ok(false),
            Some(facts) => facts.base,
            None => return Ok(false),
        };
        if change.kind == Kind::Renamed && !change.has_contents() {
            return Ok(found.is_none() && change.was.is_some_and(|was| was.ino == at_place.ino));
        }
        if change.kind == Kind::Renamed && found.is_some() {
            return Ok(false);
        }
        match &there.what {
            What::Directory => Ok(at_place.is_directory()),
            What::Link(target) => {
                Ok(at_place.kind() == crate::kind::LINK && self.host.read_link(place)? == *target)
            }
            What::File(contents) => {
                let could_be = at_place.kind() == crate::kind::FILE
                    && at_place.size == contents.len
                    && has_mode(&at_place);
                Ok(could_be && self.has_contents(change, place).map_err(Error::at(place))?)
            }
            What::Special => Ok(false),
        }
    }

    fn has_contents(&self, change: &Change, place: &Place) -> io::Result<bool> {
        let Some(contents) = change.contents() else { return Ok(false) };
        match self.kept.open(contents, change.source(), self.host) {
            Ok(source) => source.equals(contents.len, self.host.open_file(place)?),
            // Contents that are not there are told of when they are wanted.
            Err(_) => Ok(false),
        }
    }
}

/// Whether a file is the one that the guest saw.
fn is_unchanged(now: &Base, was: &Base) -> bool {
    has_same_contents(now, was) && (now.is_directory() || now.ctime == was.ctime)
}

/// Whether a file is the one that the guest saw, with the same contents; it may have another path or mode.
pub(crate) fn has_same_contents(now: &Base, was: &Base) -> bool {
    is_same_file(now, was) && (now.is_directory() || (now.size, now.mtime) == (was.size, was.mtime))
}

/// Whether a file is the one that the guest saw, whatever is in it.
pub(crate) fn is_same_file(now: &Base, was: &Base) -> bool {
    now.kind() == was.kind() && now.ino == was.ino
}
