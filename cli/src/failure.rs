//! The report of an error: one line that says what happened, one that says what to do, and an exit status.
//!
//! Not here: the advice on known errors (`hint`).

use std::sync::Arc;

use sandbox::{ControlError, Error, GuestError, RecordsError};

use crate::hint::Hint;
use crate::say::tell;
use crate::tame::is_tame;

/// Exit status of every error of this program's own.
pub(crate) const FAILED: u8 = 1;

/// An error with advice, where the advice is the command line's.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Advice {
    message: String,
    hint: &'static str,
}

impl Hint for Advice {
    fn hint(&self) -> Option<&str> {
        Some(self.hint)
    }
}

/// An error with advice.
pub(crate) fn advice(message: impl Into<String>, hint: &'static str) -> anyhow::Error {
    Advice { message: message.into(), hint }.into()
}

/// A command ended by a signal to this program; nothing is printed.
#[derive(Debug, thiserror::Error)]
#[error("signal {0}")]
pub(crate) struct Interrupted(pub(crate) i32);

/// A command that never ran, with the status a shell would give.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub(crate) struct NotRun {
    pub(crate) message: String,
    pub(crate) status: u8,
}

/// For commands that talk to a sandbox, as opposed to those about its record.
pub(crate) fn not_found(error: impl Into<Error>) -> anyhow::Error {
    match error.into() {
        Error::Records(RecordsError::UnknownVm(id)) => {
            anyhow::anyhow!("VM not found {id}: VM {id} not found")
        }
        error => error.into(),
    }
}

/// Prints an error and its hint.
pub(crate) fn show(error: &anyhow::Error) {
    if error.is::<Interrupted>() {
        return;
    }
    print(&error.to_string(), hint(error));
}

fn hint(error: &anyhow::Error) -> Option<&str> {
    fn of<T: Hint + std::error::Error + Send + Sync + 'static>(error: &anyhow::Error) -> Option<&str> {
        error.downcast_ref::<T>().and_then(T::hint)
    }
    let hint = of::<Advice>(error).or_else(|| of::<Error>(error)).or_else(|| of::<RecordsError>(error));
    let hint = hint.or_else(|| of::<ControlError>(error)).or_else(|| of::<GuestError>(error));
    // An error that several wait for is shared.
    hint.or_else(|| error.downcast_ref::<Arc<Error>>().and_then(|error| error.hint()))
}

/// The status to exit with.
pub(crate) fn status(error: &anyhow::Error) -> u8 {
    if let Some(Interrupted(signal)) = error.downcast_ref() {
        return u8::try_from(*signal).unwrap_or(0).saturating_add(128);
    }
    error.downcast_ref().map_or(FAILED, |NotRun { status, .. }| *status)
}

/// Prints the two lines.
pub(crate) fn print(message: &str, hint: Option<&str>) {
    tell!("matchlock: {}", one_line(message));
    if let Some(hint) = hint {
        tell!("hint: {hint}");
    }
}

/// A message on one line, without characters that a terminal would act on.
fn one_line(message: &str) -> String {
    let lines: Vec<_> = message.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
    lines.join("; ").chars().filter(|c| is_tame(*c)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_become_one_line() {
        assert_eq!(one_line("a\n  b\r\n\nc\x1b[2J"), "a; b; c[2J");
    }

    #[test]
    fn statuses() {
        assert_eq!(status(&Interrupted(2).into()), 130);
        assert_eq!(status(&Interrupted(15).into()), 143);
        assert_eq!(status(&NotRun { message: String::new(), status: 127 }.into()), 127);
        assert_eq!(status(&anyhow::anyhow!("x")), 1);
    }
}
