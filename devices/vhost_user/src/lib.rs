//! A virtio device whose queues another process serves over vhost-user.
//!
//! [`Frontend`] is a [`virtio::Device`] like any other, but only for identity, features, configuration and set-up: the
//! driver's kicks go straight to the back end's process, and its answers come back as events that
//! [`Device::process_host`](virtio::Device::process_host) turns into interrupts. Guest memory must be
//! [shared](guest_memory::Backing::Shared).
//!
//! The configuration space is read once: there is no channel on which a back end could announce a change. Requests wait
//! for the back end without a limit, as its process and ours end together. Not here: starting that process, migration,
//! inflight tracking, reconnection.

#![cfg(target_os = "linux")]

mod frontend;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;

pub use frontend::{Error, Frontend};
