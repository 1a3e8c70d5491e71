//! The limits of a guest in shared files: rules, which block operations by their paths, and masks, which hide names or
//! protect them from changes.
//!
//! Rules are the user's program's: each is about some operations, on paths as the guest has them. Masks are about a
//! share, and hold whatever the operation is. Not here: how an operation's path comes to be known (`rules`).

mod glob;
mod masks;
mod rules;

pub use glob::{Glob, GlobError, MAX_GLOB_LEN};
pub use masks::{MAX_MASKS_LEN, MaskError, Masks, PROTECTED, Seen, Verdict, WantedMasks};
pub use rules::{MAX_RULES_LEN, Op, RuleError, Rules, WantedRule, Wrong};
