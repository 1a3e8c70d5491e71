//! A list of changes, as a sandbox's process may have written it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| changes::fuzz::list(data));
