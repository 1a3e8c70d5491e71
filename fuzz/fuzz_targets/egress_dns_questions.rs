//! DNS questions of a guest.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| egress::fuzz::dns_questions(data));
