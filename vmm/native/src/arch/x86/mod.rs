//! x86-64: a PC without firmware, which describes itself by ACPI tables.

mod acpi;
pub mod board;
pub mod layout;
pub mod loader;
pub mod parameters;

use guest_memory::GuestRam;
use vm_memory::{Bytes, GuestMemoryError};

/// Describes the machine to its kernel: the CPUs, and the virtio devices that are in these slots.
pub(crate) fn describe(ram: &GuestRam, vcpus: u8, devices: &[layout::Slot]) -> Result<(), GuestMemoryError> {
    ram.write_slice(&acpi::tables(layout::ACPI_TABLES.0, vcpus, devices), layout::ACPI_TABLES)
}
