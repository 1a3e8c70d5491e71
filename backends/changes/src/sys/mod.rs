//! Requests to the host that are not the same everywhere.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod other;

#[cfg(target_os = "linux")]
pub(crate) use linux::{clone, facts, pin, set_mode, sync};
#[cfg(not(target_os = "linux"))]
pub(crate) use other::{clone, facts, pin, set_mode, sync};
