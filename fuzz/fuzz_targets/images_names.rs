//! Names that users and archives give: those of images, digests and volumes.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| images::fuzz::names(data));
