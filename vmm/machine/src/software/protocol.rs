//! What the supervisor and the software machine's two helpers say to each other over their process channels.
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
//! A supervisor that hangs up ends both, and QEMU with the launcher. Descriptors travel beside the message; a [`Fd`]
//! is an index into them. Not here: QMP, which the supervisor speaks with QEMU itself.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::descriptors::Fd;
use crate::devices::DeviceSpec;

/// To the device process: what to serve. The only message.
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
    /// Which device.
    pub device: DeviceSpec,
}

/// From the device process.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DevicesReport {
    /// Every device waits for its driver, and the process is confined.
    Serving,
    /// A device cannot be served; the text says why.
    Failed(String),
}

/// To the launcher. The only message.
#[derive(Debug, Serialize, Deserialize)]
pub enum LaunchRequest {
    /// Start QEMU.
    Launch(Launch),
    /// Build the walls that this QEMU would have around it, and say which there are.
    Probe(PathBuf),
}

/// What to start.
#[derive(Debug, Serialize, Deserialize)]
pub struct Launch {
    /// QEMU's file.
    pub program: PathBuf,
    /// Memory of the machine, in bytes.
    pub memory: u64,
    /// Start it even where nothing keeps it from its user's files.
    pub unconfined: bool,
    /// Its arguments.
    pub args: Vec<String>,
    /// What it inherits, and at which number.
    pub inherit: Vec<(Fd, i32)>,
    /// Its standard output: the console.
    pub stdout: Fd,
    /// Those of the descriptors that it opens again, by number, to read.
    pub reopened: Vec<Fd>,
}

/// From the launcher.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LaunchReport {
    /// QEMU runs; its pidfd comes along.
    Started,
    /// What keeps QEMU from the files of its user, an entry each; what is missing comes with the reason.
    Walls(Vec<Result<String, String>>),
    /// QEMU cannot be started; the text says why.
    Refused(String),
    /// QEMU ended.
    Ended {
        /// In the form of wait(2).
        status: i32,
        /// What it said last on standard error, if anything.
        last_words: String,
    },
}
