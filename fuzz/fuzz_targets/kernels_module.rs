//! A kernel's module.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kernels::fuzz::module(data));
