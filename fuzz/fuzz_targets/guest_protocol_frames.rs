//! What host and guest can say to each other: bytes to frames to messages.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| guest_protocol::fuzz::frames(data));
