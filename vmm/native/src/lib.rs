//! The VMM: where hypervisor and devices meet.
//!
//! One process runs one machine (`matchlock-vmm`). The process opens nothing: its supervisor sends a spec and every
//! descriptor over the process channel, and the process is confined before the guest's first instruction. Start with
//! [`machine::run`], the machine's life from spec to end. Not here: the supervisor's side (crate `machine`), policy,
//! and anything inside the guest.

mod arch;
pub mod devices;
pub mod events;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod log;
pub mod machine;
pub mod sys;
pub mod vcpu;

pub use arch::{board, layout, loader, parameters};
