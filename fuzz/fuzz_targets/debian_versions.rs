//! Versions, parted by line breaks, are in one order.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| debian::fuzz::versions(data));
