//! An ext4 superblock, and the length of the file it is in.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| images::fuzz::superblock(data));
