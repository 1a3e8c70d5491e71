//! Allocates blocks and writes bytes: runs of data in order, with holes for zeroes.

use std::fs::File;
use std::io::{self, Read};
use std::ops::Range;

use crate::{BLOCK_SIZE, Error, Result};

/// Most bytes gathered before they are written.
const BUFFER_SIZE: usize = 512 << 10;

/// A target of no fixed length that reads as zeroes wherever nothing was written.
pub trait Output {
    /// Writes all of `bytes` at `offset`.
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Sets the final length.
    fn set_len(&mut self, len: u64) -> io::Result<()>;
}

impl Output for File {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        std::os::unix::fs::FileExt::write_all_at(self, bytes, offset)
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        File::set_len(self, len)
    }
}

impl Output for Vec<u8> {
    fn write_all_at(&mut self, bytes: &[u8], offset: u64) -> io::Result<()> {
        let start = usize::try_from(offset).map_err(io::Error::other)?;
        let end = start.checked_add(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        if self.len() < end {
            self.resize(end, 0);
        }
        self.get_mut(start..end).ok_or(io::ErrorKind::FileTooLarge)?.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&mut self, len: u64) -> io::Result<()> {
        self.resize(usize::try_from(len).map_err(io::Error::other)?, 0);
        Ok(())
    }
}

/// Allocates blocks and writes to them.
pub(crate) struct Sink<O> {
    output: O,
    /// The first block that is not allocated.
    next_block: u32,
    limit_blocks: u32,
    buffer: Vec<u8>,
    /// The offset of the buffer's first byte.
    start: u64,
}

impl<O: Output> Sink<O> {
    /// A sink over an empty output. Blocks up to `reserved` are the caller's; the image is at most `limit` bytes long.
    pub(crate) fn new(output: O, reserved: u32, limit: u64) -> Self {
        let limit_blocks = u32::try_from(limit / BLOCK_SIZE as u64).unwrap_or(u32::MAX - 1);
        let buffer = Vec::with_capacity(BUFFER_SIZE);
        Self { output, next_block: reserved, limit_blocks, buffer, start: 0 }
    }

    /// Takes the next `count` blocks. If `count` is 0, the result is block 0.
    pub(crate) fn allocate(&mut self, count: u64) -> Result<u32> {
        if count == 0 {
            return Ok(0);
        }
        let first = self.next_block;
        let end = u64::from(first).saturating_add(count);
        if end > u64::from(self.limit_blocks) {
            return Err(Error::ImageSize { limit: u64::from(self.limit_blocks) * BLOCK_SIZE as u64 });
        }
        self.next_block = u32::try_from(end).map_err(|_| Error::ImageSize { limit: u64::MAX })?;
        Ok(first)
    }

    /// Gives back the blocks from `block` on if nothing was allocated after `end`.
    pub(crate) fn trim(&mut self, end: u32, block: u32) {
        if self.next_block == end {
            self.next_block = block;
        }
    }

    pub(crate) fn allocated(&self) -> u32 {
        self.next_block
    }

    /// Makes `offset` the place of the next byte.
    pub(crate) fn seek(&mut self, offset: u64) -> Result<()> {
        if self.start + self.buffer.len() as u64 != offset {
            self.flush()?;
            self.start = offset;
        }
        Ok(())
    }

    pub(crate) fn write(&mut self, bytes: &[u8]) -> Result<()> {
        if self.buffer.len() + bytes.len() > BUFFER_SIZE {
            self.flush()?;
        }
        if bytes.len() > BUFFER_SIZE {
            self.output.write_all_at(bytes, self.start).map_err(Error::Write)?;
            self.start += bytes.len() as u64;
            return Ok(());
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Appends `len` zeroes.
    pub(crate) fn zeroes(&mut self, len: u64) -> Result<()> {
        match usize::try_from(len) {
            Ok(0) => {}
            Ok(len) if self.buffer.len() + len <= BUFFER_SIZE => {
                self.buffer.resize(self.buffer.len() + len, 0)
            }
            _ => {
                self.flush()?;
                self.start += len;
            }
        }
        Ok(())
    }

    /// Copies exactly `len` bytes from `data`.
    pub(crate) fn copy(&mut self, data: &mut dyn Read, len: u64) -> Result<()> {
        let mut missing = len;
        while missing > 0 {
            if self.buffer.len() == BUFFER_SIZE {
                self.flush()?;
            }
            let filled = self.buffer.len();
            let want = usize::try_from(missing).unwrap_or(usize::MAX).min(BUFFER_SIZE - filled);
            self.buffer.resize(filled + want, 0);
            let got = read_some(data, self.buffer.get_mut(filled..).unwrap_or_default());
            self.buffer.truncate(filled + *got.as_ref().unwrap_or(&0));
            match got.map_err(Error::Read)? {
                0 => return Err(Error::ShortData { missing }),
                got => missing -= got as u64,
            }
        }
        Ok(())
    }

    /// Appends zeroes up to `offset`, which must not be before the place of the next byte.
    pub(crate) fn fill_to(&mut self, offset: u64) -> Result<()> {
        self.zeroes(offset.saturating_sub(self.start + self.buffer.len() as u64))
    }

    /// Appends zeroes up to the end of the block.
    pub(crate) fn pad(&mut self) -> Result<()> {
        let end = self.start + self.buffer.len() as u64;
        self.zeroes(end.next_multiple_of(BLOCK_SIZE as u64) - end)
    }

    /// Writes at `offset`, without the buffer.
    pub(crate) fn write_at(&mut self, bytes: &[u8], offset: u64) -> Result<()> {
        self.output.write_all_at(bytes, offset).map_err(Error::Write)
    }

    /// Writes the buffer out, except its blocks of zeroes: the output already reads as zeroes there.
    pub(crate) fn flush(&mut self) -> Result<()> {
        let (mut offset, mut run) = (self.start, 0..0);
        for block in self.buffer.chunks(BLOCK_SIZE) {
            if is_zero(block) {
                write_run(&mut self.output, &self.buffer, &run, offset)?;
                run = run.end + block.len()..run.end + block.len();
                offset = self.start + run.start as u64;
            } else {
                run.end += block.len();
            }
        }
        write_run(&mut self.output, &self.buffer, &run, offset)?;
        self.start += self.buffer.len() as u64;
        self.buffer.clear();
        Ok(())
    }

    /// Writes the rest of the buffer, sets the length, and gives the output back.
    pub(crate) fn finish(mut self) -> Result<O> {
        self.flush()?;
        self.output.set_len(u64::from(self.next_block) * BLOCK_SIZE as u64).map_err(Error::Write)?;
        Ok(self.output)
    }
}

fn write_run(output: &mut impl Output, buffer: &[u8], run: &Range<usize>, offset: u64) -> Result<()> {
    match buffer.get(run.clone()) {
        Some(bytes) if !bytes.is_empty() => output.write_all_at(bytes, offset).map_err(Error::Write),
        _ => Ok(()),
    }
}

pub(crate) fn read_some(data: &mut dyn Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match data.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            other => return other,
        }
    }
}

fn is_zero(block: &[u8]) -> bool {
    // The first bytes decide almost always.
    block.iter().take(16).all(|byte| *byte == 0) && block.iter().all(|byte| *byte == 0)
}
