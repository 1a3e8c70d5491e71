//! A descriptor chain, decoded once: from here on its buffers are slices that lie in guest memory.
//!
//! Not here: the meaning of the bytes. The slices may overlap, and the guest may change the bytes at any moment.

use guest_memory::GuestRam;
use smallvec::SmallVec;
use virtio_queue::DescriptorChain;
use vm_memory::{Address, GuestAddress, GuestMemory, Permissions, VolatileSlice};

/// Most slices of one chain. A direct chain of a device here has at most 256 buffers; an indirect table could have
/// 65,535.
const MAX_SLICES: usize = 1024;

/// Slices in either direction for which nothing is allocated: those of a request that moves less than a page.
const FEW: usize = 4;

/// The buffers of a chain.
#[derive(Debug, Default)]
pub struct Buffers<'a> {
    /// The driver's bytes, in order.
    pub readable: Slices<'a>,
    /// The places for the device's answer, in order.
    pub writable: Slices<'a>,
    /// Whether the driver broke a rule, so that some buffers are missing. A device may still answer such a chain.
    pub malformed: bool,
}

impl<'a> Buffers<'a> {
    pub(crate) fn new(memory: &'a GuestRam, chain: DescriptorChain<&GuestRam>) -> Self {
        let mut buffers = Self::default();
        buffers.malformed = !walk(memory, chain, |piece, slice| buffers.push(piece.writable, slice));
        buffers
    }

    fn push(&mut self, writable: bool, slice: VolatileSlice<'a>) {
        if writable { &mut self.writable } else { &mut self.readable }.0.push(slice);
    }
}

/// Bytes of a chain that lie in one region of guest memory.
#[derive(Debug, Clone, Copy)]
struct Piece {
    at: GuestAddress,
    len: usize,
    writable: bool,
}

/// The buffers of a chain, without a hold on the memory in which they lie.
#[derive(Debug, Default)]
pub(crate) struct Pieces {
    pieces: SmallVec<[Piece; 2 * FEW]>,
    malformed: bool,
}

impl Pieces {
    pub(crate) fn new(memory: &GuestRam, chain: DescriptorChain<&GuestRam>) -> Self {
        let mut pieces = SmallVec::new();
        let malformed = !walk(memory, chain, |piece, _| pieces.push(piece));
        Self { pieces, malformed }
    }

    /// The buffers, in the memory in which they were found.
    pub(crate) fn within<'a>(&self, memory: &'a GuestRam) -> Buffers<'a> {
        let mut buffers = Buffers { malformed: self.malformed, ..Buffers::default() };
        for Piece { at, len, writable } in &self.pieces {
            match vm_memory::GuestMemoryBackend::get_slice(memory, *at, *len) {
                Ok(slice) => buffers.push(*writable, slice),
                Err(_) => buffers.malformed = true,
            }
        }
        buffers
    }
}

/// Calls `found` with each run of bytes of a chain that lies in one region, in order. Returns whether the driver kept to
/// the rules; if not, some bytes are missing.
fn walk<'a>(
    memory: &'a GuestRam,
    chain: DescriptorChain<&GuestRam>,
    mut found: impl FnMut(Piece, VolatileSlice<'a>),
) -> bool {
    let (mut sound, mut answers, mut count) = (true, false, 0);
    // A chain with no descriptor, or one that ends although its last descriptor names another (a loop, an index past the
    // table, more than 2^32 bytes), is cut short by the iterator.
    let mut cut_short = true;
    for descriptor in chain {
        cut_short = descriptor.has_next();
        let (mut at, writable) = (descriptor.addr(), descriptor.is_write_only());
        // VIRTIO 1.3 §2.7.4.2: "The driver MUST place any device-writable descriptor elements after any device-readable
        // descriptor elements."
        sound &= writable || !answers;
        // The access right of the slice has no effect without an IOMMU.
        let slices = usize::try_from(descriptor.len())
            .ok()
            .and_then(|len| memory.get_slices(at, len, Permissions::ReadWrite).ok());
        sound &= slices.is_some();
        for slice in slices.into_iter().flatten() {
            let Ok(slice) = slice else {
                sound = false;
                break;
            };
            found(Piece { at, len: slice.len(), writable }, slice);
            at = at.unchecked_add(slice.len() as u64);
            (answers, count) = (answers || writable, count + 1);
        }
        if count > MAX_SLICES {
            cut_short = true;
            break;
        }
    }
    sound && !cut_short
}

/// Bytes in guest memory, in several pieces; none is empty.
#[derive(Debug, Default)]
pub struct Slices<'a>(SmallVec<[VolatileSlice<'a>; FEW]>);

impl<'a> Slices<'a> {
    /// The pieces, for `guest_memory`'s functions that move them.
    #[must_use]
    pub fn as_slice(&self) -> &[VolatileSlice<'a>] {
        &self.0
    }

    /// Number of bytes, which is below 2^32 for every chain.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.iter().map(VolatileSlice::len).sum()
    }

    /// Whether there are no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Adds the pieces of `other` behind these.
    pub(crate) fn append(&mut self, other: &Self) {
        self.0.extend_from_slice(&other.0);
    }

    /// Splits off the first `count` bytes, if there are so many.
    pub fn take(&mut self, count: usize) -> Option<Self> {
        let mut left = count;
        let mut whole = 0;
        for slice in &self.0 {
            if slice.len() > left {
                break;
            }
            left -= slice.len();
            whole += 1;
        }
        let part = match self.0.get(whole) {
            Some(slice) if left > 0 => Some(slice.split_at(left).ok()?),
            None if left > 0 => return None,
            _ => None,
        };
        let mut front: SmallVec<_> = self.0.drain(..whole).collect();
        if let (Some((taken, rest)), Some(first)) = (part, self.0.first_mut()) {
            front.push(taken);
            *first = rest;
        }
        Some(Self(front))
    }

    /// Splits off the last byte.
    pub(crate) fn take_last(&mut self) -> Option<Self> {
        let all_but_one = self.len().checked_sub(1)?;
        let front = self.take(all_but_one)?;
        Some(std::mem::replace(self, front))
    }

    /// Copies bytes from the front into `data`, as many as fit; returns their number.
    #[allow(clippy::must_use_candidate, reason = "often known beforehand")]
    pub fn read(&self, data: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in &self.0 {
            let rest = &mut data[done..];
            if rest.is_empty() {
                break;
            }
            done += slice.copy_to(rest);
        }
        done
    }

    /// Copies bytes of `data` to the front, as many as fit; returns their number.
    #[allow(clippy::must_use_candidate, reason = "often known beforehand")]
    pub fn write(&self, data: &[u8]) -> usize {
        let mut done = 0;
        for slice in &self.0 {
            let count = slice.len().min(data.len() - done);
            slice.copy_from(&data[done..done + count]);
            done += count;
        }
        done
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn slices<'a>(pieces: &'a mut [&mut [u8]]) -> Slices<'a> {
        Slices(pieces.iter_mut().map(|piece| VolatileSlice::from(&mut **piece)).collect())
    }

    fn bytes(slices: &Slices<'_>) -> Vec<u8> {
        let mut bytes = vec![0; slices.len()];
        assert_eq!(slices.read(&mut bytes), bytes.len());
        bytes
    }

    #[test]
    fn taking_splits_at_every_byte() {
        for at in 0..=6 {
            let (mut a, mut b, mut c) = (*b"ab", *b"cde", *b"f");
            let mut pieces = [&mut a[..], &mut b[..], &mut c[..]];
            let mut rest = slices(&mut pieces);
            let front = rest.take(at).unwrap();
            assert_eq!(bytes(&front), b"abcdef"[..at]);
            assert_eq!(bytes(&rest), b"abcdef"[at..]);
            assert!(front.0.iter().chain(&rest.0).all(|slice| !slice.is_empty()));
        }
    }

    #[test]
    fn taking_more_than_there_is_takes_nothing() {
        let mut a = *b"ab";
        let mut pieces = [&mut a[..]];
        let mut rest = slices(&mut pieces);
        assert!(rest.take(3).is_none());
        assert_eq!(bytes(&rest), b"ab");
        assert_eq!(bytes(&rest.take_last().unwrap()), b"b");
        assert_eq!(bytes(&rest.take_last().unwrap()), b"a");
        assert!(rest.take_last().is_none());
    }

    #[test]
    fn writing_stops_at_either_end() {
        let (mut a, mut b) = (*b"..", *b"..");
        {
            let mut pieces = [&mut a[..], &mut b[..]];
            assert_eq!(slices(&mut pieces).write(b"xyz"), 3);
            assert_eq!(slices(&mut pieces).write(b"abcdef"), 4);
        }
        assert_eq!((&a, &b), (b"ab", b"cd"));
    }
}
