//! A package file.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| debian::fuzz::package(data));
