//! A policy, and questions of guests'.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| egress_policy::fuzz::questions(data));
