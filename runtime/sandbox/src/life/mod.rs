//! One sandbox from its first file to its last.
//!
//! ```text
//! spawn ─▶ Preparing ─▶ Booting ─▶ Starting ─▶ Configuring ─▶ Up
//!              │            │          │             │          │
//!              └────────────┴──────────┴─────────────┴──────────┴─▶ end ─▶ gone
//! ```
//!
//! Each stage is a value that holds the parts that exist in it and nothing else ([`stages`]); a transition consumes one
//! stage and returns the next. One task takes a sandbox through them ([`driver`]), and everyone else has a [`Handle`].
//! Waiting in a stage may be given up at any await; the stage is then ended with all its parts. If this process dies
//! first, the kernel closes its descriptors, the machine's processes end with them, and the next command's reconcile
//! removes the files. Not here: terminals, and requests of other processes (`control`).

mod added;
mod base;
mod disks;
mod driver;
pub(crate) mod error;
mod files;
mod handle;
pub mod host;
mod host_paths;
mod network;
mod prepare;
mod remembered;
mod running;
mod shares;
mod spec;
mod stages;
pub(crate) mod timings;

pub use driver::spawn;
pub use error::{Error, Result};
pub use files::{FileEvent, FileEvents, FileNews, FileWatch};
pub use handle::{Handle, Ready, Stage, Stop, Terms, Why};
pub use spec::{DEFAULT_GRACE, Spec, TimeLimit};
pub use timings::{Start, Timings};

#[cfg(any(test, feature = "stand_in"))]
pub use handle::StandIn;
