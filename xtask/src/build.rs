//! Building the programs: `matchlock` and its helpers, side by side in a directory of cargo's target directory.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use crate::sh;

/// The packages that contain the programs.
const PACKAGES: [&str; 8] =
    ["matchlock", "broker", "guest_agent", "vmm", "software", "sharing", "arrival", "outlet"];

/// Every program, by its name in a release.
pub(crate) const PROGRAMS: [&str; 9] = [
    "matchlock",
    "matchlock-broker",
    "matchlock-vmm",
    "matchlock-devices",
    "matchlock-launcher",
    "matchlock-shares",
    "matchlock-arrival",
    "matchlock-egress",
    "matchlock-guest",
];

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
}

/// Builds everything; returns the directory that holds all programs.
pub(crate) fn programs(profile: Profile) -> Result<PathBuf> {
    with(profile, None)
}

/// Builds everything and the program that measures.
pub(crate) fn measure(profile: Profile) -> Result<PathBuf> {
    Ok(with(profile, Some("measure"))?.join("measure"))
}

/// Builds everything and the program that finds the stock kernel.
pub(crate) fn stock_kernel(profile: Profile) -> Result<PathBuf> {
    Ok(with(profile, Some("stock_kernel"))?.join("stock-kernel"))
}

/// Builds the program with the cases of shared folders, which runs in guests.
pub(crate) fn share_cases(profile: Profile) -> Result<PathBuf> {
    Ok(with(profile, Some("share_cases"))?.join("share-cases"))
}

/// One build for all programs, so that each crate is built once, with the same features for all of them.
fn with(profile: Profile, package: Option<&str>) -> Result<PathBuf> {
    let mut cargo = sh::cargo();
    cargo.args(["build", "--profile", profile.name()]).args(sh::quiet());
    for package in PACKAGES.into_iter().chain(package) {
        cargo.args(["--package", package]);
    }
    cargo.env("RUSTC_WORKSPACE_WRAPPER", sh::root().join("xtask/rustc-static"));
    sh::run(versioned(&mut cargo))?;
    Ok(sh::target().join(profile.name()))
}

/// Sets the text that `matchlock version` prints: the commit and the commit's own time, so that a commit always makes
/// the same program.
fn versioned(cargo: &mut Command) -> &mut Command {
    for (name, format) in [("MATCHLOCK_COMMIT", "%h"), ("MATCHLOCK_BUILD_TIME", "%cI")] {
        let mut git = sh::command("git");
        if let Ok(text) = sh::try_output(git.args(["log", "-1", &format!("--format={format}")])) {
            cargo.env(name, text.trim());
        }
    }
    cargo
}
