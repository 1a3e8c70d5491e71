//! A hostile guest's packets, buffers and rings, and those of its network: `net`.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| virtio::fuzz::net(data));
