//! A hostile guest's changes to chains that are out.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio::fuzz::chains(data));
