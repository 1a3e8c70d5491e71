//! Errors of the host's end of the conversation with a guest's agent.

use std::io;

use guest_protocol::ExecFailure;
use guest_protocol::frame::FrameError;

/// Result of this room's calls.
pub(crate) type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of a conversation with a guest's agent.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The stream to the guest ended before the program did.
    #[error("the guest hung up")]
    HangUp,
    /// The guest broke the protocol.
    #[error("guest protocol: {0}")]
    Guest(&'static str),
    /// The guest sent bytes that are no frame.
    #[error("guest protocol: {0}")]
    Frame(#[from] FrameError),
    /// The system refused an operation on a stream.
    #[error("guest stream: {0}")]
    Stream(io::Error),
    /// The request is longer than a frame can be.
    #[error("command and environment are over 1 MiB")]
    TooLong,
    /// The agent refused a request, in its own words.
    #[error("{0}")]
    Refused(String),
    /// The agent could not assemble the sandbox.
    #[error("the guest cannot start: {step}: {error}")]
    Boot {
        /// The step that failed.
        step: String,
        /// The guest system's error.
        error: String,
    },
    /// The guest's kernel has no timer that ticks, so no sleep in the guest would ever end.
    #[error("the guest's kernel found no timer: this host was too busy while it started")]
    NoTimer,
    /// A program never ran.
    #[error("{}", not_started(.0))]
    NotStarted(ExecFailure),
    /// There is no such detached program.
    #[error("no detached program {0}")]
    UnknownProgram(u32),
    /// The detached program has ended.
    #[error("detached program {0} has ended")]
    ProgramEnded(u32),
    /// Programs use what is mounted at this place.
    #[error("what is mounted at {0} is in use")]
    MountBusy(String),
    /// The limit on detached programs is reached.
    #[error("{0} detached programs are running")]
    TooManyPrograms(usize),
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
