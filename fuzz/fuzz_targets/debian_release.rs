//! A file in place of a signed release, which nobody without the key can sign; and its text as if it were signed.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| debian::fuzz::release(data));
