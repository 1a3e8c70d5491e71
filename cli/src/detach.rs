//! `matchlock run --detach`: the same program again, in a session of its own.
//!
//! The child prints its id to standard output once its sandbox is ready, so that the id works, and any error to
//! standard error. Not here: the child's other work (`run`).

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};

use crate::say;
use crate::streams::{Stderr, Stdout};
use sandbox::{Home, Id};

/// Marks the child.
const CHILD_ENV: &str = "MATCHLOCK_DETACHED";

/// Longer than any id.
const MAX_REPORT: u64 = 256;

/// Whether this process is the child.
pub(crate) fn is_child() -> bool {
    std::env::var_os(CHILD_ENV).is_some()
}

/// Starts the child with this process's arguments and waits for its report. Under sudo this process starts the child as
/// root, and becomes the user's by `home` after that.
pub(crate) fn launch(
    arguments: &[OsString],
    home: impl FnOnce() -> anyhow::Result<Home>,
) -> anyhow::Result<u8> {
    let mut child = Command::new(std::env::current_exe()?)
        .args(arguments.iter().skip(1))
        .env(CHILD_ENV, "1")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    home()?;
    let errors = child.stderr.take().map(|mut stderr| {
        std::thread::spawn(move || {
            let _ = std::io::copy(&mut stderr, &mut Stderr);
        })
    });
    let mut report = String::new();
    if let Some(stdout) = child.stdout.take() {
        stdout.take(MAX_REPORT).read_to_string(&mut report)?;
    }
    // The thread ends when the child ends, or has reported.
    if let Some(Err(panic)) = errors.map(std::thread::JoinHandle::join) {
        std::panic::resume_unwind(panic);
    }
    if !report.is_empty() {
        say::text(&report);
        return Ok(0);
    }
    let status = child.wait()?;
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1).max(1))
}

/// In the child: reports that the sandbox is ready. Nobody listens after that.
pub(crate) fn report(id: &Id) -> anyhow::Result<()> {
    // Only now, so that ^C could end parent and child together.
    rustix::process::setsid()?;
    // If the parent is gone, the sandbox must not outlive its start.
    Stdout.write_all(format!("{id}\n").as_bytes())?;
    let null = File::options().write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdout(null.as_fd())?;
    rustix::stdio::dup2_stderr(null.as_fd())?;
    Ok(())
}
