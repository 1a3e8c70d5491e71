//! The messages between host and guest: bytes to frames to messages.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| guest_protocol::fuzz::frames(data));
