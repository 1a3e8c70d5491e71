//! Errors of the control socket, at both of its ends.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guest_protocol::frame::FrameError;

use crate::{agent, records};

/// Result of this room's calls.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of the control socket.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The sandbox's record or directory.
    #[error(transparent)]
    Records(#[from] records::Error),
    /// The conversation broke off, or the owner passed on an error of its conversation with the agent.
    #[error(transparent)]
    Agent(#[from] agent::Error),
    /// The socket cannot be bound or reached.
    #[error("{path}: {source}", path = path.display())]
    Socket {
        /// The socket.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The sandbox has ended.
    #[error("VM {id} is not running (status: {status})")]
    NotRunning {
        /// The sandbox.
        id: records::Id,
        /// `stopped` or `crashed`.
        status: &'static str,
    },
    /// The sandbox belongs to another release.
    #[error("the sandbox's owner speaks control protocol {theirs}, this program {ours}")]
    Version {
        /// The owner's version.
        theirs: u16,
        /// This program's version.
        ours: u16,
    },
    /// The owner refused a request, in its own words.
    #[error("{0}")]
    Refused(String),
    /// The sandbox's owner runs but does not answer.
    #[error("the owner of VM {0} does not answer")]
    NoAnswer(records::Id),
    /// The owner agreed to end the sandbox, and did not.
    #[error("VM {id} has not ended after {} s", after.as_secs())]
    NotEnding {
        /// The sandbox.
        id: records::Id,
        /// How long was waited.
        after: Duration,
    },
}

impl From<FrameError> for Error {
    fn from(error: FrameError) -> Self {
        Self::Agent(error.into())
    }
}

impl Error {
    /// Adds the socket's path to an error of the system, for `map_err`.
    pub(crate) fn socket(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Socket { path, source }
    }
}
