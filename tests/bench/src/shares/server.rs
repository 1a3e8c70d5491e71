//! The servers that are compared: `matchlock-shares`, and virtiofsd as it may be set up. Each serves one directory to one
//! driver, and ends with it.

use std::fs::{self, File};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};
use machine::shares::{Content, Device, Masks, MountSpec, Shares, Source, View, Watch};
use rustix::io::FdFlags;

/// Arguments of virtiofsd that are its best for one case or another.
pub(super) const PEERS: [(&str, &[&str]); 3] = [
    ("virtiofsd", &[]),
    ("virtiofsd, no handles", &["--inode-file-handles=never"]),
    ("virtiofsd, no handles, pool of 8", &["--inode-file-handles=never", "--thread-pool-size=8"]),
];

/// The name of the one that is not a peer.
pub(super) const OURS: &str = "matchlock-shares";

/// Which server.
#[derive(Clone, Copy)]
pub(super) enum Kind<'a> {
    /// The program at this path.
    Ours(&'a Path),
    /// The program at this path, with these arguments.
    Peer(&'a Path, &'static str, &'static [&'static str]),
}

impl Kind<'_> {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Ours(_) => OURS,
            Self::Peer(_, name, _) => name,
        }
    }
}

/// A server that runs.
pub(super) struct Server {
    process: Process,
    /// The name below its root that leads to the directory; nothing where the root is the directory.
    pub(super) below: Option<&'static [u8]>,
}

enum Process {
    Ours(Shares),
    Peer(Child),
}

impl Server {
    /// Starts to serve a directory; returns also the driver's end. `memory` is the driver's.
    pub(super) fn start(kind: Kind<'_>, directory: &Path, memory: u64) -> Result<(Self, UnixStream)> {
        match kind {
            Kind::Ours(program) => {
                let source = Source { directory: OwnedFd::from(File::open(directory)?), file: None };
                let content = Content::Host { source, view: View::default() };
                let (place, masks) = ("/measured".to_owned(), Masks::default());
                let mounts = vec![MountSpec { content, inner: Vec::new(), place, masks }];
                let device =
                    Device { tag: "measured".to_owned(), request_queues: 1, exclusive: false, mounts };
                let log = rustix::io::dup(std::io::stderr())?;
                let (mut shares, mut back_ends) =
                    Shares::start_with(program, vec![device], Watch::default(), memory, None, Some(log))?;
                shares.wait_until_serving()?;
                let socket = back_ends.pop().context("a device")?.socket;
                Ok((Self { process: Process::Ours(shares), below: Some(b"0") }, socket.into()))
            }
            Kind::Peer(program, _, arguments) => {
                let (listener, stream) = process::accept_pair()?;
                rustix::io::fcntl_setfd(&listener, FdFlags::empty())?;
                // In a session of its own, as ours and any service: Linux shares out its processors among sessions, and a switch
                // between two of them takes longer.
                let mut command = Command::new("setsid");
                command
                    .arg(program)
                    .arg(format!("--fd={}", listener.as_raw_fd()))
                    .arg("--shared-dir")
                    .arg(directory);
                command.args(["--cache=auto", "--log-level=error"]).args(arguments);
                let child = command.stdin(Stdio::null()).spawn().context("virtiofsd")?;
                Ok((Self { process: Process::Peer(child), below: None }, stream))
            }
        }
    }

    /// Its process; that may have children.
    pub(super) fn pid(&self) -> u32 {
        match &self.process {
            Process::Ours(shares) => shares.pid(),
            Process::Peer(child) => child.id(),
        }
    }

    /// Processor time that it has taken, in nanoseconds.
    pub(super) fn cpu_ns(&self) -> Result<u64> {
        let mut sum = 0;
        for pid in crate::memory::processes(self.pid())? {
            for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
                let times = fs::read_to_string(thread?.path().join("schedstat"))?;
                let first = times.split_whitespace().next().context("schedstat")?;
                sum += first.parse::<u64>()?;
            }
        }
        Ok(sum)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if let Process::Peer(child) = &mut self.process {
            // It has most likely ended with its driver.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
