//! The control socket: requests of other processes to a sandbox's owner, seen from both ends.

pub(crate) mod allow_list;
pub(crate) mod client;
pub(crate) mod dialogue;
pub(crate) mod error;
pub(crate) mod owner;

pub use allow_list::{AllowList, ListChange, change as change_allow_list};
pub use client::Client;
pub use error::Error;
