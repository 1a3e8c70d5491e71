//! A process's packets to its parent over their channel.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| process::fuzz::channel(data));
