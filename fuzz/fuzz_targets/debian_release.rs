//! What comes as a signed release, which nobody can sign who has not the key; and its text as if it were signed.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| debian::fuzz::release(data));
