//! The meaning of a list: each path that is another one than it was, and how.

use std::collections::BTreeMap;

use crate::{Base, Conflict, Contents, List, Place, Stored, There, What};

/// How a path is another one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// There was none.
    Added,
    /// The file is another one, or has other contents.
    Modified,
    /// There is none.
    Deleted,
    /// The file had another path.
    Renamed,
    /// The file has other permissions.
    Attributes,
}

/// A path that is another one than it was.
#[derive(Debug, Clone)]
pub struct Change {
    /// How.
    pub kind: Kind,
    /// The path, as the guest has it; of what is deleted, as the directory has it.
    pub place: Place,
    /// The path in the directory of what is renamed, or of a file whose further name is added.
    pub from: Option<Place>,
    /// The file in the directory that is deleted, renamed or changed.
    pub was: Option<Base>,
    /// The file as it is now, unless it is deleted.
    pub now: Option<There>,
    /// The file's path in the directory, if it has one there, and before any rename.
    pub origin: Option<Place>,
    /// The path in the directory that `place` stands for before any rename; none in a directory that is new.
    pub(crate) on_host: Option<Place>,
    /// The path of `from` in the guest's view, for a file whose further name is added.
    pub(crate) linked: Option<Place>,
    /// The objection to taking it over, if it was [judged](crate::judge()) and there is one.
    pub conflict: Option<Conflict>,
}

impl Change {
    /// Whether contents of the file are the guest's.
    #[must_use]
    pub fn has_contents(&self) -> bool {
        self.contents().is_some_and(|contents| contents.stored != Stored::Below)
    }

    /// Contents of the file, if it is a regular one.
    #[must_use]
    pub fn contents(&self) -> Option<&Contents> {
        match &self.now.as_ref()?.what {
            What::File(contents) => Some(contents),
            What::Directory | What::Link(_) | What::Special => None,
        }
    }

    /// The path in the directory of the file that has the contents, where nobody changed them ([`Stored::Below`]).
    #[must_use]
    pub fn source(&self) -> Option<&Place> {
        self.from.as_ref().or(self.origin.as_ref())
    }

    /// The change's name among others of one list.
    pub(crate) fn key(&self) -> (&Place, bool) {
        (&self.place, self.now.is_some())
    }

    /// The path in the directory that leads to another file, or to none, once the change is taken over.
    pub(crate) fn taken(&self) -> Option<&Place> {
        match self.kind {
            Kind::Deleted => Some(&self.place),
            Kind::Renamed => self.from.as_ref(),
            Kind::Modified => self.origin.as_ref(),
            Kind::Added | Kind::Attributes => None,
        }
    }

    /// Whether the guest has a directory there.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        match &self.now {
            Some(there) => there.what == What::Directory,
            None => self.was.is_some_and(|was| was.is_directory()),
        }
    }
}

/// The meaning of a list.
struct Meaning<'a> {
    list: &'a List,
    /// The new path of each file that has left its own, by the latter.
    moved: BTreeMap<&'a Place, &'a Place>,
}

/// All changes of a list, by path.
#[must_use]
pub fn changes(list: &List) -> Vec<Change> {
    let mut moved = BTreeMap::new();
    for (place, there) in &list.there {
        let is_at_home = |origin: &Place| {
            list.there.get(origin).is_some_and(|other| other.origin.as_ref() == Some(origin))
        };
        if let Some(origin) = &there.origin
            && list.gone.contains_key(origin)
            && !is_at_home(origin)
        {
            moved.entry(origin).or_insert(place);
        }
    }
    let meaning = Meaning { list, moved };
    let there = list.there.values().filter_map(|there| meaning.change(there));
    let gone = list.gone.iter().filter_map(|(place, was)| meaning.loss(place, was));
    let mut all: Vec<Change> = there.chain(gone).collect();
    all.sort_by(|one, other| one.place.cmp(&other.place));
    all
}

/// Those changes that are at or below `above`, in either view, and those in directories that are renamed with them.
#[must_use]
pub fn below(changes: Vec<Change>, above: &Place) -> Vec<Change> {
    chosen(changes, above, false)
}

/// The same, with the directories that they are in as far as those are new or renamed.
#[must_use]
pub fn below_with_directories(changes: Vec<Change>, above: &Place) -> Vec<Change> {
    chosen(changes, above, true)
}

fn chosen(changes: Vec<Change>, above: &Place, with_directories: bool) -> Vec<Change> {
    let is_at = |change: &Change| {
        let from = change.from.as_ref().filter(|_| change.kind == Kind::Renamed);
        change.place.is_within(above) || from.is_some_and(|from| from.is_within(above))
    };
    let (mut chosen, mut rest): (Vec<_>, Vec<_>) = changes.into_iter().partition(is_at);
    let mut seen = 0;
    while let Some(one) = chosen.get(seen).cloned() {
        seen += 1;
        let goes_with =
            |other: &mut Change| is_moved_with(other, &one) || with_directories && is_in(&one, other);
        chosen.extend(rest.extract_if(.., goes_with));
    }
    chosen.sort_by(|one, other| one.place.cmp(&other.place));
    chosen
}

/// Whether a change is of something in a directory that another one renames.
fn is_moved_with(change: &Change, renamed: &Change) -> bool {
    let (Kind::Renamed, Some(from), true) = (renamed.kind, &renamed.from, renamed.is_directory()) else {
        return false;
    };
    change.place.is_within(&renamed.place)
        || change.origin.as_ref().is_some_and(|origin| origin.is_within(from))
}

/// Whether a change is of something in a directory that another one makes.
fn is_in(change: &Change, directory: &Change) -> bool {
    directory.now.is_some()
        && directory.is_directory()
        && change.now.is_some()
        && change.place.is_within(&directory.place)
}

impl Meaning<'_> {
    fn change(&self, there: &There) -> Option<Change> {
        let was_here = self.was_here(&there.place);
        let change = |kind, from: Option<&Place>, was: Option<Base>, origin: Option<&Place>| {
            Some(Change {
                kind,
                place: there.place.clone(),
                from: from.cloned(),
                was,
                now: Some(there.clone()),
                origin: origin.cloned(),
                on_host: self.on_host(&there.place),
                linked: None,
                conflict: None,
            })
        };
        let Some(origin) = &there.origin else {
            return match was_here {
                // The host's directory stays, as what is in it may.
                Some(was) if was.is_directory() && there.what == What::Directory => {
                    let is_other = was.mode & 0o777 != there.mode & 0o777;
                    change(Kind::Attributes, None, Some(*was), Some(&there.place)).filter(|_| is_other)
                }
                Some(was) => change(Kind::Modified, None, Some(*was), Some(&there.place)),
                None => change(Kind::Added, None, None, None),
            };
        };
        let has_contents = matches!(&there.what, What::File(contents) if contents.stored != Stored::Below);
        if self.now(origin).as_ref() == Some(&there.place) && !self.moved.contains_key(origin) {
            let has_mode = there.was.is_none_or(|was| was.mode & 0o777 == there.mode & 0o777);
            let can_have_one = matches!(there.what, What::Directory | What::File(_));
            return match (has_contents, has_mode || !can_have_one) {
                (true, _) => change(Kind::Modified, None, there.was, Some(origin)),
                (false, false) => change(Kind::Attributes, None, there.was, Some(origin)),
                (false, true) => None,
            };
        }
        if self.moved.get(origin) == Some(&&there.place) {
            return change(Kind::Renamed, Some(origin), there.was, Some(origin));
        }
        // A further name.
        let kind = if was_here.is_some() { Kind::Modified } else { Kind::Added };
        let further = change(kind, Some(origin), was_here.copied(), was_here.map(|_| &there.place))?;
        Some(Change { linked: self.now(origin), ..further })
    }

    /// The file that had a path of the directory, if it is elsewhere in neither view.
    fn was_here(&self, place: &Place) -> Option<&Base> {
        self.list.gone.get(place).filter(|_| !self.moved.contains_key(place))
    }

    fn loss(&self, place: &Place, was: &Base) -> Option<Change> {
        // The file that has the path now is told of, unless it came from elsewhere.
        let is_told = |there: &There| {
            let origin = there.origin.as_ref();
            origin.is_none_or(|origin| self.moved.get(origin) != Some(&place))
        };
        if self.list.there.get(place).is_some_and(is_told) || self.moved.contains_key(place) {
            return None;
        }
        Some(Change {
            kind: Kind::Deleted,
            place: place.clone(),
            from: None,
            was: Some(*was),
            now: None,
            origin: Some(place.clone()),
            on_host: Some(place.clone()),
            linked: None,
            conflict: None,
        })
    }

    /// The place of a path of the directory in the guest's view, as far as directories were renamed.
    fn now(&self, origin: &Place) -> Option<Place> {
        if let Some(place) = self.moved.get(origin) {
            return Some((*place).clone());
        }
        match origin.parent() {
            Some(parent) => self.now(&parent)?.join(origin.name()),
            None => Some(origin.clone()),
        }
    }

    /// The place of a path of the guest's view in the directory, as far as directories were renamed.
    fn on_host(&self, place: &Place) -> Option<Place> {
        let Some(parent) = place.parent() else { return Some(place.clone()) };
        let below = match self.list.there.get(&parent) {
            Some(There { origin: Some(origin), .. }) => origin.clone(),
            // A directory in place of one that was removed is that one, on the host.
            Some(_) if self.was_here(&parent).is_some_and(Base::is_directory) => self.on_host(&parent)?,
            Some(_) => return None,
            None => self.on_host(&parent)?,
        };
        below.join(place.name())
    }
}
