//! What a program of a guest can be said to do.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| sandbox::fuzz::program(data));
