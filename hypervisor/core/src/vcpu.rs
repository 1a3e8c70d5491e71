//! A vCPU's seed, which may move between threads; the vCPU, which may not; and the accesses that a vCPU makes.

use std::ops::ControlFlow;

use crate::Result;

/// A vCPU that exists but is not yet bound to a thread.
pub trait VcpuSeed: Send + 'static {
    /// The vCPU that the seed becomes on its own thread.
    type Vcpu: Vcpu;

    /// Binds the vCPU to the calling thread, for good.
    fn bind(self) -> Result<Self::Vcpu>;
}

/// A vCPU on its own thread. Never `Send`.
pub trait Vcpu {
    /// Runs guest code until a terminal event. No access is pending when this call returns.
    fn run(&mut self, io: &mut impl VcpuIo) -> VcpuStop;
}

/// The accesses that guest code makes outside its memory.
///
/// `data` is 1, 2, 4 or 8 bytes long (a port access at most 4) and little-endian. Reads always complete; a write may
/// stop the machine, because power-off and reset are device writes.
pub trait VcpuIo {
    /// Fills `data` from guest-physical `address`.
    fn mmio_read(&mut self, address: u64, data: &mut [u8]);
    /// Takes a write to guest-physical `address`.
    fn mmio_write(&mut self, address: u64, data: &[u8]) -> ControlFlow<VcpuStop>;
    /// Fills `data` from an x86 port. Backends without ports never call this method.
    fn port_read(&mut self, port: u16, data: &mut [u8]);
    /// Takes a write to an x86 port. Backends without ports never call this method.
    fn port_write(&mut self, port: u16, data: &[u8]) -> ControlFlow<VcpuStop>;
}

/// Why a vCPU stopped.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VcpuStop {
    /// Somebody called [`crate::Vm::kick`].
    Kicked,
    /// The guest asked for a reset (a device write, or a triple fault).
    Reset,
    /// The guest asked for power off.
    PowerOff,
    /// The vCPU halted and the backend cannot wait for its interrupts (see [`crate::Capabilities::halt_exits`]).
    Halted,
    /// The vCPU cannot go on; the text says why, in the host's words.
    Crashed(String),
}
