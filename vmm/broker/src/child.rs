//! A process of a machine, started by this process or by its broker.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::process::ExitStatus;

use crate::client::Client;
use crate::requests::{Kill, Reap};

/// A child process. Its descriptor is readable once the process has ended. Dropping the value kills and reaps the
/// process.
#[derive(Debug)]
pub struct Child(Held);

#[derive(Debug)]
enum Held {
    Ours(process::Child),
    Brokers(Brokers),
}

/// A child of the broker's. Its number is the broker's name for it.
#[derive(Debug)]
pub(crate) struct Brokers {
    pub(crate) broker: &'static Client,
    pub(crate) child: u32,
    pub(crate) pid: u32,
    pub(crate) pidfd: OwnedFd,
    pub(crate) status: Option<ExitStatus>,
}

impl From<process::Child> for Child {
    fn from(child: process::Child) -> Self {
        Self(Held::Ours(child))
    }
}

impl From<Brokers> for Child {
    fn from(child: Brokers) -> Self {
        Self(Held::Brokers(child))
    }
}

impl Child {
    /// The child's process id, for messages. After the child's end the id may be another process's.
    #[must_use]
    pub fn pid(&self) -> u32 {
        match &self.0 {
            Held::Ours(child) => child.pid(),
            Held::Brokers(child) => child.pid,
        }
    }

    /// Sends SIGKILL. A process that has already ended is no error.
    pub fn kill(&self) -> io::Result<()> {
        match &self.0 {
            Held::Ours(child) => child.kill(),
            Held::Brokers(child) => child.kill(),
        }
    }

    /// Waits for the child's end.
    pub fn wait(&mut self) -> io::Result<ExitStatus> {
        match &mut self.0 {
            Held::Ours(child) => child.wait(),
            Held::Brokers(child) => child.wait(),
        }
    }

    /// How the child ended, if it has.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        match &mut self.0 {
            Held::Ours(child) => child.try_wait(),
            Held::Brokers(child) => child.try_wait(),
        }
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match &self.0 {
            Held::Ours(child) => child.as_fd(),
            Held::Brokers(child) => child.pidfd.as_fd(),
        }
    }
}

impl Brokers {
    fn kill(&self) -> io::Result<()> {
        match self.status {
            None => self.broker.ask(Kill { child: self.child }),
            Some(_) => Ok(()),
        }
    }

    fn wait(&mut self) -> io::Result<ExitStatus> {
        loop {
            process::wait_readable(&self.pidfd, None)?;
            if let Some(status) = self.try_wait()? {
                return Ok(status);
            }
        }
    }

    fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        if self.status.is_none() {
            let status = self.broker.ask(Reap { child: self.child })?;
            self.status = status.map(ExitStatus::from_raw);
        }
        Ok(self.status)
    }
}

impl Drop for Brokers {
    fn drop(&mut self) {
        // A broker that is gone has taken its children along.
        if self.status.is_none() && self.kill().is_ok() {
            let _ = self.wait();
        }
    }
}
