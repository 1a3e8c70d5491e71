//! Reports of the process of a network.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| outlet::fuzz::reports(data));
