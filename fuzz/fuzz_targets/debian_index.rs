//! An index of packages: what is found is a file below the mirror, with a digest.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| debian::fuzz::index(data));
