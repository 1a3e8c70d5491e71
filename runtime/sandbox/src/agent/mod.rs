//! The host's end of `guest_protocol`: streams to the agent, and the messages on them.
//!
//! Not here: streams that another process's sandbox passes on ([`crate::control`]), and the guest as its users see it
//! ([`crate::guest`]).

pub(crate) mod boot;
pub(crate) mod command;
pub(crate) mod descriptors;
pub(crate) mod detached;
pub(crate) mod error;
pub(crate) mod frames;
pub(crate) mod mounts;
pub(crate) mod own;
pub(crate) mod ports;
pub(crate) mod program;

pub use command::{Exec, ImageOverrides};
pub use detached::{DETACHED_TAIL, DetachedInfo, DetachedState, MAX_DETACHED};
pub use error::Error;
pub use mounts::MountInfo;
pub use program::{Event, Input, Output, ProgramStream};
