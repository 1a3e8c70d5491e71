//! A kernel's file, and what is packed in it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kernels::fuzz::image(data));
