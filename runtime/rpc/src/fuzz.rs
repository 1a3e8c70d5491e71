//! The fuzz body for a client's input: any bytes, cut anywhere, become lines, and lines become requests or refusals.
//!
//! `cargo test` runs it a fixed number of times with fixed seeds; `fuzz/` has the target for cargo-fuzz. Not here:
//! sessions.

use serde::de::DeserializeOwned;
use wire::rpc;

use crate::line::{Line, Lines};
use crate::request;

/// A limit on lines that fuzzing reaches; like the real one, it is over the kept length of a line that is too long.
const LIMIT: usize = 1100;

/// Reads the bytes after the first in pieces of that first byte's length. Panics only on a defect.
pub fn lines(data: &[u8]) {
    let Some((&piece, bytes)) = data.split_first() else { return };
    let whole = cut(bytes.chunks(bytes.len().max(1)));
    assert_eq!(whole, cut(bytes.chunks(usize::from(piece).max(1))), "pieces make other lines");
    let ends = bytes.iter().filter(|byte| **byte == b'\n').count();
    assert!(whole.len() <= ends + 1, "{} lines of {ends} ends", whole.len());
    for line in &whole {
        if let Line::Whole(line) = line {
            assert!(line.len() <= LIMIT && !line.contains(&b'\n'), "a line of {}", line.len());
        }
        read(line);
    }
    // A longer input: without an end it is one line.
    read(&Line::Whole(bytes.to_vec()));
    read(&Line::TooLong(bytes.to_vec()));
}

fn cut<'a>(pieces: impl Iterator<Item = &'a [u8]>) -> Vec<Line> {
    let mut lines = Lines::new(LIMIT);
    let mut all = Vec::new();
    for mut piece in pieces {
        while let Some(line) = lines.next(&mut piece) {
            all.push(line);
        }
    }
    all.extend(lines.end());
    all
}

/// Reads a line, and its parameters as those of a method.
fn read(line: &Line) {
    params::<rpc::CreateParams>(line);
    params::<rpc::ExecParams>(line);
    params::<rpc::WriteFileParams>(line);
}

fn params<T: DeserializeOwned>(line: &Line) {
    let Ok(request) = request::read(line) else { return };
    if let Err(failure) = request.params.parse::<T>() {
        assert!(!failure.message.is_empty(), "a refusal without a word");
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::{Strategy, any};
    use proptest::prop_oneof;
    use proptest::test_runner::{Config, RngSeed, TestRunner};

    /// Random bytes, or words that requests are made of.
    fn script() -> impl Strategy<Value = Vec<u8>> {
        const WORDS: [&str; 16] = [
            "{",
            "}",
            "[",
            "]",
            ":",
            ",",
            "\"id\":",
            "\"method\":",
            "\"params\":",
            "\"exec\"",
            "\n",
            "\\u00",
            "\"",
            "18446744073709551616",
            "null",
            "\"command\":",
        ];
        let word = (0..WORDS.len()).prop_map(|index| WORDS[index].as_bytes().to_vec());
        let piece = prop_oneof![3 => word, 1 => vec(any::<u8>(), 0..400)];
        vec(piece, 0..40).prop_map(|pieces| pieces.concat())
    }

    #[test]
    fn lines() {
        let config = Config {
            cases: 5_000,
            rng_seed: RngSeed::Fixed(1),
            failure_persistence: None,
            ..Config::default()
        };
        let run = TestRunner::new(config).run(&script(), |data| {
            super::lines(&data);
            Ok(())
        });
        run.unwrap();
    }
}
