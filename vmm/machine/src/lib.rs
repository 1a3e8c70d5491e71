//! The `Machine` seam: what the supervisor sees of a virtual machine that other processes run.
//!
//! ```text
//!            boot(Config)                      pause / resume
//!  nothing ──────────────▶ running ◀──────────────────────────▶ paused
//!                             │ stop(), the guest powers off, or a process of it dies
//!                             ▼
//!                           ended ── wait() ──▶ Ending
//! ```
//!
//! Two kinds: *native* (one `matchlock-vmm` process) and *software* (QEMU as vCPU engine under a launcher, our devices
//! in a `matchlock-devices` process). Every process holds the other end of a descriptor of the supervisor's and ends
//! when that hangs up. Not here: what is in the guest, and what the vsock streams carry.

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

/// Host vsock ports the guest may connect to, on every kind of machine; streams to others are reset. 1024 is where the
/// agent's control stream arrives (`guest_protocol::HOST_PORT`).
pub const LISTENING: [u32; 1] = [1024];

/// Which kind of machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Our VMM on KVM.
    Kvm,
    /// Our VMM on Hypervisor.framework.
    Hvf,
    /// QEMU TCG as vCPU engine, our devices.
    Software,
}

/// Everything a machine is made of. Descriptors, not paths: the machine's processes open nothing.
#[derive(Debug)]
pub struct Config {
    /// Number of vCPUs.
    pub vcpus: u8,
    /// Guest RAM.
    pub memory_mib: u32,
    /// The kernel.
    pub kernel: Kernel,
    /// The initial RAM file system.
    pub initramfs: OwnedFd,
    /// Kernel parameters; the machine adds those it needs itself (console, clock).
    pub command_line: String,
    /// Block devices, in guest order.
    pub disks: Vec<Disk>,
    /// Devices that processes outside of the machine serve, in guest order behind all others. With one of them, those
    /// processes map the guest's RAM.
    pub elsewhere: Vec<BackEnd>,
    /// Device end of the vsock port channel (`virtio::vsock`).
    pub ports: OwnedFd,
    /// Where console output goes; written without blocking the guest for ever: what the reader does not take is lost.
    pub console: OwnedFd,
    /// Where the machine's processes log: their standard error. Nowhere if none.
    pub log: Option<OwnedFd>,
}

/// A kernel and how to load it.
#[derive(Debug)]
pub struct Kernel {
    /// The file.
    pub file: OwnedFd,
    /// What is in it.
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
    /// The same disk for another machine: the same open files.
    pub fn try_clone(&self) -> io::Result<Self> {
        let segments = self.segments.iter().map(Segment::try_clone).collect::<io::Result<_>>()?;
        Ok(Self { segments, readonly: self.readonly })
    }
}

/// How a machine ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// The guest powered off, or was stopped.
    PowerOff,
    /// The guest asked for a reset (a stock kernel after a panic, with `panic=-1`).
    Reset,
    /// One of its processes failed; the text says which and how.
    Failed(String),
}

/// A running virtual machine.
pub trait Machine: Send {
    /// Which kind it is.
    fn kind(&self) -> Kind;
    /// Stops the vCPUs. They can be resumed.
    fn pause(&mut self) -> Result<(), MachineError>;
    /// Lets them go on.
    fn resume(&mut self) -> Result<(), MachineError>;
    /// Ends it at once. Nothing the guest has not synced is kept. Idempotent.
    fn stop(&mut self);
    /// Readable once the machine has ended.
    fn ended(&self) -> BorrowedFd<'_>;
    /// Waits for the end, reaps every process, and says how it went.
    fn wait(&mut self) -> Ending;
}

/// Why a machine could not be made or controlled.
#[derive(Debug, thiserror::Error)]
pub enum MachineError {
    /// A program this machine needs is not there.
    #[error("{program} not found")]
    Program {
        /// Its name.
        program: String,
    },
    /// A process could not be started or did not do its part.
    #[error("{what}: {source}")]
    Process {
        /// Which part.
        what: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// A process of the machine refused; the text is its own.
    #[error("{0}")]
    Refused(String),
}
