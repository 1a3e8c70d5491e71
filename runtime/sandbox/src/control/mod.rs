//! The control socket: requests of other processes to a sandbox's owner, seen from both ends.

pub(crate) mod client;
pub(crate) mod dialogue;
pub(crate) mod error;
pub(crate) mod owner;

pub use client::Client;
pub use error::Error;
