//! The changes that a sandbox made to its overlay of a directory of the host's.
//!
//! ```text
//! overlay ─▶ list, contents ─▶ List ─▶ changes() ─▶ judge() against the directory as it is now ─▶ apply()
//!            (files of a directory that the sandbox's process writes)
//! ```
//!
//! The list is written by a process that a guest may have taken over: nothing of it is believed. Each path is names that
//! are walked one by one from the directory on, no symbolic link is followed, and nothing is removed that the list does not
//! name and that is not what it was when the guest saw it.
//!
//! Not here: the files of an overlay (`overlay`), and the words in which people are told (`matchlock`).

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod apply;
mod change;
mod contents;
mod error;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod host;
mod judge;
mod list;
mod place;
mod record;
mod sys;
#[cfg(test)]
mod tests;

pub use apply::apply;
pub use change::{Change, Kind, below, below_with_directories, changes};
pub use contents::Kept;
pub use error::{Error, NotUndone, Result};
pub use host::Host;
pub use judge::{Conflict, judge};
pub use list::{List, Writer};
pub use place::{MAX_PLACE, Place};
pub use record::{Base, Contents, Gone, Record, Stored, There, Time, What, kind};
