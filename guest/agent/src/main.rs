//! The guest's only program: the kernel starts it as `/init` of the initramfs, and it stays PID 1.
//!
//! It has a C `main`: before a Rust one, the standard library needs descriptors 0, 1 and 2 to be open, or /dev/null
//! to open instead, and aborts otherwise. In an initramfs there may be neither.

#![no_main]
#![allow(unsafe_code, reason = "main is exported under its C name")]

/// The entry from the C library.
// SAFETY: the C start code expects exactly this symbol with the C calling convention; arguments may be ignored.
#[unsafe(no_mangle)]
extern "C" fn main() -> std::ffi::c_int {
    guest_agent::boot::run()
}
