//! A guest's calls to a folder in memory.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlay::fuzz::memory(data));
