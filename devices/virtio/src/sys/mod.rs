//! Differences between platforms: the event descriptor.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::Event;
#[cfg(target_os = "linux")]
pub(crate) use linux::{EventSet, Trigger};
