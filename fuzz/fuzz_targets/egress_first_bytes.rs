//! The first bytes of a guest's connections.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| egress::fuzz::first_bytes(data));
