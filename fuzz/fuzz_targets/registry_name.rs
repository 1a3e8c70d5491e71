//! A name: it stands in a URL as it is, and means the same when it is read again.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| registry::fuzz::name(data));
