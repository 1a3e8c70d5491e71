//! One sandbox's life: what it is made of, how it starts, how programs run in it, how it ends, what is remembered.
//!
//! A sandbox is owned by the process that started it ([`spawn`]), never by a daemon. The path of an exec enters here at
//! [`Guest::exec`], leaves through `ports` to the guest, and comes back on the same stream. Not
//! here: terminals and arguments (`matchlock`), what a machine does (`machine`), where images come from (`images`).

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests"))]

mod agent;
mod client;
mod command;
mod config;
mod console;
mod control;
mod descriptors;
mod detached;
mod disks;
mod error;
#[cfg(test)]
mod fake;
mod files;
mod forward;
mod frames;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod guest;
mod history;
mod home;
pub mod host;
mod id;
mod life;
pub mod lifecycle;
pub mod log;
mod ports;
mod prepare;
mod reconcile;
mod records;
mod schema;
mod service;
#[cfg(any(test, feature = "stand_in"))]
pub mod stand_in;
mod sys;
mod timings;
mod user;
mod writer;

pub use client::Client;
pub use command::{Exec, ImageOverrides};
pub use config::{Config, DiskConfig};
pub use detached::{DETACHED_TAIL, DetachedInfo, DetachedState, MAX_DETACHED};
pub use error::{Error, Result};
pub use files::{Files, MAX_LISTING, MAX_PATH, Reader, Watch, Writer};
pub use forward::{Binding, Forward, Forwards, MAX_CONNECTIONS};
pub use guest::Guest;
pub use history::{Step, Version};
pub use home::Home;
pub use id::Id;
#[cfg(any(test, feature = "stand_in"))]
pub use life::StandIn;
pub use life::{Handle, Ready, Spec, Stage, Stop, Terms, TimeLimit, Why, spawn};
pub use reconcile::{Found, Judgement, end_by_force, gc, reconcile, remove, wait_for_end};
pub use records::{Record, Records, Status};
pub use service::{Event, Input, Output, Service};
pub use timings::{Start, Timings};
