//! Building the programs: `matchlock` and its helpers, side by side in target/release.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::sh;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Linked statically: the agent because the guest has no libraries, the others because they start faster, dirty less
/// memory and need nothing of the host's when confined.
const STATIC: &[(&str, &[&str])] = &[
    ("guest_agent", &["matchlock-guest"]),
    ("vmm", &["matchlock-vmm"]),
    ("software", &["matchlock-devices", "matchlock-launcher"]),
];

/// Every program, as it is named in a release.
pub(crate) const PROGRAMS: [&str; 5] =
    ["matchlock", "matchlock-vmm", "matchlock-devices", "matchlock-launcher", "matchlock-guest"];

/// Builds the program that measures; static, since it also runs in the emulated host.
pub(crate) fn measure() -> Result<PathBuf> {
    sh::run(statically(sh::cargo().args(["build", "--quiet", "--release", "-p", "measure"])))?;
    Ok(sh::target().join(TARGET).join("release").join("measure"))
}

fn statically(cargo: &mut Command) -> &mut Command {
    cargo
        .args(["--target", TARGET])
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static")
}

/// Builds everything; gives the directory that holds all programs.
pub(crate) fn programs() -> Result<PathBuf> {
    let mut cargo = sh::cargo();
    cargo.args(["build", "--quiet", "--release", "-p", "matchlock"]);
    // What `matchlock version` says; the commit's own time, so that the same commit makes the same program.
    for (name, format) in [("MATCHLOCK_COMMIT", "%h"), ("MATCHLOCK_BUILD_TIME", "%cI")] {
        let mut git = sh::command("git");
        if let Ok(text) = sh::output(git.args(["log", "-1", &format!("--format={format}")])) {
            cargo.env(name, text.trim());
        }
    }
    sh::run(&mut cargo)?;
    let mut cargo = sh::cargo();
    cargo.args(["build", "--quiet", "--release"]);
    for (package, _) in STATIC {
        cargo.args(["-p", package]);
    }
    sh::run(statically(&mut cargo))?;
    let from = sh::target().join(TARGET).join("release");
    let to = sh::target().join("release");
    for program in STATIC.iter().flat_map(|(_, programs)| *programs) {
        install(&from.join(program), &to.join(program))?;
    }
    Ok(to)
}

/// Puts a new file in place of the old one, which may be running; unchanged files keep their identity.
fn install(from: &std::path::Path, to: &std::path::Path) -> Result<()> {
    let new = fs::read(from).with_context(|| from.display().to_string())?;
    if fs::read(to).is_ok_and(|old| old == new) {
        return Ok(());
    }
    let staged = to.with_extension("new");
    fs::copy(from, &staged).with_context(|| staged.display().to_string())?;
    fs::rename(&staged, to).with_context(|| to.display().to_string())
}
