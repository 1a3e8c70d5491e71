//! The requests of a guest's kernel to a file system that it shares.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| fuse::fuzz::requests(data));
