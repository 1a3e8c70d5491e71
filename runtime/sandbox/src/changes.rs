//! The overlays of a sandbox, and what was changed of them: told while it runs and once it has ended, taken over and thrown
//! away once it has ended.
//!
//! Not here: changes themselves (`changes`), and the words for people (`matchlock`).

use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

pub use changes::{Change, Conflict, Kind, Place};
use changes::{Host, Kept, List, apply, below, below_with_directories, changes, judge};

use crate::control::client;
use crate::control::dialogue::Changes as Ask;
use crate::records::home::VmPaths;
use crate::records::store::{Record, Records, Status};
use crate::{ControlError, Home, Id, RecordsError, reconcile};

/// Why changes are not told, taken over or thrown away.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The records, or files beside them.
    #[error(transparent)]
    Records(#[from] RecordsError),
    /// The sandbox's owner.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The changes.
    #[error(transparent)]
    Changes(#[from] changes::Error),
    /// The sandbox runs.
    #[error("{0} is running, and its guest would not know: end it first, its changes are kept")]
    Running(Id),
    /// The sandbox runs, and is not to stay.
    #[error(
        "{0} is running, and was not started to stay: its changes go when it ends (`--rm=false` or `-d` keeps them); copy \
         what is wanted of them before, `matchlock diff {0}` shows them"
    )]
    Passing(Id),
    /// There are no overlays.
    #[error("{0} has no overlays")]
    NoOverlays(Id),
    /// The path is in no overlay.
    #[error("{path} is in no overlay of {id}: these are {overlays}")]
    Elsewhere {
        /// The sandbox.
        id: Id,
        /// The path.
        path: String,
        /// The overlays' places.
        overlays: String,
    },
    /// Some paths are too long.
    #[error("{0} paths in the overlay at {1} are too long to be taken over: name one that is not")]
    TooLong(u64, String),
}

/// An overlay of a sandbox's.
#[derive(Debug)]
pub struct Overlay {
    /// Its place in the guest.
    pub guest_path: String,
    /// The directory that it is over.
    pub directory: PathBuf,
    /// It shows one file of the directory.
    is_file: bool,
    /// The part that was asked for.
    part: Option<Place>,
    /// Paths that are not told of.
    pub left_out: u64,
    host: Host,
    kept: Kept,
}

/// The overlays of a sandbox that has ended.
#[derive(Debug)]
pub struct Ended(Vec<Overlay>);

/// The overlays of a sandbox, with what was changed of them up to now: all, or the one that a path of the guest is in.
pub async fn overlays(home: &Home, id: &Id, path: Option<&str>) -> Result<Vec<Overlay>, Error> {
    if record(home, id)?.status == Status::Running {
        client::ask(home, id, Ask {}).await?;
    }
    read(home, id, path)
}

/// The same of a sandbox that has to have ended.
pub fn ended(home: &Home, id: &Id, path: Option<&str>) -> Result<Ended, Error> {
    let record = record(home, id)?;
    match record.status {
        Status::Running if record.config.keep => Err(Error::Running(id.clone())),
        Status::Running => Err(Error::Passing(id.clone())),
        _ => read(home, id, path).map(Ended),
    }
}

fn record(home: &Home, id: &Id) -> Result<Record, Error> {
    let records = Records::open(home)?;
    reconcile(home, &records)?;
    Ok(records.get(id)?.ok_or_else(|| RecordsError::UnknownVm(id.to_string()))?)
}

fn read(home: &Home, id: &Id, path: Option<&str>) -> Result<Vec<Overlay>, Error> {
    let paths = home.vm(id);
    let mut overlays = Vec::new();
    for number in 0.. {
        match Overlay::read(&paths, number)? {
            Some(overlay) => overlays.push(overlay),
            None => break,
        }
    }
    if overlays.is_empty() {
        return Err(Error::NoOverlays(id.clone()));
    }
    let Some(path) = path else { return Ok(overlays) };
    let all = overlays.iter().map(|overlay| overlay.guest_path.clone()).collect::<Vec<_>>().join(", ");
    let wanted = overlays.into_iter().filter_map(|overlay| overlay.at(path));
    // Of overlays in one another it is the inner one.
    let wanted = wanted.max_by_key(|overlay| overlay.guest_path.len());
    let elsewhere = || Error::Elsewhere { id: id.clone(), path: path.to_owned(), overlays: all };
    Ok(vec![wanted.ok_or_else(elsewhere)?])
}

impl Overlay {
    fn read(paths: &VmPaths, number: usize) -> Result<Option<Self>, Error> {
        let (directory, note) = paths.overlay(number);
        let wrong = |path: &Path| {
            let path = path.to_owned();
            move |error| Error::from(RecordsError::io(&path)(error))
        };
        let note = match fs::read(&note) {
            Ok(note) => note,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(wrong(&note)(error)),
        };
        let mut parts = note.split(|byte| *byte == 0).map(<[u8]>::to_vec);
        let mut part = || parts.next().unwrap_or_default();
        let guest_path = String::from_utf8_lossy(&part()).into_owned();
        let over = PathBuf::from(std::ffi::OsString::from_vec(part()));
        let is_file = !part().is_empty();
        let kept = Kept::new(File::open(&directory).map_err(wrong(&directory))?.into());
        let host = Host::open(&over)?;
        Ok(Some(Self { guest_path, directory: over, is_file, part: None, left_out: 0, host, kept }))
    }

    /// The part of the overlay that a path of the guest leads to, if it is in there.
    fn at(self, path: &str) -> Option<Self> {
        let rest = path.trim_end_matches('/').strip_prefix(&self.guest_path)?;
        if rest.is_empty() {
            return Some(self);
        }
        let part = Place::new(rest.strip_prefix('/')?.as_bytes())?;
        Some(Self { part: Some(part), ..self })
    }

    /// The path in the guest of something in the overlay.
    #[must_use]
    pub fn in_guest(&self, place: &Place) -> String {
        if self.is_file { self.guest_path.clone() } else { format!("{}/{place}", self.guest_path) }
    }

    /// The changes that are not on the host already, with the objections to taking them over.
    pub fn judged(&mut self) -> Result<Vec<Change>, Error> {
        let Some(list) = self.list()? else { return Ok(Vec::new()) };
        let judged = judge(changes(&list), &self.host, &self.kept)?;
        Ok(match &self.part {
            Some(part) => below(judged, part),
            None => judged,
        })
    }

    fn list(&mut self) -> Result<Option<List>, Error> {
        let list = self.kept.list()?;
        self.left_out = list.as_ref().map_or(0, |list| list.left_out);
        Ok(list)
    }

    /// The contents of a file as the guest has them, if these are at most `most` bytes.
    pub fn after(&self, change: &Change, most: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(contents) = change.contents() else { return Ok(Some(Vec::new())) };
        let origin = change.from.as_ref().or(change.origin.as_ref());
        self.told(change, self.kept.read(contents, origin, &self.host, most))
    }

    /// The contents of a file as the host has them, if these are at most `most` bytes.
    pub fn before(&self, change: &Change, most: u64) -> Result<Option<Vec<u8>>, Error> {
        match &change.origin {
            Some(origin) => self.told(change, self.host.read(origin, most)),
            None => Ok(Some(Vec::new())),
        }
    }

    fn told<T>(&self, change: &Change, read: io::Result<T>) -> Result<T, Error> {
        let path = self.directory.join(change.place.to_string());
        Ok(read.map_err(RecordsError::io(&path))?)
    }

    /// Takes what was changed over, all of it or nothing, and returns how much that is.
    fn apply(&mut self, tell: &mut dyn FnMut(usize, usize)) -> Result<usize, Error> {
        let Some(list) = self.list()? else { return Ok(0) };
        let all = changes(&list);
        let some = match &self.part {
            Some(part) => below_with_directories(all, part),
            None if list.left_out > 0 => return Err(Error::TooLong(list.left_out, self.guest_path.clone())),
            None => all,
        };
        let count = apply(some.clone(), &self.host, &self.kept, tell)?;
        self.kept.discard(list, &some)?;
        Ok(count)
    }

    /// Throws what was changed away, and returns how much that is.
    fn discard(&mut self) -> Result<usize, Error> {
        let Some(list) = self.list()? else { return Ok(0) };
        let all = changes(&list);
        let some = match &self.part {
            Some(part) => below(all, part),
            None => all,
        };
        self.kept.discard(list, &some)?;
        Ok(some.len())
    }
}

impl Ended {
    /// Takes what was changed over, all of an overlay or nothing, and returns how much that is; `tell` hears how many steps
    /// of how many are done.
    pub fn apply(mut self, tell: &mut dyn FnMut(usize, usize)) -> Result<usize, Error> {
        self.0.iter_mut().map(|overlay| overlay.apply(tell)).sum()
    }

    /// Throws what was changed away, and returns how much that is.
    pub fn discard(mut self) -> Result<usize, Error> {
        self.0.iter_mut().map(Overlay::discard).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::records::home::OwnedVm;
    use crate::records::store;

    /// A sandbox's record, and its directory.
    struct Scene {
        home: Home,
        vm: OwnedVm,
        _directory: tempfile::TempDir,
    }

    impl Scene {
        fn new(keep: bool) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let home = Home::at(directory.path());
            let vm = OwnedVm::create(&home).unwrap();
            let mut record = store::tests::record(vm.id.as_str());
            record.config.keep = keep;
            Records::open(&home).unwrap().insert(&record).unwrap();
            Self { home, vm, _directory: directory }
        }
    }

    #[test]
    fn nobody_is_told_to_end_what_loses_its_changes_then() {
        let kept = Scene::new(true);
        let refused = ended(&kept.home, &kept.vm.id, None).unwrap_err();
        assert!(matches!(&refused, Error::Running(id) if *id == kept.vm.id), "{refused}");
        let passing = Scene::new(false);
        let refused = ended(&passing.home, &passing.vm.id, None).unwrap_err();
        assert!(matches!(&refused, Error::Passing(id) if *id == passing.vm.id), "{refused}");
        let text = refused.to_string();
        assert!(text.contains("go when it ends") && !text.contains("end it first"), "{text}");
    }
}
