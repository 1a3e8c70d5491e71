//! One sandbox's life: its parts, its start, the programs in it, its end, and the record that stays.
//!
//! A sandbox is owned by the process that started it ([`spawn`]), never by a daemon. An exec enters here at
//! [`Guest::exec`], leaves through `ports` to the guest, and comes back on the same stream. Not here: terminals and
//! arguments (`matchlock`), the machine itself (`machine`), and the store of images (`images`).

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests"))]

mod agent;
mod arch;
pub mod changes;
mod control;

#[cfg(test)]
mod fake;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod guest;
mod life;
mod records;
#[cfg(any(test, feature = "stand_in"))]
pub mod stand_in;
mod sys;

pub use broker::Powers;

pub use agent::{
    DETACHED_TAIL, DetachedInfo, DetachedState, Error as AgentError, Event, Exec, ImageOverrides, Input,
    MAX_DETACHED, MountInfo, Output, ProgramStream,
};
pub use control::{AllowList, Client, Error as ControlError, ListChange, change_allow_list};
pub use guest::{
    Binding, Error as GuestError, FileReader, FileWriter, Files, Forward, Forwards, Guest, MAX_CONNECTIONS,
    MAX_LISTING, MAX_PATH, Watch,
};
#[cfg(any(test, feature = "stand_in"))]
pub use life::StandIn;
pub use life::{
    DEFAULT_GRACE, Error, FileEvent, FileEvents, FileNews, FileWatch, Handle, Ready, Result, Spec, Stage,
    Start, Stop, Terms, TimeLimit, Timings, Why, host, spawn,
};
pub use records::{
    BadRow, Config, DiskConfig, Error as RecordsError, Found, Home, Id, Judgement, MountConfig,
    NetworkConfig, Record, Records, Resource, Status, Step, Version, audit, end_by_force, gc, lifecycle, log,
    owner_of_home, reconcile, remove, wait_for_end,
};
