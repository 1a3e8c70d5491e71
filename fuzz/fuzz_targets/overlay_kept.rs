//! Acts of a guest on files over others, with contents in files of the host's.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| overlay::fuzz::kept(data));
