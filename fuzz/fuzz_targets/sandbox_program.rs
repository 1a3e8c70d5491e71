//! A guest's reports about one of its programs.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sandbox::fuzz::program(data));
