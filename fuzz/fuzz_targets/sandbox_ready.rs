//! How a guest becomes ready.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sandbox::fuzz::ready(data));
