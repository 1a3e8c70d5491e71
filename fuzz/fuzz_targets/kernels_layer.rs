//! The layer that a registry has a kernel in.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| kernels::fuzz::layer(data));
