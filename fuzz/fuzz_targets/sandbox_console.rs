//! A guest's console that tells of the guest's end.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sandbox::fuzz::console(data));
