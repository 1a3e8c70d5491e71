//! Two stored layers, damaged, of which one is completed above the other.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| images::fuzz::stored(data));
