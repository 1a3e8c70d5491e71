//! Children held by pidfds, and channels that are `SOCK_SEQPACKET` sockets.

mod channel;
mod child;
mod lifeline;
mod pair;
mod spawn;
mod wait;

#[cfg(any(test, feature = "fuzzing"))]
pub(crate) use channel::MAX_PACKET_DESCRIPTORS;
pub use channel::{Channel, MAX_DESCRIPTORS, MAX_MESSAGE, parent_channel};
pub use child::Child;
pub use lifeline::exit_on_hang_up;
pub use pair::accept_pair;
pub use spawn::{Confinement, Spawn, spawn, spawn_without_channel};
pub use wait::{wait_for, wait_readable};
