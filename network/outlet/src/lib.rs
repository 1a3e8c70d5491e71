//! The process that carries a sandbox's network, `matchlock-egress`, and the supervisor's side of it.
//!
//! The supervisor starts it with the sockets at which everything arrives (`arrival`), lists of what may leave, and a file
//! for the audit ([`Outlet::start`]). The process confines itself, and carries what the policy allows until the supervisor
//! hangs up. It handles a guest's bytes and opens connections, so it is neither root nor the user, and opens no file.
//! Without it the guest has no network. Not here: what is carried, and how (`egress`), and what arrives (`arrival`).

#![cfg(target_os = "linux")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod channel;
mod confine;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod host;
mod program;
mod spec;
mod supervisor;

pub use host::{host_addresses, resolvers};
pub use program::run;
pub use spec::{Lists, NoHost, Spec};
pub use supervisor::{ChangeError, Outlet, StartError};
