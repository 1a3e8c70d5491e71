//! Building the programs: `matchlock` and its helpers, side by side in a directory of cargo's target directory.

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

/// A profile of the workspace's manifest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// Quick to build.
    Release,
    /// Optimized across crates, as published and measured.
    Dist,
}

impl Profile {
    /// The profile's name, which is the name of its directory too.
    fn name(self) -> &'static str {
        match self {
            Self::Release => "release",
            Self::Dist => "dist",
        }
    }

    /// A build of this profile, with cargo's progress where somebody watches.
    fn cargo(self) -> Command {
        let mut cargo = sh::cargo();
        cargo.args(["build", "--profile", self.name()]).args(sh::quiet());
        cargo
    }

    /// The directory that holds all programs.
    fn programs(self) -> PathBuf {
        sh::target().join(self.name())
    }

    fn static_programs(self) -> PathBuf {
        sh::target().join(TARGET).join(self.name())
    }
}

/// Builds the program that measures; static, since it also runs in the emulated host.
pub(crate) fn measure() -> Result<PathBuf> {
    sh::run(statically(Profile::Dist.cargo().args(["-p", "measure"])))?;
    Ok(Profile::Dist.static_programs().join("measure"))
}

/// Builds the program that finds the stock kernel.
pub(crate) fn stock_kernel(profile: Profile) -> Result<PathBuf> {
    // Beside `matchlock`: so that both have the same features of the same crates, which are built once.
    sh::run(versioned(profile.cargo().args(["-p", "matchlock", "-p", "stock_kernel"])))?;
    Ok(profile.programs().join("stock-kernel"))
}

fn statically(cargo: &mut Command) -> &mut Command {
    cargo
        .args(["--target", TARGET])
        .env("RUSTFLAGS", "-C target-feature=+crt-static -C relocation-model=static")
}

/// Says what `matchlock version` prints: the commit and the commit's own time, so that a commit always makes the same
/// program.
fn versioned(cargo: &mut Command) -> &mut Command {
    for (name, format) in [("MATCHLOCK_COMMIT", "%h"), ("MATCHLOCK_BUILD_TIME", "%cI")] {
        let mut git = sh::command("git");
        if let Ok(text) = sh::try_output(git.args(["log", "-1", &format!("--format={format}")])) {
            cargo.env(name, text.trim());
        }
    }
    cargo
}

/// Builds everything; gives the directory that holds all programs.
pub(crate) fn programs(profile: Profile) -> Result<PathBuf> {
    sh::run(versioned(profile.cargo().args(["-p", "matchlock"])))?;
    let mut cargo = profile.cargo();
    for (package, _) in STATIC {
        cargo.args(["-p", package]);
    }
    sh::run(statically(&mut cargo))?;
    let (from, to) = (profile.static_programs(), profile.programs());
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
