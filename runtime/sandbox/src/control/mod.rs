//! The control socket: what other processes may ask a sandbox's owner for, from both ends.

pub(crate) mod client;
pub(crate) mod dialogue;
pub(crate) mod error;
pub(crate) mod owner;

pub use client::Client;
pub use error::Error;
