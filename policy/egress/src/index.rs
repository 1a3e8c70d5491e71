//! The numbers of all host patterns that match a name or an address, found without a look at the others.
//!
//! Names go through tries of labels, and through one automaton for the patterns with stars elsewhere; addresses through
//! one sorted table. The time depends on the name and on how many patterns match it, not on how many there are.

use std::collections::BTreeMap;
use std::net::IpAddr;

use aho_corasick::AhoCorasick;

use crate::name::Name;
use crate::pattern::{Hosts, has_pieces, number};

/// Patterns by what matches them. Equal patterns have one number.
#[derive(Debug, Default)]
pub(crate) struct Index {
    any: Option<usize>,
    /// From the last label to the first.
    from_end: Labels,
    /// From the first label to the last.
    from_start: Labels,
    pieces: Pieces,
    v4: Networks,
    v6: Networks,
}

impl Index {
    /// Takes the patterns by their numbers.
    pub(crate) fn new<'a>(hosts: impl IntoIterator<Item = (&'a Hosts, usize)>) -> Self {
        let mut index = Self::default();
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        let mut pieces = Vec::new();
        for (hosts, number) in hosts {
            match hosts {
                Hosts::Any => index.any = Some(number),
                Hosts::Name(name) => index.from_end.node(name.as_str().rsplit('.')).here = Some(number),
                Hosts::Below(above) => index.from_end.node(above.rsplit('.')).beyond = Some(number),
                Hosts::Before(start) => index.from_start.node(start.split('.')).beyond = Some(number),
                Hosts::Pieces(list) => pieces.push((list.clone(), number)),
                Hosts::Network(network) => {
                    let row = Row { first: network.first, last: network.last, outer: None, number };
                    if network.is_v4 { v4.push(row) } else { v6.push(row) }
                }
            }
        }
        index.pieces = Pieces::new(pieces);
        index.v4 = Networks::new(v4);
        index.v6 = Networks::new(v6);
        index
    }

    /// Visits the patterns that match a name until one visit gives something; longer ones come first, `*` last.
    pub(crate) fn name<T>(&self, name: &Name, visit: &mut impl FnMut(usize) -> Option<T>) -> Option<T> {
        let text = name.as_str();
        self.from_end
            .find(0, &mut text.rsplit('.'), visit)
            .or_else(|| self.from_start.find(0, &mut text.split('.'), visit))
            .or_else(|| self.pieces.find(text, visit))
            .or_else(|| self.any.and_then(visit))
    }

    /// Visits the patterns that match an address, which is canonical.
    pub(crate) fn address<T>(
        &self,
        address: IpAddr,
        visit: &mut impl FnMut(usize) -> Option<T>,
    ) -> Option<T> {
        let networks = if address.is_ipv4() { &self.v4 } else { &self.v6 };
        networks.find(number(address), visit).or_else(|| self.any.and_then(visit))
    }
}

/// A trie of labels; the first node is its root.
#[derive(Debug)]
struct Labels(Vec<Node>);

#[derive(Debug, Default)]
struct Node {
    children: BTreeMap<Box<str>, usize>,
    /// The pattern for the labels down to here.
    here: Option<usize>,
    /// The pattern for these labels and at least one more.
    beyond: Option<usize>,
}

impl Default for Labels {
    fn default() -> Self {
        Self(vec![Node::default()])
    }
}

impl Labels {
    /// The node of some labels, made if it is not there.
    fn node<'a>(&mut self, labels: impl Iterator<Item = &'a str>) -> &mut Node {
        let mut at = 0;
        for label in labels {
            let next = self.0.len();
            at = *self.0[at].children.entry(label.into()).or_insert(next);
            if at == next {
                self.0.push(Node::default());
            }
        }
        &mut self.0[at]
    }

    fn find<'a, T>(
        &self,
        at: usize,
        labels: &mut impl Iterator<Item = &'a str>,
        visit: &mut impl FnMut(usize) -> Option<T>,
    ) -> Option<T> {
        let node = &self.0[at];
        let Some(label) = labels.next() else { return node.here.and_then(visit) };
        let deeper = node.children.get(label).and_then(|child| self.find(*child, labels, visit));
        deeper.or_else(|| node.beyond.and_then(visit))
    }
}

/// Patterns with stars anywhere: each is found by one of its pieces, and then verified.
#[derive(Debug, Default)]
struct Pieces {
    /// `None` if there is no such pattern.
    automaton: Option<AhoCorasick>,
    /// The patterns with the piece of this number.
    by_piece: Vec<Vec<(Vec<String>, usize)>>,
}

impl Pieces {
    fn new(patterns: Vec<(Vec<String>, usize)>) -> Self {
        let mut uses: BTreeMap<&str, usize> = BTreeMap::new();
        for piece in patterns.iter().flat_map(|(pieces, _)| pieces) {
            *uses.entry(piece).or_default() += 1;
        }
        // The rarest piece leads to the fewest patterns, and a longer one is met less often.
        let rarest = |pieces: &[String]| {
            let named = pieces.iter().filter(|piece| !piece.is_empty());
            named.min_by_key(|piece| (uses.get(piece.as_str()), usize::MAX - piece.len())).cloned()
        };
        let mut by_piece: BTreeMap<String, Vec<(Vec<String>, usize)>> = BTreeMap::new();
        for (pieces, number) in &patterns {
            by_piece.entry(rarest(pieces).unwrap_or_default()).or_default().push((pieces.clone(), *number));
        }
        if by_piece.is_empty() {
            return Self::default();
        }
        let automaton = AhoCorasick::new(by_piece.keys());
        // It can fail for more states than a u32 counts; limits on lists keep far below.
        Self { automaton: automaton.ok(), by_piece: by_piece.into_values().collect() }
    }

    fn find<T>(&self, name: &str, visit: &mut impl FnMut(usize) -> Option<T>) -> Option<T> {
        self.candidates(name)
            .filter(|(pieces, _)| has_pieces(pieces, name))
            .find_map(|(_, number)| visit(*number))
    }

    /// Patterns of which one piece is in the name.
    fn candidates<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a (Vec<String>, usize)> {
        let hits = self.automaton.iter().flat_map(move |automaton| automaton.find_overlapping_iter(name));
        hits.filter_map(|hit| self.by_piece.get(hit.pattern().as_usize())).flatten()
    }
}

/// Networks, sorted by their first address, a larger one before those in it.
#[derive(Debug, Default)]
struct Networks(Vec<Row>);

#[derive(Debug)]
struct Row {
    first: u128,
    last: u128,
    /// The row of the smallest network around this one.
    outer: Option<usize>,
    number: usize,
}

impl Networks {
    fn new(mut rows: Vec<Row>) -> Self {
        rows.sort_by_key(|row| (row.first, u128::MAX - row.last));
        let mut around: Vec<usize> = Vec::new();
        for index in 0..rows.len() {
            // Two networks are one in the other, or apart.
            while around.last().is_some_and(|outer| rows[*outer].last < rows[index].first) {
                around.pop();
            }
            rows[index].outer = around.last().copied();
            around.push(index);
        }
        Self(rows)
    }

    fn find<T>(&self, address: u128, visit: &mut impl FnMut(usize) -> Option<T>) -> Option<T> {
        // A network with the address begins before it; it is the last one that does, or around that.
        let mut at = self.0.partition_point(|row| row.first <= address).checked_sub(1);
        while let Some(row) = at.map(|at| &self.0[at]) {
            if let Some(found) = (address <= row.last).then(|| visit(row.number)).flatten() {
                return Some(found);
            }
            at = row.outer;
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pattern::Pattern;

    fn index(patterns: &[String]) -> Index {
        let hosts: Vec<Hosts> = patterns.iter().map(|text| Pattern::parse(text).expect(text).hosts).collect();
        Index::new(hosts.iter().zip(0..))
    }

    fn visited(index: &Index, host: &str) -> Vec<usize> {
        let mut numbers = Vec::new();
        let mut visit = |number| -> Option<()> {
            numbers.push(number);
            None
        };
        match host.parse::<IpAddr>() {
            Ok(address) => index.address(address, &mut visit),
            Err(_) => index.name(&Name::parse(host).expect(host), &mut visit),
        };
        numbers
    }

    #[test]
    fn edges_of_wildcards() {
        let index = index(&["*.x.test", "x.test", "x.*", "*.b.x.test", "a*x.test", "*"].map(str::to_owned));
        for (name, expected) in [
            ("x.test", vec![1, 2, 5]),
            ("a.x.test", vec![0, 4, 5]),
            ("b.x.test", vec![0, 5]),
            ("a.b.x.test", vec![3, 0, 4, 5]),
            ("ax.test", vec![4, 5]),
            ("x.test.evil", vec![2, 5]),
            ("x", vec![5]),
            ("test", vec![5]),
            ("192.0.2.1", vec![5]),
        ] {
            assert_eq!(visited(&index, name), expected, "{name}");
        }
    }

    #[test]
    fn networks_from_the_smallest_to_the_largest() {
        let networks =
            ["0.0.0.0/0", "10.0.0.0/8", "10.0.0.0/24", "10.0.0.0", "10.0.1.0/24", "::/0", "2001:db8::/32"];
        let index = index(&networks.map(str::to_owned));
        for (address, expected) in [
            ("10.0.0.0", vec![3, 2, 1, 0]),
            ("10.0.0.1", vec![2, 1, 0]),
            ("10.0.1.255", vec![4, 1, 0]),
            ("10.0.2.0", vec![1, 0]),
            ("11.0.0.0", vec![0]),
            ("2001:db8::1", vec![6, 5]),
            ("::a00:1", vec![5]),
        ] {
            assert_eq!(visited(&index, address), expected, "{address}");
        }
    }

    /// Ten thousand patterns that do not match cost no visit and nearly no candidate.
    #[test]
    fn patterns_that_do_not_match_are_not_looked_at() {
        let many = |form: &dyn Fn(usize) -> String| -> Vec<String> { (0..10_000).map(form).collect() };
        let kinds: [&dyn Fn(usize) -> String; 5] = [
            &|n| format!("h{n}.example.com"),
            &|n| format!("*.z{n}.example.com"),
            &|n| format!("api{n}.*"),
            &|n| format!("x{n}-*.example.com"),
            &|n| format!("10.{}.{}.0/24", n / 250, n % 250),
        ];
        for kind in kinds {
            let index = index(&many(kind));
            for (host, count) in [
                ("h77.example.com", 1),
                ("a.b.z78.example.com", 1),
                ("api79.test", 1),
                ("x80-1.example.com", 1),
                ("10.3.81.5", 1),
                ("no.example.com", 0),
                ("8.8.8.8", 0),
            ] {
                assert!(visited(&index, host).len() <= count, "{host}");
                let candidates = index.pieces.candidates(host).count();
                assert!(candidates <= 1, "{host}: {candidates} candidates");
            }
        }
    }
}
