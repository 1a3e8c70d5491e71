//! Providers of files held to a model of POSIX: the same acts on both, and after each of them what is told of all files that a
//! guest's kernel knows. At the end, every file is looked at.
//!
//! Not here: providers, how they are made, and how often and with which scripts they are run (crate `fuzzed`, and `fuzz/`).

mod model;
mod run;

pub use model::Model;
pub use run::Run;

/// Acts that edits put in.
pub const WORDS: [&str; 6] = [
    "\x10\x01\x01\x01",
    "\x20\x01\x02\x01",
    "\x07\x01\x00\x11\x01\x03",
    "\x04\x01\x02\x02",
    "\x0f\x03",
    "\x0a\x03\x05\x07\x63",
];

/// Acts of every kind, with which edits may play.
#[must_use]
pub fn examples() -> Vec<Vec<u8>> {
    // Directories in one another, files in them, links, and what becomes of them.
    let directories = vec![16, 1, 0, 1, 16, 17, 1, 2, 16, 33, 2, 3, 32, 1, 2, 0, 16, 1, 3, 3];
    let contents = [
        // A file that is written, cut, made longer, punched, reserved and copied.
        &[32, 1, 0, 0, 10, 1, 3, 7, 77, 9, 8, 1, 0, 0, 2, 9, 8, 1, 0, 0, 7, 11 + 64, 1, 2, 5][..],
        &[26, 1, 0, 3, 1, 42, 1, 0, 2, 9, 9, 8, 1, 0, 0, 5, 9, 8, 1, 0, 0, 6, 11, 1, 6, 4, 27, 1, 7, 7],
        &[32, 1, 1, 1, 12, 1, 17, 7, 2, 4, 12, 17, 1, 6, 0, 0, 10, 17, 1, 6, 99, 122, 1, 1, 1, 1],
    ]
    .concat();
    let names =
        vec![32, 1, 4, 1, 4, 1, 1, 1, 5, 1, 0, 7, 1, 1, 1, 2, 0, 6, 1, 0, 15, 2, 14, 1, 3, 2, 4, 1, 4, 17];
    let nameless = vec![30, 1, 0, 0, 4, 1, 2, 1, 5, 1, 2, 4, 1, 3, 1, 62, 1, 0, 0, 4, 1, 2, 17, 15, 1];
    let facts =
        vec![9, 31, 1, 2, 1, 3, 13, 1, 0, 9, 13, 1, 1, 40, 61, 1, 0, 3, 10, 1, 0, 2, 1, 26, 1, 0, 2, 1];
    let all = [&directories[..], &contents, &names, &nameless, &facts].concat();
    let more: Vec<u8> =
        (0..600u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 13).to_le_bytes()[0]).collect();
    vec![directories, contents, names, nameless, facts, all, more]
}
