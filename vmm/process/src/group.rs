//! Programs of others, such as package tools and formatters: they end with this process, and so do their own children.
//!
//! Such programs know nothing of channels, and their own children nothing of a parent-death signal. So they run in a
//! process group whose leader is a shell that waits for the end of a pipe and then kills the group, itself included.
//! The pipe ends when its only writing end is closed: when the program is done, or when this process ends, however that
//! happens. Not here: programs of this project (`spawn`).

use std::io::{self, PipeWriter};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

/// The leader's program for a POSIX shell, to whose input nothing is ever written. POSIX kill: "If pid is zero, the
/// signal is sent to all processes […] whose process group ID is equal to the process group ID of the sender".
const LEADER: &str = "read -r _; kill -KILL 0";

/// A process group that is killed when this value is dropped, and when this process ends.
#[derive(Debug)]
pub struct Group {
    leader: Child,
    lifeline: Option<PipeWriter>,
}

impl Group {
    /// Starts a group that has nothing in it yet.
    pub fn start() -> io::Result<Self> {
        let (theirs, ours) = io::pipe()?;
        let mut leader = Command::new("/bin/sh");
        leader.args(["-c", LEADER]).stdin(theirs).stdout(Stdio::null()).stderr(Stdio::null());
        Ok(Self { leader: leader.process_group(0).spawn()?, lifeline: Some(ours) })
    }

    /// Has a program start in this group.
    pub fn place<'a>(&self, command: &'a mut Command) -> io::Result<&'a mut Command> {
        Ok(command.process_group(i32::try_from(self.leader.id()).map_err(io::Error::other)?))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        self.lifeline = None;
        // The leader's number stays the group's until this call.
        let _ = self.leader.wait();
    }
}
