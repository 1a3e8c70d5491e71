//! What differs by the guest's architecture: where things are, what is on the board, how a kernel is loaded and what it is
//! told.

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::describe;
#[cfg(target_arch = "x86_64")]
pub use x86::{board, layout, loader, parameters};
