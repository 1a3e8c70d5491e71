//! The names for which a guest was given each address.
//!
//! Memory is bounded whatever a guest asks: the address that was not used for longest goes first, and none goes while a
//! flow uses it, of which there are fewer. Not here: whether an address may be given to a guest.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant};

use egress_policy::Name;

/// Most addresses.
pub(crate) const MAX_ADDRESSES: usize = 4096;

/// Most names of one address.
pub(crate) const MAX_NAMES: usize = 64;

/// How long a pin lives at least: programs keep addresses for longer than servers say.
const LEAST: Duration = Duration::from_secs(60 * 60);

/// How long a pin lives at most, whatever a server says.
const MOST: Duration = Duration::from_secs(24 * 60 * 60);

/// Names by address.
#[derive(Debug)]
pub(crate) struct Pins {
    /// Names that the guest's table of hosts has: they stay.
    table: BTreeMap<IpAddr, BTreeSet<Name>>,
    pinned: BTreeMap<IpAddr, Pinned>,
    /// Addresses by the turn of their last use.
    order: BTreeMap<u64, IpAddr>,
    turn: u64,
    /// The number of open flows to each address.
    flows: BTreeMap<IpAddr, usize>,
}

#[derive(Debug, Default)]
struct Pinned {
    names: BTreeMap<Name, Instant>,
    turn: u64,
}

impl Pinned {
    fn forget_expired(&mut self, now: Instant) {
        self.names.retain(|_, end| *end > now);
    }
}

impl Pins {
    /// Pins with the names of a table of hosts.
    pub(crate) fn new(hosts: &[(Name, IpAddr)]) -> Self {
        let mut table: BTreeMap<IpAddr, BTreeSet<Name>> = BTreeMap::new();
        for (name, address) in hosts {
            table.entry(address.to_canonical()).or_default().insert(name.clone());
        }
        Self { table, pinned: BTreeMap::new(), order: BTreeMap::new(), turn: 0, flows: BTreeMap::new() }
    }

    /// The guest is given an address for a name, which it may keep for a time.
    pub(crate) fn add(&mut self, name: &Name, address: IpAddr, ttl: Duration, now: Instant) {
        let address = address.to_canonical();
        let is_used = self.flows.contains_key(&address);
        let pinned = self.pinned.entry(address).or_default();
        if !is_used {
            pinned.forget_expired(now);
        }
        let end = now + ttl.clamp(LEAST, MOST);
        if let Some(known) = pinned.names.get_mut(name) {
            *known = end.max(*known);
        } else {
            if pinned.names.len() == MAX_NAMES {
                let first = pinned.names.iter().min_by_key(|(_, end)| **end).map(|(name, _)| name.clone());
                first.map(|first| pinned.names.remove(&first));
            }
            pinned.names.insert(name.clone(), end);
        }
        self.touch(address);
        self.make_room();
    }

    /// The names of an address.
    pub(crate) fn names(&mut self, address: IpAddr, now: Instant) -> Vec<Name> {
        let address = address.to_canonical();
        let mut names = self.table.get(&address).cloned().unwrap_or_default();
        if let Some(pinned) = self.pinned.get_mut(&address) {
            if !self.flows.contains_key(&address) {
                pinned.forget_expired(now);
            }
            names.extend(pinned.names.keys().cloned());
            if pinned.names.is_empty() {
                self.remove(address);
            } else {
                self.touch(address);
            }
        }
        names.into_iter().collect()
    }

    /// A flow to an address is open from now on.
    pub(crate) fn hold(&mut self, address: IpAddr) {
        *self.flows.entry(address.to_canonical()).or_default() += 1;
    }

    /// A flow that was open has ended.
    pub(crate) fn let_go(&mut self, address: IpAddr) {
        let address = address.to_canonical();
        if let Some(count) = self.flows.get_mut(&address) {
            *count -= 1;
            if *count == 0 {
                self.flows.remove(&address);
            }
        }
        self.touch(address);
    }

    fn touch(&mut self, address: IpAddr) {
        let Some(pinned) = self.pinned.get_mut(&address) else { return };
        self.turn += 1;
        self.order.remove(&pinned.turn);
        pinned.turn = self.turn;
        self.order.insert(self.turn, address);
    }

    fn make_room(&mut self) {
        while self.pinned.len() > MAX_ADDRESSES {
            let unused = self.order.values().find(|address| !self.flows.contains_key(address));
            let Some(oldest) = unused.copied() else { return };
            self.remove(oldest);
        }
    }

    fn remove(&mut self, address: IpAddr) {
        if let Some(pinned) = self.pinned.remove(&address) {
            self.order.remove(&pinned.turn);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    fn texts(pins: &mut Pins, address: IpAddr, now: Instant) -> Vec<String> {
        pins.names(address, now).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_pin_lives_for_an_hour_at_least_and_for_a_day_at_most() {
        let (mut pins, start) = (Pins::new(&[]), Instant::now());
        let (short, long) = ([203, 0, 113, 1].into(), [203, 0, 113, 2].into());
        pins.add(&name("a.test"), short, Duration::ZERO, start);
        pins.add(&name("b.test"), long, Duration::from_secs(u64::from(u32::MAX)), start);
        assert_eq!(texts(&mut pins, short, start + LEAST - Duration::from_secs(1)), ["a.test"]);
        assert!(texts(&mut pins, short, start + LEAST).is_empty());
        assert_eq!(texts(&mut pins, long, start + MOST - Duration::from_secs(1)), ["b.test"]);
        assert!(texts(&mut pins, long, start + MOST).is_empty());
        assert!(pins.pinned.is_empty() && pins.order.is_empty());
    }

    #[test]
    fn a_table_of_hosts_stays_and_an_address_has_one_form() {
        let address: IpAddr = [203, 0, 113, 1].into();
        let mapped = "::ffff:203.0.113.1".parse().unwrap();
        let (mut pins, start) = (Pins::new(&[(name("t.test"), mapped)]), Instant::now());
        pins.add(&name("a.test"), mapped, Duration::ZERO, start);
        assert_eq!(texts(&mut pins, address, start), ["a.test", "t.test"]);
        assert_eq!(texts(&mut pins, mapped, start + MOST), ["t.test"]);
    }

    #[test]
    fn a_pin_stays_while_a_flow_uses_it() {
        let (mut pins, start) = (Pins::new(&[]), Instant::now());
        let address = |number: u32| IpAddr::from((0xcb00_0000 + number).to_be_bytes());
        pins.add(&name("a.test"), address(0), Duration::ZERO, start);
        for _ in 0..2 {
            pins.hold(address(0));
        }
        for number in 1..=u32::try_from(MAX_ADDRESSES).unwrap() + 9 {
            pins.add(&name("b.test"), address(number), Duration::ZERO, start);
        }
        let late = start + 2 * MOST;
        pins.let_go(address(0));
        assert_eq!(
            (texts(&mut pins, address(0), late), pins.pinned.len()),
            (vec!["a.test".into()], MAX_ADDRESSES)
        );
        pins.add(&name("c.test"), address(0), Duration::ZERO, late);
        assert_eq!(texts(&mut pins, address(0), late), ["a.test", "c.test"]);
        pins.let_go(address(0));
        assert_eq!(texts(&mut pins, address(0), late), ["c.test"]);
        assert!(texts(&mut pins, address(1), start).is_empty());
        assert!(pins.flows.is_empty());
    }

    #[test]
    fn room_is_made_by_the_address_that_was_not_used_for_longest() {
        let (mut pins, start) = (Pins::new(&[]), Instant::now());
        let address = |number: u32| IpAddr::from((0xcb00_0000 + number).to_be_bytes());
        let most = u32::try_from(MAX_ADDRESSES).unwrap();
        for number in 0..most {
            pins.add(&name("a.test"), address(number), Duration::ZERO, start);
        }
        assert_eq!(pins.names(address(0), start).len(), 1);
        pins.add(&name("a.test"), address(most), Duration::ZERO, start);
        assert_eq!((pins.pinned.len(), pins.order.len()), (MAX_ADDRESSES, MAX_ADDRESSES));
        assert_eq!(pins.names(address(0), start).len(), 1);
        assert!(pins.names(address(1), start).is_empty());
    }

    #[test]
    fn an_address_has_a_bounded_number_of_names() {
        let (mut pins, start) = (Pins::new(&[]), Instant::now());
        let address = [203, 0, 113, 1].into();
        for number in 0..u64::try_from(MAX_NAMES).unwrap() + 9 {
            let now = start + Duration::from_secs(number);
            pins.add(&name(&format!("n{number}.test")), address, Duration::ZERO, now);
        }
        let names = texts(&mut pins, address, start);
        assert_eq!(names.len(), MAX_NAMES);
        assert!(!names.contains(&"n8.test".to_owned()) && names.contains(&"n9.test".to_owned()));
    }
}
