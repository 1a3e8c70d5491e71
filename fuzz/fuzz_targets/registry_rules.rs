//! A policy or a configuration of registries.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| registry::fuzz::rules(data));
