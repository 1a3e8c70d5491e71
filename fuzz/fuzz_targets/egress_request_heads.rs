//! The heads of a guest's requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| egress::fuzz::request_heads(data));
