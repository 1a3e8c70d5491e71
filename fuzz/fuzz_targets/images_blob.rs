//! A layer as it comes, packed or not: its digests are those of the bytes, whatever becomes of the tar.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| images::fuzz::blob(data));
