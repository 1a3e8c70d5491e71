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
    /// Names by their place: it stays what it is while others come and go.
    order: BTreeMap<u32, Arc<[u8]>>,
    next: u32,
}

#[derive(Debug)]
struct Named {
    node: NodeId,
    place: u32,
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
        Self { parent, is_removed: false, names: HashMap::new(), order: BTreeMap::new(), next: FIRST }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.names.is_empty()
    }

    pub(crate) fn get(&self, name: &[u8]) -> Option<NodeId> {
        self.names.get(name).map(|named| named.node)
    }

    /// Refuses a name that could not be told apart from earlier ones when listed.
    pub(crate) fn check_room(&self) -> Result<()> {
        if self.next == u32::MAX { Err(Errno::ENOSPC) } else { Ok(()) }
    }

    /// Puts a name in, for which there [is room](Self::check_room). It takes the place of one that is there.
    pub(crate) fn put(&mut self, name: &[u8], mut loose: Loose) {
        loose.charge.become_amount(cost(name));
        let Loose { node, charge } = loose;
        if let Some(named) = self.names.get_mut(name) {
            *named = Named { node, place: named.place, charge };
            return;
        }
        let (place, name) = (self.next, Arc::<[u8]>::from(name));
        self.next = self.next.saturating_add(1);
        self.order.insert(place, name.clone());
        self.names.insert(name, Named { node, place, charge });
    }

    /// Has a name that is there lead to another node.
    pub(crate) fn lead(&mut self, name: &[u8], node: NodeId) {
        if let Some(named) = self.names.get_mut(name) {
            named.node = node;
        }
    }

    pub(crate) fn take(&mut self, name: &[u8]) -> Result<Loose> {
        let Named { node, place, charge } = self.names.remove(name).ok_or(Errno::ENOENT)?;
        self.order.remove(&place);
        Ok(Loose { node, charge })
    }

    /// The names behind a place, each with its place and node.
    pub(crate) fn behind(&self, place: u32) -> impl Iterator<Item = (u32, &[u8], NodeId)> {
        let later = self.order.range(place.saturating_add(1)..);
        later.filter_map(|(place, name)| Some((*place, &**name, self.get(name)?)))
    }
}

fn cost(name: &[u8]) -> u64 {
    NAME_COST.saturating_add(u64::try_from(name.len()).unwrap_or(u64::MAX))
}
