//! A file's contents in memory: pieces of it, with holes between them.

use std::collections::BTreeMap;

use fuse::{Allocation, Errno, Result, Seek, Sink, Source};
use vm_memory::VolatileSlice;

use crate::space::Charge;

/// Each chunk begins at a multiple of this.
pub(crate) const CHUNK_LEN: usize = 16 << 10;

/// Least bytes that a chunk takes; a small file takes no more.
const LEAST_LEN: usize = 512;

/// The bytes of a hole.
static ZEROES: [u8; CHUNK_LEN] = [0; CHUNK_LEN];

/// Contents of a file.
#[derive(Debug)]
pub(crate) struct Chunks {
    /// The chunks by their number. Each is a power of two long, at most [`CHUNK_LEN`]; the bytes that it lacks are a
    /// hole. A chunk's bytes beyond the file's end are zeroes.
    chunks: BTreeMap<u64, Vec<u8>>,
    len: u64,
    /// For the chunks.
    charge: Charge,
}

impl Chunks {
    /// An empty file, and a charge of nothing for it.
    pub(crate) fn new(charge: Charge) -> Self {
        Self { chunks: BTreeMap::new(), len: 0, charge }
    }

    pub(crate) fn len(&self) -> u64 {
        self.len
    }

    /// Bytes that the file takes.
    pub(crate) fn taken(&self) -> u64 {
        self.charge.amount()
    }

    /// The most that a file of one chunk takes for its bytes up to `end`.
    pub(crate) fn taken_for(end: u64) -> u64 {
        if end == 0 { 0 } else { wide(stored_len(usize::try_from(end).unwrap_or(CHUNK_LEN).min(CHUNK_LEN))) }
    }

    /// Fills `into` from `offset` on; returns how many bytes of the file there are.
    pub(crate) fn read(&self, offset: u64, into: &Sink<'_>) -> u64 {
        let count = wide(into.len()).min(self.len.saturating_sub(offset));
        for (number, within, part) in parts(offset, count, into.pieces()) {
            let chunk = self.chunks.get(&number).and_then(|chunk| chunk.get(within..)).unwrap_or_default();
            part.copy_from(chunk);
            if let Ok(hole) = part.offset(chunk.len().min(part.len())) {
                hole.copy_from(&ZEROES);
            }
        }
        count
    }

    /// Stores `from` at `offset`; returns how many bytes there was space for.
    pub(crate) fn write(&mut self, offset: u64, from: &Source<'_>) -> Result<u64> {
        let mut end = offset;
        for (number, within, part) in parts(offset, wide(from.len()), from.pieces()) {
            let taken = self.take(number, within + part.len());
            let chunk = self.chunks.get_mut(&number).and_then(|chunk| chunk.get_mut(within..));
            let count = part.copy_to(chunk.unwrap_or_default());
            if count > 0 {
                end += wide(count);
                self.len = self.len.max(end);
            }
            match taken {
                Ok(()) => {}
                Err(errno) if end == offset => return Err(errno),
                Err(_) => break,
            }
        }
        Ok(end - offset)
    }

    /// Makes the file shorter, or longer by a hole.
    pub(crate) fn set_len(&mut self, len: u64) {
        if len < self.len {
            let (number, within) = place(len);
            let beyond = self.chunks.split_off(&number);
            let mut freed: usize = beyond.values().map(Vec::len).sum();
            if let Some(mut cut) = beyond.into_iter().next().filter(|cut| cut.0 == number && within > 0) {
                cut.1.truncate(stored_len(within));
                cut.1.shrink_to_fit();
                fill(&mut cut.1, within, CHUNK_LEN);
                freed -= cut.1.len();
                self.chunks.insert(cut.0, cut.1);
            }
            self.charge.shrink(wide(freed));
        }
        self.len = len;
    }

    /// Changes the space that a range takes.
    pub(crate) fn allocate(&mut self, offset: u64, len: u64, how: Allocation) -> Result<()> {
        let keep_size = match how {
            Allocation::Punch => {
                self.punch(offset, len);
                return Ok(());
            }
            Allocation::Reserve { keep_size } => {
                self.reserve(offset, len)?;
                keep_size
            }
            Allocation::Zero { keep_size } => {
                self.reserve(offset, len)?;
                self.zero(offset, len);
                keep_size
            }
        };
        if !keep_size {
            self.len = self.len.max(offset.saturating_add(len));
        }
        Ok(())
    }

    /// Finds the next byte that is stored, or that is not.
    pub(crate) fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        if offset >= self.len {
            return Err(Errno::ENXIO);
        }
        let (number, within) = place(offset);
        let end = |number: u64, chunk: &Vec<u8>| start_of(number).saturating_add(wide(chunk.len()));
        let stored = |at: u64| {
            let (number, within) = place(at);
            self.chunks.get(&number).filter(|chunk| within < chunk.len()).map(|chunk| end(number, chunk))
        };
        match what {
            Seek::Data if stored(offset).is_some() => Ok(offset),
            Seek::Data => {
                let next = self.chunks.range(number + u64::from(within > 0)..).next();
                let next = next.map(|(number, _)| start_of(*number));
                next.filter(|next| *next < self.len).ok_or(Errno::ENXIO)
            }
            Seek::Hole => {
                let mut at = offset;
                while let Some(end) = stored(at).filter(|_| at < self.len) {
                    at = end;
                }
                Ok(at.min(self.len))
            }
        }
    }

    /// Has a chunk take space for `end` bytes.
    fn take(&mut self, number: u64, end: usize) -> Result<()> {
        let len = stored_len(end);
        let more = len.saturating_sub(self.stored(number));
        if more == 0 {
            return Ok(());
        }
        self.charge.grow(wide(more))?;
        let chunk = self.chunks.entry(number).or_default();
        if chunk.try_reserve_exact(more).is_err() {
            self.charge.shrink(wide(more));
            if chunk.is_empty() {
                self.chunks.remove(&number);
            }
            return Err(Errno::ENOSPC);
        }
        chunk.resize(len, 0);
        Ok(())
    }

    /// Bytes that a chunk takes.
    fn stored(&self, number: u64) -> usize {
        self.chunks.get(&number).map_or(0, Vec::len)
    }

    /// Takes the space of a range: all of it, or nothing.
    fn reserve(&mut self, offset: u64, len: u64) -> Result<()> {
        let stored: usize = self.touched(offset, len).map(|(_, chunk)| chunk.len()).sum();
        if len.saturating_sub(wide(stored)) > self.charge.space().free() {
            return Err(Errno::ENOSPC);
        }
        let mut grown = Vec::new();
        for (number, within, count) in spans(offset, len) {
            let before = self.stored(number);
            if let Err(errno) = self.take(number, within + count) {
                self.shrink(&grown);
                return Err(errno);
            }
            if self.stored(number) > before {
                grown.push((number, before));
            }
        }
        Ok(())
    }

    /// Gives back what chunks were made longer by.
    fn shrink(&mut self, grown: &[(u64, usize)]) {
        for (number, before) in grown {
            let Some(chunk) = self.chunks.get_mut(number) else { continue };
            self.charge.shrink(wide(chunk.len().saturating_sub(*before)));
            chunk.truncate(*before);
            chunk.shrink_to_fit();
            if chunk.is_empty() {
                self.chunks.remove(number);
            }
        }
    }

    /// Makes a hole.
    fn punch(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        let is_covered = |number: u64| {
            offset <= start_of(number) && end >= start_of(number).saturating_add(wide(CHUNK_LEN))
        };
        let covered: Vec<u64> = self
            .touched(offset, len)
            .map(|(number, _)| *number)
            .filter(|number| is_covered(*number))
            .collect();
        for number in covered {
            let chunk = self.chunks.remove(&number).unwrap_or_default();
            self.charge.shrink(wide(chunk.len()));
        }
        self.zero(offset, len);
    }

    /// Clears what is stored of a range.
    fn zero(&mut self, offset: u64, len: u64) {
        let end = offset.saturating_add(len);
        for (number, chunk) in self.chunks.range_mut(numbers(offset, len)) {
            let start = start_of(*number);
            let within =
                |at: u64| usize::try_from(at.saturating_sub(start)).unwrap_or(CHUNK_LEN).min(CHUNK_LEN);
            fill(chunk, within(offset), within(end));
        }
    }

    /// Chunks that a range is in.
    fn touched(&self, offset: u64, len: u64) -> impl Iterator<Item = (&u64, &Vec<u8>)> {
        self.chunks.range(numbers(offset, len))
    }
}

/// Clears the bytes of a chunk from `start` to `end`, where it has them.
fn fill(chunk: &mut [u8], start: usize, end: usize) {
    let end = end.min(chunk.len());
    if let Some(part) = chunk.get_mut(start..end) {
        part.fill(0);
    }
}

/// How many bytes a chunk takes of which `end` are needed.
fn stored_len(end: usize) -> usize {
    end.next_power_of_two().clamp(LEAST_LEN, CHUNK_LEN)
}

/// The chunk that a byte is in, and where.
fn place(offset: u64) -> (u64, usize) {
    let within = offset % wide(CHUNK_LEN);
    (offset / wide(CHUNK_LEN), usize::try_from(within).unwrap_or(0))
}

fn start_of(number: u64) -> u64 {
    number.saturating_mul(wide(CHUNK_LEN))
}

/// Numbers of the chunks that a range is in; it is not empty.
fn numbers(offset: u64, len: u64) -> std::ops::RangeInclusive<u64> {
    place(offset).0..=place(offset.saturating_add(len.saturating_sub(1))).0
}

/// A range's parts, chunk by chunk: number, where in it, and how many bytes.
fn spans(mut offset: u64, mut left: u64) -> impl Iterator<Item = (u64, usize, usize)> {
    std::iter::from_fn(move || {
        let (number, within) = place(offset);
        let count = usize::try_from(left).map_or(CHUNK_LEN - within, |left| left.min(CHUNK_LEN - within));
        offset = offset.saturating_add(wide(count));
        left -= wide(count);
        (count > 0).then_some((number, within, count))
    })
}

/// Pieces of memory of which `left` bytes are for a range from `offset` on, cut where a chunk ends: number of the chunk,
/// where in it, and the memory.
fn parts<'a>(
    mut offset: u64,
    mut left: u64,
    mut pieces: impl Iterator<Item = VolatileSlice<'a>>,
) -> impl Iterator<Item = (u64, usize, VolatileSlice<'a>)> {
    let mut rest: Option<VolatileSlice<'a>> = None;
    std::iter::from_fn(move || {
        let piece = rest.take().filter(|rest| !rest.is_empty()).or_else(|| pieces.next())?;
        let (number, within, count) = spans(offset, left.min(wide(piece.len()))).next()?;
        let part = piece.subslice(0, count).ok()?;
        rest = piece.offset(count).ok();
        offset += wide(count);
        left -= wide(count);
        Some((number, within, part))
    })
}

fn wide(len: usize) -> u64 {
    u64::try_from(len).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests;
