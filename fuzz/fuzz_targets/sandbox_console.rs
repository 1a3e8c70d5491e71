//! What a guest's console can say of its end.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sandbox::fuzz::console(data));
