//! QEMU's launcher: QEMU ends when it does, and it ends when the supervisor does.
//!
//! QEMU itself would outlive a supervisor that was killed. The launcher also confines it, before the first of its
//! instructions: no capability, a file system of nothing but its own program, libraries and firmware to read. QEMU adds
//! its own seccomp filter (`-sandbox`). Not here: what QEMU is told (`machine::software`).

use std::fs::File;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};

use anyhow::Context;
use machine::software::protocol::{Launch, LaunchReport};
use process::{Channel, Child, Spawn};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::PipeFlags;
use rustix::thread::CapabilitySet;

use crate::Descriptors;
use crate::confine::{self, Readable};

/// How much of what QEMU said last is kept.
const LAST_WORDS: usize = 512;

/// Runs QEMU until it ends or the supervisor hangs up. To be called by the main thread.
pub fn run(channel: &Channel) -> anyhow::Result<()> {
    let Some((launch, descriptors)) = channel.recv().context("first message")? else {
        return Ok(());
    };
    let (mut qemu, errors) = match start(launch, descriptors) {
        Ok(started) => started,
        Err(error) => {
            channel.send(&LaunchReport::Refused(format!("{error:#}")), &[])?;
            return Err(error);
        }
    };
    channel.send(&LaunchReport::Started { pid: qemu.pid() }, &[qemu.as_fd()])?;
    confine::allow_only(&[confine::EVERYWHERE, WATCHING], confine::EVERYWHERE_IF)?;

    let last_words = match watch(channel, &qemu, errors)? {
        Some(last_words) => last_words,
        // Dropping the child kills it and waits for its end.
        None => return Ok(()),
    };
    let status = qemu.wait().context("QEMU")?;
    // A supervisor that is gone does not want to know.
    let _ = channel.send(&LaunchReport::Ended { status: status.into_raw(), last_words }, &[]);
    Ok(())
}

/// Starts QEMU, confined; returns also its standard error.
fn start(launch: Launch, descriptors: Vec<OwnedFd>) -> anyhow::Result<(Child, File)> {
    let (errors, stderr) = rustix::pipe::pipe_with(PipeFlags::CLOEXEC).context("pipe")?;
    let mut files = Vec::new();
    for file in &launch.reopened {
        let descriptor = descriptors.get(usize::from(file.0)).context("a descriptor did not come")?;
        files.push(descriptor.try_clone().context("descriptor")?);
    }
    let mut descriptors = Descriptors::new(descriptors);
    let inherit = launch.inherit.iter().map(|(fd, number)| Ok((descriptors.take(*fd)?, *number)));
    let inherit = inherit.collect::<anyhow::Result<_>>()?;
    let spawn = Spawn {
        args: launch.args.into_iter().map(Into::into).collect(),
        stdout: Some(descriptors.take(launch.stdout)?),
        stderr: Some(stderr),
        inherit,
        // Second belt, for when the launcher itself is killed.
        dies_with_thread: true,
        ..Spawn::new(&launch.program)
    };
    // QEMU opens the kernel again by its number, which may take the right to read another user's file.
    confine::drop_capabilities(CapabilitySet::DAC_READ_SEARCH)?;
    confine::deny_all_but(readable(&launch.program, files))?;
    Ok((process::spawn_without_channel(spawn)?, File::from(errors)))
}

/// What QEMU reads: itself, its libraries, its firmware, and the files it was given.
fn readable(program: &Path, files: Vec<OwnedFd>) -> Readable {
    let existing =
        |paths: &[&str]| paths.iter().map(PathBuf::from).filter(|path| path.exists()).collect::<Vec<_>>();
    let mut programs =
        existing(&["/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/local/lib", "/nix/store"]);
    programs.push(program.to_path_buf());
    let mut data = existing(&["/usr/share", "/usr/local/share", "/etc/ld.so.cache", "/dev/null"]);
    // An installation of its own, `…/bin/qemu-system-…`, has its firmware and libraries beside `bin`.
    if let Some(directory) = program.parent().filter(|directory| directory.ends_with("bin")) {
        data.extend(
            [directory.join("../share"), directory.join("../lib")].into_iter().filter(|path| path.exists()),
        );
    }
    Readable { programs, data, files }
}

/// Waits for QEMU's end, and returns what it said last; `None` if the supervisor hung up.
fn watch(channel: &Channel, qemu: &Child, mut errors: File) -> anyhow::Result<Option<String>> {
    let mut said = Vec::new();
    let mut listening = true;
    loop {
        let mut waited = vec![PollFd::new(channel, PollFlags::IN), PollFd::new(qemu, PollFlags::IN)];
        if listening {
            waited.push(PollFd::new(&errors, PollFlags::IN));
        }
        match poll(&mut waited, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("poll"),
        }
        let happened: Vec<bool> = waited.iter().map(|one| !one.revents().is_empty()).collect();
        if happened.first() == Some(&true) {
            // There is no second message: either this is the end, or it is nonsense.
            return Ok(None);
        }
        if happened.get(2) == Some(&true) {
            listening = forward(&mut errors, &mut said)?;
        } else if happened.get(1) == Some(&true) {
            return Ok(Some(last_line(&said)));
        }
    }
}

/// Passes on what QEMU says. Returns whether there may be more.
fn forward(errors: &mut File, said: &mut Vec<u8>) -> anyhow::Result<bool> {
    let mut chunk = [0; 4096];
    let count = errors.read(&mut chunk).context("standard error of QEMU")?;
    let chunk = &chunk[..count];
    // A log that is gone is no reason to end.
    let _ = std::io::Write::write_all(&mut std::io::stderr(), chunk);
    said.extend_from_slice(chunk);
    said.drain(..said.len().saturating_sub(LAST_WORDS));
    Ok(count > 0)
}

fn last_line(said: &[u8]) -> String {
    let text = String::from_utf8_lossy(said);
    let last = text.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or_default();
    last.chars().filter(|c| !c.is_control()).collect()
}

/// What waiting takes.
const WATCHING: &[i64] = &[libc::SYS_waitid, libc::SYS_pidfd_send_signal];
