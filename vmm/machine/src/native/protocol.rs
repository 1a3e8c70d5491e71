//! The messages between supervisor and VMM process over the process channel.
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
//! messages to the guest.

use serde::{Deserialize, Serialize};

use crate::KernelFormat;
use crate::descriptors::Fd;
use crate::devices::{DeviceSpec, Elsewhere};

/// Requests to the VMM process.
#[derive(Debug, Serialize, Deserialize)]
pub enum Request {
    /// Boot this machine. It is the first request, and the only one with descriptors.
    Boot(Box<Spec>),
    /// Stop the vCPUs.
    Pause,
    /// Let the vCPUs go on.
    Resume,
}

/// Reports of the VMM process.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Report {
    /// The vCPUs are about to run.
    Running(Timeline),
    /// The machine cannot be made; the text says why.
    Refused(String),
    /// No vCPU runs.
    Paused,
    /// The vCPUs run again.
    Resumed,
    /// The machine ended. No report follows.
    Ended(End),
}

/// How the guest ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// The guest turned its machine off.
    PowerOff,
    /// The guest asked for a reset.
    Reset,
    /// A vCPU could not go on; the text says why.
    Crashed(String),
}

/// Exit codes of the VMM process, which count if its last report is lost.
pub mod exit {
    /// The guest powered off, or the supervisor hung up.
    pub const POWER_OFF: u8 = 0;
    /// The machine failed, or could not be made.
    pub const FAILED: u8 = 1;
    /// The guest asked for a reset.
    pub const RESET: u8 = 3;
}

/// Moments in the VMM process's life: `CLOCK_MONOTONIC` in nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Timeline {
    /// `main` began.
    pub process_ns: u64,
    /// The spec had arrived.
    pub received_ns: u64,
    /// The hypervisor had made the machine and its vCPUs.
    pub created_ns: u64,
    /// The devices were made.
    pub devices_ns: u64,
    /// Kernel, initramfs and boot structures were in guest memory.
    pub loaded_ns: u64,
    /// The process was confined and every vCPU was about to run.
    pub running_ns: u64,
}

/// The machine to boot.
#[derive(Debug, Serialize, Deserialize)]
pub struct Spec {
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest RAM in MiB.
    pub memory_mib: u32,
    /// Whether guest RAM is shared, so that other processes can map it.
    pub shared_memory: bool,
    /// The hypervisor's device.
    pub hypervisor: Fd,
    /// The kernel's file.
    pub kernel: Fd,
    /// The format of the kernel's file.
    pub kernel_format: KernelFormat,
    /// The initial RAM file system.
    pub initramfs: Fd,
    /// Kernel parameters.
    pub command_line: String,
    /// Devices that the process serves, in guest order.
    pub devices: Vec<DeviceSpec>,
    /// The destination of console output.
    pub console: Fd,
    /// Whether there is a virtio console besides the serial line, after those devices in guest order.
    pub virtio_console: bool,
    /// Whether there is a balloon, after the console in guest order.
    pub balloon: bool,
    /// The network device, if there is one, after the balloon in guest order.
    pub network: Option<NetworkSpec>,
    /// Devices that other processes serve, in guest order after all of this process's own: each with the front end's
    /// end of its vhost-user connection. These devices need shared memory.
    pub elsewhere: Vec<(Elsewhere, Fd)>,
}

/// A network device: [`crate::Network`] with its TAP by index.
#[derive(Debug, Serialize, Deserialize)]
pub struct NetworkSpec {
    /// The TAP.
    pub tap: Fd,
    /// The guest's Ethernet address.
    pub station: [u8; 6],
    /// Most bytes of a packet of IP that the guest sends.
    pub mtu: u16,
}
