//! Errors of every backend. Their texts state facts; hints belong to the CLI.

/// Result of a hypervisor call.
pub type Result<T> = std::result::Result<T, Error>;

/// Why a hypervisor call failed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The host's hypervisor is missing, or this user may not use it.
    #[error("hypervisor is not available: {0}")]
    Unavailable(String),
    /// The host's hypervisor lacks something that every machine needs.
    #[error("hypervisor lacks {0}")]
    Missing(&'static str),
    /// The caller asked for something out of bounds.
    #[error("invalid request: {0}")]
    Invalid(&'static str),
    /// The host refused one operation.
    #[error("{operation}: {source}")]
    Host {
        /// The operation, in the words of the host's API.
        operation: &'static str,
        /// The host's answer.
        source: std::io::Error,
    },
}
