//! Helpers of the software machine: the device process and QEMU's launcher.
//!
//! Both programs get one message from the supervisor with every descriptor that they will ever use, confine themselves,
//! and end when the supervisor's end of the channel hangs up. Not here: the supervisor's side (`machine::software`),
//! the devices, and the vhost-user protocol.

pub mod devices;
pub mod launcher;
mod qemu;

/// Writes a line to the log.
fn say(program: &str, what: &str) {
    log(format!("{program}: {what}\n").as_bytes());
}

fn log(bytes: &[u8]) {
    // A log that is gone is no reason to end.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), bytes);
}
