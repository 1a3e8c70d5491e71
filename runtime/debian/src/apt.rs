//! The host's package sources, read through apt into private lists.
//!
//! Not here: sharing the lists, and hosts without apt (`archive`).

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use sha2::{Digest, Sha256};
use waiting::{CancellationToken, Wanted};

use crate::record::Record;
use crate::{Error, MAX_PACKAGE_BYTES, Package, Result};

/// How long a mirror may send nothing before apt gives it up.
const SILENCE_LIMIT: &str = "20";

/// How often apt asks again after that.
const RETRIES: &str = "1";

/// The lists that apt has read into a directory.
#[derive(Debug)]
pub(crate) struct Apt {
    directory: PathBuf,
    /// The message of apt about sources that it could not read.
    complaint: Option<String>,
}

impl Apt {
    /// Reads the signed lists of the host's package sources into an empty directory.
    pub(crate) fn update(directory: &Path, given_up: &CancellationToken) -> Result<Self> {
        for sub in ["lists/partial", "cache/archives/partial"] {
            let dir = directory.join(sub);
            fs::create_dir_all(&dir).map_err(Error::io(dir))?;
        }
        let output = run(directory, Command::new("apt-get").arg("update"), "update", given_up)?;
        // With partial lists apt succeeds and warns: first of the reason, then of the result.
        let complaint = lines(&output.stderr).next();
        Ok(Self { directory: directory.to_owned(), complaint })
    }

    /// The record of a package in the verified lists.
    pub(crate) fn record(&self, name: &str, given_up: &CancellationToken) -> Result<Record> {
        let mut command = Command::new("apt-cache");
        let command = command.args(["show", "--no-all-versions", name]);
        let output = run(&self.directory, command, "show", given_up).map_err(|error| match error {
            Error::Apt { .. } => self.unknown(name.to_owned()),
            other => other,
        })?;
        let record = Record::parse(&String::from_utf8_lossy(&output.stdout));
        record.ok_or_else(|| self.unknown(name.to_owned()))
    }

    /// Fetches a package into `directory` and verifies it.
    pub(crate) fn package(
        &self,
        name: &str,
        record: &Record,
        directory: &Path,
        given_up: &CancellationToken,
    ) -> Result<Package> {
        fs::create_dir_all(directory).map_err(Error::io(directory))?;
        // apt-get download writes to its working directory.
        let target = format!("{name}={}", record.version);
        let mut command = Command::new("apt-get");
        command.current_dir(directory).args(["download", &target]);
        run(&self.directory, &mut command, "download", given_up)?;
        let path = downloaded(directory, name)?;
        let actual = sha256(&path, given_up)?;
        if actual != record.sha256 {
            // A later run must not take a bad file for a good one.
            let _ = fs::remove_file(&path);
            return Err(Error::Digest { name: name.to_owned(), expected: record.sha256.clone(), actual });
        }
        Ok(Package { name: name.to_owned(), version: record.version.clone(), sha256: actual, path })
    }

    /// The error for a package that is in no list.
    pub(crate) fn unknown(&self, name: String) -> Error {
        match &self.complaint {
            None => Error::Unknown(name),
            Some(complaint) => Error::UnknownIn { name, complaint: complaint.clone() },
        }
    }
}

/// Runs one of apt's programs on the lists in `state`.
fn run(
    state: &Path,
    command: &mut Command,
    action: &'static str,
    given_up: &CancellationToken,
) -> Result<Output> {
    let option = |key: &str, sub: &str| format!("{key}={}", state.join(sub).display());
    let silence =
        ["http", "https", "ftp"].map(|method| format!("Acquire::{method}::Timeout={SILENCE_LIMIT}"));
    command
        .args(silence.iter().flat_map(|option| ["-o", option]))
        .args(["-o", &format!("Acquire::Retries={RETRIES}")])
        .args(["-q", "-o", &option("Dir::State::lists", "lists"), "-o", &option("Dir::Cache", "cache")])
        // As root, apt would fetch as the user _apt, who cannot write to a private directory.
        .args([
            "-o",
            "APT::Sandbox::User=root",
            "-o",
            "Dir::Cache::pkgcache=",
            "-o",
            "Dir::Cache::srcpkgcache=",
        ])
        .args(["-o", "Debug::NoLocking=1"])
        .env("LC_ALL", "C")
        // A killed apt leaves temporary files: they are removed with this directory.
        .env("TMPDIR", state)
        .stdin(Stdio::null());
    let output = waiting::output(command, given_up).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::NoApt,
        _ => Error::io(command.get_program())(source),
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let message = lines(&output.stderr).last().unwrap_or_else(|| "no message".to_owned());
    Err(Error::Apt { action, message })
}

/// The lines of apt's output, without their letters of severity.
fn lines(said: &[u8]) -> impl Iterator<Item = String> {
    let lines = said.split(|byte| *byte == b'\n').map(String::from_utf8_lossy);
    lines
        .map(|line| line.trim().trim_start_matches("E: ").trim_start_matches("W: ").to_owned())
        .filter(|line| !line.is_empty())
}

/// The one file that apt has just downloaded for `name`.
fn downloaded(directory: &Path, name: &str) -> Result<PathBuf> {
    let prefix = format!("{name}_");
    for entry in fs::read_dir(directory).map_err(Error::io(directory))? {
        let entry = entry.map_err(Error::io(directory))?;
        let file = entry.file_name();
        if file.to_str().is_some_and(|file| file.starts_with(&prefix) && file.ends_with(".deb")) {
            return Ok(entry.path());
        }
    }
    Err(Error::Format("apt-get download left no package file"))
}

fn sha256(path: &Path, given_up: &CancellationToken) -> Result<String> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut file = Wanted::new(file.take(MAX_PACKAGE_BYTES), given_up);
    let mut hasher = Sha256::new();
    io::copy(&mut file, &mut hasher).map_err(Error::io(path))?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}
