//! Skips of tests in the standard harness, made visible and counted.
//!
//! The harness knows no skipping at run time and swallows the output of a passing test, so the message goes to
//! standard output directly, where `cargo xtask test` counts it. Not here: the suites with a harness of their own,
//! which ignore such tests.

use std::fmt::Display;
use std::io::Write;

/// The beginning of the line, before the test's name.
pub const MARK: &str = "SKIP in ";

/// Reports that the rest of this test does not run for want of `need`, or fails the test if `REQUIRE` (names between
/// commas) lists that need.
///
/// # Panics
///
/// If the need is required.
pub fn skip(need: &str, reason: impl Display) {
    let required = std::env::var("REQUIRE").unwrap_or_default();
    assert!(required.split(',').all(|name| name != need), "{need} is required: {reason}");
    let thread = std::thread::current();
    let line = format!("\n{MARK}{}: {reason}\n", thread.name().unwrap_or("a test"));
    // Standard output may be closed.
    let _ = std::io::stdout().write_all(line.as_bytes());
}
