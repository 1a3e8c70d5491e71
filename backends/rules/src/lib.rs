//! A layer before the files that a guest sees: rules block operations, masks hide names or protect them, and events tell
//! what was done.
//!
//! ```text
//! Session ─▶ Router ─▶ Guarded ─▶ a provider
//!                         │  └─ Known: the name by which the guest found each node
//!                         └───▶ Events: a bounded queue, which nobody waits for
//! ```
//!
//! A request is about a node; rules and masks are about paths. A node's path is that of the name by which it was looked
//! up last, which is its only one unless somebody made hard links. A mask holds against its guest whatever the guest
//! does: what it may not reach by one path it cannot give another one. A rule holds for its operations and paths, and
//! no further.
//!
//! Not here: the patterns (`policy::files`), and the way of events to those who want them.

#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod events;
mod guarded;
mod known;

pub use events::{Batch, Event, Events};
pub use guarded::{Guard, Guarded};
