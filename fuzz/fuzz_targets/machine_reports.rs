//! A report of each kind of process.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| machine::fuzz::reports(data));
