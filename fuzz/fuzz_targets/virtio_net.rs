//! A hostile guest's requests to a device, and packets from its network: `net`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio::fuzz::net(data));
