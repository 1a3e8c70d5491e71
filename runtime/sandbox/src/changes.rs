//! The overlays of a sandbox, and what was changed of them: told while it runs and once it has ended, taken over and thrown
//! away once it has ended.
//!
//! Not here: changes themselves (`changes`), and the words for people (`matchlock`).

use std::ffi::OsString;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::{fmt, io};

pub use changes::{Base, Change, Conflict, Kind, Place, There, Time, What, kind};
use changes::{Host, Kept, List, apply, below, below_with_directories, changes, judge};
use policy::files::{Masks, Verdict, WantedMasks};

use crate::control::client;
use crate::control::dialogue::Changes as Ask;
use crate::records::overlay::{Identity, Note};
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
    /// Something is against taking changes over.
    #[error("{path}: {objection}; nothing was taken over ({count} such)", count = .others + 1)]
    Refused {
        /// The first path, in the guest.
        path: String,
        /// The reason.
        objection: Objection,
        /// How many more there are.
        others: usize,
    },
    /// Changes of one overlay are not taken over, after those of others were.
    #[error("{why}; {taken} changes of overlays before {overlay} were taken over")]
    Partly {
        /// The error.
        why: String,
        /// The overlay's place in the guest.
        overlay: String,
        /// How many changes were taken over before.
        taken: usize,
    },
    /// Another directory has the path of the one that the overlay was of.
    #[error("{} is another directory than the one that the overlay was of: `matchlock rm` gives its changes up", .0.display())]
    OtherDirectory(PathBuf),
    /// Some paths are too long.
    #[error("{0} paths in the overlay at {1} are too long to be taken over: name one that is not")]
    TooLong(u64, String),
}

/// The reason why a change is not taken over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Objection {
    /// It does not fit the host's directory as that is now.
    Conflict(Conflict),
    /// It is of matchlock's own files, or of a directory around them.
    Own,
    /// A mask of the share keeps the guest from it.
    Masked,
}

impl fmt::Display for Objection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Conflict(conflict) => conflict.fmt(f),
            Self::Own => f.write_str("matchlock's own files are there on the host"),
            Self::Masked => f.write_str("a mask of the share keeps the guest from it"),
        }
    }
}

/// An overlay of a sandbox's.
#[derive(Debug)]
pub struct Overlay {
    /// Its place in the guest.
    pub guest_path: String,
    /// The directory that it is over.
    pub directory: PathBuf,
    /// The file of the directory that it is of, if it is of a single one.
    file: Option<Place>,
    /// The part that was asked for.
    part: Option<Place>,
    /// Paths that are not told of.
    pub left_out: u64,
    /// The directories of matchlock's own that are in it.
    own: Vec<Place>,
    masks: Masks,
    host: Host,
    kept: Kept,
}

/// Changes that are to be taken over.
struct Wanted {
    list: List,
    changes: Vec<Change>,
    /// The objections, by path in the guest.
    objections: Vec<(String, Objection)>,
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

/// The overlays of a sandbox that has to have ended: all, or the one that a path of the guest is in.
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
    let mut overlays = Vec::new();
    for number in 0.. {
        match Overlay::read(home, id, number)? {
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
    fn read(home: &Home, id: &Id, number: usize) -> Result<Option<Self>, Error> {
        let (directory, note_path) = home.vm(id).overlay(number);
        let Some(note) = Note::read(&note_path)? else { return Ok(None) };
        let wrong = || RecordsError::io(&note_path)(io::ErrorKind::InvalidData.into());
        let name = |name: &OsString| Place::new(name.as_bytes()).filter(|name| name.parent().is_none());
        let file = note.file.as_ref().map(|file| name(file).ok_or_else(wrong)).transpose()?;
        // A single file has no names in it to be masked.
        let masks = if file.is_some() { WantedMasks::default() } else { note.masks() };
        let masks = Masks::new(&masks).map_err(|_| wrong())?;
        let over = PathBuf::from(note.directory);
        let kept = Kept::new(File::open(&directory).map_err(RecordsError::io(&directory))?.into());
        let root = File::open(&over).map_err(RecordsError::io(&over))?;
        if Identity::of(&root).map_err(RecordsError::io(&over))? != note.identity {
            return Err(Error::OtherDirectory(over));
        }
        let host = Host::open(Path::new(&format!("/proc/self/fd/{}", root.as_raw_fd())))?;
        let own = home.own();
        let own =
            own.iter().filter_map(|own| Place::new(own.strip_prefix(&over).ok()?.as_os_str().as_bytes()));
        let own = own.collect();
        let guest_path = note.guest_path;
        Ok(Some(Self { guest_path, directory: over, file, part: None, left_out: 0, own, masks, host, kept }))
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
        if self.file.is_some() { self.guest_path.clone() } else { format!("{}/{place}", self.guest_path) }
    }

    /// The changes that are not on the host already, with the objections to taking them over.
    pub fn judged(&mut self) -> Result<Vec<Change>, Error> {
        let Some(list) = self.list()? else { return Ok(Vec::new()) };
        let judged = judge(self.changes(&list)?, &self.host, &self.kept)?;
        Ok(match &self.part {
            Some(part) => below(judged, part),
            None => judged,
        })
    }

    /// The objection to taking a judged change over, if there is one.
    #[must_use]
    pub fn objection(&self, change: &Change) -> Option<Objection> {
        if places(change).any(|place| self.own.iter().any(|own| place.is_within(own) || own.is_within(place)))
        {
            return Some(Objection::Own);
        }
        if !self.masks.is_empty() && self.is_masked(change) {
            return Some(Objection::Masked);
        }
        change.conflict.clone().map(Objection::Conflict)
    }

    /// Whether a guest that is held to the masks cannot have made the change.
    fn is_masked(&self, change: &Change) -> bool {
        let look = |place: &Place| self.masks.look(place.as_bytes());
        if places(change).any(|place| look(place).verdict >= Verdict::ReadOnly) {
            return true;
        }
        let (Some(there), seen) = (&change.now, look(&change.place)) else { return false };
        match (&there.what, &change.from) {
            (_, Some(from)) if change.kind == Kind::Renamed => !look(from).is_as_good_as(&seen),
            (What::Directory, _) => false,
            // By way of the link, what is masked would have another path.
            (What::Link(_), _) if seen.is_on_the_way() => true,
            _ => seen.verdict == Verdict::OnlyDirectory,
        }
    }

    fn list(&mut self) -> Result<Option<List>, Error> {
        let list = self.kept.list()?;
        self.left_out = list.as_ref().map_or(0, |list| list.left_out);
        Ok(list)
    }

    /// The changes of a list. That of a single file is believed about this file only, and only that it is one: its guest can
    /// write it, but neither remove it nor see another.
    fn changes(&self, list: &List) -> Result<Vec<Change>, Error> {
        let all = changes(list);
        let Some(file) = &self.file else { return Ok(all) };
        let is_of_it =
            |change: &Change| places(change).all(|place| place == file) && change.contents().is_some();
        if all.iter().all(is_of_it) {
            Ok(all)
        } else {
            Err(changes::Error::List("it is of a single file, and tells of something else").into())
        }
    }

    /// The contents of a file as the guest has them, if these are at most `most` bytes.
    pub fn after(&self, change: &Change, most: u64) -> Result<Option<Vec<u8>>, Error> {
        let Some(contents) = change.contents() else { return Ok(Some(Vec::new())) };
        self.told(change, self.kept.read(contents, change.source(), &self.host, most))
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

    /// The changes to be taken over, with the objections, if there is anything.
    fn wanted(&mut self) -> Result<Option<Wanted>, Error> {
        let Some(list) = self.list()? else { return Ok(None) };
        let all = self.changes(&list)?;
        let changes = match &self.part {
            Some(part) => below_with_directories(all, part),
            None if list.left_out > 0 => return Err(Error::TooLong(list.left_out, self.guest_path.clone())),
            None => all,
        };
        let judged = judge(changes.clone(), &self.host, &self.kept)?;
        let objections = judged.iter().filter_map(|change| {
            let objection = self.objection(change)?;
            Some((self.in_guest(&change.place), objection))
        });
        let objections = objections.collect();
        Ok(Some(Wanted { list, changes, objections }))
    }

    /// Takes what is wanted over, all of it or nothing, and returns how much that is.
    fn apply(&self, wanted: Wanted, tell: &mut dyn FnMut(usize, usize)) -> Result<usize, Error> {
        let Wanted { list, changes, .. } = wanted;
        let count = apply(changes.clone(), &self.host, &self.kept, tell).map_err(|error| match error {
            changes::Error::Conflict { place, conflict, others } => {
                let objection = Objection::Conflict(conflict);
                Error::Refused { path: self.in_guest(&place), objection, others }
            }
            error => error.into(),
        })?;
        // `apply` has had the host's disk written, so the sandbox's own copy is not the only one.
        self.kept.discard(list, &changes)?;
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
    /// Takes what was changed over, and returns how much that is; `tell` hears how many steps of how many are done.
    ///
    /// An objection to one change keeps those of all overlays from being taken over.
    pub fn apply(mut self, tell: &mut dyn FnMut(usize, usize)) -> Result<usize, Error> {
        let wanted: Vec<_> = self.0.iter_mut().map(Overlay::wanted).collect::<Result<_, _>>()?;
        let mut objections = wanted.iter().flatten().flat_map(|wanted| &wanted.objections).cloned();
        if let Some((path, objection)) = objections.next() {
            return Err(Error::Refused { path, objection, others: objections.count() });
        }
        let mut taken = 0;
        for (overlay, wanted) in self.0.iter().zip(wanted) {
            let Some(wanted) = wanted else { continue };
            taken += overlay.apply(wanted, tell).map_err(|error| partly(error, overlay, taken))?;
        }
        Ok(taken)
    }

    /// Throws what was changed away, and returns how much that is.
    pub fn discard(mut self) -> Result<usize, Error> {
        self.0.iter_mut().map(Overlay::discard).sum()
    }
}

/// The paths that a change is about, on the host and in the guest's view.
fn places(change: &Change) -> impl Iterator<Item = &Place> {
    [Some(&change.place), change.from.as_ref(), change.origin.as_ref()].into_iter().flatten()
}

/// An error of an overlay, with how much was taken over before.
fn partly(error: Error, overlay: &Overlay, taken: usize) -> Error {
    let why = match error {
        error if taken == 0 => return error,
        Error::Refused { path, objection, .. } => format!("{path}: {objection}"),
        error => error.to_string(),
    };
    Error::Partly { why, overlay: overlay.guest_path.clone(), taken }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::MetadataExt;

    use changes::{Contents, Gone, Record as Line, Stored, Writer};

    use super::*;
    use crate::records::home::OwnedVm;
    use crate::records::store;

    /// A sandbox's record, its directory, and directories of the host's that it had overlays of.
    struct Scene {
        home: Home,
        vm: OwnedVm,
        directory: tempfile::TempDir,
    }

    fn place(path: &str) -> Place {
        Place::new(path.as_bytes()).unwrap()
    }

    fn base(path: &Path) -> Base {
        let found = fs::symlink_metadata(path).unwrap();
        let time = |seconds, nanoseconds| Time { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap() };
        Base {
            mode: found.mode(),
            ino: found.ino(),
            size: found.size(),
            mtime: time(found.mtime(), found.mtime_nsec()),
            ctime: time(found.ctime(), found.ctime_nsec()),
        }
    }

    fn text(text: &str) -> What {
        let len = u64::try_from(text.len()).unwrap();
        What::File(Contents { len, stored: Stored::Inline(text.as_bytes().to_vec()) })
    }

    /// The guest has something there that is new, or was at a path of this directory.
    fn there(path: &str, origin: Option<(&Path, &str)>, what: What) -> Line {
        let was = origin.map(|(directory, origin)| base(&directory.join(origin)));
        let file = path.bytes().fold(0, |sum: u64, byte| sum.wrapping_mul(257).wrapping_add(byte.into()));
        let (mode, mtime) = (0o755, Time { seconds: 1000, nanoseconds: 5 });
        let origin = origin.map(|(_, origin)| place(origin));
        Line::There(There { place: place(path), origin, was, file, mode, mtime, what })
    }

    /// The guest removed or moved something.
    fn gone(directory: &Path, path: &str) -> Line {
        Line::Gone(Gone { place: place(path), was: base(&directory.join(path)) })
    }

    fn names(directory: &Path) -> Vec<OsString> {
        let names = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.collect();
        names.sort();
        names
    }

    fn read_text(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    impl Scene {
        fn new(keep: bool) -> Self {
            let directory = tempfile::tempdir().unwrap();
            let home = Home::at(directory.path());
            let vm = OwnedVm::create(&home).unwrap();
            let mut record = store::tests::record(vm.id.as_str());
            record.config.keep = keep;
            Records::open(&home).unwrap().insert(&record).unwrap();
            Self { home, vm, directory }
        }

        /// A directory of the host's, with two files.
        fn host(&self, name: &str) -> PathBuf {
            let host = self.directory.path().canonicalize().unwrap().join(name);
            fs::create_dir(&host).unwrap();
            fs::write(host.join("one"), "1").unwrap();
            fs::write(host.join("two"), "2").unwrap();
            host
        }

        /// The sandbox has an overlay of a directory, or of a file in it, at a path of the guest.
        fn overlay(&self, number: usize, guest_path: &str, over: &Path, file: &str, lines: &[Line]) {
            let (directory, note) = self.vm.paths.overlay(number);
            fs::create_dir_all(&directory).unwrap();
            let of = Note {
                guest_path: guest_path.into(),
                directory: over.into(),
                identity: Identity::of(&File::open(over).unwrap()).unwrap(),
                file: Some(file.into()).filter(|_| !file.is_empty()),
                hidden: vec![".env*".into(), "/services/*/key".into()],
                readonly: vec!["fixed".into()],
                protect: true,
            };
            of.write(&note).unwrap();
            let directory = File::open(&directory).unwrap().into();
            let mut list = Writer::new(&directory).unwrap();
            lines.iter().for_each(|line| list.add(line).unwrap());
            list.end().unwrap();
        }

        fn read(&self, path: Option<&str>) -> Result<Vec<Overlay>, Error> {
            read(&self.home, &self.vm.id, path)
        }

        /// Takes changes over, as if the sandbox had ended.
        fn apply(&self, path: Option<&str>) -> Result<usize, Error> {
            Ended(self.read(path)?).apply(&mut |_, _| ())
        }
    }

    #[test]
    fn the_list_of_a_single_file_is_believed_about_that_file_only() {
        let scene = Scene::new(true);
        let host = scene.host("host");
        let cases = [
            vec![there("three", None, text("3"))],
            vec![there("two", Some((&host, "two")), text("other"))],
            vec![gone(&host, "two")],
            vec![gone(&host, "one")],
            vec![gone(&host, "two"), there("one", Some((&host, "two")), text("2"))],
            vec![gone(&host, "one"), there("one", None, What::Link(b"two".to_vec()))],
            vec![gone(&host, "one"), there("one", None, What::Directory)],
            vec![there("one/below", None, text("3"))],
            vec![there("one", Some((&host, "one")), text("good")), there("three", None, text("3"))],
        ];
        for lines in cases {
            scene.overlay(0, "/conf", &host, "one", &lines);
            let shown = scene.read(None).unwrap().remove(0).judged();
            assert!(matches!(shown, Err(Error::Changes(changes::Error::List(_)))), "{lines:?}: {shown:?}");
            let taken = scene.apply(None);
            assert!(matches!(taken, Err(Error::Changes(changes::Error::List(_)))), "{lines:?}: {taken:?}");
            assert_eq!((&*read_text(&host.join("one")), &*read_text(&host.join("two"))), ("1", "2"));
            assert_eq!(fs::read_dir(&host).unwrap().count(), 2);
        }
        scene.overlay(0, "/conf", &host, "one", &[there("one", Some((&host, "one")), text("new"))]);
        let mut overlay = scene.read(Some("/conf")).unwrap().remove(0);
        let judged = overlay.judged().unwrap();
        assert_eq!((judged.len(), overlay.in_guest(&judged[0].place)), (1, "/conf".into()));
        assert_eq!(scene.apply(None).unwrap(), 1);
        assert_eq!((&*read_text(&host.join("one")), &*read_text(&host.join("two"))), ("new", "2"));
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

    #[test]
    fn a_conflict_in_one_overlay_keeps_all_from_being_taken_over() {
        let scene = Scene::new(true);
        let (first, second) = (scene.host("first"), scene.host("second"));
        scene.overlay(0, "/a", &first, "", &[there("new", None, text("n"))]);
        let lines = ["one", "two"].map(|name| there(name, Some((&second, name)), text("the guest's")));
        scene.overlay(1, "/b", &second, "", &lines);
        fs::write(second.join("one"), "the host's").unwrap();
        fs::write(second.join("two"), "the host's").unwrap();
        let refused = scene.apply(None).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "/b/one: changed on the host meanwhile; nothing was taken over (2 such)"
        );
        assert!(!first.join("new").exists(), "nothing of the other overlay is taken over");
        assert_eq!(scene.apply(Some("/a")).unwrap(), 1);
        assert_eq!(read_text(&first.join("new")), "n");
        assert_eq!(read_text(&second.join("one")), "the host's");
    }

    #[test]
    fn a_late_failure_tells_what_was_taken_over_before() {
        let scene = Scene::new(true);
        let (first, second) = (scene.host("first"), scene.host("second"));
        scene.overlay(0, "/a", &first, "", &[there("new", None, text("n"))]);
        let lost = Contents { len: 1, stored: Stored::File(7) };
        scene.overlay(1, "/b", &second, "", &[there("new", None, What::File(lost))]);
        let failed = scene.apply(None).unwrap_err();
        assert!(matches!(&failed, Error::Partly { overlay, taken: 1, .. } if overlay == "/b"), "{failed}");
        assert!(
            failed.to_string().ends_with("; 1 changes of overlays before /b were taken over"),
            "{failed}"
        );
        assert_eq!(read_text(&first.join("new")), "n");
        assert_eq!(fs::read_dir(&second).unwrap().count(), 2);
    }

    #[test]
    fn files_of_our_own_are_not_taken_over() {
        let scene = Scene::new(true);
        let user = scene.directory.path().canonicalize().unwrap();
        fs::create_dir(user.join("other")).unwrap();
        let new = || text("n");
        let cases = [
            ("new", vec![there(".matchlock/new", None, new())]),
            (".matchlock/state.db", vec![gone(&user, ".matchlock/state.db")]),
            // It does not exist yet, and is ours all the same.
            (".cache", vec![there(".cache", None, What::Link(b"other".to_vec()))]),
            (
                "kernel",
                vec![
                    there(".cache", None, What::Directory),
                    there(".cache/matchlock", None, What::Directory),
                    there(".cache/matchlock/kernel", None, new()),
                ],
            ),
            (
                "moved",
                vec![gone(&user, ".matchlock"), there("moved", Some((&user, ".matchlock")), What::Directory)],
            ),
        ];
        let before = names(&user);
        for (case, lines) in cases {
            scene.overlay(0, "/home", &user, "", &lines);
            let mut overlay = scene.read(None).unwrap().remove(0);
            let judged = overlay.judged().unwrap();
            assert!(judged.iter().all(|change| overlay.objection(change) == Some(Objection::Own)), "{case}");
            let refused = scene.apply(None).unwrap_err();
            assert!(matches!(refused, Error::Refused { objection: Objection::Own, .. }), "{case}: {refused}");
            assert_eq!(names(&user), before, "{case}");
        }
        let lines = [there(".matchlocked", None, new()), there("other/new", None, new())];
        scene.overlay(0, "/home", &user, "", &lines);
        assert_eq!(scene.apply(None).unwrap(), 2);
        assert_eq!(read_text(&user.join("other/new")), "n");
    }

    #[test]
    fn masks_hold_when_changes_are_taken_over() {
        let scene = Scene::new(true);
        let host = scene.host("host");
        for directory in [".git/hooks", "services/a"] {
            fs::create_dir_all(host.join(directory)).unwrap();
        }
        for file in [".env", "fixed", ".git/hooks/commit", "services/a/key"] {
            fs::write(host.join(file), "the host's").unwrap();
        }
        let (new, from) = (|| text("n"), |path| Some((&*host, path)));
        let below = || What::File(Contents { len: 10, stored: Stored::Below });
        let cases = [
            ("hidden", vec![there(".env.local", None, new())]),
            ("hidden and changed", vec![there(".env", from(".env"), new())]),
            ("hidden and removed", vec![gone(&host, ".env")]),
            ("hidden, and shown by another name", vec![there("shown", from(".env"), below())]),
            ("read-only", vec![there("fixed", from("fixed"), new())]),
            ("what programs obey", vec![there(".git/hooks/commit", from(".git/hooks/commit"), new())]),
            ("a directory only", vec![there("deep", None, What::Directory), there("deep/.git", None, new())]),
            (
                "around what programs obey",
                vec![gone(&host, ".git"), there("git", from(".git"), What::Directory)],
            ),
            ("on the way", vec![there("services/b", None, What::Link(b"a".to_vec()))]),
        ];
        let before = names(&host);
        for (case, lines) in cases {
            scene.overlay(0, "/work", &host, "", &lines);
            let refused = scene.apply(None).unwrap_err();
            assert!(
                matches!(refused, Error::Refused { objection: Objection::Masked, .. }),
                "{case}: {refused}"
            );
            assert_eq!(names(&host), before, "{case}");
        }
        let lines = [
            there(".git/index", None, new()),
            there("services/a/other", None, new()),
            there("deep", None, What::Directory),
            there("deep/.git", None, What::Directory),
            gone(&host, "two"),
            there("deep/moved", from("two"), What::File(Contents { len: 1, stored: Stored::Below })),
        ];
        scene.overlay(0, "/work", &host, "", &lines);
        assert_eq!(scene.apply(None).unwrap(), 5);
        assert_eq!(read_text(&host.join("deep/moved")), "2");
        // The masks are those of names in a directory: a single file is mounted as a whole.
        scene.overlay(0, "/conf", &host, "fixed", &[there("fixed", from("fixed"), new())]);
        assert_eq!(scene.apply(None).unwrap(), 1);
    }

    #[test]
    fn another_directory_of_the_same_path_is_left_alone() {
        let scene = Scene::new(true);
        let host = scene.host("host");
        scene.overlay(0, "/work", &host, "", &[there("new", None, text("n"))]);
        fs::rename(&host, host.with_extension("moved")).unwrap();
        let other = scene.host("host");
        let refused = scene.read(None).unwrap_err();
        assert!(matches!(&refused, Error::OtherDirectory(path) if *path == other), "{refused}");
        fs::remove_dir_all(&other).unwrap();
        fs::rename(host.with_extension("moved"), &host).unwrap();
        assert_eq!(scene.apply(None).unwrap(), 1);
        assert_eq!(read_text(&host.join("new")), "n");
    }
}
