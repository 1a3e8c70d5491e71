//! The messages on the control socket, between other processes and a sandbox's owner.
//!
//! A connection carries one request; each kind of request has a type of answer of its own. Not here: either end.

use guest_protocol::frame::FrameError;
use guest_protocol::{ExecFailure, Exit};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::agent;
use crate::agent::command::Exec;
use crate::agent::detached::DetachedInfo;
use crate::agent::mounts::{AskedMount, MountInfo};
use crate::control::allow_list::{AllowList, ListChange};
use crate::control::error::Error;

/// Raised with every incompatible change of these messages.
pub(crate) const VERSION: u16 = 6;

/// A message of another kind came than the one that belongs here.
pub(crate) const FRAME_KIND: Error = Error::Agent(agent::Error::Frame(FrameError::Message));

/// The first message of either side. It never changes, so that each side learns the other's version.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) version: u16,
}

/// A question with one type of answer.
pub(crate) trait Question: Into<Request> {
    type Answer: Serialize + DeserializeOwned;
}

/// An owner's reply to a question.
pub(crate) type Reply<T> = Result<T, Refusal>;

/// The reply to a question of this kind.
pub(crate) fn reply<Q: Question>(answer: Result<Q::Answer, agent::Error>) -> Reply<Q::Answer> {
    answer.map_err(Refusal::from)
}

macro_rules! questions {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* } -> $answer:ty;)*) => {
        /// Any question.
        #[derive(Debug, Serialize, Deserialize)]
        pub(crate) enum Request {
            $($(#[$doc])* $name($name),)*
        }

        $(
            $(#[$doc])*
            #[derive(Debug, Serialize, Deserialize)]
            pub(crate) struct $name {
                $(pub(crate) $field: $type,)*
            }

            impl From<$name> for Request {
                fn from(question: $name) -> Self {
                    Self::$name(question)
                }
            }

            impl Question for $name {
                type Answer = $answer;
            }
        )*
    };
}

questions! {
    /// Run a program.
    Run { exec: Exec } -> StreamComes;
    /// Give a service stream on which nothing is asked yet.
    Service {} -> StreamComes;
    /// End the sandbox.
    Stop {} -> Stopping;
    /// Run a program and keep it; its number is the answer.
    Detach { exec: Exec } -> u32;
    /// List the detached programs.
    Detached {} -> Vec<DetachedInfo>;
    /// Wait for a detached program's end.
    Wait { program: u32 } -> Exit;
    /// Send a signal to a detached program.
    Signal { program: u32, signal: i32 } -> ();
    /// Kill a detached program and all it started.
    Kill { program: u32 } -> ();
    /// The last output of a detached program.
    Output { program: u32 } -> Vec<u8>;
    /// Write down what was changed of overlays.
    Changes {} -> ();
    /// Change the allow list, or show it.
    ChangeAllowList { change: ListChange } -> AllowList;
    /// Add a mount.
    AddMount { mount: AskedMount } -> ();
    /// Take a mount away.
    RemoveMount { guest_path: String, force: bool } -> ();
    /// List the mounts.
    ListMounts {} -> Vec<MountInfo>;
}

/// The answer that comes with a service stream, as a descriptor.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct StreamComes;

/// The sandbox is being ended; it has ended when its owner's lock is free.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Stopping {
    /// How long the end takes at most.
    pub(crate) limit_ms: u64,
}

/// The reason why a request was not carried out.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Refusal {
    /// The program never ran.
    NotStarted(ExecFailure),
    /// There is no such detached program.
    UnknownProgram(u32),
    /// The detached program has ended.
    ProgramEnded(u32),
    /// Programs use what is mounted at this place.
    MountBusy(String),
    /// The guest is gone.
    HangUp,
    /// Anything else, in the owner's words.
    Other(String),
}

impl From<agent::Error> for Refusal {
    fn from(error: agent::Error) -> Self {
        match error {
            agent::Error::NotStarted(failure) => Self::NotStarted(failure),
            agent::Error::UnknownProgram(program) => Self::UnknownProgram(program),
            agent::Error::ProgramEnded(program) => Self::ProgramEnded(program),
            agent::Error::MountBusy(place) => Self::MountBusy(place),
            agent::Error::HangUp => Self::HangUp,
            error => Self::Other(error.to_string()),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotStarted(failure) => agent::Error::NotStarted(failure).into(),
            Refusal::UnknownProgram(program) => agent::Error::UnknownProgram(program).into(),
            Refusal::ProgramEnded(program) => agent::Error::ProgramEnded(program).into(),
            Refusal::MountBusy(place) => agent::Error::MountBusy(place).into(),
            Refusal::HangUp => agent::Error::HangUp.into(),
            Refusal::Other(text) => Self::Refused(text),
        }
    }
}
