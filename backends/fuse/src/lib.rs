//! The FUSE protocol: the bytes in which a guest's kernel asks for files become typed requests once, are served by a
//! [`FileSystem`], and become bytes again.
//!
//! ```text
//! slices of guest memory ─▶ Scratch (copied once) ─▶ decode ─▶ Request ─▶ FileSystem ─▶ encode ─▶ slices
//!                                    READ and WRITE data: straight between the slices and the file system
//! ```
//!
//! Everything in a request is hostile. Past the decoder a name is one component of a path, a length is within its limit,
//! and an offset is one that a file can have. Numbers of errors, modes and flags are Linux's, on every host.
//!
//! A [`Session`] is one mount; its requests may be served by several threads at once. Not here: where requests come
//! from, which thread serves them, and what any file contains.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod attributes;
mod decode;
mod encode;
mod errno;
mod extensions;
#[cfg(any(test, feature = "fuzzing"))]
mod fake;
mod file_system;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod held;
mod length;
mod listing;
mod name;
mod negotiate;
mod payload;
mod request;
mod scratch;
mod session;
mod shared;

pub use attributes::{Attributes, Device, Entry, SetAttributes, SetTime, Stat, Statistics, Time};
pub use errno::{Errno, Result};
pub use extensions::{Extensions, Label};
pub use file_system::{
    Access, Allocation, Cache, Context, Creation, Data, FileSystem, Gone, Handle, How, NameChange, NodeId,
    OpenFlags, Opened, Opening, RenameHow, Seek, Sync, WriteHow, Xattr, XattrSet,
};
pub use held::{Held, HeldOpen};
pub use length::takes_long;
pub use listing::{Fate, Listed, Listing};
pub use name::{LinkTarget, Name, XattrName};
pub use negotiate::Coherence;
pub use payload::{Sink, Source};
pub use scratch::Scratch;
pub use session::Session;

/// Most bytes of data that one READ or WRITE moves.
pub const MAX_DATA_LEN: usize = 1 << 20;

/// Most bytes of a request, its data included.
pub const MAX_REQUEST_LEN: usize = MAX_DATA_LEN + scratch::HEAD_LEN;

/// Most bytes of a reply, its data included.
pub const MAX_REPLY_LEN: usize = MAX_DATA_LEN + size_of::<fuse_abi::linux::fuse_out_header>();

/// Longest value of an extended attribute (Linux `XATTR_SIZE_MAX`), and longest list of their names (`XATTR_LIST_MAX`).
pub const MAX_XATTR_LEN: usize = 64 << 10;
