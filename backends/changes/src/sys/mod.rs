//! Requests to the host that are not the same everywhere.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod other;

#[cfg(all(test, target_os = "linux"))]
pub(crate) use linux::give_up_rights_of_root;
#[cfg(target_os = "linux")]
pub(crate) use linux::{clone, facts, pin, set_mode, sync};
#[cfg(all(test, not(target_os = "linux")))]
pub(crate) use other::give_up_rights_of_root;
#[cfg(not(target_os = "linux"))]
pub(crate) use other::{clone, facts, pin, set_mode, sync};
