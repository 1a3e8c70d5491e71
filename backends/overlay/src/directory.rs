//! The names in one directory, and the order in which they are listed.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use fuse::{Errno, NodeId, Result};

use crate::space::{Charge, Space};

/// Bytes that each name is charged for, besides its own.
const NAME_COST: u64 = 192;

/// The first name's place in a list, behind `.` and `..`.
const FIRST: u32 = 3;

/// A directory.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) parent: NodeId,
    /// The directory has no name any more, and takes none in.
    pub(crate) is_removed: bool,
    names: HashMap<Arc<[u8]>, Named>,
    /// How many of them are only below.
    only_below: usize,
    /// Names by their place: it stays what it is while others come and go.
    order: BTreeMap<u32, Arc<[u8]>>,
    next: u32,
}

/// The meaning of a name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum What {
    /// A name given here. It may hide one of the directory below.
    Here { node: NodeId, hides: bool },
    /// One of the directory below, as it was when last looked at.
    Below(NodeId),
    /// One of the directory below that stays whatever becomes of it there: its file, or one in it, was changed here.
    Kept(NodeId),
    /// A name of the directory below that was taken away here.
    Hidden,
}

impl What {
    pub(crate) fn node(self) -> Option<NodeId> {
        match self {
            Self::Here { node, .. } | Self::Below(node) | Self::Kept(node) => Some(node),
            Self::Hidden => None,
        }
    }

    fn is_only_below(self) -> bool {
        matches!(self, Self::Below(_))
    }

    fn is_over_one(self) -> bool {
        !matches!(self, Self::Here { hides: false, .. })
    }
}

#[derive(Debug)]
struct Named {
    what: What,
    /// Nothing for a name that is listed among those below.
    place: Option<u32>,
    charge: Charge,
}

/// A name that its directory no longer has, to be put into one or dropped.
#[derive(Debug)]
pub(crate) struct Loose {
    pub(crate) node: NodeId,
    charge: Charge,
}

impl Loose {
    /// A name for a node.
    pub(crate) fn new(name: &[u8], node: NodeId, space: &Arc<Space>) -> Result<Self> {
        Ok(Self { node, charge: space.charge(cost(name))? })
    }
}

impl Directory {
    pub(crate) fn new(parent: NodeId) -> Self {
        Self {
            parent,
            is_removed: false,
            names: HashMap::new(),
            only_below: 0,
            order: BTreeMap::new(),
            next: FIRST,
        }
    }

    /// Whether a name leads to a file that is only below.
    pub(crate) fn has_below(&self) -> bool {
        self.only_below > 0
    }

    /// Whether no name leads anywhere, but for those below that nobody has looked at.
    pub(crate) fn is_empty(&self) -> bool {
        self.names.values().all(|named| named.what == What::Hidden)
    }

    pub(crate) fn what(&self, name: &[u8]) -> Option<What> {
        self.names.get(name).map(|named| named.what)
    }

    pub(crate) fn get(&self, name: &[u8]) -> Option<NodeId> {
        self.what(name)?.node()
    }

    /// Refuses a name that could not be told apart from earlier ones when listed.
    pub(crate) fn check_room(&self) -> Result<()> {
        if self.next == u32::MAX { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    /// Puts a name in, for which there [is room](Self::check_room). It takes the place of one that is there.
    pub(crate) fn put(&mut self, name: &[u8], mut loose: Loose) {
        loose.charge.become_amount(cost(name));
        let Loose { node, charge } = loose;
        let (hides, place) = match self.names.get(name) {
            Some(named) => (named.what.is_over_one(), named.place),
            None => (false, None),
        };
        self.insert(name, What::Here { node, hides }, place, charge);
    }

    fn insert(&mut self, name: &[u8], what: What, place: Option<u32>, charge: Charge) {
        let name = Arc::<[u8]>::from(name);
        let place = place.unwrap_or_else(|| {
            let place = self.next;
            self.next = self.next.saturating_add(1);
            self.order.insert(place, name.clone());
            place
        });
        self.set(name, Named { what, place: Some(place), charge });
    }

    fn set(&mut self, name: Arc<[u8]>, named: Named) {
        self.only_below += usize::from(named.what.is_only_below());
        let former = self.names.insert(name, named);
        self.only_below -= usize::from(former.is_some_and(|former| former.what.is_only_below()));
    }

    fn unset(&mut self, name: &[u8]) -> Option<Named> {
        let former = self.names.remove(name)?;
        self.only_below -= usize::from(former.what.is_only_below());
        Some(former)
    }

    /// Has a name that is there lead to another node.
    pub(crate) fn lead(&mut self, name: &[u8], node: NodeId) {
        let Some(Named { what, place, mut charge }) = self.unset(name) else { return };
        charge.become_amount(cost(name));
        self.insert(name, What::Here { node, hides: what.is_over_one() }, place, charge);
    }

    /// Takes a name away. One of the directory below is hidden from then on.
    pub(crate) fn take(&mut self, name: &[u8]) -> Result<Loose> {
        let named = self.names.get_mut(name).ok_or(Errno::ENOENT)?;
        let node = named.what.node().ok_or(Errno::ENOENT)?;
        let place = named.place.take();
        let charge = named.charge.split();
        if named.what.is_over_one() {
            self.only_below -= usize::from(named.what.is_only_below());
            named.what = What::Hidden;
            named.charge.become_amount(cost(name));
        } else {
            self.unset(name);
        }
        place.and_then(|place| self.order.remove(&place));
        Ok(Loose { node, charge })
    }

    /// Notes a name of the directory below.
    pub(crate) fn note_below(&mut self, name: &Arc<[u8]>, node: NodeId, nothing: Charge) {
        self.set(name.clone(), Named { what: What::Below(node), place: None, charge: nothing });
    }

    /// Forgets a name of the directory below, if that is all it is.
    pub(crate) fn forget_below(&mut self, name: &[u8]) {
        if self.what(name).is_some_and(What::is_only_below) {
            self.unset(name);
        }
    }

    /// A name of the directory below stays from now on.
    pub(crate) fn keep(&mut self, name: &[u8]) -> Result<()> {
        let next = self.next;
        let Some(named) = self.names.get_mut(name) else { return Ok(()) };
        let What::Below(node) = named.what else { return Ok(()) };
        if next == u32::MAX {
            return Err(Errno::ENOSPC);
        }
        named.charge.grow(cost(name))?;
        named.what = What::Kept(node);
        self.only_below -= 1;
        named.place = Some(next);
        self.next += 1;
        self.order.insert(next, name.into());
        Ok(())
    }

    /// The names behind a place that were given or kept here, each with its place.
    pub(crate) fn behind(&self, place: u32) -> impl Iterator<Item = (u32, &Arc<[u8]>, What)> {
        let later = self.order.range(place.saturating_add(1)..);
        later.filter_map(|(place, name)| Some((*place, name, self.what(name)?)))
    }
}

fn cost(name: &[u8]) -> u64 {
    NAME_COST.saturating_add(u64::try_from(name.len()).unwrap_or(u64::MAX))
}
