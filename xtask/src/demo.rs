//! `cargo xtask demo`: from a fresh machine to a command's output out of a sandbox.

use std::time::Instant;

use anyhow::{Result, bail};

use crate::build::Profile;
use crate::{build, host, sh};

pub(crate) fn run(install: bool) -> Result<()> {
    host::provide(&[host::RUN], install)?;
    let programs = build::programs(Profile::Release)?;
    let matchlock = programs.join("matchlock");
    let run = |words: &[&str]| {
        let mut command = sh::command(&matchlock);
        command.args(["run", "--image", "busybox", "--"]).args(words);
        command
    };
    // The first run fetches the kernel and makes the built-in image; its output shows that sandboxes work.
    eprintln!("+ matchlock run --image busybox -- sh -c 'cat /etc/os-release; uname -a'");
    let status = run(&["sh", "-c", "cat /etc/os-release; uname -a"]).status()?;
    if !status.success() {
        bail!("the sandbox's command ended with {status}");
    }
    // The second run takes as long as every later one.
    let start = Instant::now();
    let status = run(&["true"]).status()?;
    let whole = start.elapsed();
    if !status.success() {
        bail!("the sandbox's command ended with {status}");
    }
    println!("matchlock run -- true: {:.2} s from process start to exit", whole.as_secs_f64());
    println!("The program is {}; put its directory on your PATH.", matchlock.display());
    Ok(())
}
