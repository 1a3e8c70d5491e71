//! Authorities and paths of requests, and names that guests state.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| egress_policy::fuzz::heads(data));
