//! A layer's tar, converted.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| images::fuzz::layer(data));
