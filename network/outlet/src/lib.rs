//! The process that carries a sandbox's network: `matchlock-egress`, and the supervisor's side of it ([`Outlet`]).

#![cfg(target_os = "linux")]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod host;
mod spec;
mod supervisor;

pub use host::{host_addresses, resolvers};
pub use spec::{Lists, Spec};
pub use supervisor::{ChangeError, Outlet, StartError};
