//! The policy for all that leaves a sandbox: values in, verdict out.
//!
//! A [`Policy`] is made from lists of text and answers eight questions, each with one [`Verdict`] whose words are the same
//! in an audit, an error page, a DNS error and on the command line. No I/O, no clock, no async, no randomness. The values
//! of secrets are not known here. Not here: connections, DNS, TLS and HTTP themselves, and the addresses that a guest was
//! given for a name.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod address;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
pub mod glob;
mod index;
mod list;
mod name;
mod path;
mod pattern;
mod policy;
mod questions;
mod verdict;

pub use address::{Class, class};
pub use list::MAX_PATTERNS;
pub use name::{Host, MAX_NAME, Name, NotAName};
pub use path::{BadPath, MAX_PATH, Path};
pub use pattern::{Fault, MAX_PATTERN, Pattern, PatternError};
pub use policy::{
    Change, Effect, MAX_SECRETS, Phase, Place as FaultPlace, Policy, PolicyError, WantedPolicy, WantedRule,
    WantedSecret,
};
pub use questions::{Connection, FirstBytes, Head, Part, Place, Protocol, Transport};
pub use verdict::{
    Answers, Dial, Flow, Forward, Hello, Look, Lookup, Placeholder, Reason, Refusal, Request, Status, Verdict,
};
