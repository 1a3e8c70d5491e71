//! The messages of a mount that was added: bytes to messages that say their own length.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| guest_protocol::fuzz::lengths(data));
