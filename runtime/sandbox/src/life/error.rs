//! Errors of a sandbox's life: its parts, its machine, its start and its end.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::life::Why;
use crate::{agent, control, guest, records};

/// Result of this room's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a sandbox's life.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The record or directory of a sandbox.
    #[error(transparent)]
    Records(#[from] records::Error),
    /// The conversation with the guest's agent.
    #[error(transparent)]
    Agent(#[from] agent::Error),
    /// The control socket.
    #[error(transparent)]
    Control(control::Error),
    /// A program, a file or a connection in the guest.
    #[error(transparent)]
    Guest(guest::Error),
    /// An operation on a file of the machine failed.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: io::Error,
    },
    /// The system refused something that has no path.
    #[error("{what}: {source}")]
    System {
        /// Its subject, for the message.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// The system gives no random bytes for the guest.
    #[error("the system gives no random bytes")]
    Entropy,
    /// The image cannot be had.
    #[error(transparent)]
    Image(#[from] images::Error),
    /// The image's layers make no disk.
    #[error("image {image}: {source}")]
    Layers {
        /// The image.
        image: String,
        /// The reason.
        source: disk::composite::PlanError,
    },
    /// The kernel cannot be had.
    #[error(transparent)]
    Kernel(#[from] kernels::Error),
    /// The guest's agent is not installed.
    #[error("the guest agent (matchlock-guest) is not found")]
    NoAgent,
    /// Too much or too little was asked for.
    #[error(transparent)]
    Resources(#[from] policy::resources::ResourceError),
    /// A name cannot be used.
    #[error(transparent)]
    Name(#[from] policy::names::NameError),
    /// A disk is not acceptable.
    #[error(transparent)]
    Disks(#[from] policy::disks::DiskError),
    /// A disk's image cannot be had.
    #[error("invalid disk mount {disk:?}: {source}")]
    Disk {
        /// The disk, as it was asked for.
        disk: String,
        /// The reason.
        source: Box<images::Error>,
    },
    /// A mount is not acceptable.
    #[error(transparent)]
    Mounts(#[from] policy::mounts::MountError),
    /// A share's directory cannot be had.
    #[error("invalid volume mount {share:?}: {why}")]
    Share {
        /// The share, as it was asked for.
        share: String,
        /// The reason.
        why: String,
    },
    /// No machine fits.
    #[error(transparent)]
    NoMachine(#[from] policy::machine::Refusal),
    /// There is no network on which the sandbox depends.
    #[error("no network for the sandbox: {why}")]
    NoNetwork {
        /// The thing that the host lacks, or that failed.
        why: String,
    },
    /// The machine could not be made.
    #[error(transparent)]
    Machine(#[from] machine::MachineError),
    /// The guest did not come up in time.
    #[error("the guest was not ready after {} s{}", after.as_secs(), said(last_words))]
    NeverReady {
        /// The limit.
        after: Duration,
        /// The last lines of the guest's console.
        last_words: Option<String>,
    },
    /// The machine ended while it was needed.
    #[error("{how}{}", said(last_words))]
    Ended {
        /// How it ended.
        how: String,
        /// The last lines of the guest's console.
        last_words: Option<String>,
    },
    /// The sandbox was ended while it was needed.
    #[error("{0}")]
    Over(Why),
    /// The machine was stopped before the guest had written everything to the user's disks.
    #[error("the guest has not written back to its disks in {:.1} s: what was not synced may be lost", after.as_secs_f32())]
    NotWrittenBack {
        /// How long the guest had.
        after: Duration,
    },
}

fn said(last_words: &Option<String>) -> String {
    last_words.as_ref().map(|words| format!("; its console said: {words}")).unwrap_or_default()
}

/// An error of a lower room is the same whichever room it comes through.
impl From<control::Error> for Error {
    fn from(error: control::Error) -> Self {
        match error {
            control::Error::Records(error) => Self::Records(error),
            control::Error::Agent(error) => Self::Agent(error),
            error => Self::Control(error),
        }
    }
}

/// An error of a lower room is the same whichever room it comes through.
impl From<guest::Error> for Error {
    fn from(error: guest::Error) -> Self {
        match error {
            guest::Error::Agent(error) => Self::Agent(error),
            guest::Error::Control(error) => error.into(),
            error => Self::Guest(error),
        }
    }
}

impl Error {
    /// Adds the path to an error of the system, for `map_err`.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// Says what an error of the system is about, for `map_err`.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }

    /// Adds the disk to an error of its image, for `map_err`.
    pub(crate) fn disk(disk: &policy::disks::Disk) -> impl FnOnce(images::Error) -> Self {
        let disk = disk.to_string();
        move |source| Self::Disk { disk, source: Box::new(source) }
    }

    /// Whether one of the machine's programs is not installed or cannot be started.
    #[must_use]
    pub fn is_about_a_program(&self) -> bool {
        matches!(self, Self::Machine(machine::MachineError::Program { .. }))
    }

    /// Whether the guest hung up, which its machine's end may explain.
    pub(crate) fn is_hang_up(&self) -> bool {
        matches!(self, Self::Agent(agent::Error::HangUp))
    }
}
