//! Errors of every backend. They state facts; hints belong to the CLI.

/// Result of a hypervisor call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a hypervisor call was refused.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's hypervisor is not there or not open to this user.
    #[error("hypervisor is not available: {0}")]
    Unavailable(String),
    /// The host's hypervisor lacks something every machine needs.
    #[error("hypervisor lacks {0}")]
    Missing(&'static str),
    /// The caller asked for something out of bounds.
    #[error("invalid request: {0}")]
    Invalid(&'static str),
    /// The host refused one operation.
    #[error("{operation}: {source}")]
    Host {
        /// What was asked, in the words of the host's API.
        operation: &'static str,
        /// What the host answered.
        source: std::io::Error,
    },
}
