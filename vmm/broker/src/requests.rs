//! The requests that a broker obeys, each with one type of answer.
//!
//! No request holds text or a list: what a request can say is bounded by its type. Not here: either end.

use std::io;
use std::net::SocketAddr;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// The requests that a broker obeys, which follow from the command that was called.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Powers {
    /// To take back what killed sandboxes left in the kernel.
    TakeBack,
    /// That, and to listen on ports.
    Listen,
    /// All that a sandbox takes.
    Sandbox,
}

/// A program of this project that starts as root's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Program {
    /// The native machine.
    Vmm,
    /// The software machine's devices.
    Devices,
    /// The software machine's QEMU.
    Launcher,
    /// Shared folders.
    Shares,
    /// The network, which it hands over before it ends.
    Arrival,
    /// The way out of that network.
    Egress,
}

impl Program {
    /// The program's file.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Vmm => "matchlock-vmm",
            Self::Devices => "matchlock-devices",
            Self::Launcher => "matchlock-launcher",
            Self::Shares => "matchlock-shares",
            Self::Arrival => "matchlock-arrival",
            Self::Egress => "matchlock-egress",
        }
    }
}

/// The first message, from a process that is still root's.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Begin {
    /// The user behind the command.
    pub(crate) uid: u32,
    /// That user's group.
    pub(crate) gid: u32,
    /// The groups that the user is in besides.
    pub(crate) groups: Vec<u32>,
    /// The requests that the command may make.
    pub(crate) powers: Powers,
}

/// A request with one type of answer.
pub(crate) trait Question: Into<Request> {
    type Answer: Serialize + DeserializeOwned;
}

/// A broker's reply.
pub(crate) type Reply<T> = Result<T, Failure>;

macro_rules! questions {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $type:ty),* } -> $answer:ty;)*) => {
        /// Any request.
        #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
        pub(crate) enum Request {
            $($(#[$doc])* $name($name),)*
        }

        $(
            $(#[$doc])*
            #[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// Start a program, with the pipe that comes along as its standard error. Its pidfd and its channel are the answer's.
    Start { program: Program } -> Started;
    /// Kill a process that was started.
    Kill { child: u32 } -> ();
    /// Reap a process that was started, if it has ended: its status in the form of wait(2).
    Reap { child: u32 } -> Option<i32>;
    /// Open KVM's device, which is the answer's descriptor.
    OpenKvm {} -> ();
    /// The version of KVM's interface.
    KvmVersion {} -> i32;
    /// Listen on a port that takes privilege; the socket is the answer's descriptor.
    Listen { address: SocketAddr } -> ();
    /// Delete the network interface of the sandbox with this number.
    DeleteInterface { sandbox: u32 } -> ();
}

/// A process that was started.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Started {
    /// The name that later requests have for it; no process of this broker's has had it before.
    pub(crate) child: u32,
    /// The process's id, for messages.
    pub(crate) pid: u32,
}

/// Why a request was not carried out.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Failure {
    /// The system's number for it, if it is the system's.
    errno: Option<i32>,
    /// The reason in words.
    text: String,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        Self { errno: error.raw_os_error(), text: error.to_string() }
    }
}

impl From<Failure> for io::Error {
    fn from(failure: Failure) -> Self {
        failure.errno.map_or_else(|| Self::other(failure.text), Self::from_raw_os_error)
    }
}
