//! Text of foreign origin, made harmless to the terminal that shows it.
//!
//! Control characters move a cursor, rename a window or make a terminal answer; bidirectional controls disguise a
//! line. Not here: JSON, which escapes them (`say`).

use std::fmt::Write;

/// Whether a character is only itself: neither a control character nor one that turns the direction of text.
pub(crate) fn is_tame(character: char) -> bool {
    let bidirectional = matches!(
        character,
        '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    );
    !character.is_control() && !bidirectional
}

/// Turns a stream of bytes into text in which every character that is not tame is visible: `^[` for an escape,
/// `<U+202E>` for others. Lines end as they did.
#[derive(Debug, Default)]
pub(crate) struct Tamer {
    /// The beginning of a character, or a carriage return whose next byte has not come.
    held: Vec<u8>,
}

impl Tamer {
    /// The next piece.
    pub(crate) fn piece(&mut self, bytes: &[u8]) -> String {
        self.held.extend_from_slice(bytes);
        let held = std::mem::take(&mut self.held);
        let (now, later) = held.split_at(held.len() - unfinished(&held));
        self.held = later.to_vec();
        tamed(now)
    }

    /// The rest at the end.
    pub(crate) fn end(self) -> String {
        tamed(&self.held)
    }
}

/// The number of bytes at the end that need more bytes after them.
fn unfinished(bytes: &[u8]) -> usize {
    if bytes.last() == Some(&b'\r') {
        return 1;
    }
    match bytes.utf8_chunks().last() {
        // A character's beginning has at most three bytes; the next piece shows whether this is one.
        Some(chunk) if bytes.ends_with(chunk.invalid()) && is_beginning(chunk.invalid()) => {
            chunk.invalid().len()
        }
        _ => 0,
    }
}

/// Whether these are the first bytes of a character, but not all of it.
fn is_beginning(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

fn tamed(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes);
    let mut tame = String::with_capacity(text.len());
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        match character {
            '\n' | '\t' => tame.push(character),
            '\r' if characters.peek() == Some(&'\n') => tame.push(character),
            character if is_tame(character) => tame.push(character),
            // As cat -v shows control characters; writing to a string does not fail.
            control if control.is_ascii() => {
                tame.extend(['^', char::from(control as u8 ^ 0x40)]);
            }
            other => {
                let _ = write!(tame, "<U+{:04X}>", u32::from(other));
            }
        }
    }
    tame
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn in_pieces<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> String {
        let mut tamer = Tamer::default();
        let mut text: String = pieces.into_iter().map(|piece| tamer.piece(piece)).collect();
        text.push_str(&tamer.end());
        text
    }

    #[test]
    fn what_a_terminal_would_act_on_is_shown() {
        for (bytes, expected) in [
            (&b"plain\ttext\r\nnext\n"[..], "plain\ttext\r\nnext\n"),
            ("ünïcode 漢字 😀".as_bytes(), "ünïcode 漢字 😀"),
            (b"\x1b]0;title\x07\x1b[2J\x7f", "^[]0;title^G^[[2J^?"),
            (b"100 %\rok\r", "100 %^Mok^M"),
            ("\u{9b}31m\u{202e}txt\u{2069}\u{200f}".as_bytes(), "<U+009B>31m<U+202E>txt<U+2069><U+200F>"),
            (b"\x9b\xff\xc3", "\u{fffd}\u{fffd}\u{fffd}"),
        ] {
            assert_eq!(in_pieces([bytes]), expected);
            assert_eq!(in_pieces(bytes.chunks(1)), expected, "byte for byte");
        }
    }

    proptest! {
        #[test]
        fn nothing_wild_is_left(bytes in proptest::collection::vec(any::<u8>(), 0..200), at in 0..200_usize) {
            let (one, other) = bytes.split_at(at.min(bytes.len()));
            let text = in_pieces([one, other]);
            prop_assert!(text.replace("\r\n", "\n").chars().all(|c| is_tame(c) || c == '\n' || c == '\t'));
            prop_assert_eq!(text, in_pieces([&bytes[..]]));
        }
    }
}
