//! A descriptor chain, looked at once: from here on its buffers are slices that lie in guest memory.
//!
//! Not here: what the bytes mean. The slices may overlap, and the guest may change them at any moment.

use guest_memory::GuestRam;
use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemory, Permissions, VolatileSlice};

/// Most slices of one chain. A direct chain of a device here has at most 256; an indirect table could have 65,535.
const MAX_SLICES: usize = 1024;

/// The buffers of a chain.
#[derive(Debug, Default)]
pub(crate) struct Buffers<'a> {
    /// What the driver says, in order.
    pub(crate) readable: Slices<'a>,
    /// Where the device answers, in order.
    pub(crate) writable: Slices<'a>,
    /// The driver broke a rule: some buffers are missing. A device may still answer that.
    pub(crate) malformed: bool,
}

impl<'a> Buffers<'a> {
    pub(crate) fn new(memory: &'a GuestRam, chain: DescriptorChain<&GuestRam>) -> Self {
        let mut buffers = Self::default();
        // A chain with no descriptor, or one that ends although its last descriptor names another (a loop, an index
        // past the table, more than 2^32 bytes), is cut short by the iterator.
        let mut cut_short = true;
        for descriptor in chain {
            cut_short = descriptor.has_next();
            let list = if descriptor.is_write_only() {
                &mut buffers.writable
            } else {
                // VIRTIO 1.3 §2.7.4.2: "The driver MUST place any device-writable descriptor elements after any
                // device-readable descriptor elements."
                buffers.malformed |= !buffers.writable.0.is_empty();
                &mut buffers.readable
            };
            buffers.malformed |= !list.push(memory, descriptor.addr(), descriptor.len());
            if buffers.readable.0.len() + buffers.writable.0.len() > MAX_SLICES {
                cut_short = true;
                break;
            }
        }
        buffers.malformed |= cut_short;
        buffers
    }
}

/// Bytes in guest memory, in several pieces; none is empty.
#[derive(Debug, Default)]
pub(crate) struct Slices<'a>(Vec<VolatileSlice<'a>>);

impl<'a> Slices<'a> {
    fn push(&mut self, memory: &'a GuestRam, address: GuestAddress, len: u32) -> bool {
        let Ok(len) = usize::try_from(len) else { return false };
        // The access right matters to an IOMMU, and there is none.
        let Ok(mut slices) = memory.get_slices(address, len, Permissions::ReadWrite) else { return false };
        slices.all(|slice| match slice {
            Ok(slice) => {
                self.0.push(slice);
                true
            }
            Err(_) => false,
        })
    }

    pub(crate) fn as_slice(&self) -> &[VolatileSlice<'a>] {
        &self.0
    }

    /// Number of bytes: a chain has fewer than 2^32.
    pub(crate) fn len(&self) -> usize {
        self.0.iter().map(VolatileSlice::len).sum()
    }

    /// Splits off the first `count` bytes.
    pub(crate) fn take(&mut self, count: usize) -> Option<Self> {
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
        let mut front: Vec<_> = self.0.drain(..whole).collect();
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

    /// Copies as much as fits into `data`, from the front; returns how much.
    pub(crate) fn read(&self, data: &mut [u8]) -> usize {
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

    /// Copies as much of `data` as fits, to the front; returns how much.
    pub(crate) fn write(&self, data: &[u8]) -> usize {
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
