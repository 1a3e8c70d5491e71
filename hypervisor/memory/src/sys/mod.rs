//! Differences between host systems: the file behind shared memory, and the advice and flags for guest memory.

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

/// The kind of pages in which the host keeps a [`SharedFile`].
#[derive(Debug)]
pub enum Pages {
    /// Huge pages, which this host gives to every memfd that asks for them.
    Huge,
    /// Huge pages, by a tmpfs that this process mounted for the file.
    HugeByOwnMount,
    /// Small pages, and why there is no tmpfs with huge ones.
    Small(NoOwnMount),
}

/// Why there is no tmpfs with huge pages for this process.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}")]
pub struct NoOwnMount {
    /// The step that failed.
    pub step: &'static str,
    /// The host's answer.
    pub source: io::Error,
}
