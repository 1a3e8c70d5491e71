//! Conformance suite for every [`Hypervisor`] on x86-64.
//!
//! A test program instantiates [`cases`] for its backend and runs each in its own harness; see `tests/kvm.rs`. Guests
//! are real-mode and 32-bit code where possible, because a hypervisor without hardware under it emulates kernel code,
//! slowly. Not here: devices, kernels, and speed.

mod accesses;
mod guests;
mod interrupts;
mod rig;
mod stops;

use hypervisor::{Capabilities, Hypervisor};

/// One requirement on every backend.
pub struct Case<H> {
    /// A statement that is true of a backend that passes.
    pub name: &'static str,
    needs: Needs,
    check: fn(&H),
}

/// The needs of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needs {
    Nothing,
    ReadonlyMemory,
}

impl<H> Case<H> {
    fn new(name: &'static str, check: fn(&H)) -> Self {
        Self { name, needs: Needs::Nothing, check }
    }

    fn needs(self, needs: Needs) -> Self {
        Self { needs, ..self }
    }

    /// The reason why this host cannot run the case, if it cannot.
    #[must_use]
    pub fn unmet(&self, host: Capabilities) -> Option<&'static str> {
        match self.needs {
            Needs::ReadonlyMemory if !host.readonly_memory => Some("the host has no read-only memory slots"),
            Needs::Nothing | Needs::ReadonlyMemory => None,
        }
    }

    /// Runs the case; panics if the backend fails it.
    pub fn run(&self, hypervisor: &H) {
        (self.check)(hypervisor);
    }
}

/// Every case.
#[must_use]
pub fn cases<H: Hypervisor>() -> Vec<Case<H>> {
    [accesses::cases(), stops::cases(), interrupts::cases()].into_iter().flatten().collect()
}
