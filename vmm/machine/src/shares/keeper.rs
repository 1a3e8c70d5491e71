//! The wish that changes of overlays be written down, and the answer, on a channel of its own to the process of shared
//! folders.
//!
//! ```text
//! supervisor                 matchlock-shares
//!   Keep       ────────────▶
//!              ◀────────────  Kept
//! ```
//!
//! The process writes the changes down also when the supervisor is gone.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use process::Channel;
use serde::{Deserialize, Serialize};

use super::PROGRAM;
use crate::MachineError;
use crate::children::in_process;

/// How long the process may take to write its lists: some hundred megabytes.
const LIMIT: Duration = Duration::from_secs(60);

/// To the process: the changes so far are to be written down.
#[derive(Debug, Serialize, Deserialize)]
pub struct Keep {}

/// From the process: the changes are written down, or the reason why they are not.
#[derive(Debug, Serialize, Deserialize)]
pub struct Kept(pub Result<(), String>);

/// The supervisor's end of the channel.
#[derive(Debug)]
pub struct Keeper {
    channel: Mutex<Channel>,
    /// The failure of the last wish.
    failure: Mutex<Option<String>>,
}

impl Keeper {
    pub(super) fn new(channel: Channel) -> Self {
        Self { channel: Mutex::new(channel), failure: Mutex::default() }
    }

    /// Has the process write down the changes so far.
    pub fn keep(&self) -> Result<(), MachineError> {
        let kept = self.ask();
        let failure = kept.as_ref().err().map(ToString::to_string);
        *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = failure;
        kept
    }

    /// The reason why the last changes were not written down.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn ask(&self) -> Result<(), MachineError> {
        let channel = self.channel.lock().unwrap_or_else(PoisonError::into_inner);
        channel.send(&Keep {}, &[]).map_err(in_process(PROGRAM))?;
        let heard = channel.recv_before::<Kept>(Instant::now() + LIMIT).map_err(in_process(PROGRAM))?;
        let gone = "the process of the shared folders ended before it wrote down what was changed";
        let (Kept(kept), _) = heard.ok_or_else(|| MachineError::Refused(gone.to_owned()))?;
        kept.map_err(MachineError::Refused)
    }
}
