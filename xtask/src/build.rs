//! Building the programs: `matchlock` and its helpers, side by side in target/release.

use std::fs;
use std::path::PathBuf;

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

/// Builds everything; gives the directory that holds all programs.
pub(crate) fn programs() -> Result<PathBuf> {
    sh::run(sh::cargo().args(["build", "--quiet", "--release", "-p", "matchlock"]))?;
    let mut cargo = sh::cargo();
    cargo.args(["build", "--quiet", "--release", "--target", TARGET]);
    for (package, _) in STATIC {
        cargo.args(["-p", package]);
    }
    sh::run(cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static"))?;
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
