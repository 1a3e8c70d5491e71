//! Documents that a registry could have, which may name one another.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| images::fuzz::documents(data));
