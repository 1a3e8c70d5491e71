//! What differs by host system: the file behind shared memory, and what is asked of the system for guest memory.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(target_os = "macos")]
mod macos;

use std::io;

#[cfg(target_os = "linux")]
pub use linux::SharedFile;
#[cfg(target_os = "linux")]
pub(crate) use linux::{ADVICE, NO_SIGNAL, give_back};
#[cfg(target_os = "macos")]
pub use macos::SharedFile;
#[cfg(target_os = "macos")]
pub(crate) use macos::{ADVICE, NO_SIGNAL, give_back};

/// In which pages the host keeps a [`SharedFile`].
#[derive(Debug)]
pub enum Pages {
    /// Huge ones, as for every memfd that asks for them.
    Huge,
    /// Huge ones, by a tmpfs of its own.
    HugeByOwnMount,
    /// Small ones.
    Small(NoOwnMount),
}

/// Why there is no tmpfs with huge pages for this process.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct NoOwnMount {
    /// What was tried.
    pub step: &'static str,
    /// What the host said.
    pub source: io::Error,
}
