//! The `Hypervisor` seam: making a virtual machine and running its vCPUs.
//!
//! Staged, because Hypervisor.framework binds a vCPU to the thread that creates it:
//!
//! ```text
//! Hypervisor::create_vm ──▶ (Vm, Vec<VcpuSeed: Send>)
//!                                   │ moved to the vCPU's own thread
//!                                   ▼ bind()
//!                              Vcpu: !Send ── run(io) ──▶ VcpuStop
//! ```
//!
//! The backend finishes every port and MMIO access itself: the program counter, the write-back of registers and the
//! completion of reads never leave the backend. Only terminal events stop a vCPU. Not here: devices, guest-physical
//! layout, boot protocols (the VMM's), and memory allocation (`guest_memory`).

mod arch;
mod error;
mod vcpu;
mod vm;

pub use arch::{Arch, x86};
pub use error::{Error, Result};
pub use vcpu::{Vcpu, VcpuIo, VcpuSeed, VcpuStop};
pub use vm::{Capabilities, Doorbell, Hypervisor, IrqLine, MemorySlot, Vm, VmConfig};
