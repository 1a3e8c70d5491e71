//! Answers of DNS servers, and what a guest gets of them.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| egress::fuzz::dns_answers(data));
