//! What a guest may do with files over others.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlay::fuzz::over(data));
