//! Buffers of the guest's for one packet: one chain, or several where the driver takes merged ones.

use vm_memory::VolatileSlice;

use super::MAX_BUFFERS;
use super::header::BUFFER_COUNT;
use crate::Io;
use crate::chain::{Buffers, Slices};

/// Most chains of one packet. Linux gives buffers of 1536 bytes and more, of which the longest packet takes 43.
const MAX_CHAINS: usize = 256;

/// The chains that are taken for a packet, in order. Each is given back or put back.
pub(super) struct Room<'a> {
    queue: usize,
    chains: Vec<Taken>,
    slices: Slices<'a>,
    len: usize,
}

/// A chain that is taken.
struct Taken {
    head: u16,
    len: usize,
}

/// The fate of a packet.
pub(super) enum Filled {
    /// The guest has it, and its buffers.
    Given,
    /// It does not fit; the guest has its buffers back empty.
    Lost,
    /// The guest must give more buffers first.
    Short,
}

impl<'a> Room<'a> {
    /// Takes chains of `queue` for a packet of `wanted` bytes, as far as there are any, but at least one.
    pub(super) fn take(io: &mut Io<'a>, queue: usize, wanted: usize) -> Option<Self> {
        let mut room = Self { queue, chains: Vec::new(), slices: Slices::default(), len: 0 };
        while room.chains.is_empty() || (room.len < wanted && room.chains.len() < MAX_CHAINS) {
            let Some((head, buffer)) = pop(io, queue) else { break };
            if room.slices.as_slice().len() + buffer.as_slice().len() > MAX_BUFFERS {
                io.unpop(queue);
                break;
            }
            room.add(head, &buffer);
        }
        (!room.chains.is_empty()).then_some(room)
    }

    fn add(&mut self, head: u16, buffer: &Slices<'a>) {
        self.chains.push(Taken { head, len: buffer.len() });
        self.slices.append(buffer);
        self.len += buffer.len();
    }

    /// The places of the bytes, in order.
    pub(super) fn slices(&self) -> &[VolatileSlice<'a>] {
        self.slices.as_slice()
    }

    /// Writes the beginning of `bytes`, as much as there is room for; returns how much.
    pub(super) fn write(&self, bytes: &[u8]) -> usize {
        self.slices.write(bytes)
    }

    /// Writes the beginning of `bytes` from `offset` on; returns how much.
    fn write_at(&self, offset: usize, bytes: &[u8]) -> usize {
        let (mut skip, mut done) = (offset, 0);
        for slice in self.slices.as_slice() {
            if skip >= slice.len() {
                skip -= slice.len();
                continue;
            }
            let Ok(place) = slice.offset(std::mem::take(&mut skip)) else { break };
            let count = place.len().min(bytes.len() - done);
            place.copy_from(&bytes[done..done + count]);
            done += count;
            if done == bytes.len() {
                break;
            }
        }
        done
    }

    /// Gives the guest a packet of `len` bytes, with more chains if `merge`. Its end, which did not fit into the
    /// buffers, is at the front of `spare`; if there are not enough chains, the whole packet is there afterwards, and
    /// all chains are put back.
    pub(super) fn fill(&mut self, io: &mut Io<'a>, len: usize, spare: &mut [u8], merge: bool) -> Filled {
        let start = self.len;
        while self.len < len {
            if !merge || self.chains.len() == MAX_CHAINS {
                self.give_back(io, 0);
                return Filled::Lost;
            }
            let Some((head, buffer)) = pop(io, self.queue) else {
                spare.copy_within(..len - start, start);
                self.slices.read(&mut spare[..start]);
                self.put_back(io);
                return Filled::Short;
            };
            self.add(head, &buffer);
        }
        if start < len {
            self.write_at(start, &spare[..len - start]);
        }
        self.give_back(io, len);
        Filled::Given
    }

    /// Gives as many chains back as `len` bytes fill, and puts the others back; all are given back for 0 bytes.
    fn give_back(&mut self, io: &mut Io<'a>, len: usize) {
        let (mut used, mut room) = (0, 0);
        while used < self.chains.len() && (room < len || len == 0) {
            room += self.chains[used].len;
            used += 1;
        }
        if len > 0 {
            // VIRTIO 1.3 §5.1.6.4.1: the number of buffers is 1 where none are merged.
            self.write_at(BUFFER_COUNT, &u16::try_from(used).unwrap_or(u16::MAX).to_le_bytes());
        }
        self.chains.drain(used..).for_each(|_| io.unpop(self.queue));
        let mut left = len;
        for chain in self.chains.drain(..) {
            let filled = chain.len.min(left);
            io.complete(self.queue, chain.head, u32::try_from(filled).unwrap_or(0));
            left -= filled;
        }
    }

    /// Puts all chains back: they will be the next ones again.
    pub(super) fn put_back(&mut self, io: &mut Io<'a>) {
        self.chains.drain(..).for_each(|_| io.unpop(self.queue));
    }
}

/// The next chain of a queue: its head, and the places for the device's answer. A chain of more places than a system
/// call fills counts as one without any.
fn pop<'a>(io: &mut Io<'a>, queue: usize) -> Option<(u16, Slices<'a>)> {
    let chain = io.pop(queue)?;
    let head = chain.head_index();
    let buffer = Buffers::new(io.memory, chain).writable;
    Some((head, if buffer.as_slice().len() > MAX_BUFFERS { Slices::default() } else { buffer }))
}
