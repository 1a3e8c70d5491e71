//! Decisions, as pure functions: the machine, and the validity of resources, names, ports, disks, networks and
//! mounts; rules for files.
//!
//! No I/O, no clock, no async, nothing imported: facts about the host come in as plain values, so that every decision
//! can be tested on any laptop and explained in one line. Not here: gathering the facts.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

pub mod disks;
pub mod files;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod machine;
pub mod mounts;
pub mod names;
pub mod network;
pub mod ports;
pub mod resources;
