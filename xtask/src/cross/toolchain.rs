//! A compiler that has the standard library for another platform: the project's own, with rustup's library for that
//! platform; or else Debian's, unpacked into the build directory. Debian's library is checked like any crate, since
//! nothing is linked.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::{host, sh};

/// Debian's compiler, and the source of its standard library.
const PACKAGES: [&str; 3] = ["rustc-web", "cargo-web", "rust-web-src"];

/// The compiler for one platform.
pub(super) enum Toolchain {
    /// The compiler with which this project is built.
    Own,
    /// Debian's compiler, below this directory.
    Debian(PathBuf),
}

impl Toolchain {
    /// Provides the compiler for `target`.
    pub(super) fn provide(target: &str) -> Result<Self> {
        if has_library(target)? {
            return Ok(Self::Own);
        }
        if sh::have("rustup") {
            // Without a network rustup fails, and prints the reason.
            let added = sh::run(sh::command("rustup").args(["target", "add", target]));
            if added.is_ok() && has_library(target)? {
                return Ok(Self::Own);
            }
        }
        let debian = sh::target().join("cross/debian");
        if !debian.is_dir() {
            unpack(&debian)?;
        }
        provide_library(&debian, target)?;
        Ok(Self::Debian(debian))
    }

    /// A cargo command for a check, with lints only if the compiler is the project's own.
    pub(super) fn check(&self) -> Command {
        match self {
            Self::Own => {
                let mut cargo = sh::cargo();
                cargo.arg("clippy");
                cargo
            }
            Self::Debian(debian) => {
                let mut cargo = debian_cargo(debian);
                cargo.arg("check").arg("--target-dir").arg(debian.join("build"));
                cargo.env("RUSTFLAGS", "-Awarnings");
                cargo
            }
        }
    }
}

fn has_library(target: &str) -> Result<bool> {
    let path = sh::output(sh::command("rustc").args(["--print", "target-libdir", "--target", target]))?;
    Ok(Path::new(path.trim_end()).is_dir())
}

/// Unpacks Debian's compiler, and those of its libraries that this host lacks.
fn unpack(debian: &Path) -> Result<()> {
    if !sh::have("apt-get") {
        bail!("rustup adds no standard library for it, and there is no apt-get to get Debian's compiler");
    }
    sh::run(host::apt().args(["update", "-q=2"]))?;
    let missing = ["install", "-y", "-q=2", "--no-install-recommends", "--print-uris"];
    let files = sh::output(sh::command("apt-get").args(missing).args(PACKAGES))?;
    let packages: Vec<&str> = files.lines().filter_map(package).collect();
    let new = debian.with_extension("new");
    fs::create_dir_all(&new)?;
    sh::run(sh::command("apt-get").current_dir(&new).args(["download", "-q=2"]).args(&packages))?;
    for entry in fs::read_dir(&new)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "deb") {
            sh::run(sh::command("dpkg").arg("-x").arg(&path).arg(&new))?;
            fs::remove_file(&path)?;
        }
    }
    Ok(fs::rename(&new, debian)?)
}

/// The package named by a line of apt-get's output: `'https://…' NAME_VERSION_ARCHITECTURE.deb SIZE HASH`.
fn package(line: &str) -> Option<&str> {
    let file = line.split_whitespace().nth(1)?;
    file.ends_with(".deb").then(|| file.split('_').next())?
}

/// Checks Debian's standard library for `target`, and puts its metadata where the compiler looks for it.
fn provide_library(debian: &Path, target: &str) -> Result<()> {
    let rustlib = debian.join("usr/lib/rustlib");
    let library = rustlib.join(target).join("lib");
    if library.is_dir() {
        return Ok(());
    }
    let built = debian.join("std");
    let mut cargo = debian_cargo(debian);
    cargo.arg("check").args(sh::quiet()).args(["--target", target]).arg("--target-dir").arg(&built);
    cargo.arg("--manifest-path").arg(rustlib.join("src/rust/library/sysroot/Cargo.toml"));
    // The flags of Rust's own build: parts of the library use features that are not stable in other parts.
    cargo.env("RUSTC_BOOTSTRAP", "1").env("RUSTFLAGS", "-Zforce-unstable-if-unmarked -Awarnings");
    sh::run(&mut cargo)?;
    let new = library.with_extension("new");
    fs::create_dir_all(&new)?;
    for entry in fs::read_dir(built.join(target).join("debug/deps"))? {
        let path = entry?.path();
        let name = path.file_name().context("a file without a name")?;
        if path.extension().is_some_and(|extension| extension == "rmeta") {
            fs::copy(&path, new.join(name))?;
        }
    }
    fs::rename(&new, &library)?;
    // The directory has some hundred megabytes that no later step needs.
    Ok(fs::remove_dir_all(&built)?)
}

/// A cargo command with Debian's cargo and compiler, from the directory into which they were unpacked.
fn debian_cargo(debian: &Path) -> Command {
    let programs = debian.join("usr/bin");
    let mut path = OsString::from(&programs);
    path.push(":");
    path.push(std::env::var_os("PATH").unwrap_or_default());
    let mut cargo = sh::command(programs.join("cargo"));
    cargo.env("PATH", path).env("RUSTC", programs.join("rustc"));
    let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
    cargo.env("LD_LIBRARY_PATH", debian.join(libraries));
    cargo
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_read_from_apts_list() {
        let line = "'http://deb.debian.org/pool/r/rustc-web_1.96.0_amd64.deb' rustc-web_1.96.0_amd64.deb 445 SHA256:00";
        assert_eq!(package(line), Some("rustc-web"));
        assert_eq!(package(""), None);
        assert_eq!(package("Reading package lists..."), None);
    }
}
