//! Lines for the console, through the kernel's log, which reaches every console, also those found later.

use std::os::fd::OwnedFd;
use std::sync::OnceLock;

use rustix::fs::{Mode, OFlags};

static KERNEL_LOG: OnceLock<OwnedFd> = OnceLock::new();

/// Opens the kernel's log, once there are devices. Earlier lines are lost.
pub(crate) fn open() {
    if let Ok(log) = rustix::fs::open("/dev/kmsg", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) {
        let _ = KERNEL_LOG.set(log);
    }
}

/// Writes one line. Only for messages that a human has to see, of which there are few.
pub(crate) fn line(text: &str) {
    if let Some(log) = KERNEL_LOG.get() {
        // <3>: the severity "error", which a `quiet` kernel shows.
        let _ = rustix::io::write(log, format!("<3>matchlock: {text}\n").as_bytes());
    }
}
