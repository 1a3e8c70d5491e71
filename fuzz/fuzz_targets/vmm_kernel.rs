//! A kernel to be loaded: any file.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vmm::fuzz::kernel(data));
