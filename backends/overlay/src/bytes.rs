//! A file's contents, wherever they are: in memory, or from some size on in a file of the host's.

use std::sync::Arc;

use fuse::{Allocation, Errno, Result, Seek, Sink, Source};
use vm_memory::VolatileSlice;

use crate::chunks::{CHUNK_LEN, Chunks};
use crate::flat::Flat;
use crate::space::{Charge, Space};
use crate::store::Store;

/// The place that contents go to, and the space for them.
#[derive(Debug, Clone)]
pub(crate) struct Home {
    space: Arc<Space>,
    /// Nothing where all contents are in memory.
    store: Option<Arc<Store>>,
}

impl Home {
    pub(crate) fn new(space: Arc<Space>, store: Option<Arc<Store>>) -> Self {
        Self { space, store }
    }

    pub(crate) fn space(&self) -> &Space {
        &self.space
    }

    pub(crate) fn store(&self) -> Option<&Arc<Store>> {
        self.store.as_ref()
    }

    /// Contents of an empty file.
    pub(crate) fn empty(&self) -> Result<Bytes> {
        let chunks = Chunks::new(self.space.charge(0)?);
        Ok(match &self.store {
            None => Bytes::Memory(chunks),
            Some(store) => {
                let (memory, store) = (store.small()?, store.clone());
                Bytes::Small { chunks, memory, space: self.space.clone(), store }
            }
        })
    }
}

/// Contents of a file.
#[derive(Debug)]
pub(crate) enum Bytes {
    /// All in memory.
    Memory(Chunks),
    /// In memory while they are small, and there is room.
    Small {
        chunks: Chunks,
        /// For the memory that small files take, besides the charge of `chunks` for the space.
        memory: Charge,
        space: Arc<Space>,
        store: Arc<Store>,
    },
    /// In a file of the host's.
    Flat(Flat),
}

impl Bytes {
    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Memory(chunks) | Self::Small { chunks, .. } => chunks.len(),
            Self::Flat(flat) => flat.len(),
        }
    }

    /// Bytes that the file takes.
    pub(crate) fn taken(&self) -> u64 {
        match self {
            Self::Memory(chunks) | Self::Small { chunks, .. } => chunks.taken(),
            Self::Flat(flat) => flat.taken(),
        }
    }

    /// The place of the contents, as a list of changes tells it.
    pub(crate) fn told(&self) -> changes::Stored {
        let chunks = match self {
            Self::Flat(flat) => return changes::Stored::File(flat.number()),
            Self::Memory(chunks) | Self::Small { chunks, .. } => chunks,
        };
        // Contents in memory of which a list can be asked for have one chunk.
        let mut buffer = vec![0; usize::try_from(chunks.len()).map_or(CHUNK_LEN, |len| len.min(CHUNK_LEN))];
        chunks.read(0, &Sink::new(&[VolatileSlice::from(&mut buffer[..])], 0, usize::MAX));
        changes::Stored::Inline(buffer)
    }

    /// Fills `into` from `offset` on; returns how many bytes of the file there are.
    pub(crate) fn read(&self, offset: u64, into: &Sink<'_>) -> Result<u64> {
        match self {
            Self::Memory(chunks) | Self::Small { chunks, .. } => Ok(chunks.read(offset, into)),
            Self::Flat(flat) => flat.read(offset, into),
        }
    }

    /// Stores `from` at `offset`; returns how many bytes there was space for.
    pub(crate) fn write(&mut self, offset: u64, from: &Source<'_>) -> Result<u64> {
        self.make_room(offset, u64::try_from(from.len()).unwrap_or(u64::MAX))?;
        match self {
            Self::Memory(chunks) | Self::Small { chunks, .. } => chunks.write(offset, from),
            Self::Flat(flat) => flat.write(offset, from),
        }
    }

    /// Makes the file shorter, or longer by a hole.
    pub(crate) fn set_len(&mut self, len: u64) -> Result<()> {
        match self {
            Self::Memory(chunks) => chunks.set_len(len),
            Self::Small { chunks, memory, .. } => {
                chunks.set_len(len);
                memory.shrink(memory.amount().saturating_sub(chunks.taken()));
            }
            Self::Flat(flat) => flat.set_len(len)?,
        }
        Ok(())
    }

    /// Changes the space that a range takes.
    pub(crate) fn allocate(&mut self, offset: u64, len: u64, how: Allocation) -> Result<()> {
        if how != Allocation::Punch {
            self.make_room(offset, len)?;
        }
        match self {
            Self::Memory(chunks) | Self::Small { chunks, .. } => chunks.allocate(offset, len, how),
            Self::Flat(flat) => flat.allocate(offset, len, how),
        }
    }

    /// Finds the next byte that is stored, or that is not.
    pub(crate) fn seek(&self, offset: u64, what: Seek) -> Result<u64> {
        match self {
            Self::Memory(chunks) | Self::Small { chunks, .. } => chunks.seek(offset, what),
            Self::Flat(flat) => flat.seek(offset, what),
        }
    }

    /// Has contents that are no longer small go to a file of the host's.
    fn make_room(&mut self, offset: u64, len: u64) -> Result<()> {
        let Self::Small { chunks, memory, space, store } = self else { return Ok(()) };
        let small = u64::try_from(CHUNK_LEN).unwrap_or(u64::MAX);
        let end = offset.saturating_add(len);
        let needed = Chunks::taken_for(end).max(chunks.taken());
        if end <= small && memory.grow(needed.saturating_sub(memory.amount())).is_ok() {
            return Ok(());
        }
        let mut flat = Flat::new(store.create()?, space.charge(0)?);
        let mut buffer = vec![0; usize::try_from(chunks.len().min(small)).map_err(|_| Errno::EIO)?];
        let slices = [VolatileSlice::from(&mut buffer[..])];
        let count = chunks.read(0, &Sink::new(&slices, 0, usize::MAX));
        let mut at = 0;
        while let Ok(data) = chunks.seek(at, Seek::Data)
            && data < count
        {
            at = chunks.seek(data, Seek::Hole).unwrap_or(count).min(count);
            let (start, part) = (usize::try_from(data), usize::try_from(at - data));
            let (Ok(start), Ok(part)) = (start, part) else { return Err(Errno::EIO) };
            if flat.write(data, &Source::new(&slices, start, part))? < at - data {
                return Err(Errno::ENOSPC);
            }
        }
        flat.set_len(chunks.len())?;
        *self = Self::Flat(flat);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
