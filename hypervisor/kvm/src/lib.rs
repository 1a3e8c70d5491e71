//! [`hypervisor::Hypervisor`] on Linux KVM, x86-64.
//!
//! A process that uses this crate opens nothing: `/dev/kvm` arrives as a descriptor ([`Kvm::from_fd`]). The interrupt
//! controllers (PIC, IOAPIC, local APICs) and, if asked for, the PIT are KVM's own, so a halted vCPU waits in the
//! kernel. Not here: devices, guest-physical layout, boot protocols.
//!
//! The guest-physical range [`RESERVED`] is KVM's; neither memory nor devices may be put there.
//!
//! # Kicks
//!
//! [`Vm::kick`](hypervisor::Vm::kick) raises a flag, sets `immediate_exit` in the page shared with KVM and sends
//! [`kick_signal`] to the vCPU's thread, in this order. The page stops a vCPU that is about to enter `KVM_RUN`, the
//! signal stops one that is inside, and no kick is lost in between. [`Kvm::from_fd`] installs the (empty) handler for
//! the whole process.
//!
//! # System calls once `create_vm` has returned
//!
//! The seccomp filter that is installed before the first `KVM_RUN` must allow these calls:
//!
//! | call | by |
//! | --- | --- |
//! | `ioctl` with a request of [`IOCTLS_AFTER_CREATE`] | every method |
//! | `gettid`, `rt_sigprocmask` | `VcpuSeed::bind` |
//! | `getpid`, `tgkill` with [`kick_signal`] | `Vm::kick` |
//! | `rt_sigreturn` | the vCPU's thread, when kicked |
//! | `munmap`, `close` | dropping a vCPU or the machine |

#![cfg(all(target_os = "linux", target_arch = "x86_64"))]
#![allow(unsafe_code, reason = "KVM's ioctls, its shared page and signals")]

mod arch;
mod kick;
mod system;
mod vcpu;
mod vm;

pub use arch::{IOCTLS_AFTER_CREATE, RESERVED};
pub use kick::kick_signal;
pub use system::Kvm;
pub use vcpu::{KvmSeed, KvmVcpu};
pub use vm::KvmVm;

/// An error of one KVM operation, named as in the KVM API.
fn host(operation: &'static str) -> impl FnOnce(vmm_sys_util::errno::Error) -> hypervisor::Error {
    move |source| hypervisor::Error::Host { operation, source: source.into() }
}
