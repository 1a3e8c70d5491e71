//! The supervisor's side.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use arrival::Sockets;
use broker::{Child, Program};
use egress_policy::PolicyError;
use process::{Channel, Spawn};
use rustix::fs::OFlags;
use rustix::net::Shutdown;

use crate::channel::{self, Change, Report};
use crate::{NoHost, Spec};

/// How long the process may take to end once it is told to: it writes the last events of its audit.
const LAST_EVENTS: Duration = Duration::from_secs(5);

/// Said of a process that answers what nobody asked.
const BROKEN: &str = "it broke the protocol";

/// The process that carries a sandbox's network. Dropping the value ends it, and the guest's network with it.
#[derive(Debug)]
pub struct Outlet {
    child: Child,
    channel: Channel,
    /// Held from a change to its answer; the reason why the process failed, once that was heard.
    heard: Mutex<Option<String>>,
}

/// Why the process does not serve.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The lists are not understood.
    #[error(transparent)]
    Policy(#[from] PolicyError),
    /// The table of hosts is not understood.
    #[error(transparent)]
    Host(#[from] NoHost),
    /// The audit's file could be used for something else.
    #[error("the audit's file is not open to append to it, and to nothing else")]
    Audit,
    /// The process cannot be started or talked to.
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
    /// The process cannot be talked to, or has ended.
    #[error("the process of the network is gone: {0}")]
    Gone(String),
}

impl Outlet {
    /// Starts the process, which is the file `program`, or the broker's own if this process has a broker. Returns once
    /// all that arrives at `sockets` is carried, and the process is confined.
    ///
    /// The process appends its audit to `audit`, which must be open to append to and for nothing else, and writes
    /// warnings to `log`, which must be a pipe where there is a broker. It connects from the network namespace that it is
    /// started in.
    pub fn start(
        program: &Path,
        spec: &Spec,
        sockets: [OwnedFd; Sockets::COUNT],
        audit: &File,
        log: Option<OwnedFd>,
    ) -> Result<Self, StartError> {
        // The process makes both again. Here they are checked to have the error.
        spec.policy()?;
        spec.hosts()?;
        let flags = rustix::fs::fcntl_getfl(audit).map_err(io::Error::from)?;
        if !flags.contains(OFlags::APPEND) || flags & OFlags::ACCMODE != OFlags::WRONLY {
            return Err(StartError::Audit);
        }
        let (child, channel) = broker::start(Program::Egress, Spawn { stderr: log, ..Spawn::new(program) })?;
        let mut outlet = Self { child, channel, heard: Mutex::new(None) };
        let descriptors: Vec<_> = sockets.into_iter().chain([audit.try_clone()?.into()]).collect();
        // A process that has ended says why.
        let sent = channel::send(&outlet.channel, spec, &descriptors);
        drop(descriptors);
        match sent.and_then(|()| channel::receive(&outlet.channel)) {
            Ok(Some((Report::Serving, _))) => Ok(outlet),
            Ok(Some((Report::Failed(why), _))) => Err(StartError::Refused(why)),
            Ok(Some((Report::Changed(_), _))) => Err(StartError::Refused(BROKEN.to_owned())),
            Ok(None) | Err(process::Error::Channel(_)) => {
                if !process::wait_readable(&outlet.child, Some(Instant::now() + LAST_EVENTS))? {
                    outlet.child.kill()?;
                }
                Err(StartError::Refused(outlet.wait()))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Adds patterns to the allow list, then deletes patterns from it by their text. Returns once the new policy holds
    /// and the connections that it denies are cut, and gives back the list as it is then. If a pattern that is to be
    /// added is not understood, nothing changes. Where there was no list, the first pattern closes all else.
    pub fn change(&self, add: &[String], delete: &[String]) -> Result<Vec<String>, ChangeError> {
        let mut heard = self.heard();
        let change = Change { add: add.to_vec(), delete: delete.to_vec() };
        match channel::send(&self.channel, &change, &[]) {
            // The process may have said why it ended.
            Ok(()) | Err(process::Error::Channel(_)) => {}
            Err(error) => return Err(ChangeError::Refused(error.to_string())),
        }
        match channel::receive(&self.channel) {
            Ok(Some((Report::Changed(changed), _))) => changed.map_err(ChangeError::Refused),
            Ok(Some((Report::Failed(why), _))) => Err(ChangeError::Gone(heard.insert(why).clone())),
            Ok(Some((Report::Serving, _))) => Err(ChangeError::Gone(BROKEN.to_owned())),
            Ok(None) => Err(ChangeError::Gone("it has ended".to_owned())),
            Err(error) => Err(ChangeError::Gone(error.to_string())),
        }
    }

    /// Readable once the process has ended, which it does by itself only when something is wrong. The guest is without a
    /// network then.
    #[must_use]
    pub fn ended(&self) -> BorrowedFd<'_> {
        self.child.as_fd()
    }

    /// Waits for the end of the process, which nobody asked for, and says why it ended.
    pub fn wait(&mut self) -> String {
        let status = self.child.wait();
        let heard = self.heard().take();
        let last = || loop {
            match channel::receive(&self.channel) {
                Ok(Some((Report::Failed(why), _))) => return Some(why),
                Ok(Some(_)) => {}
                Ok(None) | Err(_) => return None,
            }
        };
        match (heard.or_else(last), status) {
            (Some(why), _) => why,
            (None, Ok(status)) => format!("the process of the network ended: {status}"),
            (None, Err(error)) => format!("the process of the network cannot be waited for: {error}"),
        }
    }

    /// Its process id, for messages.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.pid()
    }

    fn heard(&self) -> MutexGuard<'_, Option<String>> {
        // Nothing panics while it is locked.
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Outlet {
    /// Hangs up, and waits for the last events of the audit.
    fn drop(&mut self) {
        // A process that is gone has hung up itself.
        let _ = rustix::net::shutdown(&self.channel, Shutdown::Both);
        let _ = process::wait_readable(&self.child, Some(Instant::now() + LAST_EVENTS));
    }
}
