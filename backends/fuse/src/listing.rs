//! A directory's list, filled entry by entry until the guest's buffer is full.

use fuse_abi::linux as abi;
use zerocopy::{FromBytes, IntoBytes};

use crate::{Entry, NodeId, encode};

/// Each entry begins at a multiple of this number of bytes.
const ALIGNMENT: usize = 8;

/// An entry of a directory.
#[derive(Debug, Clone, Copy)]
pub struct Listed<'a> {
    /// Number of the file, as programs see it.
    pub ino: u64,
    /// Where a list goes on that begins behind this entry; not 0.
    pub cookie: u64,
    /// Type of the file (`DT_*`).
    pub kind: u8,
    /// The entry's name, not empty; `.` and `..` are listed, too.
    pub name: &'a [u8],
}

/// The fate of an entry of a list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// The entry stays as it is.
    Stays,
    /// The entry stays, as one that was not looked up.
    WithoutNode,
    /// The entry goes.
    Goes,
}

/// Room for entries of a directory.
#[derive(Debug)]
pub struct Listing<'a> {
    bytes: &'a mut Vec<u8>,
    room: usize,
    nodes: bool,
    /// Bits that are set in each node's number.
    node_bits: u64,
}

impl<'a> Listing<'a> {
    /// Room for `room` bytes in `bytes`, which loses what it has.
    pub fn new(bytes: &'a mut Vec<u8>, room: usize, nodes: bool) -> Self {
        bytes.clear();
        Self { bytes, room, nodes, node_bits: 0 }
    }

    /// Whether the kernel wants to have each entry looked up, too. An entry without its node is fine all the same.
    pub fn wants_nodes(&self) -> bool {
        self.nodes
    }

    /// Sets these bits in the number of each node that is added from now on: a file system in front of several others tells
    /// their nodes apart by them.
    pub fn mark_nodes(&mut self, bits: u64) {
        self.node_bits = bits;
    }

    /// Whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// Bytes that the list may still get.
    pub fn room(&self) -> usize {
        self.room.saturating_sub(self.bytes.len())
    }

    /// Whether an entry with a name of `len` bytes fits: to be asked before it is looked up for the list, which gives
    /// the kernel a reference.
    pub fn has_room(&self, len: usize) -> bool {
        self.bytes.len() + self.len_of(len) <= self.room
    }

    /// Adds an entry, if it fits; the list ends with the first that does not.
    pub fn add(&mut self, listed: &Listed<'_>, entry: Option<&Entry>) -> bool {
        let (Ok(namelen), true) = (u32::try_from(listed.name.len()), self.has_room(listed.name.len())) else {
            return false;
        };
        if self.nodes {
            // Node 0 tells the kernel that it was not looked up.
            let marked = |entry: &Entry| Entry { node: NodeId(entry.node.0 | self.node_bits), ..*entry };
            let entry = entry.map(|entry| encode::entry(&marked(entry))).unwrap_or_default();
            self.bytes.extend_from_slice(entry.as_bytes());
        }
        for number in [listed.ino, listed.cookie] {
            self.bytes.extend_from_slice(&number.to_ne_bytes());
        }
        for number in [namelen, listed.kind.into()] {
            self.bytes.extend_from_slice(&number.to_ne_bytes());
        }
        self.bytes.extend_from_slice(listed.name);
        self.bytes.resize(self.bytes.len().next_multiple_of(ALIGNMENT), 0);
        true
    }

    /// The entries added so far, in order, for a file system that lists another one.
    pub fn entries(&self) -> impl Iterator<Item = Listed<'_>> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let (listed, _, len) = self.entry_at(at)?;
            at += len;
            Some(listed)
        })
    }

    /// Has `judge` look at each entry with its node, if it was looked up: for a layer before what made the list. A node
    /// that the kernel is not told of is the layer's to let go.
    pub fn sift(&mut self, mut judge: impl FnMut(&Listed<'_>, Option<NodeId>) -> Fate) {
        let (mut from, mut to) = (0, 0);
        while let Some((listed, node, len)) = self.entry_at(from) {
            let fate = judge(&listed, node);
            if fate == Fate::WithoutNode && self.nodes {
                self.bytes[from..from + size_of::<abi::fuse_entry_out>()].fill(0);
            }
            if fate != Fate::Goes {
                self.bytes.copy_within(from..from + len, to);
                to += len;
            }
            from += len;
        }
        self.bytes.truncate(to);
    }

    /// The entry that begins behind so many bytes, its node, and its length.
    fn entry_at(&self, at: usize) -> Option<(Listed<'_>, Option<NodeId>, usize)> {
        let rest = self.bytes.get(at..)?;
        let (node, rest) = if self.nodes {
            let (entry, rest) = abi::fuse_entry_out::read_from_prefix(rest).ok()?;
            (Some(NodeId(entry.nodeid & !self.node_bits)).filter(|node| node.0 != 0), rest)
        } else {
            (None, rest)
        };
        let (head, rest) = abi::fuse_dirent::read_from_prefix(rest).ok()?;
        let len = usize::try_from(head.namelen).ok()?;
        let name = rest.get(..len)?;
        let listed = Listed { ino: head.ino, cookie: head.off, kind: u8::try_from(head.type_).ok()?, name };
        Some((listed, node, self.len_of(len)))
    }

    /// Bytes of an entry with a name of `len` bytes.
    fn len_of(&self, len: usize) -> usize {
        let node = if self.nodes { size_of::<abi::fuse_entry_out>() } else { 0 };
        (node + size_of::<abi::fuse_dirent>() + len).next_multiple_of(ALIGNMENT)
    }

    /// The list.
    pub(crate) fn as_bytes(&self) -> &[u8] {
        self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Stat;

    fn listed(name: &[u8]) -> Listed<'_> {
        Listed { ino: 5, cookie: 6, kind: 8, name }
    }

    fn numbers(numbers: &[u64]) -> Vec<u8> {
        numbers.iter().flat_map(|number| number.to_ne_bytes()).collect()
    }

    #[test]
    fn entries_are_padded_and_the_list_ends_at_its_room() {
        let mut bytes = b"what was there".to_vec();
        let mut listing = Listing::new(&mut bytes, 64, false);
        assert!(!listing.wants_nodes() && listing.has_room(40) && !listing.has_room(41));
        assert!(listing.add(&listed(b"name"), None));
        assert!(listing.has_room(8) && !listing.has_room(9));
        assert!(!listing.add(&listed(b"too long."), None));
        assert!(listing.add(&listed(b"eight..."), None));
        assert!(!listing.add(&listed(b""), None));
        let head = |len: u64| numbers(&[5, 6, len | 8 << 32]);
        assert_eq!(
            listing.as_bytes(),
            [head(4), b"name\0\0\0\0".to_vec(), head(8), b"eight...".to_vec()].concat()
        );
        let told: Vec<_> = listing.entries().map(|one| (one.name, one.ino, one.cookie, one.kind)).collect();
        assert_eq!(told, [(&b"name"[..], 5, 6, 8), (b"eight...", 5, 6, 8)]);
    }

    #[test]
    fn nodes_come_before_their_entries() {
        let entry =
            Entry { node: NodeId(77), generation: 3, valid: Default::default(), stat: Stat::default() };
        let mut bytes = Vec::new();
        let mut listing = Listing::new(&mut bytes, 1000, true);
        assert!(listing.wants_nodes());
        assert!(listing.add(&listed(b"known"), Some(&entry)) && listing.add(&listed(b"unknown"), None));
        assert!(listing.entries().map(|one| one.name).eq([&b"known"[..], b"unknown"]));
        let records: Vec<_> = listing.as_bytes().chunks(160).collect();
        assert_eq!(records[0][..16], numbers(&[77, 3]));
        assert_eq!(records[0][128..144], numbers(&[5, 6]));
        assert_eq!(records[1][..16], numbers(&[0, 0]));
        assert_eq!(records[1][152..], *b"unknown\0");

        let mut listing = Listing::new(&mut bytes, 1000, true);
        listing.mark_nodes(1 << 48);
        assert!(listing.add(&listed(b"known"), Some(&entry)) && listing.add(&listed(b"unknown"), None));
        assert_eq!(listing.as_bytes()[..8], numbers(&[1 << 48 | 77]));
        assert_eq!(listing.as_bytes()[160..168], numbers(&[0]));
    }

    #[test]
    fn entries_go_and_lose_their_nodes() {
        let entry = |node| Entry {
            node: NodeId(node),
            generation: 3,
            valid: Default::default(),
            stat: Stat::default(),
        };
        for nodes in [false, true] {
            let mut bytes = Vec::new();
            let mut listing = Listing::new(&mut bytes, 2000, nodes);
            listing.mark_nodes(1 << 48);
            for (name, node) in [("gone", 7), ("a long name that stays", 8), ("gone", 9), ("without", 10)] {
                assert!(listing.add(&listed(name.as_bytes()), Some(&entry(node))));
            }
            assert!(listing.add(&listed(b"not looked up"), None));
            let mut seen = Vec::new();
            listing.sift(|listed, node| {
                seen.push(node.map(|node| node.0));
                match listed.name {
                    b"gone" => Fate::Goes,
                    b"without" => Fate::WithoutNode,
                    _ => Fate::Stays,
                }
            });
            let looked_up = |node| nodes.then_some(node);
            assert_eq!(seen, [looked_up(7), looked_up(8), looked_up(9), looked_up(10), None]);
            let left: Vec<_> = listing.entries().map(|one| one.name.to_vec()).collect();
            assert_eq!(left, [&b"a long name that stays"[..], b"without", b"not looked up"]);
            let mut left = Vec::new();
            listing.sift(|_, node| {
                left.push(node.map(|node| node.0));
                Fate::Goes
            });
            assert_eq!(left, [looked_up(8), None, None]);
            assert!(listing.is_empty() && listing.room() == 2000);
        }
    }
}
