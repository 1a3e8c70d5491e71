//! Changes that the host makes in a directory while a guest has it: what its events mean for the guest.
//!
//! An event says that something happened to a name; what is there now decides what the guest is told. The guest's
//! own acts are not told.

use std::ffi::{CStr, CString};
use std::os::fd::AsFd;
use std::sync::Arc;
use std::time::Duration;

use fuse::{Attributes, Entry, Name, NodeId};

use super::{Caching, HostFs};
use crate::nodes::{MAX_DEPTH, Node};
use crate::sys::{self, Found, Kind};
use crate::watches::{Acting, Batch, Changing, Event, Watches, What};

/// How many events lie between the two halves of a move at most: those of the same directory in other folders.
const BETWEEN_HALVES: usize = 64;

/// A change that the host made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The folder's number.
    pub folder: usize,
    /// The directory.
    pub directory: NodeId,
    /// The directory's path from the folder's root on, as the guest knows it; empty for the root.
    pub path: Vec<u8>,
    /// A name in it.
    pub name: CString,
    /// The thing that happened to the name.
    pub act: Act,
}

/// The thing that happened to a name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// The name is new.
    Appeared(Made),
    /// The name is gone.
    Vanished {
        /// Whether it was a directory's.
        directory: bool,
    },
    /// The file has another name.
    Moved {
        /// The directory of the new name.
        to_directory: NodeId,
        /// That directory's path.
        to_path: Vec<u8>,
        /// The new name.
        to: CString,
        /// The type of the file.
        made: Made,
    },
    /// The contents are others.
    Written,
    /// Attributes are others.
    Changed,
}

/// The type of a file that has a new name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Made {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Link,
}

impl Made {
    /// Nothing for what the host's devices, FIFOs and sockets are: a guest has no use for them.
    fn of(kind: Kind) -> Option<Self> {
        match kind {
            Kind::File => Some(Self::File),
            Kind::Directory => Some(Self::Directory),
            Kind::SymbolicLink => Some(Self::Link),
            Kind::Special => None,
        }
    }

    /// Whether a file with this `st_mode` is one.
    pub(crate) fn is(self, mode: u32) -> bool {
        Self::of(Kind::of_mode(mode)) == Some(self)
    }
}

impl HostFs {
    /// Has the directories watched that the guest looks into, as those of the folder with this number; only once. Nobody
    /// changes a directory that is cached for good.
    pub fn watch(&self, folder: usize, watches: &Arc<Watches>) {
        if self.options.caching != Caching::Always {
            let _ = self.watching.set((folder, Arc::clone(watches)));
        }
    }

    /// Watches the root, which the guest has without looking.
    pub fn watch_root(&self) {
        self.look_into(self.nodes.root());
    }

    /// The guest looks into a directory.
    pub(super) fn look_into(&self, node: &Arc<Node>) {
        if let Some((folder, watches)) = self.watching.get() {
            watches.watch(*folder, node, || self.nodes.descriptor(node).ok());
        }
    }

    /// The guest is about to act on a name.
    pub(super) fn acting(&self, parent: &Node, name: Name<'_>) -> Option<Acting> {
        let (folder, watches) = self.watching.get()?;
        watches.acting(*folder, parent, name.as_c_str())
    }

    /// The guest is about to change a file.
    pub(super) fn changing<'a>(&'a self, node: &'a Node) -> Option<Changing<'a>> {
        self.watching.get().and_then(|(_, watches)| watches.changing(node))
    }

    /// The meaning of the next event of a batch, which is of this folder; nothing if the guest is not to be told.
    pub fn next_change(&self, batch: &mut Batch) -> Option<Change> {
        let (folder, event) = batch.events.pop_front()?;
        let (own, watches) = self.watching.get()?;
        let other = match event.what {
            What::MovedFrom(number) => take_other_half(batch, folder, number),
            _ => None,
        };
        let is_own = |event: &Event| watches.is_own(batch.number, *own, &event.directory, &event.name);
        if folder != *own || is_own(&event) || other.as_ref().is_some_and(is_own) {
            return None;
        }
        let act = if let Some(other) = other {
            self.moved(batch, folder, &event, other)?
        } else {
            let found = self.now(&event.directory, &event.name);
            match event.what {
                What::Appeared | What::MovedTo(_) => self.appeared(batch, folder, &event, found)?,
                What::Vanished | What::MovedFrom(_) => self.vanished(batch, folder, &event, found)?,
                What::Written => self.changed(batch, folder, &event, found, Act::Written)?,
                What::Changed => self.changed(batch, folder, &event, found, Act::Changed)?,
            }
        };
        let path = path(&event.directory)?;
        Some(Change { folder, directory: event.directory.id, path, name: event.name, act })
    }

    /// The file that the host has at a name.
    fn now(&self, directory: &Arc<Node>, name: &CStr) -> Option<Found> {
        let directory = self.nodes.descriptor(directory).ok()?;
        sys::stat_at(directory.as_fd(), name).ok()
    }

    /// The file that the kernel has been told of under a name, if the host has another one there by now, or none.
    fn former(&self, directory: &Node, name: &CStr, found: Option<&Found>) -> Option<Arc<Node>> {
        let child = directory.child(name)?;
        Some(child).filter(|child| found.is_none_or(|found| found.identity != child.identity))
    }

    fn appeared(&self, batch: &mut Batch, folder: usize, event: &Event, found: Option<Found>) -> Option<Act> {
        let Some(found) = found else {
            batch.passed.insert((folder, event.directory.id, event.name.clone()));
            return None;
        };
        if let (What::MovedTo(_), Some(former)) =
            (event.what, self.former(&event.directory, &event.name, Some(&found)))
        {
            // Another file had the name: it goes first.
            let (directory, name) = (event.directory.clone(), event.name.clone());
            let again = Event { directory, name, what: What::Appeared, is_directory: event.is_directory };
            batch.events.push_front((folder, again));
            return Some(Act::Vanished { directory: former.kind == Kind::Directory });
        }
        Made::of(found.kind()).map(Act::Appeared)
    }

    fn vanished(&self, batch: &mut Batch, folder: usize, event: &Event, found: Option<Found>) -> Option<Act> {
        if batch.passed.remove(&(folder, event.directory.id, event.name.clone())) {
            return None;
        }
        if found.is_none() {
            return Some(Act::Vanished { directory: event.is_directory });
        }
        // Another file has the name by now.
        let former = self.former(&event.directory, &event.name, found.as_ref())?;
        Some(Act::Vanished { directory: former.kind == Kind::Directory })
    }

    fn moved(&self, batch: &mut Batch, folder: usize, event: &Event, other: Event) -> Option<Act> {
        let gone = Act::Vanished { directory: event.is_directory };
        let passed = batch.passed.remove(&(folder, event.directory.id, event.name.clone()));
        let found = self.now(&other.directory, &other.name);
        let Some(made) = found.and_then(|found| Made::of(found.kind())) else {
            // It has gone on from there.
            if found.is_none() {
                batch.passed.insert((folder, other.directory.id, other.name.clone()));
            }
            return Some(gone).filter(|_| !passed);
        };
        let Some(to_path) = path(&other.directory) else { return Some(gone).filter(|_| !passed) };
        Some(Act::Moved { to_directory: other.directory.id, to_path, to: other.name, made })
    }

    fn changed(
        &self,
        batch: &mut Batch,
        folder: usize,
        event: &Event,
        found: Option<Found>,
        act: Act,
    ) -> Option<Act> {
        let node = self.nodes.known(found?.identity);
        if node.is_some_and(|node| node.acts.is_own(batch.number)) {
            return None;
        }
        let first = batch.told.insert((folder, event.directory.id, event.name.clone(), event.what));
        first.then_some(act)
    }

    /// The entry of the file that the kernel has been told of under a name, although the host has another file there, or
    /// none. The kernel then has one reference more.
    pub(crate) fn former_entry(&self, parent: NodeId, name: Name<'_>) -> Option<Entry> {
        let parent = self.nodes.get(parent).ok()?;
        let found = self.now(&parent, name.as_c_str());
        let node = self.former(&parent, name.as_c_str(), found.as_ref())?;
        if !self.nodes.again(&node) {
            return None;
        }
        let mode = node.told().0 & 0o7777 | node.kind.type_bits();
        let attributes = Attributes { ino: node.identity.ino, mode, links: 1, ..Attributes::default() };
        let mut entry = self.entry_of(&node, self.attributes_of(&node).unwrap_or(attributes));
        (entry.valid, entry.stat.valid) = (Duration::ZERO, Duration::ZERO);
        Some(entry)
    }
}

/// The second half of a move.
fn take_other_half(batch: &mut Batch, folder: usize, number: u32) -> Option<Event> {
    let is_other = |(of, event): &(usize, Event)| *of == folder && event.what == What::MovedTo(number);
    let at = batch.events.iter().take(BETWEEN_HALVES).position(is_other)?;
    batch.events.remove(at).map(|(_, event)| event)
}

/// The path by which the guest knows a directory, from the root on; nothing if it has none any more.
fn path(directory: &Arc<Node>) -> Option<Vec<u8>> {
    let (mut names, mut node) = (Vec::new(), directory.clone());
    while node.id != NodeId::ROOT {
        // Directories that are moved meanwhile may seem to be in each other.
        if names.len() == MAX_DEPTH {
            return None;
        }
        let place = node.place()?;
        names.push(place.name.clone());
        node = place.parent.clone();
    }
    names.reverse();
    Some(names.iter().map(|name| name.to_bytes()).collect::<Vec<_>>().join(&b'/'))
}
