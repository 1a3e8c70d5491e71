//! What supervisor and VMM process say to each other over the process channel.
//!
//! ```text
//! supervisor                         VMM process
//!   Boot(Spec) + descriptors ──────▶
//!                            ◀────── Running(Timeline), or Refused(why) and the end
//!   Pause ─────────────────────────▶
//!                            ◀────── Paused
//!   Resume ────────────────────────▶
//!                            ◀────── Resumed
//!                            ◀────── Ended(how), and the end
//! ```
//!
//! A supervisor that hangs up ends the VMM. Descriptors travel beside the message ([`crate::descriptors`]). Not here:
//! anything of the guest.

use serde::{Deserialize, Serialize};

use crate::KernelFormat;
use crate::descriptors::Fd;
use crate::devices::{DeviceSpec, Elsewhere};

/// To the VMM process.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Boot this. The first request, and the only one with descriptors.
    Boot(Box<Spec>),
    /// Stop the vCPUs.
    Pause,
    /// Let them go on.
    Resume,
}

/// From the VMM process.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The vCPUs are about to run.
    Running(Timeline),
    /// The machine cannot be made; the text says why.
    Refused(String),
    /// No vCPU runs.
    Paused,
    /// They run again.
    Resumed,
    /// The machine ended. The last report.
    Ended(End),
}

/// How the guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// It turned itself off.
    PowerOff,
    /// It asked for a reset.
    Reset,
    /// A vCPU could not go on; the text says why.
    Crashed(String),
}

/// Exit codes of the VMM process, for when its last report is lost.
pub mod exit {
    /// The guest powered off, or the supervisor hung up.
    pub const POWER_OFF: u8 = 0;
    /// The machine failed, or could not be made.
    pub const FAILED: u8 = 1;
    /// The guest asked for a reset.
    pub const RESET: u8 = 3;
}

/// When things happened in the VMM process: `CLOCK_MONOTONIC` in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// `main` began.
    pub process_ns: u64,
    /// The spec was here.
    pub received_ns: u64,
    /// The hypervisor had made the machine and its vCPUs.
    pub created_ns: u64,
    /// The devices were there.
    pub devices_ns: u64,
    /// Kernel, initramfs and boot structures were in guest memory.
    pub loaded_ns: u64,
    /// The process was confined and every vCPU about to run.
    pub running_ns: u64,
}

/// What to boot.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest RAM.
    pub memory_mib: u32,
    /// Whether guest RAM is shared, so that other processes can map it.
    pub shared_memory: bool,
    /// The hypervisor's device.
    pub hypervisor: Fd,
    /// The kernel's file, and what is in it.
    pub kernel: Fd,
    /// What is in the kernel's file.
    pub kernel_format: KernelFormat,
    /// The initial RAM file system.
    pub initramfs: Fd,
    /// Kernel parameters.
    pub command_line: String,
    /// Devices that the process serves, in guest order.
    pub devices: Vec<DeviceSpec>,
    /// Where console output goes.
    pub console: Fd,
    /// Whether there is a virtio console besides the serial line, behind those devices.
    pub virtio_console: bool,
    /// Whether there is a balloon, behind the console.
    pub balloon: bool,
    /// Devices that others serve, behind all of the process's own: what each is, and the front end's end of its
    /// vhost-user connection. They need shared memory.
    pub elsewhere: Vec<(Elsewhere, Fd)>,
}
