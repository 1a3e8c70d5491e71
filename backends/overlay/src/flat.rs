//! A file's contents in a file of the host's, with holes where it has them.
//!
//! Blocks that are stored are known here, so that space is counted to the block whatever the host's file system does, and
//! holes are found without asking it.

use fuse::{Allocation, Errno, Result, Seek, Sink, Source};
use vm_memory::VolatileSlice;

use crate::extents::Extents;
use crate::space::Charge;
use crate::store::Stored;

/// The unit in which space is counted.
const BLOCK: u64 = 4096;

/// Bytes that are moved at once: between the guest's memory, which changes meanwhile, and the file.
const MOVE_LEN: usize = 128 << 10;

/// Contents of a file.
#[derive(Debug)]
pub(crate) struct Flat {
    stored: Stored,
    extents: Extents,
    len: u64,
    /// No byte of the file on the host is from here on, so that what lies behind reads as zeroes.
    end: u64,
    /// For the blocks.
    charge: Charge,
}

impl Flat {
    /// An empty file, and a charge of nothing for it.
    pub(crate) fn new(stored: Stored, charge: Charge) -> Self {
        Self { stored, extents: Extents::default(), len: 0, end: 0, charge }
    }

    pub(crate) fn number(&self) -> u64 {
        self.stored.number()
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes that the file takes.
    pub(crate) fn taken(&self) -> u64 {
        self.charge.amount()
    }

    /// Fills `into` from `offset` on; returns how many bytes of the file there are.
    pub(crate) fn read(&self, offset: u64, into: &Sink<'_>) -> Result<u64> {
        let count = wide(into.len()).min(self.len.saturating_sub(offset));
        let mut buffer = vec![0; narrow(count).min(MOVE_LEN)];
        let (mut pieces, mut done) = (Pieces::new(into.pieces()), 0);
        while done < count {
            let part = narrow(count - done).min(buffer.len());
            let Some(buffer) = buffer.get_mut(..part) else { break };
            let at = offset.saturating_add(done);
            // A hole is not asked for.
            match self.extents.next_stored(at / BLOCK) {
                Some(block) if block.saturating_mul(BLOCK) < at.saturating_add(wide(part)) => {
                    self.stored.read(buffer, at)?;
                }
                _ => buffer.fill(0),
            }
            pieces.each(part, |within, piece| piece.copy_from(buffer.get(within..).unwrap_or_default()));
            done += wide(part);
        }
        Ok(count)
    }

    /// Stores `from` at `offset`; returns how many bytes there was space for.
    pub(crate) fn write(&mut self, offset: u64, from: &Source<'_>) -> Result<u64> {
        let wanted = wide(from.len());
        let Some(fits) = self.take(offset, wanted) else {
            return if wanted == 0 { Ok(0) } else { Err(Errno::ENOSPC) };
        };
        let mut buffer = vec![0; narrow(fits).min(MOVE_LEN)];
        let (mut pieces, mut done) = (Pieces::new(from.pieces()), 0);
        while done < fits {
            let part = narrow(fits - done).min(buffer.len());
            let Some(buffer) = buffer.get_mut(..part) else { break };
            pieces.each(part, |within, piece| {
                piece.copy_to(buffer.get_mut(within..).unwrap_or_default());
            });
            match self.stored.write(buffer, offset + done) {
                Ok(()) => done += wide(part),
                Err(errno) if done == 0 => return Err(errno),
                Err(_) => break,
            }
            self.end = self.end.max(offset + done);
            self.len = self.len.max(offset + done);
        }
        Ok(done)
    }

    /// Makes the file shorter, or longer by a hole.
    pub(crate) fn set_len(&mut self, len: u64) -> Result<()> {
        if len < self.end {
            self.stored.cut(len)?;
            self.end = len;
        }
        if len < self.len {
            let freed = self.extents.remove(len.div_ceil(BLOCK), u64::MAX);
            self.charge.shrink(freed.saturating_mul(BLOCK));
        }
        self.len = len;
        Ok(())
    }

    /// Changes the space that a range takes.
    pub(crate) fn allocate(&mut self, offset: u64, len: u64, how: Allocation) -> Result<()> {
        let end = offset.saturating_add(len);
        let keep_size = match how {
            Allocation::Punch => {
                self.clear(offset, end)?;
                let freed = self.extents.remove(offset.div_ceil(BLOCK), end / BLOCK);
                self.charge.shrink(freed.saturating_mul(BLOCK));
                return Ok(());
            }
            Allocation::Reserve { keep_size } => {
                self.reserve(offset, end)?;
                keep_size
            }
            Allocation::Zero { keep_size } => {
                self.reserve(offset, end)?;
                self.clear(offset, end)?;
                keep_size
            }
        };
        if !keep_size {
            self.len = self.len.max(end);
        }
        Ok(())
    }

    /// Finds the next byte that is stored, or that is not.
    pub(crate) fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        if offset >= self.len {
            return Err(Errno::ENXIO);
        }
        let block = offset / BLOCK;
        match what {
            Seek::Data => {
                let next = self.extents.next_stored(block).map(|next| next.saturating_mul(BLOCK).max(offset));
                next.filter(|next| *next < self.len).ok_or(Errno::ENXIO)
            }
            Seek::Hole => Ok(self.extents.next_hole(block).saturating_mul(BLOCK).clamp(offset, self.len)),
        }
    }

    /// Takes the space of a range, or of as much of its beginning as there is space for; returns how much.
    fn take(&mut self, offset: u64, len: u64) -> Option<u64> {
        let end = offset.saturating_add(len);
        let mut fits = 0;
        for (from, to) in self.extents.missing(offset / BLOCK, end.div_ceil(BLOCK)) {
            let before = from.saturating_mul(BLOCK);
            fits = before.saturating_sub(offset).max(fits);
            let free = self.charge.space().free() / BLOCK;
            let count = (to - from).min(free);
            if count > 0 && self.charge.grow(count * BLOCK).is_ok() {
                self.extents.insert(from, from + count);
                if count == to - from {
                    continue;
                }
                fits = (from + count).saturating_mul(BLOCK).saturating_sub(offset);
            }
            return if fits > 0 { Some(fits.min(len)) } else { None };
        }
        Some(len).filter(|len| *len > 0)
    }

    /// Takes the space of a range: all of it, or nothing.
    fn reserve(&mut self, offset: u64, end: u64) -> Result<()> {
        let missing = self.extents.missing(offset / BLOCK, end.div_ceil(BLOCK));
        let count: u64 = missing.iter().map(|(from, to)| to - from).sum();
        let amount = count.checked_mul(BLOCK).ok_or(Errno::ENOSPC)?;
        self.charge.grow(amount)?;
        if let Err(errno) = self.stored.reserve(offset, end - offset) {
            self.charge.shrink(amount);
            return Err(errno);
        }
        self.end = self.end.max(end);
        missing.into_iter().for_each(|(from, to)| self.extents.insert(from, to));
        Ok(())
    }

    /// Has a range read as zeroes.
    fn clear(&self, offset: u64, end: u64) -> Result<()> {
        let end = end.min(self.end.next_multiple_of(BLOCK));
        if offset < end { self.stored.punch(offset, end - offset) } else { Ok(()) }
    }
}

/// Pieces of the guest's memory, of which some bytes are taken at a time.
struct Pieces<'a, I> {
    rest: I,
    piece: Option<VolatileSlice<'a>>,
}

impl<'a, I: Iterator<Item = VolatileSlice<'a>>> Pieces<'a, I> {
    fn new(rest: I) -> Self {
        Self { rest, piece: None }
    }

    /// Calls `act` with the memory of the next `count` bytes, and where in them it begins.
    fn each(&mut self, count: usize, mut act: impl FnMut(usize, VolatileSlice<'a>)) {
        let mut done = 0;
        while done < count {
            let Some(piece) = self.piece.take().or_else(|| self.rest.next()) else { break };
            let len = piece.len().min(count - done);
            if let Ok(part) = piece.subslice(0, len) {
                act(done, part);
            }
            self.piece = piece.offset(len).ok().filter(|rest| !rest.is_empty());
            done += len;
        }
    }
}

fn narrow(len: u64) -> usize {
    usize::try_from(len).unwrap_or(usize::MAX)
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
