//! Output in pieces that split no UTF-8 character.
//!
//! Clients decode piece by piece. Bytes that are no UTF-8 pass unchanged. Not here: the source of the pieces.

use std::borrow::Cow;

/// Holds back the beginning of a character, at most three bytes, until the rest of it comes.
#[derive(Debug, Default)]
pub(crate) struct Whole {
    held: Vec<u8>,
}

impl Whole {
    /// The part of this piece and the held bytes that can be passed on; may be empty.
    pub(crate) fn next<'a>(&mut self, piece: &'a [u8]) -> Cow<'a, [u8]> {
        if self.held.is_empty() {
            let (whole, rest) = piece.split_at(piece.len() - unfinished(piece));
            self.held.extend_from_slice(rest);
            return Cow::Borrowed(whole);
        }
        let mut bytes = std::mem::take(&mut self.held);
        bytes.extend_from_slice(piece);
        self.held = bytes.split_off(bytes.len() - unfinished(&bytes));
        Cow::Owned(bytes)
    }

    /// The bytes that are still held at the end.
    pub(crate) fn end(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.held)
    }
}

/// The number of bytes at the end that begin a character.
fn unfinished(bytes: &[u8]) -> usize {
    let tail = bytes.len().saturating_sub(3)..bytes.len();
    let lead = tail.rev().find(|at| bytes.get(*at).is_some_and(|byte| byte & 0xc0 != 0x80));
    let last = lead.and_then(|at| bytes.get(at..)).unwrap_or_default();
    match std::str::from_utf8(last) {
        // No length: "the end of the input was reached unexpectedly"
        Err(error) if error.valid_up_to() == 0 && error.error_len().is_none() => last.len(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pass(pieces: &[&[u8]]) -> Vec<Vec<u8>> {
        let mut whole = Whole::default();
        let mut passed: Vec<Vec<u8>> = pieces.iter().map(|piece| whole.next(piece).into_owned()).collect();
        passed.push(whole.end());
        passed
    }

    #[test]
    fn characters_stay_whole() {
        assert_eq!(pass(&[b"a\xc3", b"\xbcb"]), [&b"a"[..], "üb".as_bytes(), b""]);
        assert_eq!(pass(&[b"\xf0", b"\x9f", b"\x98", b"\x80"]), [&b""[..], b"", b"", "😀".as_bytes(), b""]);
        assert_eq!(pass(&[b"\xe2\x82"]), [&b""[..], b"\xe2\x82"]);
    }

    #[test]
    fn what_is_no_utf8_passes_at_once() {
        for bytes in
            [&b"\xff"[..], b"\x80\x80\x80\x80", b"\xc0", b"\xe2\x28", b"\xf0\x80", b"\xed\xa0", b"\xf5"]
        {
            assert_eq!(pass(&[bytes]), [bytes, b""], "{bytes:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_is_lost(pieces in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..9), 0..9)) {
            let pieces: Vec<&[u8]> = pieces.iter().map(Vec::as_slice).collect();
            let passed = pass(&pieces);
            prop_assert_eq!(passed.concat(), pieces.concat());
            prop_assert!(passed.last().unwrap().len() <= 3);
        }

        #[test]
        fn every_piece_of_text_is_text(text in ".{0,50}", size in 1usize..7) {
            let pieces: Vec<&[u8]> = text.as_bytes().chunks(size).collect();
            for piece in pass(&pieces) {
                prop_assert!(std::str::from_utf8(&piece).is_ok());
            }
        }
    }
}
