//! A list of patterns, asked for one that matches a host on a port, or a request to it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use crate::index::Index;
use crate::name::Name;
use crate::path::Path;
use crate::pattern::{Hosts, Pattern, Ports, Requests};

/// Most patterns of a list.
pub const MAX_PATTERNS: usize = 16_384;

/// Patterns with what they are for: whole traffic, or requests.
#[derive(Debug, Default)]
pub(crate) struct List {
    index: Index,
    slots: Vec<Slot>,
    /// Whether there is an entry for certain requests.
    has_requests: bool,
}

/// The patterns with the same hosts.
#[derive(Debug, Default)]
struct Slot {
    /// Those for all traffic.
    whole: PortMap,
    /// Those for certain requests.
    requests: Folder,
    /// The same by port.
    requested: PortMap,
}

/// An entry of a list: a pattern's hosts and ports, and the number by which its owner knows it.
#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) hosts: Hosts,
    pub(crate) ports: Vec<Ports>,
    pub(crate) requests: Option<Requests>,
    pub(crate) number: usize,
}

/// A request's method and path.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a str,
    pub(crate) path: &'a Path,
}

/// The other end of a connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Peer<'a> {
    pub(crate) name: Option<&'a Name>,
    /// Canonical.
    pub(crate) address: Option<IpAddr>,
    pub(crate) port: u16,
}

impl List {
    pub(crate) fn new(entries: impl IntoIterator<Item = Entry>) -> Self {
        let mut numbers: BTreeMap<Hosts, usize> = BTreeMap::new();
        let mut slots: Vec<Slot> = Vec::new();
        let mut has_requests = false;
        for entry in entries {
            let at = *numbers.entry(entry.hosts).or_insert(slots.len());
            if at == slots.len() {
                slots.push(Slot::default());
            }
            let slot = &mut slots[at];
            match entry.requests {
                None => slot.whole.insert_all(&entry.ports, entry.number),
                Some(requests) => {
                    has_requests = true;
                    slot.requested.insert_all(&entry.ports, entry.number);
                    slot.requests.insert(Bound { requests, ports: entry.ports, number: entry.number });
                }
            }
        }
        Self {
            index: Index::new(numbers.iter().map(|(hosts, number)| (hosts, *number))),
            slots,
            has_requests,
        }
    }

    fn slots<T>(&self, peer: Peer<'_>, mut visit: impl FnMut(&Slot) -> Option<T>) -> Option<T> {
        let mut visit = |number: usize| visit(&self.slots[number]);
        let by_name = peer.name.and_then(|name| self.index.name(name, &mut visit));
        by_name.or_else(|| peer.address.and_then(|address| self.index.address(address, &mut visit)))
    }

    /// An entry for all traffic with the peer.
    pub(crate) fn whole(&self, peer: Peer<'_>) -> Option<usize> {
        self.slots(peer, |slot| slot.whole.get(peer.port))
    }

    /// An entry for all traffic with the peer on every port.
    pub(crate) fn all_ports(&self, name: Option<&Name>, address: Option<IpAddr>) -> Option<usize> {
        self.slots(Peer { name, address, port: 0 }, |slot| slot.whole.all())
    }

    /// An entry for any traffic with the peer, on whatever port.
    pub(crate) fn any_port(&self, name: Option<&Name>, address: Option<IpAddr>) -> Option<usize> {
        self.slots(Peer { name, address, port: 0 }, |slot| slot.whole.any().or(slot.requested.any()))
    }

    /// An entry for some requests to the peer.
    pub(crate) fn some_requests(&self, peer: Peer<'_>) -> Option<usize> {
        self.has_requests.then(|| self.slots(peer, |slot| slot.requested.get(peer.port))).flatten()
    }

    /// Visits the entries for certain requests that may be for this one, seen under one form of its path.
    pub(crate) fn requests<T>(
        &self,
        peer: Peer<'_>,
        ask: Ask<'_>,
        path: &str,
        mut visit: impl FnMut(&Requests, usize) -> Option<T>,
    ) -> Option<T> {
        let mut matching = |bound: &Bound| {
            let matches = bound.is_on(peer.port) && bound.requests.has_method(ask.method);
            (matches && bound.requests.has_path(path)).then(|| visit(&bound.requests, bound.number)).flatten()
        };
        self.slots(peer, |slot| slot.requests.find(path, &mut matching))
    }
}

/// Entries by port; where several have a port, the earliest.
#[derive(Debug, Default)]
struct PortMap(BTreeMap<u16, (u16, usize)>);

impl PortMap {
    fn insert_all(&mut self, ports: &[Ports], number: usize) {
        ports.iter().for_each(|ports| self.insert(*ports, number));
    }

    fn insert(&mut self, ports: Ports, number: usize) {
        let mut first = ports.first;
        loop {
            let taken =
                self.0.range(..=first).next_back().map(|(_, (last, _))| *last).filter(|last| *last >= first);
            let end = taken.unwrap_or_else(|| {
                let next = self.0.range(first..).next().map(|(next, _)| *next - 1);
                let last = next.map_or(ports.last, |next| next.min(ports.last));
                self.0.insert(first, (last, number));
                last
            });
            if end >= ports.last {
                return;
            }
            first = end + 1;
        }
    }

    fn get(&self, port: u16) -> Option<usize> {
        let (_, (last, number)) = self.0.range(..=port).next_back()?;
        (*last >= port).then_some(*number)
    }

    fn any(&self) -> Option<usize> {
        self.0.values().next().map(|(_, number)| *number)
    }

    /// The first entry, if together they have all ports from 1.
    fn all(&self) -> Option<usize> {
        let mut covered = 0;
        for (first, (last, _)) in &self.0 {
            if first.saturating_sub(1) > covered {
                return None;
            }
            covered = *last;
        }
        if covered == u16::MAX { self.any() } else { None }
    }
}

/// An entry for certain requests.
#[derive(Debug)]
struct Bound {
    requests: Requests,
    ports: Vec<Ports>,
    number: usize,
}

impl Bound {
    fn is_on(&self, port: u16) -> bool {
        self.ports.iter().any(|ports| ports.contains(port))
    }
}

/// Entries by the literal folders that their paths begin with.
#[derive(Debug, Default)]
struct Folder {
    here: Vec<Bound>,
    folders: BTreeMap<String, Folder>,
}

impl Folder {
    fn insert(&mut self, bound: Bound) {
        let glob = bound.requests.path.as_ref().map(|path| &path.glob);
        let segments = glob.map(|glob| glob.folder().to_vec()).unwrap_or_default();
        let place = segments.into_iter().fold(self, |at, segment| at.folders.entry(segment).or_default());
        place.here.push(bound);
    }

    fn find<T>(&self, path: &str, visit: &mut impl FnMut(&Bound) -> Option<T>) -> Option<T> {
        let mut at = Some(self);
        let mut segments = path.split('/').skip(1);
        while let Some(folder) = at {
            if let Some(found) = folder.here.iter().find_map(&mut *visit) {
                return Some(found);
            }
            at = segments.next().and_then(|segment| folder.folders.get(segment));
        }
        None
    }
}

/// The entries of a user's list: a pattern's number is its place.
pub(crate) fn entries(
    patterns: &[Pattern],
    usual_ports: impl Fn(&Pattern) -> Vec<Ports>,
) -> impl Iterator<Item = Entry> {
    patterns.iter().enumerate().map(move |(number, pattern)| Entry {
        hosts: pattern.hosts.clone(),
        ports: pattern.ports.map_or_else(|| usual_ports(pattern), |ports| vec![ports]),
        requests: pattern.requests.clone(),
        number,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_earliest_entry_has_a_port() {
        let mut map = PortMap::default();
        for (number, (first, last)) in [(80, 90), (85, 100), (1, 200), (80, 80)].into_iter().enumerate() {
            map.insert(Ports { first, last }, number);
        }
        for (port, expected) in [
            (0, None),
            (1, Some(2)),
            (79, Some(2)),
            (80, Some(0)),
            (90, Some(0)),
            (91, Some(1)),
            (100, Some(1)),
            (200, Some(2)),
            (201, None),
        ] {
            assert_eq!(map.get(port), expected, "{port}");
        }
        assert_eq!(map.all(), None);
        map.insert(Ports { first: 300, last: u16::MAX }, 4);
        map.insert(Ports { first: 0, last: 298 }, 5);
        assert_eq!(map.all(), None);
        map.insert(Ports::ALL, 6);
        assert_eq!((map.all(), map.get(299), map.get(u16::MAX)), (Some(5), Some(6), Some(4)));
        let mut written = PortMap::default();
        written.insert(Ports { first: 1, last: u16::MAX }, 0);
        assert_eq!((written.all(), written.get(0)), (Some(0), None));
    }

    /// Ten thousand paths of one host cost no look at all of them.
    #[test]
    fn paths_are_found_by_their_folders() {
        let patterns: Vec<Pattern> = (0..10_000)
            .map(|n| Pattern::parse(&format!("GET a.test/v1/{n}/*")).expect("a pattern"))
            .collect();
        let mut folder = Folder::default();
        for entry in entries(&patterns, |_| vec![Ports::HTTPS]) {
            let requests = entry.requests.expect("requests");
            folder.insert(Bound { requests, ports: entry.ports, number: entry.number });
        }
        let looked = std::cell::Cell::new(0);
        let find = |path: &str| {
            looked.set(0);
            folder.find(path, &mut |bound: &Bound| {
                looked.set(looked.get() + 1);
                bound.requests.has_path(path).then_some(bound.number)
            })
        };
        assert_eq!((find("/v1/7007/x"), looked.get()), (Some(7007), 1));
        assert_eq!((find("/v1/7007/x/y"), looked.get()), (None, 1));
        assert_eq!((find("/v2"), looked.get()), (None, 0));
    }
}
