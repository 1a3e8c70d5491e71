//! A guest's calls to files over others.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlay::fuzz::over(data));
