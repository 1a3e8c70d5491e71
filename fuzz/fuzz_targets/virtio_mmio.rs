//! A hostile guest's requests to a device: `mmio`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio::fuzz::mmio(data));
