//! Another process's request to a sandbox's owner.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sandbox::fuzz::request(data));
