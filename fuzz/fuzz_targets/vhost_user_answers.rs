//! A back end's answers to the front end of vhost-user.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vhost_user::fuzz::answers(data));
