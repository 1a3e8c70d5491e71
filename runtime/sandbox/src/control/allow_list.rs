//! The allow list of a sandbox that runs, for those who show or change it.
//!
//! Not here: patterns (`egress_policy`), and the process that obeys the list.

use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use tokio::task::spawn_blocking;

use crate::control::client;
use crate::control::dialogue;
use crate::control::error::{Error, Result};
use crate::{Home, Id};

/// Why a list cannot be changed, in the words of the 0.2 releases.
pub(crate) const UNAVAILABLE: &str =
    "allow-list updates unavailable: sandbox was started without network interception";

/// A change of an allow list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListChange {
    /// None: the list is to be shown.
    Nothing,
    /// Patterns are added.
    Add(Vec<String>),
    /// Patterns are taken away, by their exact text.
    Delete(Vec<String>),
}

/// An allow list after a change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AllowList {
    /// The patterns that were new, or were there.
    pub changed: Vec<String>,
    /// The patterns.
    pub allowed: Vec<String>,
    /// Whether nothing but these hosts may be reached. An empty list that never had a pattern closes nothing.
    pub is_closed: bool,
}

/// The keeper of a sandbox's way out. Calls block.
pub(crate) trait Doorkeeper: Debug + Send + Sync {
    /// Changes the list, and returns it; the error is in words.
    fn change(&self, change: &ListChange) -> Result<AllowList, String>;
}

/// A sandbox's way out, once there is one.
#[derive(Debug, Default)]
pub(crate) struct Gate(Mutex<Option<Arc<dyn Doorkeeper>>>);

impl Gate {
    /// There is a way out from now on.
    pub(crate) fn open(&self, keeper: Arc<dyn Doorkeeper>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
    }

    /// Changes the allow list.
    pub(crate) async fn change(&self, change: ListChange) -> Result<AllowList, String> {
        let keeper = self.0.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let keeper = keeper.ok_or_else(|| UNAVAILABLE.to_owned())?;
        let changed = spawn_blocking(move || keeper.change(&change)).await;
        changed.unwrap_or_else(|error| Err(error.to_string()))
    }
}

/// Changes the allow list of a sandbox that another process owns, and returns the list.
pub async fn change(home: &Home, id: &Id, change: ListChange) -> Result<AllowList, Error> {
    client::ask(home, id, dialogue::ChangeAllowList { change }).await
}

/// A way out whose list is only remembered.
#[cfg(test)]
#[derive(Debug, Default)]
pub(crate) struct Remembered(Mutex<Vec<String>>);

#[cfg(test)]
impl Doorkeeper for Remembered {
    fn change(&self, change: &ListChange) -> Result<AllowList, String> {
        let mut allowed = self.0.lock().unwrap();
        let changed = match change {
            ListChange::Nothing => Vec::new(),
            ListChange::Add(hosts) if hosts.iter().any(String::is_empty) => {
                return Err("no pattern".to_owned());
            }
            ListChange::Add(hosts) => {
                allowed.extend(hosts.iter().cloned());
                hosts.clone()
            }
            ListChange::Delete(hosts) => {
                allowed.retain(|host| !hosts.contains(host));
                hosts.clone()
            }
        };
        Ok(AllowList { changed, allowed: allowed.clone(), is_closed: true })
    }
}
