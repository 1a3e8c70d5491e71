//! How a test of the standard harness says that it cannot run here, so that it is seen and counted.
//!
//! The harness knows no skipping at run time and swallows what a passing test prints, so the words go to standard output
//! directly; `cargo xtask test` counts them. Not here: the suites with a harness of their own, which ignore such tests.

use std::fmt::Display;
use std::io::Write;

/// How the line starts, in front of the test's name.
pub const MARK: &str = "SKIP in ";

/// Says that the rest of this test does not run, for want of `need`; fails it if `REQUIRE` (names between commas) lists
/// that need.
///
/// # Panics
///
/// If the need is required.
pub fn skip(need: &str, reason: impl Display) {
    let required = std::env::var("REQUIRE").unwrap_or_default();
    assert!(required.split(',').all(|name| name != need), "{need} is required: {reason}");
    let thread = std::thread::current();
    let line = format!("\n{MARK}{}: {reason}\n", thread.name().unwrap_or("a test"));
    // Where nobody listens there is nobody to tell.
    let _ = std::io::stdout().write_all(line.as_bytes());
}
