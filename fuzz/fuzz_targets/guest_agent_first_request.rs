//! The host's first bytes on a service stream.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| guest_agent::fuzz::first_request(data));
