//! The `Machine` seam: the supervisor's view of a virtual machine that other processes run.
//!
//! ```text
//!            boot(Config)                      pause / resume
//!  nothing ──────────────▶ running ◀──────────────────────────▶ paused
//!                             │ stop(), the guest powers off, or a process of it dies
//!                             ▼
//!                           ended ── wait() ──▶ Ending
//! ```
//!
//! There are two kinds: *native* (one `matchlock-vmm` process) and *software* (QEMU as vCPU engine under a launcher,
//! and this project's devices in a `matchlock-devices` process). Every process holds the other end of a descriptor of
//! the supervisor's and ends when the supervisor's end hangs up. Not here: the programs in the guest, and the contents
//! of vsock streams.

mod arch;
mod children;
pub mod descriptors;
pub mod devices;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod native;
mod qmp;
pub mod shares;
pub mod software;
pub mod tsc;

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use disk::Segment;

pub use devices::{BackEnd, Elsewhere};

/// Host vsock ports to which the guest may connect, on every kind of machine; streams to other ports are reset. The
/// agent's control stream arrives at 1024 (`guest_protocol::HOST_PORT`).
pub const LISTENING: [u32; 1] = [1024];

/// The kind of a machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// This project's VMM on KVM.
    Kvm,
    /// This project's VMM on Hypervisor.framework.
    Hvf,
    /// QEMU TCG as vCPU engine, with this project's devices.
    Software,
}

/// The parts of a machine. Files are given by descriptor, not by path, because the machine's processes open nothing.
#[derive(Debug)]
pub struct Config {
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest RAM in MiB.
    pub memory_mib: u32,
    /// The kernel.
    pub kernel: Kernel,
    /// The initial RAM file system.
    pub initramfs: OwnedFd,
    /// Kernel parameters; the machine adds its own (console, clock).
    pub command_line: String,
    /// Block devices, in guest order.
    pub disks: Vec<Disk>,
    /// The network device, if there is one.
    pub network: Option<Network>,
    /// Devices that processes outside the machine serve, in guest order after all others. If there are any, those
    /// processes map the guest's RAM.
    pub elsewhere: Vec<BackEnd>,
    /// Device end of the vsock port channel (`virtio::vsock`).
    pub ports: OwnedFd,
    /// The destination of console output. Writing never blocks the guest for ever: output that the reader does not take
    /// is lost.
    pub console: OwnedFd,
    /// The log of the machine's processes: their standard error. If there is none, they log nothing.
    pub log: Option<OwnedFd>,
}

/// A kernel and how to load it.
#[derive(Debug)]
pub struct Kernel {
    /// The file.
    pub file: OwnedFd,
    /// The format of the file.
    pub format: KernelFormat,
}

impl Kernel {
    /// The same kernel for another machine.
    pub fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, format: self.format })
    }
}

/// Kernel file formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub enum KernelFormat {
    /// x86-64 ELF with a PVH note.
    Elf,
    /// x86-64 bzImage.
    BzImage,
    /// arm64 Image.
    Image,
}

/// A block device.
#[derive(Debug)]
pub struct Disk {
    /// Contents, in order.
    pub segments: Vec<Segment>,
    /// Whether the guest's writes are refused.
    pub readonly: bool,
}

impl Disk {
    /// The same disk for another machine, which shares the open files.
    pub fn try_clone(&self) -> io::Result<Self> {
        let segments = self.segments.iter().map(Segment::try_clone).collect::<io::Result<_>>()?;
        Ok(Self { segments, readonly: self.readonly })
    }
}

/// A network device before a TAP.
#[derive(Debug)]
pub struct Network {
    /// The TAP, whose packets have virtio headers of 12 bytes in front. A process of the machine that has this
    /// descriptor reaches the TAP's network and nothing else by it.
    pub tap: OwnedFd,
    /// The guest's Ethernet address.
    pub station: [u8; 6],
    /// Most bytes of a packet of IP that the guest sends.
    pub mtu: u16,
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The guest powered off, or was stopped.
    PowerOff,
    /// The guest asked for a reset (a stock kernel after a panic, with `panic=-1`).
    Reset,
    /// One of the machine's processes failed; the text says which and how.
    Failed(String),
}

/// A running virtual machine.
pub trait Machine: Send {
    /// The machine's kind.
    fn kind(&self) -> Kind;
    /// Stops the vCPUs until they are resumed.
    fn pause(&mut self) -> Result<(), MachineError>;
    /// Lets paused vCPUs go on.
    fn resume(&mut self) -> Result<(), MachineError>;
    /// Ends the machine at once. Data that the guest has not synced are lost. A second call has no effect.
    fn stop(&mut self);
    /// A descriptor that is readable once the machine has ended.
    fn ended(&self) -> BorrowedFd<'_>;
    /// Waits for the end, reaps every process, and returns how the machine ended.
    fn wait(&mut self) -> Ending;
}

/// Why a machine could not be made or controlled.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A program that this machine needs is missing.
    #[error("{program} not found")]
    Program {
        /// The program's name.
        program: String,
    },
    /// A process could not be started, or failed at a step.
    #[error("{what}: {source}")]
    Process {
        /// The step.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A process of the machine refused; the text is that process's.
    #[error("{0}")]
    Refused(String),
}
