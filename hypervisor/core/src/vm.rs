//! The machine: memory slots, interrupts, kicks, and the optional powers of a backend.

use std::os::fd::BorrowedFd;

use guest_memory::GuestRam;

use crate::{Arch, Result, VcpuSeed};

/// A host's way to run virtual machines.
pub trait Hypervisor {
    /// The machine that this hypervisor makes.
    type Vm: Vm;
    /// A vCPU before it has a thread.
    type Seed: VcpuSeed;

    /// The powers and limits of this host.
    fn capabilities(&self) -> Capabilities;

    /// Makes a machine with all of `memory` mapped read-write, its interrupt controller and its vCPUs.
    ///
    /// The caller may fill `memory` from another thread meanwhile: this call does not read it.
    fn create_vm(&self, config: &VmConfig, memory: &GuestRam) -> Result<(Self::Vm, Vec<Self::Seed>)>;
}

/// Choices that are fixed when a machine is made.
#[derive(Debug, Clone)]
pub struct VmConfig {
    /// Number of vCPUs, at least 1.
    pub vcpus: u8,
    /// The machine's architecture, which is the host's.
    pub arch: Arch,
}

/// The powers and limits of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Capabilities {
    /// The greatest number of vCPUs that a machine may have.
    pub max_vcpus: u8,
    /// Whether guest code runs on the hardware, not by emulation inside the hypervisor.
    pub hardware: bool,
    /// Whether `hlt` without a pending interrupt stops the vCPU; otherwise the vCPU waits inside the hypervisor.
    pub halt_exits: bool,
    /// Whether read-only memory slots exist.
    pub readonly_memory: bool,
}

/// An interrupt input of the machine's interrupt controller (a GSI on x86, an SPI on arm64).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct IrqLine(pub u32);

/// Memory mapped besides the machine's RAM.
#[derive(Debug, Clone)]
pub struct MemorySlot {
    /// Where the memory is and where the guest sees it.
    pub memory: GuestRam,
    /// Whether the guest may only read the memory; its writes then become MMIO writes.
    pub readonly: bool,
}

/// A machine, which threads share.
pub trait Vm: Send + Sync + 'static {
    /// Maps more memory. Slots live as long as the machine.
    fn add_memory(&self, slot: MemorySlot) -> Result<()>;
    /// Sets the level of an interrupt line. For an edge-triggered line: `true`, then `false`.
    fn set_irq(&self, line: IrqLine, level: bool) -> Result<()>;
    /// Makes vCPU `index` return [`crate::VcpuStop::Kicked`] soon, whether the vCPU runs now or later. No kick is lost.
    fn kick(&self, index: u8) -> Result<()>;
    /// Doorbells, if this backend has them: guest accesses and interrupts that never return to user space.
    fn doorbell(&self) -> Option<&dyn Doorbell>;
}

/// An optional power: event descriptors in place of exits (KVM: ioeventfd and irqfd).
pub trait Doorbell: Send + Sync {
    /// Makes a 4-byte MMIO write of `value` to `address` signal `event` without an exit.
    fn on_write(&self, address: u64, value: u32, event: BorrowedFd<'_>) -> Result<()>;
    /// Makes a signal on `event` raise an edge on `line`.
    fn irq_on(&self, event: BorrowedFd<'_>, line: IrqLine) -> Result<()>;
}
