//! Lines of QEMU's.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| machine::fuzz::qmp(data));
