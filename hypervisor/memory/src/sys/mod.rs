//! What differs by host system: the file behind shared memory.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "linux")]
pub use linux::{NoOwnMount, Pages, SharedFile};
