//! A client's input to `matchlock rpc`: bytes to lines to requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| rpc::fuzz::lines(data));
