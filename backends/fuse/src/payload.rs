//! The data of a WRITE, and the room for a READ's data: pieces of memory that a guest may change meanwhile.
//!
//! A file system hands the pieces to preadv(2) or pwritev(2), so that no byte is copied on its way; a file system that
//! has the bytes in memory copies them.

use vm_memory::VolatileSlice;

/// A part of a list of slices.
#[derive(Debug, Clone, Copy)]
struct Part<'a> {
    slices: &'a [VolatileSlice<'a>],
    /// Bytes of the slices that come before the part.
    start: usize,
    /// Bytes of the part; all of them are in the slices.
    len: usize,
}

impl<'a> Part<'a> {
    /// The part from `start` to `start + len`, as far as the slices reach.
    fn new(slices: &'a [VolatileSlice<'a>], start: usize, len: usize) -> Self {
        let all = slices.iter().fold(0usize, |sum, slice| sum.saturating_add(slice.len()));
        Self { slices, start, len: len.min(all.saturating_sub(start)) }
    }

    /// The part's bytes in order; no piece is empty.
    fn pieces(self) -> impl Iterator<Item = VolatileSlice<'a>> {
        let (mut skip, mut left) = (self.start, self.len);
        self.slices.iter().filter_map(move |slice| {
            let from = skip.min(slice.len());
            skip -= from;
            let count = left.min(slice.len() - from);
            left -= count;
            if count == 0 { None } else { slice.subslice(from, count).ok() }
        })
    }
}

/// Data from the guest, which may change at any moment: bytes that are read twice may differ.
#[derive(Debug, Clone, Copy)]
pub struct Source<'a>(Part<'a>);

impl<'a> Source<'a> {
    /// Bytes of `slices` from `start` on, at most `len`, as far as the slices reach.
    pub fn new(slices: &'a [VolatileSlice<'a>], start: usize, len: usize) -> Self {
        Self(Part::new(slices, start, len))
    }

    /// Number of bytes.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// The memory to read from, in order; no piece is empty.
    pub fn pieces(&self) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.0.pieces()
    }

    /// Copies as many bytes as fit into `buffer`; returns their number.
    pub fn copy_to(&self, buffer: &mut [u8]) -> usize {
        let mut done = 0;
        for piece in self.pieces() {
            done += piece.copy_to(&mut buffer[done..]);
        }
        done
    }
}

/// Room in the guest's memory.
#[derive(Debug, Clone, Copy)]
pub struct Sink<'a>(Part<'a>);

impl<'a> Sink<'a> {
    /// Room in `slices` from `start` on, at most `len` bytes, as far as the slices reach.
    pub fn new(slices: &'a [VolatileSlice<'a>], start: usize, len: usize) -> Self {
        Self(Part::new(slices, start, len))
    }

    /// Number of bytes that fit.
    #[expect(clippy::len_without_is_empty, reason = "nobody asks")]
    pub fn len(&self) -> usize {
        self.0.len
    }

    /// The memory to fill, in order; no piece is empty.
    pub fn pieces(&self) -> impl Iterator<Item = VolatileSlice<'a>> {
        self.0.pieces()
    }

    /// Copies as many bytes of `data` as fit to the front; returns their number.
    pub fn copy_from(&self, data: &[u8]) -> usize {
        let mut done = 0;
        for piece in self.pieces() {
            let count = piece.len().min(data.len() - done);
            piece.copy_from(&data[done..done + count]);
            done += count;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_begin_and_end_anywhere() {
        for start in 0..8 {
            for len in 0..8 {
                let (mut a, mut b, mut c, mut none) = (*b"ab", *b"cde", *b"f", *b"");
                let slices = [&mut a[..], &mut b[..], &mut none[..], &mut c[..]].map(VolatileSlice::from);
                let source = Source::new(&slices, start, len);
                let expected = &b"abcdef"[start.min(6)..(start + len).min(6)];
                let mut buffer = [0; 8];
                assert_eq!((source.len(), source.copy_to(&mut buffer)), (expected.len(), expected.len()));
                assert_eq!(&buffer[..expected.len()], expected);
                assert!(source.pieces().all(|piece| !piece.is_empty()));
                let sink = Sink::new(&slices, start, len);
                assert_eq!((sink.len(), sink.copy_from(b"XYZUVWXY")), (expected.len(), expected.len()));
                let mut filled = *b"abcdef";
                filled[start.min(6)..(start + len).min(6)].copy_from_slice(&b"XYZUVWXY"[..expected.len()]);
                assert_eq!([&a[..], &b, &c].concat(), filled);
            }
        }
    }

    #[test]
    fn copying_stops_at_the_shorter_end() {
        let mut a = *b"abc";
        let slices = [VolatileSlice::from(&mut a[..])];
        let mut buffer = [0; 2];
        assert_eq!(Source::new(&slices, 0, 3).copy_to(&mut buffer), 2);
        assert_eq!(Sink::new(&slices, 1, 2).copy_from(b"x"), 1);
        assert_eq!(a, *b"axc");
    }
}
