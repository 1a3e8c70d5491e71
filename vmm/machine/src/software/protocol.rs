//! The messages between the supervisor and the software machine's two helpers over their process channels.
//!
//! ```text
//! supervisor                         matchlock-devices
//!   Devices + descriptors ─────────▶
//!                            ◀────── Serving, or Failed(why) and the end
//!                            ◀────── Failed(why), and the end
//!
//! supervisor                         matchlock-launcher
//!   Launch + descriptors ──────────▶
//!                            ◀────── Started + QEMU's pidfd, or Refused(why) and the end
//!                            ◀────── Ended(how), and the end
//! ```
//!
//! A supervisor that hangs up ends both helpers, and QEMU with the launcher. Descriptors travel beside the message; a
//! [`Fd`] is an index into them. Not here: QMP, which the supervisor speaks with QEMU itself.

use serde::{Deserialize, Serialize};

use crate::descriptors::Fd;
use crate::devices::DeviceSpec;

/// The only message to the device process: the devices to serve.
#[derive(Debug, Serialize, Deserialize)]
pub struct Devices {
    /// Memory of the machine, in bytes.
    pub memory: u64,
    /// The devices.
    pub devices: Vec<Served>,
}

/// A device to serve.
#[derive(Debug, Serialize, Deserialize)]
pub struct Served {
    /// A listening socket at which the device's front end waits to be accepted.
    pub listener: Fd,
    /// The device's description.
    pub device: DeviceSpec,
}

/// Reports of the device process.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DevicesReport {
    /// Every device waits for its driver, and the process is confined.
    Serving,
    /// A device cannot be served; the text says why.
    Failed(String),
}

/// Requests to the launcher, which gets one. QEMU's file is an argument of the launcher's.
#[derive(Debug, Serialize, Deserialize)]
pub enum LaunchRequest {
    /// Start QEMU.
    Launch(Launch),
    /// Set up the barriers that QEMU would have around it, and report them.
    Probe,
}

/// The QEMU to start.
#[derive(Debug, Serialize, Deserialize)]
pub struct Launch {
    /// Memory of the machine, in bytes.
    pub memory: u64,
    /// Whether to start QEMU even if nothing keeps it from its user's files.
    pub unconfined: bool,
    /// QEMU's arguments.
    pub args: Vec<String>,
    /// The descriptors that QEMU inherits, with their numbers in QEMU.
    pub inherit: Vec<(Fd, i32)>,
    /// QEMU's standard output: the console.
    pub stdout: Fd,
    /// The descriptors whose files QEMU opens again, by number, to read.
    pub reopened: Vec<Fd>,
    /// Whether a TAP is among the inherited descriptors.
    pub has_tap: bool,
}

/// Reports of the launcher.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaunchReport {
    /// QEMU runs; its pidfd comes along.
    Started,
    /// The barriers between QEMU and the files of its user, an entry for each; a missing barrier comes with the reason.
    Walls(Vec<Result<String, String>>),
    /// QEMU cannot be started; the text says why.
    Refused(String),
    /// QEMU ended.
    Ended {
        /// QEMU's exit status in the form of wait(2).
        status: i32,
        /// QEMU's last words on standard error, if any.
        last_words: String,
    },
}
