//! The program's own output, which may have no reader.
//!
//! The standard macros panic without a reader; a sandbox must be ended all the same. Names come from archives, guests
//! and arguments, so nothing printed here holds characters that a terminal would act on. Not here: a guest's output.

use std::fmt::Write as _;
use std::io::{self, Write};
use std::process;

use serde::Serialize;

use crate::streams::{Stderr, Stdout};
use crate::tame::is_tame;

/// A line of the answer, on standard output.
macro_rules! say {
    ($($argument:tt)*) => { $crate::say::text(&format!("{}\n", format_args!($($argument)*))) };
}

/// A line about the answer, on standard error.
macro_rules! tell {
    ($($argument:tt)*) => { $crate::say::note(&format!("{}\n", format_args!($($argument)*))) };
}

pub(crate) use {say, tell};

/// Prints the answer. Without a reader the command has nothing more to do.
pub(crate) fn text(text: &str) {
    bytes(tame(text).as_bytes());
}

/// JSON over many lines, in pure ASCII: some other characters turn a terminal's text around.
pub(crate) fn json(value: &impl Serialize) -> anyhow::Result<()> {
    bytes(ascii(serde_json::to_string_pretty(value)?).as_bytes());
    Ok(())
}

/// JSON on one line.
pub(crate) fn json_line(value: &impl Serialize) -> anyhow::Result<()> {
    bytes(ascii(serde_json::to_string(value)?).as_bytes());
    Ok(())
}

/// JSON with everything beyond ASCII escaped, and a line break. Such characters occur in strings only.
fn ascii(json: String) -> String {
    let mut escaped = String::with_capacity(json.len() + 1);
    for character in json.chars() {
        match character {
            ' '..='~' | '\n' => escaped.push(character),
            // RFC 8259 §7: "a 12-character sequence, encoding the UTF-16 surrogate pair"
            other => {
                for unit in other.encode_utf16(&mut [0; 2]) {
                    // Writing to a string does not fail.
                    let _ = write!(escaped, "\\u{unit:04x}");
                }
            }
        }
    }
    escaped.push('\n');
    escaped
}

fn tame(text: &str) -> String {
    text.chars().filter(|c| is_tame(*c) || matches!(c, '\n' | '\t')).collect()
}

/// Prints bytes of the answer, of any kind.
pub(crate) fn bytes(bytes: &[u8]) {
    if let Err(error) = Stdout.write_all(bytes) {
        const SIGPIPE: i32 = 13;
        if error.kind() == io::ErrorKind::BrokenPipe {
            process::exit(128 + SIGPIPE);
        }
        note(&format!("matchlock: standard output: {error}\n"));
        process::exit(1);
    }
}

/// Prints to standard error, with or without a reader.
pub(crate) fn note(text: &str) {
    let _ = Stderr.write_all(tame(text).as_bytes());
}

/// The output of the log. Control characters are escaped, except for colours.
#[derive(Debug)]
pub(crate) struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes).map(|()| bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        let text = String::from_utf8_lossy(bytes);
        let straight: String = text.chars().filter(|c| is_tame(*c) || c.is_control()).collect();
        Stderr.write_all(straight.as_bytes())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_ascii_and_means_the_same() {
        let value = serde_json::json!({"a\u{9b}": ["ü\n\u{7f}\u{202e}😀", "\u{1b}[2J"], "b": 1.5});
        let text = ascii(serde_json::to_string_pretty(&value).unwrap());
        assert!(text.bytes().all(|byte| (b' '..=b'~').contains(&byte) || byte == b'\n'), "{text}");
        assert!(
            text.contains(r"\ud83d\ude00") && text.contains(r"\u009b") && text.ends_with("}\n"),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }

    #[test]
    fn words_are_tame() {
        assert_eq!(tame("a\tb\u{1b}[2J\u{202e}\u{9b}ü\r\n"), "a\tb[2Jü\n");
    }
}
