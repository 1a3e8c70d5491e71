//! Lines for the console, through the kernel's log: that reaches every console, also those found later.

use rustix::fs::{Mode, OFlags};

/// Writes one line. Only for what a human has to see: there are few such moments in a guest's life.
pub(crate) fn line(text: &str) {
    let open = || rustix::fs::open("/dev/kmsg", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
    if let Ok(kmsg) = open() {
        // <3>: the severity "error", which a `quiet` kernel shows.
        let _ = rustix::io::write(&kmsg, format!("<3>matchlock: {text}\n").as_bytes());
    }
}
