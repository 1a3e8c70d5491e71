//! Patterns of allow and deny lists.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| egress_policy::fuzz::patterns(data));
