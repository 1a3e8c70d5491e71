//! A link to a virtio device that another process serves over vhost-user.
//!
//! [`Frontend`] is a [`virtio::Link`]: identity, configuration and set-up pass through it. The driver's kicks go
//! directly to the back end's process, and the back end's answers come back as events that
//! [`Link::forward`](virtio::Link::forward) turns into interrupts. Guest memory must be
//! [shared](guest_memory::Backing::Shared).
//!
//! The configuration space is read once: there is no channel on which a back end could announce a change. Requests wait
//! for the back end without a limit, because its process and this one end together. Not here: starting the back end's
//! process, migration, inflight tracking, reconnection.

#![cfg(target_os = "linux")]

mod frontend;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;

pub use frontend::{Error, Frontend};
