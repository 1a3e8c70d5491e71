//! An archive, not packed: what it is, and what images are in it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| images::fuzz::archive(data));
