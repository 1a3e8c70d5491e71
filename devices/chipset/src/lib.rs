//! The few legacy devices that a stock x86 kernel insists on: a serial line, a clock, registers for power-off and
//! reset, and a PCI bus without devices.
//!
//! Each device is a plain struct with `read` and `write` at an offset from its first port, as wide as the guest made
//! the access. Not here: the bus (ports without a device read as ones and ignore writes), interrupt controllers and
//! timers (the hypervisor's), the host's clock (a closure).

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

/// The consequence of a write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Outcome {
    /// No consequence for the machine.
    Continue,
    /// The guest asks for a reset.
    Reset,
    /// The guest asks for power off.
    PowerOff,
}

/// Answers a read of byte-wide registers: the first byte is the register's, and no device drives the lines of the other
/// bytes.
fn answer(data: &mut [u8], register: impl FnOnce() -> u8) {
    data.fill(0xff);
    if let Some(first) = data.first_mut() {
        *first = register();
    }
}
