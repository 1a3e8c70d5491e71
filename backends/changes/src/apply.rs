//! Changes taken over: all of them, or none.
//!
//! ```text
//! everything new is made in a directory beside it all, .matchlock-N
//! a list there, undo, tells where what will be taken away was
//! directories that get other permissions, or move, are opened for their owner
//! what is removed, replaced or renamed is moved there, from the deepest path up, and looked at again
//! what is new or renamed is moved to its path, from the top down
//! files get their permissions, from the deepest path up
//! the file system writes it all to its disk
//! what was removed or replaced is looked at once more, and deleted
//! ```
//!
//! So a disk that is full ends it before anything has changed, every further step is a rename or as small as one, and what
//! was done is undone where a later step fails.

use std::collections::BTreeMap;
use std::io::Write;

use crate::host::finish;
use crate::judge::{has_same_contents, judge};
use crate::{Base, Change, Conflict, Error, Host, Kept, Kind, NotUndone, Place, Result, What};

/// Takes changes over, and returns how many; `tell` hears how many steps of how many are done.
///
/// Devices, FIFOs and sockets are not made. A change that is too late keeps all of them from being taken over.
pub fn apply(
    changes: Vec<Change>,
    host: &Host,
    kept: &Kept,
    tell: &mut dyn FnMut(usize, usize),
) -> Result<usize> {
    let judged = judge(changes, host, kept)?;
    let conflicts = || judged.iter().filter_map(|change| Some((change, change.conflict.clone()?)));
    if let Some((first, conflict)) = conflicts().next() {
        let (place, others) = (first.place.clone(), conflicts().count() - 1);
        return Err(Error::Conflict { place, conflict, others });
    }
    let changes: Vec<Change> = judged.into_iter().filter(is_made).collect();
    if changes.is_empty() {
        // The sandbox's own copy is deleted next, and an earlier `apply` may have been ended before it came so far.
        return host.sync().map(|()| 0);
    }
    let total = changes.len().saturating_mul(2);
    let staging = stage(host)?;
    let (undo, removed, modes) = (Vec::new(), Vec::new(), Vec::new());
    let mut work = Work { host, kept, staging, number: 0, undo, removed, modes };
    let mut told = 0;
    let done = work.all(&changes, &mut || {
        told += 1;
        tell(told, total);
    });
    if let Err(why) = done {
        let left = work.undo();
        return Err(if left.is_empty() { why } else { Error::Stuck { why: Box::new(why), left } });
    }
    work.clear()?;
    Ok(changes.len())
}

fn is_made(change: &Change) -> bool {
    !change.now.as_ref().is_some_and(|there| there.what == What::Special && change.kind != Kind::Renamed)
}

fn changed(place: &Place) -> Error {
    Error::Conflict { place: place.clone(), conflict: Conflict::Changed, others: 0 }
}

/// Makes the directory beside it all.
fn stage(host: &Host) -> Result<Place> {
    for number in 0..64u8 {
        let Some(place) = Place::new(format!(".matchlock-{number}").as_bytes()) else { continue };
        if host.look(&place)?.is_none() {
            return host.make_directory(&place).map(|_| place);
        }
    }
    Err(Error::at(&".matchlock-*")(std::io::Error::from(std::io::ErrorKind::AlreadyExists)))
}

/// The list of what was taken away, in the directory beside it all.
fn undo_list(staging: &Place) -> Result<Place> {
    staging.join(b"undo").ok_or(Error::TooLong)
}

/// A file that is to be taken from its path.
struct Take<'a> {
    change: &'a Change,
    place: &'a Place,
    was: Base,
    /// The path beside it all that it gets; none of a directory that is removed.
    at: Option<Place>,
}

impl Take<'_> {
    /// The line that tells how it is undone.
    fn told(&self) -> String {
        let how = self.at.as_ref().map_or("mkdir".into(), |at| String::from_utf8_lossy(at.name()));
        match str::from_utf8(self.place.as_bytes()) {
            Ok(path) => format!("{how} {path:?}\n"),
            Err(_) => format!("{how} b\"{}\"\n", self.place.as_bytes().escape_ascii()),
        }
    }
}

/// A step that was done, as what undoes it.
enum Undo {
    /// Moves a file from one path to the other.
    Move(Place, Place),
    /// Removes a file, or an empty directory.
    Remove(Place, bool),
    /// Makes a directory with a mode.
    Make(Place, u32),
    /// Gives the file that was there its mode.
    SetMode(Mode),
}

/// The permissions of a directory that its owner needs to work in it.
const OWNER: u32 = 0o700;

/// Set-user-id, set-group-id and sticky.
const SPECIAL: u32 = 0o7000;

/// A mode that a file gets if it still is the one at its path.
struct Mode {
    place: Place,
    file: Base,
    mode: u32,
}

/// A file in the directory beside it all that nobody wants.
struct Removed {
    at: Place,
    /// The path that it had.
    place: Place,
    was: Base,
}

struct Work<'a> {
    host: &'a Host,
    kept: &'a Kept,
    staging: Place,
    number: u64,
    undo: Vec<Undo>,
    removed: Vec<Removed>,
    /// Set last: a directory may be one that nobody may write to then.
    modes: Vec<Mode>,
}

impl Work<'_> {
    fn all(&mut self, changes: &[Change], tell: &mut dyn FnMut()) -> Result<()> {
        let mut made = self.make(changes, tell)?;
        self.open(changes)?;
        let mut moved = BTreeMap::new();
        for take in self.takes(changes)? {
            if let Some(taken) = self.take(take)? {
                moved.insert(taken.0, taken.1);
            }
        }
        let (links, others): (Vec<_>, Vec<_>) =
            changes.iter().partition(|change| matches!(made.get(&change.place), Some(Made::Link(_))));
        for change in others.into_iter().chain(links) {
            self.put(change, &mut made, &mut moved)?;
            tell();
        }
        self.removed.extend(moved.into_values());
        self.set_modes()?;
        // Files that were removed or replaced, and the sandbox's own copy of what is new, are deleted next.
        self.host.sync()?;
        // A program of the host's that has one of them open may have written since.
        self.removed.iter().try_for_each(|gone| self.check(&gone.at, &gone.place, &gone.was).map(drop))
    }

    /// Looks at a file at `place`, or moved from there beside it all: the judgement is older, and the host may have changed
    /// the file since.
    fn check(&self, at: &Place, place: &Place, was: &Base) -> Result<Base> {
        let found = self.host.look(at)?.map(|found| found.base);
        found.filter(|found| has_same_contents(found, was)).ok_or_else(|| changed(place))
    }

    /// A path in the directory beside it all.
    fn beside(&mut self) -> Result<Place> {
        self.number += 1;
        let place = self.staging.join(self.number.to_string().as_bytes());
        place.ok_or(Error::TooLong)
    }

    /// Makes every file that is new.
    fn make(&mut self, changes: &[Change], tell: &mut dyn FnMut()) -> Result<BTreeMap<Place, Made>> {
        let (mut made, mut first) = (BTreeMap::new(), BTreeMap::new());
        for change in changes {
            tell();
            let Some(there) = change.now.as_ref().filter(|_| change.kind != Kind::Attributes) else {
                continue;
            };
            if change.kind == Kind::Renamed && !change.has_contents() {
                continue;
            }
            let what = match (&there.what, &change.linked, first.get(&there.file)) {
                (What::Directory, ..) => Made::Directory,
                (What::Special, ..) => continue,
                (_, Some(linked), _) if !change.has_contents() => Made::Link(linked.clone()),
                (What::File(_), _, Some(first)) => Made::Link(Place::clone(first)),
                (What::Link(target), ..) => {
                    let at = self.beside()?;
                    self.host.make_link(&at, target)?;
                    self.undo.push(Undo::Remove(at.clone(), false));
                    Made::At(at)
                }
                (What::File(contents), _, None) => {
                    first.insert(there.file, change.place.clone());
                    let at = self.beside()?;
                    let file = self.host.create(&at)?;
                    self.undo.push(Undo::Remove(at.clone(), false));
                    let source = self.kept.open(contents, change.source(), self.host);
                    let copied = source.and_then(|mut source| source.copy(contents.len, &file));
                    copied
                        .and_then(|()| finish(&file, there.mode, there.mtime))
                        .map_err(Error::at(&change.place))?;
                    Made::At(at)
                }
            };
            made.insert(change.place.clone(), what);
        }
        Ok(made)
    }

    /// The files to be taken from their paths, from the deepest up, and where each goes; a list beside them tells that to
    /// people, should this process be ended on the way.
    fn takes<'a>(&mut self, changes: &'a [Change]) -> Result<Vec<Take<'a>>> {
        let mut takes = Vec::new();
        for change in changes {
            let (Some(place), Some(was)) = (change.taken(), change.was) else { continue };
            let is_moved = !was.is_directory() || change.kind == Kind::Renamed;
            let at = if is_moved { Some(self.beside()?) } else { None };
            takes.push(Take { change, place, was, at });
        }
        takes.sort_by(|one, other| one.place.cmp(other.place));
        if !takes.is_empty() {
            let at = undo_list(&self.staging)?;
            let lines: String = takes.iter().map(Take::told).collect();
            let mut list = self.host.create(&at)?;
            let written = list.write_all(lines.as_bytes()).and_then(|()| list.sync_all());
            written.map_err(Error::at(&at))?;
        }
        takes.reverse();
        Ok(takes)
    }

    /// Takes a file from its path; returns it, by its change's path, if it may be wanted elsewhere.
    fn take(&mut self, take: Take<'_>) -> Result<Option<(Place, Removed)>> {
        let Take { change, place, was, at } = take;
        let Some(at) = at else {
            let found = self.check(place, place, &was)?;
            self.host.remove(place, true)?;
            self.undo.push(Undo::Make(place.clone(), found.mode));
            return Ok(None);
        };
        self.host.rename(place, &at)?;
        self.undo.push(Undo::Move(at.clone(), place.clone()));
        self.check(&at, place, &was)?;
        let taken = Removed { at, place: place.clone(), was };
        if change.kind == Kind::Renamed {
            return Ok(Some((change.place.clone(), taken)));
        }
        self.removed.push(taken);
        Ok(None)
    }

    /// Gives a path what it is to have.
    fn put(
        &mut self,
        change: &Change,
        made: &mut BTreeMap<Place, Made>,
        moved: &mut BTreeMap<Place, Removed>,
    ) -> Result<()> {
        let (place, Some(there)) = (&change.place, &change.now) else { return Ok(()) };
        let at = match made.remove(place) {
            Some(Made::Directory) => {
                let file = self.host.make_directory(place)?;
                self.undo.push(Undo::Remove(place.clone(), true));
                self.modes.push(Mode { place: place.clone(), file, mode: there.mode });
                return Ok(());
            }
            Some(Made::Link(first)) => {
                self.host.link(&first, place)?;
                self.undo.push(Undo::Remove(place.clone(), false));
                return Ok(());
            }
            Some(Made::At(at)) => Some(at),
            None if change.kind == Kind::Renamed => moved.remove(place).map(|taken| taken.at),
            None => None,
        };
        if let Some(at) = at {
            self.host.rename(&at, place)?;
            self.undo.push(Undo::Move(place.clone(), at));
        }
        Ok(())
    }

    /// Notes the modes of files that stay, and opens their directories for the owner: what is in one may be moved, and a
    /// directory that moves is written to.
    fn open(&mut self, changes: &[Change]) -> Result<()> {
        let is_settable = |change: &&Change| match change.now.as_ref().map(|there| &there.what) {
            Some(What::Directory | What::File(_)) if change.kind == Kind::Renamed => !change.has_contents(),
            Some(What::Directory | What::File(_)) => change.kind == Kind::Attributes,
            _ => false,
        };
        let mut settable: Vec<&Change> = changes.iter().filter(is_settable).collect();
        settable.sort_by(|one, other| one.origin.cmp(&other.origin));
        for change in settable {
            let (Some(origin), Some(file), Some(there)) = (&change.origin, change.was, &change.now) else {
                continue;
            };
            let mut mode = Some(there.mode).filter(|mode| mode & 0o777 != file.mode & 0o777);
            if file.is_directory() {
                let before = self.set_mode(origin, &file, |mode| mode | OWNER)?;
                mode = mode.or(Some(before).filter(|before| before & OWNER != OWNER));
            }
            if let Some(mode) = mode {
                self.modes.push(Mode { place: change.place.clone(), file, mode });
            }
        }
        Ok(())
    }

    fn set_modes(&mut self) -> Result<()> {
        let mut modes = std::mem::take(&mut self.modes);
        modes.sort_by(|one, other| other.place.cmp(&one.place));
        for Mode { place, file, mode } in modes {
            // A directory's special bits are the host's; a program's go, as more people may run it now.
            let kept = if file.is_directory() { SPECIAL } else { 0 };
            self.set_mode(&place, &file, |found| found & kept | mode & 0o777)?;
        }
        Ok(())
    }

    /// Sets the mode of a file that is to be this one, and returns the one before.
    fn set_mode(&mut self, place: &Place, file: &Base, mode: impl FnOnce(u32) -> u32) -> Result<u32> {
        let before = self.host.set_mode(place, file, mode)?.ok_or_else(|| changed(place))?;
        self.undo.push(Undo::SetMode(Mode { place: place.clone(), file: *file, mode: before }));
        Ok(before)
    }

    /// Undoes everything, the last step first, and returns what cannot be undone.
    fn undo(&mut self) -> Vec<NotUndone> {
        let mut left = Vec::new();
        while let Some(step) = self.undo.pop() {
            left.extend(self.undo_one(step));
        }
        if left.is_empty()
            && let Err(why) = self.end()
        {
            left.push(NotUndone::Left { place: self.staging.clone(), why: Box::new(why) });
        }
        left
    }

    fn undo_one(&self, step: Undo) -> Option<NotUndone> {
        match step {
            Undo::Move(at, place) => {
                let why = Box::new(self.host.rename(&at, &place).err()?);
                Some(NotUndone::Moved { place, at, why })
            }
            Undo::Remove(place, is_directory) => {
                let why = self.host.remove(&place, is_directory).err().filter(|why| !why.is_not_found())?;
                Some(NotUndone::Left { place, why: Box::new(why) })
            }
            Undo::Make(place, mode) => {
                let made = self.host.make_directory(&place);
                let why = made.and_then(|file| self.host.set_mode(&place, &file, |_| mode)).err()?;
                Some(NotUndone::Gone { place, why: Box::new(why) })
            }
            Undo::SetMode(Mode { place, file, mode }) => {
                // Another file there is the host's, and has the mode that the host gave it.
                let why = self.host.set_mode(&place, &file, |_| mode).err()?;
                Some(NotUndone::Mode { place, why: Box::new(why) })
            }
        }
    }

    /// Deletes what nobody wants.
    fn clear(&self) -> Result<()> {
        self.removed.iter().try_for_each(|removed| self.host.remove(&removed.at, false))?;
        self.end()
    }

    /// Removes the directory beside it all.
    fn end(&self) -> Result<()> {
        match self.host.remove(&undo_list(&self.staging)?, false) {
            Err(why) if !why.is_not_found() => Err(why),
            _ => self.host.remove(&self.staging, true),
        }
    }
}

/// A file that is made, or that is made when its path is there.
enum Made {
    At(Place),
    /// A further name of the file that has this path then.
    Link(Place),
    Directory,
}
