//! One sandbox from its first file to its last.
//!
//! ```text
//! spawn ─▶ Preparing ─▶ Booting ─▶ Starting ─▶ Configuring ─▶ Up
//!              │            │          │             │          │
//!              └────────────┴──────────┴─────────────┴──────────┴─▶ end ─▶ gone
//! ```
//!
//! Each stage is a value that holds what exists in it and nothing else ([`stages`]); a transition consumes one and gives the
//! next. One task takes a sandbox through them ([`driver`]), and everybody else has a [`Handle`]. Waiting for a stage may be
//! given up at any await; then the stage is ended, and with it whatever has come into being. If even that is not reached, the
//! kernel closes this process's descriptors, the machine's processes end with them, and the next command's reconcile removes
//! the files. Not here: terminals, and what another process may ask for (`control`).

mod base;
mod disks;
mod driver;
pub(crate) mod error;
mod handle;
pub mod host;
mod prepare;
mod remembered;
mod running;
mod spec;
mod stages;
pub(crate) mod timings;

pub use driver::spawn;
pub use error::{Error, Result};
pub use handle::{Handle, Ready, Stage, Stop, Terms, Why};
pub use spec::{DEFAULT_GRACE, Spec, TimeLimit};
pub use timings::{Start, Timings};

#[cfg(any(test, feature = "stand_in"))]
pub use handle::StandIn;
