//! A registry's answers: challenges, a line each, then the answer of a token service, or a list of signatures.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| registry::fuzz::answers(data));
