//! The VMM: where hypervisor and devices meet.

pub mod acpi;
pub mod layout;
pub mod loader;
