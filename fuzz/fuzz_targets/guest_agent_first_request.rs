//! What the host can say at the start of a service stream.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| guest_agent::fuzz::first_request(data));
