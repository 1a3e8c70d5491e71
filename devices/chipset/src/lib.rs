//! The few legacy devices a stock x86 kernel insists on: a serial line, a clock, a way to turn off and to restart, and a PCI
//! bus with nothing on it.
//!
//! Each is a plain struct with `read` and `write` at an offset from its first port, as wide as the guest made the
//! access. Not here: the bus (ports nobody owns read as ones and ignore writes), interrupt controllers and timers (the
//! hypervisor's), the host's clock (a closure).

pub mod i8042;
pub mod pci;
pub mod power;
pub mod rtc;
pub mod serial;

pub use i8042::I8042;
pub use pci::PciConfig;
pub use power::Power;
pub use rtc::Rtc;
pub use serial::Serial;

/// What a write leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// Nothing the machine has to know.
    Continue,
    /// The guest asks for a reset.
    Reset,
    /// The guest asks for power off.
    PowerOff,
}

/// Answers a read of byte-wide registers: the first byte is a register's, nothing drives the lines of the others.
fn answer(data: &mut [u8], register: impl FnOnce() -> u8) {
    data.fill(0xff);
    if let Some(first) = data.first_mut() {
        *first = register();
    }
}
