//! A guest's calls to a directory of the host.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| shares::fuzz::host_fs(data));
