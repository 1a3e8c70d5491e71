//! Runs the body of a fuzz target a fixed number of times with fixed seeds: on examples, and on edited ones. A
//! failing input is made small and printed.
//!
//! Not here: bodies (`fuzz.rs` of the crate whose decoders they try), and guidance by coverage (`fuzz/`).

use std::fmt;
use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::{Just, Strategy, any};
use proptest::prop_oneof;
use proptest::sample::{Index, select};
use proptest::test_runner::{Config, RngSeed, TestRunner};

/// Names a directory that gets the examples of every target, as a start for libFuzzer:
/// `<directory>/<target>/<number>`.
const CORPUS: &str = "FUZZ_CORPUS";

/// Bytes that are shown as a literal.
struct Input(Vec<u8>);

impl fmt::Debug for Input {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "b\"{}\"", self.0.escape_ascii())
    }
}

/// One edit.
#[derive(Debug, Clone)]
enum Edit {
    Put(Index, Vec<u8>),
    Insert(Index, Vec<u8>),
    Remove(Index, usize),
    Repeat(Index, usize),
    Cut(Index),
}

/// Calls `body` with the `examples` of `target`, and then with `cases` inputs made from them, always the same ones.
/// `words` are inserted by edits, beside numbers and noise.
///
/// # Panics
///
/// If the body does.
pub fn run(target: &str, cases: u32, examples: &[Vec<u8>], words: &[&str], body: fn(&[u8])) {
    if let Some(corpus) = std::env::var_os(CORPUS) {
        keep(&Path::new(&corpus).join(target), examples);
    }
    for example in examples {
        body(example);
    }
    let config =
        Config { cases, rng_seed: RngSeed::Fixed(1), failure_persistence: None, ..Config::default() };
    let starts = if examples.is_empty() { vec![Vec::new()] } else { examples.to_vec() };
    let edits = vec(edit(words), 0..8);
    let input =
        (select(starts), edits).prop_map(|(start, edits)| Input(edits.into_iter().fold(start, apply)));
    let result = TestRunner::new(config).run(&input, |input| {
        body(&input.0);
        Ok(())
    });
    if let Err(failure) = result {
        panic!("{target}: {failure}");
    }
}

fn keep(directory: &Path, examples: &[Vec<u8>]) {
    let kept = fs::create_dir_all(directory).and_then(|()| {
        examples
            .iter()
            .enumerate()
            .try_for_each(|(number, example)| fs::write(directory.join(number.to_string()), example))
    });
    assert!(kept.is_ok(), "{}: {kept:?}", directory.display());
}

/// An insertion: a word, noise, or a number at the edge of a range.
fn piece(words: &[&str]) -> impl Strategy<Value = Vec<u8>> + use<> {
    let edges = [0u64, 1, 0x7f, 0xff, 0x7fff, 0xffff, 0x7fff_ffff, 0xffff_ffff, u64::MAX >> 1, u64::MAX];
    let number = (select(edges.to_vec()), select(vec![1, 2, 4, 8]))
        .prop_map(|(value, width)| value.to_le_bytes().into_iter().take(width).collect());
    let noise = vec(any::<u8>(), 1..24);
    let words: Vec<Vec<u8>> = words.iter().map(|word| word.as_bytes().to_vec()).collect();
    let word = if words.is_empty() { Just(vec![0]).boxed() } else { select(words).boxed() };
    prop_oneof![3 => word, 2 => number, 2 => noise]
}

fn edit(words: &[&str]) -> impl Strategy<Value = Edit> + use<> {
    prop_oneof![
        5 => (any::<Index>(), piece(words)).prop_map(|(at, piece)| Edit::Put(at, piece)),
        4 => (any::<Index>(), piece(words)).prop_map(|(at, piece)| Edit::Insert(at, piece)),
        2 => (any::<Index>(), 1..64usize).prop_map(|(at, len)| Edit::Remove(at, len)),
        1 => (any::<Index>(), 1..600usize).prop_map(|(at, len)| Edit::Repeat(at, len)),
        1 => any::<Index>().prop_map(Edit::Cut),
    ]
}

fn apply(mut bytes: Vec<u8>, edit: Edit) -> Vec<u8> {
    let len = bytes.len();
    let part = |at: &Index, part: usize| {
        let start = at.index(len + 1);
        start..len.min(start + part)
    };
    match edit {
        Edit::Put(at, piece) => drop(bytes.splice(part(&at, piece.len()), piece)),
        Edit::Insert(at, piece) => drop(bytes.splice(part(&at, 0), piece)),
        Edit::Remove(at, len) => drop(bytes.drain(part(&at, len))),
        Edit::Repeat(at, len) => {
            let range = part(&at, len);
            let again = bytes.get(range.clone()).unwrap_or_default().to_vec();
            drop(bytes.splice(range.end..range.end, again));
        }
        Edit::Cut(at) => bytes.truncate(part(&at, 0).start),
    }
    bytes
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[test]
    fn examples_come_first_and_inputs_are_always_the_same() {
        static SEEN: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());
        let note = |bytes: &[u8]| SEEN.lock().expect("no panic").push(bytes.to_vec());
        let mut runs = [0, 1].map(|_| {
            run("itself", 200, &[b"one".to_vec(), b"two".to_vec()], &["word"], note);
            std::mem::take(&mut *SEEN.lock().expect("no panic"))
        });
        assert_eq!(runs[0], runs[1]);
        assert_eq!(runs[0][..2], [b"one", b"two"]);
        let count = runs[0].len();
        runs[0].sort();
        runs[0].dedup();
        assert!(count == 202 && runs[0].len() > 150, "{} of {count} differ", runs[0].len());
    }
}
