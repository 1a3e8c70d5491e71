//! What can go wrong in a sandbox's life, and what a user can do about it.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use guest_protocol::frame::FrameError;
use guest_protocol::{ExecFailure, FileFailure};

/// Result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What went wrong.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// No `$HOME` to keep state in.
    #[error("HOME is not set to an absolute path")]
    NoHome,
    /// Root was asked to act for somebody this host does not know.
    #[error("SUDO_USER names no user with a home directory: {0:?}")]
    SudoUser(String),
    /// A file or directory.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
    /// The system refused something that has no path.
    #[error("{what}: {source}")]
    System {
        /// What.
        what: &'static str,
        /// The system's words.
        source: io::Error,
    },
    /// No random numbers.
    #[error("the system gives no random bytes")]
    Entropy,
    /// The state database.
    #[error("state database: {0}")]
    Records(#[from] rusqlite::Error),
    /// A row of it.
    #[error(transparent)]
    BadRow(#[from] crate::records::store::BadRow),
    /// The state database is of a newer release.
    #[error("state database has schema {0}, which is newer than this program")]
    Schema(i64),
    /// No such sandbox.
    #[error("VM {0} not found")]
    UnknownVm(String),
    /// It has ended.
    #[error("VM {id} is not running (status: {status})")]
    NotRunning {
        /// Which.
        id: crate::Id,
        /// `stopped` or `crashed`.
        status: &'static str,
    },
    /// It has not ended.
    #[error("VM is running {0}")]
    StillRunning(crate::Id),
    /// It does not even end when it is killed.
    #[error("VM {id} was killed, but its process is still there after {} s", after.as_secs())]
    NotKilled {
        /// Which.
        id: crate::Id,
        /// The limit.
        after: Duration,
    },
    /// The sandbox belongs to another release.
    #[error("the sandbox's owner speaks control protocol {theirs}, this program {ours}")]
    ControlVersion {
        /// Its version.
        theirs: u16,
        /// Ours.
        ours: u16,
    },
    /// The owner refused a request; the text is its own.
    #[error("{0}")]
    Refused(String),
    /// The image.
    #[error(transparent)]
    Image(#[from] images::Error),
    /// The image's layers make no disk.
    #[error("image {image}: {source}")]
    Layers {
        /// The image.
        image: String,
        /// Why.
        source: disk::composite::PlanError,
    },
    /// The kernel.
    #[error(transparent)]
    Kernel(#[from] kernels::Error),
    /// The guest's agent is not installed.
    #[error("the guest agent (matchlock-guest) is not found")]
    NoAgent,
    /// Too much or too little was asked for.
    #[error(transparent)]
    Resources(#[from] policy::resources::ResourceError),
    /// A name that cannot be used.
    #[error(transparent)]
    Name(#[from] policy::names::NameError),
    /// A disk that is not acceptable.
    #[error(transparent)]
    Disks(#[from] policy::disks::DiskError),
    /// A disk whose image cannot be had.
    #[error("invalid disk mount {disk:?}: {source}")]
    Disk {
        /// Which.
        disk: String,
        /// Why.
        source: Box<images::Error>,
    },
    /// No machine fits.
    #[error(transparent)]
    NoMachine(#[from] policy::machine::Refusal),
    /// The machine could not be made.
    #[error(transparent)]
    Machine(#[from] machine::MachineError),
    /// The guest did not come up in time.
    #[error("the guest was not ready after {} s{}", after.as_secs(), said(last_words))]
    NeverReady {
        /// The limit.
        after: Duration,
        /// What its console said last.
        last_words: Option<String>,
    },
    /// The guest's agent could not assemble the sandbox.
    #[error("the guest cannot start: {step}: {error}")]
    Boot {
        /// Which step.
        step: String,
        /// The guest system's words.
        error: String,
    },
    /// The guest's kernel has no timer that ticks, so no sleep in it would ever end.
    #[error("the guest's kernel found no timer: this host was too busy while it started")]
    NoTimer,
    /// The machine ended while it was needed.
    #[error("{how}{}", said(last_words))]
    Ended {
        /// How.
        how: String,
        /// What its console said last.
        last_words: Option<String>,
    },
    /// The machine was stopped before the guest had written everything to the user's disks.
    #[error("the guest has not written back to its disks in {:.1} s: what was not synced may be lost", after.as_secs_f32())]
    NotWrittenBack {
        /// How long it had.
        after: Duration,
    },
    /// The stream to the guest ended before the program did.
    #[error("the guest hung up")]
    HangUp,
    /// The guest broke the protocol.
    #[error("guest protocol: {0}")]
    Guest(&'static str),
    /// The guest sent something that is no frame.
    #[error("guest protocol: {0}")]
    Frame(#[from] FrameError),
    /// A request that no frame can hold.
    #[error("command and environment are over 1 MiB")]
    TooLong,
    /// A program never ran.
    #[error("{}", not_started(.0))]
    NotStarted(ExecFailure),
    /// An act on files did not happen, or not all of it.
    #[error("{}", file_failure(.0))]
    File(FileFailure),
    /// A port of the guest does not take connections; the text is the guest's.
    #[error("{0}")]
    NotConnected(String),
    /// A port forward cannot listen.
    #[error("bind local port-forward listener {address}: {source}")]
    Listener {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// No such detached program.
    #[error("no detached program {0}")]
    UnknownProgram(u32),
    /// It has ended.
    #[error("detached program {0} has ended")]
    ProgramEnded(u32),
    /// No more detached programs.
    #[error("{0} detached programs are running")]
    TooManyPrograms(usize),
    /// The process that owns the sandbox is there, but says nothing.
    #[error("the owner of VM {0} does not answer")]
    NoAnswer(crate::Id),
    /// It said that it would end the sandbox, and did not.
    #[error("VM {id} has not ended after {} s", after.as_secs())]
    NotEnding {
        /// Which.
        id: crate::Id,
        /// How long it had.
        after: Duration,
    },
}

fn not_started(failure: &ExecFailure) -> String {
    match failure {
        ExecFailure::NotFound(what)
        | ExecFailure::NotExecutable(what)
        | ExecFailure::User(what)
        | ExecFailure::Other(what) => what.clone(),
        ExecFailure::WorkingDir(what) => format!("working directory {what}"),
    }
}

fn file_failure(failure: &FileFailure) -> &str {
    match failure {
        FileFailure::TooLarge => "the file is over the size limit",
        FileFailure::NotRegular => "not a regular file",
        FileFailure::System { text, .. } => text,
    }
}

fn said(last_words: &Option<String>) -> String {
    last_words.as_ref().map(|words| format!("; its console said: {words}")).unwrap_or_default()
}

impl Error {
    /// For `map_err` on file operations.
    pub(crate) fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }

    /// For `map_err` on what is done for a disk.
    pub(crate) fn disk(disk: &policy::disks::Disk) -> impl FnOnce(images::Error) -> Self {
        let disk = disk.to_string();
        move |source| Self::Disk { disk, source: Box::new(source) }
    }

    /// For `map_err` on operations without a path.
    pub(crate) fn system(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::System { what, source }
    }

    /// Whether the state database had no room on its disk, as far as SQLite tells: its index of the log fails as I/O.
    pub(crate) fn is_want_of_room(&self) -> bool {
        use rusqlite::ErrorCode::{DiskFull, SystemIoFailure};
        matches!(self, Self::Records(error)
            if matches!(error.sqlite_error_code(), Some(DiskFull | SystemIoFailure)))
    }

    /// What the user can do, where that is known.
    #[must_use]
    pub fn hint(&self) -> Option<&str> {
        match self {
            Self::NoMachine(refusal) => Some(&refusal.hint),
            Self::NoAgent => {
                Some("install matchlock-guest beside matchlock, or set MATCHLOCK_GUEST_INIT to its path")
            }
            Self::Machine(machine::MachineError::Program { .. }) => {
                Some("install all of matchlock's programs in one directory; see matchlock diagnose")
            }
            Self::Image(images::Error::LayerLost { .. }) => {
                Some("remove the image with matchlock image rm, and import it again")
            }
            Self::NeverReady { .. } | Self::Ended { .. } | Self::Boot { .. } => {
                Some("--log-level debug shows the guest's console")
            }
            Self::Schema(_) => Some("use the newer matchlock, or remove ~/.matchlock/state.db"),
            Self::ControlVersion { .. } => Some("use the matchlock that started the sandbox"),
            Self::NoAnswer(_) | Self::NotEnding { .. } => Some(
                "its owner may be suspended: resume that process (see matchlock list), or matchlock gc --force-running",
            ),
            Self::StillRunning(_) => Some("end it first: matchlock kill"),
            Self::Kernel(kernels::Error::Package(_)) => Some(
                "MATCHLOCK_DEBIAN_MIRROR names another mirror; --kernel file:///path takes a kernel of your own",
            ),
            Self::Kernel(kernels::Error::InUse(_)) => {
                Some("end the sandboxes that run on it first; see matchlock list --running")
            }
            Self::Kernel(kernels::Error::Registry { .. }) => Some("a file is given as file:///path"),
            Self::Kernel(kernels::Error::Unknown(_)) => Some("see matchlock kernel ls"),
            _ => None,
        }
    }
}
