//! Patterns of a client on paths of a guest.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| policy::fuzz::globs(data));
