//! A hostile guest's requests to a device: `vsock`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio::fuzz::vsock(data));
