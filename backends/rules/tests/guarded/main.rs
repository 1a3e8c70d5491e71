//! The layer before a folder in memory: what rules block, what masks hide and protect, what events tell.

#![allow(clippy::unwrap_used, reason = "tests")]

mod evasions;
mod events;
mod guest;
mod masks;
mod rules;
