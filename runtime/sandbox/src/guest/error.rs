//! Errors of programs, files and connections in a guest.

use std::io;
use std::net::SocketAddr;

use guest_protocol::FileFailure;

use crate::{agent, control};

/// Result of this room's calls.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a program, a file or a connection in a guest.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The sandbox's owner, another process, could not be asked.
    #[error(transparent)]
    Control(control::Error),
    /// The conversation with the agent broke off, or the agent refused.
    #[error(transparent)]
    Agent(#[from] agent::Error),
    /// An act on files did not happen, or not all of it.
    #[error("{}", file_failure(.0))]
    File(FileFailure),
    /// A port of the guest does not take connections; the text is the guest's.
    #[error("{0}")]
    NotConnected(String),
    /// A port forward cannot listen.
    #[error("bind local port-forward listener {address}: {source}")]
    Listener {
        /// The listener's address.
        address: SocketAddr,
        /// The system's error.
        source: io::Error,
    },
    /// The system refused an operation on a forwarded connection.
    #[error("connection: {0}")]
    Connection(io::Error),
}

/// An error of the agent's is the same whether it comes through another process or not.
impl From<control::Error> for Error {
    fn from(error: control::Error) -> Self {
        match error {
            control::Error::Agent(error) => Self::Agent(error),
            error => Self::Control(error),
        }
    }
}

impl Error {
    /// The guest broke the protocol.
    pub(crate) const fn protocol(how: &'static str) -> Self {
        Self::Agent(agent::Error::Guest(how))
    }
}

fn file_failure(failure: &FileFailure) -> &str {
    match failure {
        FileFailure::TooLarge => "the file is over the size limit",
        FileFailure::NotRegular => "not a regular file",
        FileFailure::System { text, .. } => text,
    }
}
