//! What is remembered of sandboxes: the home directory, the state database, histories, logs.
//!
//! SQLite and files; what a dead owner left is taken back here. Not here: machines, guests, and who asks.

mod config;
pub(crate) mod console;
pub(crate) mod error;
mod external;
pub(crate) mod history;
pub(crate) mod home;
mod id;
pub mod lifecycle;
pub mod log;
pub(crate) mod reconcile;
mod schema;
pub(crate) mod store;
pub(crate) mod user;
pub(crate) mod writer;

pub use config::{Config, DiskConfig};
pub use error::Error;
pub use external::Resource;
pub use history::{Step, Version};
pub use home::Home;
pub use id::Id;
pub use reconcile::{Found, Judgement, end_by_force, gc, reconcile, remove, wait_for_end};
pub use store::{BadRow, Record, Records, Status};
