//! What this program says, to those who still listen.
//!
//! The standard macros panic when nobody does; a sandbox must be ended all the same. Not here: a guest's output.

use std::io::{self, Write};
use std::process;

/// A line of the answer, on standard output.
macro_rules! say {
    ($($argument:tt)*) => { $crate::say::text(&format!("{}\n", format_args!($($argument)*))) };
}

/// A line about the answer, on standard error.
macro_rules! tell {
    ($($argument:tt)*) => { $crate::say::note(&format!("{}\n", format_args!($($argument)*))) };
}

pub(crate) use {say, tell};

/// The answer is what a command is for: without a reader there is nothing more to do.
pub(crate) fn text(text: &str) {
    bytes(text.as_bytes());
}

/// The same, of whatever it is made.
pub(crate) fn bytes(bytes: &[u8]) {
    let mut stdout = io::stdout().lock();
    if let Err(error) = stdout.write_all(bytes).and_then(|()| stdout.flush()) {
        const SIGPIPE: i32 = 13;
        if error.kind() == io::ErrorKind::BrokenPipe {
            process::exit(128 + SIGPIPE);
        }
        note(&format!("matchlock: standard output: {error}\n"));
        process::exit(1);
    }
}

/// Nobody has to listen.
pub(crate) fn note(text: &str) {
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
