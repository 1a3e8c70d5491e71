//! Bytes from the client, cut into lines.
//!
//! Memory never grows beyond one line of the limit: of a longer line only the beginning is kept, and the rest is
//! skipped. Not here: the content of a line.

use memchr::memchr;

/// Longest line. A file of 48 MB fits into one `write_file`.
pub(crate) const MAX_LINE: usize = 64 << 20;

/// Kept length of a line that is too long, to find its id.
const HEAD: usize = 1 << 10;

/// Capacity that is kept from one line to the next.
const KEPT: usize = 64 << 10;

/// A line without its end.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    /// The whole line; never blank.
    Whole(Vec<u8>),
    /// The beginning of a line over the limit.
    TooLong(Vec<u8>),
}

/// Cuts bytes into lines.
#[derive(Debug)]
pub(crate) struct Lines {
    limit: usize,
    line: Vec<u8>,
    skipping: bool,
}

impl Lines {
    pub(crate) fn new(limit: usize) -> Self {
        Self { limit, line: Vec::new(), skipping: false }
    }

    /// The next line that ends, or grows too long, in `bytes`, which then start after it; `None` once they are used
    /// up.
    pub(crate) fn next(&mut self, bytes: &mut &[u8]) -> Option<Line> {
        while !bytes.is_empty() {
            let end = memchr(b'\n', bytes);
            let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            *bytes = rest.get(usize::from(end.is_some())..).unwrap_or_default();
            let too_long = !self.skipping && self.line.len() + part.len() > self.limit;
            if too_long {
                self.skipping = end.is_none();
                let mut head = std::mem::take(&mut self.line);
                head.extend_from_slice(part.get(..HEAD).unwrap_or(part));
                head.truncate(HEAD);
                head.shrink_to_fit();
                return Some(Line::TooLong(head));
            }
            match (self.skipping, end) {
                (true, Some(_)) => self.skipping = false,
                (true, None) => {}
                (false, None) => self.line.extend_from_slice(part),
                (false, Some(_)) => {
                    self.line.extend_from_slice(part);
                    if let Some(line) = self.take() {
                        return Some(line);
                    }
                }
            }
        }
        None
    }

    /// The bytes after the last line's end.
    pub(crate) fn end(&mut self) -> Option<Line> {
        self.take()
    }

    fn take(&mut self) -> Option<Line> {
        if self.line.iter().all(u8::is_ascii_whitespace) {
            self.line.clear();
            self.line.shrink_to(KEPT);
            return None;
        }
        Some(Line::Whole(std::mem::take(&mut self.line)))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(text: &str) -> Line {
        Line::Whole(text.into())
    }

    fn too_long(text: &str) -> Line {
        Line::TooLong(text.into())
    }

    fn lines(limit: usize, pieces: &[&[u8]]) -> Vec<Line> {
        let mut lines = Lines::new(limit);
        let mut found = Vec::new();
        for piece in pieces {
            let mut bytes = *piece;
            while let Some(line) = lines.next(&mut bytes) {
                found.push(line);
            }
            assert!(bytes.is_empty());
            assert!(lines.line.len() <= limit);
        }
        found.extend(lines.end());
        found
    }

    #[test]
    fn lines_and_blanks() {
        assert_eq!(lines(9, &[b"a\n\n \r\n\tb\r\nc"]), [whole("a"), whole("\tb\r"), whole("c")]);
        assert_eq!(lines(9, &[b"a", b"b", b"\n", b"", b"\n", b"c\n"]), [whole("ab"), whole("c")]);
        assert_eq!(lines(9, &[b"", b"\n"]), []);
    }

    #[test]
    fn the_line_after_one_that_is_too_long_is_read() {
        assert_eq!(lines(3, &[b"abc\nabcd\nx\n"]), [whole("abc"), too_long("abcd"), whole("x")]);
        assert_eq!(lines(3, &[b"ab", b"cd", b"ef", b"gh\nx"]), [too_long("abcd"), whole("x")]);
        assert_eq!(lines(3, &[b"abcdef"]), [too_long("abcdef")]);
        assert_eq!(lines(3, &[b"abcdef\n", b"ghijkl\n"]), [too_long("abcdef"), too_long("ghijkl")]);
    }

    #[test]
    fn a_line_of_the_limit_passes_and_one_more_byte_does_not() {
        let mut line = vec![b'x'; MAX_LINE];
        line.push(b'\n');
        assert!(matches!(&lines(MAX_LINE, &[&line])[..], [Line::Whole(whole)] if whole.len() == MAX_LINE));
        line.insert(0, b'x');
        line.extend(b"next\n");
        let found = lines(MAX_LINE, &line.chunks(65_536).collect::<Vec<_>>());
        assert!(
            matches!(&found[..], [Line::TooLong(head), Line::Whole(next)] if head.len() == HEAD && next == b"next")
        );
    }

    proptest! {
        /// However the bytes arrive, the lines are the same, and no more than the limit is kept.
        #[test]
        fn pieces_do_not_matter(
            text in "[ab \\n]{0,200}",
            limit in 1usize..40,
            cuts in proptest::collection::vec(0usize..200, 0..10),
        ) {
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(text.len())).collect();
            cuts.extend([0, text.len()]);
            cuts.sort_unstable();
            let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &text.as_bytes()[cut[0]..cut[1]]).collect();
            let expected: Vec<Result<&str, ()>> = text
                .split('\n')
                .filter(|line| line.len() > limit || !line.trim().is_empty())
                .map(|line| if line.len() > limit { Err(()) } else { Ok(line) })
                .collect();
            let found = lines(limit, &pieces);
            prop_assert_eq!(found.len(), expected.len());
            for (found, expected) in found.iter().zip(expected) {
                match (found, expected) {
                    (Line::Whole(found), Ok(expected)) => prop_assert_eq!(found, expected.as_bytes()),
                    (Line::TooLong(head), Err(())) => prop_assert!(head.len() > limit || head.len() == HEAD),
                    (found, expected) => prop_assert!(false, "{:?} for {:?}", found, expected),
                }
            }
        }

        #[test]
        fn any_bytes(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..20)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            for line in lines(64, &pieces) {
                let (Line::Whole(bytes) | Line::TooLong(bytes)) = line;
                prop_assert!(!bytes.contains(&b'\n'));
            }
        }
    }
}
