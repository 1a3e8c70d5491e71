//! The blocks of a file that are stored.

use std::collections::BTreeMap;

/// Blocks by number, as ranges that neither meet nor touch: where each begins, and where it ends.
#[derive(Debug, Default)]
pub(crate) struct Extents(BTreeMap<u64, u64>);

impl Extents {
    /// Those of `start..end` that are missing, in order.
    pub(crate) fn missing(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let (mut missing, mut at) = (Vec::new(), start);
        for (from, to) in self.touched(start, end) {
            if at < from {
                missing.push((at, from));
            }
            at = at.max(to);
        }
        if at < end {
            missing.push((at, end));
        }
        missing
    }

    /// How many there are.
    #[cfg(test)]
    pub(crate) fn count(&self) -> u64 {
        self.0.iter().map(|(from, to)| to - from).sum()
    }

    /// Adds `start..end`.
    pub(crate) fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut from, mut to) = (start, end);
        // Ranges that only touch become one, too.
        for (start, end) in self.touched(start.saturating_sub(1), end.saturating_add(1)) {
            (from, to) = (from.min(start), to.max(end));
            self.0.remove(&start);
        }
        self.0.insert(from, to);
    }

    /// Takes `start..end` away; returns how many of them there were.
    pub(crate) fn remove(&mut self, start: u64, end: u64) -> u64 {
        let mut count = 0;
        for (from, to) in self.touched(start, end) {
            self.0.remove(&from);
            if from < start {
                self.0.insert(from, start);
            }
            if to > end {
                self.0.insert(end, to);
            }
            count += to.min(end) - from.max(start);
        }
        count
    }

    /// The first block from `at` on that is there.
    pub(crate) fn next_stored(&self, at: u64) -> Option<u64> {
        let before = self.0.range(..=at).next_back().filter(|(_, to)| **to > at);
        before.map(|_| at).or_else(|| self.0.range(at..).next().map(|(from, _)| *from))
    }

    /// The first block from `at` on that is not there.
    pub(crate) fn next_hole(&self, at: u64) -> u64 {
        self.0.range(..=at).next_back().map_or(at, |(_, to)| at.max(*to))
    }

    /// The ranges that have a part in `start..end`.
    fn touched(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        if start >= end {
            return Vec::new();
        }
        let before = self.0.range(..start).next_back().filter(|(_, to)| **to > start);
        before.into_iter().chain(self.0.range(start..end)).map(|(from, to)| (*from, *to)).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn ranges_are_what_a_set_of_blocks_would_be() {
        let (mut extents, mut blocks) = (Extents::default(), BTreeSet::new());
        let mut seed = 1u64;
        for _ in 0..3000 {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let (start, len) = (seed >> 33 & 63, seed >> 45 & 15);
            let (end, range) = (start + len, start..start + len);
            let missing: Vec<u64> =
                extents.missing(start, end).into_iter().flat_map(|(from, to)| from..to).collect();
            let expected: Vec<u64> = range.clone().filter(|block| !blocks.contains(block)).collect();
            assert_eq!(missing, expected);
            if seed >> 60 & 1 == 0 {
                extents.insert(start, end);
                blocks.extend(range);
            } else {
                let there = range.filter(|block| blocks.remove(block)).count();
                assert_eq!(extents.remove(start, end), u64::try_from(there).unwrap());
            }
            assert_eq!(extents.count(), u64::try_from(blocks.len()).unwrap());
            assert!(extents.0.iter().zip(extents.0.iter().skip(1)).all(|(one, next)| one.1 < next.0));
            assert_eq!(extents.next_stored(start), blocks.range(start..).next().copied());
            assert_eq!(Some(extents.next_hole(start)), (start..).find(|block| !blocks.contains(block)));
        }
    }
}
