//! Differences between guests' architectures: the layout, the devices of the board, how a kernel is loaded, and how the
//! machine is described to it.

#[cfg(target_arch = "x86_64")]
mod x86;

#[cfg(target_arch = "x86_64")]
pub(crate) use x86::describe;
#[cfg(target_arch = "x86_64")]
pub use x86::{board, layout, loader, parameters};
