//! Decisions, as pure functions: which machine, which resources, which names, ports, disks,
//! networks and mounts are valid.
//!
//! No I/O, no clock, no async, nothing imported: facts about the host come in as plain values, so that every decision
//! can be tested on any laptop and explained in one line. Not here: how the facts are found out.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

pub mod disks;
pub mod machine;
pub mod mounts;
pub mod names;
pub mod network;
pub mod ports;
pub mod resources;
