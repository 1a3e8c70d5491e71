//! The records of sandboxes: the home directory, the state database, histories, logs.
//!
//! They are SQLite and files; the leftovers of dead owners are taken back here. Not here: machines and guests.

pub mod audit;
mod config;
pub(crate) mod console;
pub(crate) mod error;
mod external;
pub(crate) mod history;
pub(crate) mod home;
mod id;
pub mod lifecycle;
pub mod log;
pub(crate) mod overlay;
pub(crate) mod reconcile;
mod schema;
pub(crate) mod store;
mod user;
pub(crate) mod writer;

pub use config::{Config, DiskConfig, MountConfig, NetworkConfig};
pub use error::Error;
pub use external::Resource;
pub use history::{Step, Version};
pub use home::Home;
pub use id::Id;
pub use reconcile::{Found, Judgement, end_by_force, gc, reconcile, remove, wait_for_end};
pub use store::{BadRow, Record, Records, Status};
pub use user::owner_of_home;
