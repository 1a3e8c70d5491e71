//! The protocol between the host and the guest's agent, over vsock.
//!
//! Two kinds of stream, both made of [`frame`]s:
//!
//! * the **control stream**: the agent opens it to [`HOST_PORT`] as soon as it can. `Hello` from the guest, `Boot` from
//!   the host, then `Ready` or `Failed` from the guest; later `Shutdown` from the host. Its end is the guest's end.
//! * **service streams**: the host opens each to [`AGENT_PORT`]; one request a stream. The host keeps one spare open, so
//!   that a request does not wait for a connection. Each kind of request has a type of answer of its own.
//!
//! A program's stream lasts as long as the program: the host keeps its sending direction open until `Exited` or
//! `Failed`, even when it has nothing to send, because the end of either direction cancels. The end of input is an empty
//! [`frame::Kind::Stdin`] frame. Messages are taken in order: a `Signal` after input that the program does not read waits
//! with that input, a hang-up does not. An act on files lasts until its last reply. If the guest ends a stream before it
//! has taken all input, the host's writes fail, and the reason is still to be read.
//!
//! Both sides distrust each other: lengths are checked before any allocation, see [`frame::MAX_PAYLOAD`]. Not here: I/O,
//! sockets, and code that only one side needs.

pub mod frame;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod message;
pub mod messages;

pub use message::{
    AddReply, AddedMount, Answer, BootConfig, BootFailure, Change, ChangeKind, ConnectReply,
    ControlFromGuest, ControlFromHost, DiskMount, Ends, ExecFailure, ExecRequest, Exit, FileEntry,
    FileFailure, FileReply, FileRequest, HostAct, HostChange, HostChangeReply, HostEntry, Network, NewFile,
    Pong, Program, ProgramControl, ProgramEvent, Ready, Refusal, RemoveReply, Reply, Request, ShareDevice,
    ShareMount, Stdio, TerminalSize, UpperDisk, Usage, WatchEvent, WriteAt,
};

/// Raised with every incompatible change; the agent travels in the same release as the host, so equality is required.
pub const VERSION: u16 = 11;

/// vsock port on the host where the agent opens its control stream.
pub const HOST_PORT: u32 = 1024;

/// vsock port in the guest where the agent accepts service streams.
pub const AGENT_PORT: u32 = 1024;
