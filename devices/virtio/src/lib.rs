//! Virtio devices and the virtio-mmio transport.
//!
//! A [`Device`] is data plus a few verbs. A device is lent guest memory, its queues and an interrupt for the length of
//! one call, keeps none of them, and never learns its transport: the same code runs in-process behind
//! [`mmio::MmioTransport`] and out of process behind a vhost-user back end, to which the transport of this process then
//! holds a [`Link`]. Not here: hypervisors, policy, host files (a disk is the port [`blk::Blocks`], a network the port
//! [`net::Frames`]), threads and event loops (their owners call [`Device::process`]).
//!
//! A device with many requests in flight on threads of its own takes its chains from a [`SharedQueue`] instead: each
//! [`Chain`] owns what it needs, and any thread gives it back when it is done.

pub mod balloon;
pub mod blk;
mod chain;
pub mod console;
mod device;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
#[cfg(any(test, feature = "fuzzing"))]
pub mod harness;
mod link;
pub mod mmio;
pub mod net;
mod owned;
pub mod rng;
mod sys;
pub mod vsock;

pub use chain::{Buffers, Slices};
pub use device::{ActivateError, Activation, Device, DeviceKind, Done, Identity, Interrupt, Io};
pub use link::{Attached, Link, LinkLost};
pub use owned::{Batch, Chain, QueueHolder, SharedQueue};
pub use sys::Event;
