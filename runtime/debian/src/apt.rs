//! The host's package sources, asked through apt with private lists.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use sha2::{Digest, Sha256};

use crate::{Error, MAX_PACKAGE_BYTES, Result};

/// How long a mirror may say nothing before apt gives it up.
const SILENCE_LIMIT: &str = "20";

/// How often apt asks again after that.
const RETRIES: &str = "1";

/// The lists that are in use in this process. Who wants them while they are read waits, and then has the same.
static IN_USE: Mutex<Weak<Lists>> = Mutex::new(Weak::new());

/// The package sources this host is configured for, as of now.
#[derive(Debug)]
pub struct Archive {
    lists: Arc<Lists>,
}

/// What apt keeps, in a directory of ours that is nobody else's while this lives.
#[derive(Debug)]
struct Lists {
    directory: PathBuf,
    /// What apt said of sources that it could not read.
    complaint: Option<String>,
    _lock: File,
}

/// A verified package file.
#[derive(Debug, Clone)]
pub struct Package {
    /// Package name.
    pub name: String,
    /// Its version.
    pub version: String,
    /// Hex SHA-256 of the file, as its signed record says.
    pub sha256: String,
    /// The file.
    pub path: PathBuf,
}

/// What apt's verified lists say of one package.
struct Record {
    version: String,
    sha256: String,
    depends: String,
}

impl Archive {
    /// Reads the signed lists of the host's package sources into `directory`, which is kept for that alone: it is empty
    /// before and after.
    ///
    /// Other processes that do the same wait. In this process, the lists that another one of these has there are shared.
    pub fn update(directory: &Path) -> Result<Self> {
        let mut in_use = IN_USE.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lists) = in_use.upgrade().filter(|lists| lists.directory == directory) {
            return Ok(Self { lists });
        }
        fs::create_dir_all(directory).map_err(Error::io(directory))?;
        let lock = File::open(directory).map_err(Error::io(directory))?;
        lock.lock().map_err(Error::io(directory))?;
        // Whatever a killed process left.
        empty(directory).map_err(Error::io(directory))?;
        let mut lists = Lists { directory: directory.to_owned(), complaint: None, _lock: lock };
        for sub in ["lists/partial", "cache/archives/partial"] {
            let dir = directory.join(sub);
            fs::create_dir_all(&dir).map_err(Error::io(dir))?;
        }
        let output = run(directory, Command::new("apt-get").arg("update"), "update")?;
        // apt takes what it gets, and warns of the rest: first why, then that it did.
        lists.complaint = lines(&output.stderr).next();
        let lists = Arc::new(lists);
        *in_use = Arc::downgrade(&lists);
        Ok(Self { lists })
    }

    /// The first dependency of `meta` whose name starts with `prefix`: what a meta-package stands for.
    pub fn dependency(&self, meta: &str, prefix: &str) -> Result<String> {
        let record = self.record(meta)?;
        let names = record.depends.split([',', '|']).filter_map(|item| item.split_whitespace().next());
        let mut matching = names.filter(|name| name.starts_with(prefix));
        matching.next().map(str::to_owned).ok_or_else(|| self.unknown(format!("{prefix}* (by {meta})")))
    }

    /// Fetches package `name` into `directory` and verifies it.
    pub fn fetch(&self, name: &str, directory: &Path) -> Result<Package> {
        let record = self.record(name)?;
        fs::create_dir_all(directory).map_err(Error::io(directory))?;
        // apt-get download writes to its working directory.
        let target = format!("{name}={}", record.version);
        let mut command = Command::new("apt-get");
        command.current_dir(directory).args(["download", &target]);
        run(&self.lists.directory, &mut command, "download")?;
        let path = downloaded(directory, name)?;
        let actual = sha256(&path)?;
        if actual != record.sha256 {
            // Never left where a later run could take it for good.
            let _ = fs::remove_file(&path);
            return Err(Error::Digest { name: name.to_owned(), expected: record.sha256, actual });
        }
        Ok(Package { name: name.to_owned(), version: record.version, sha256: actual, path })
    }

    fn record(&self, name: &str) -> Result<Record> {
        // Debian policy §5.6.1: "must consist only of lower case letters, digits, plus and minus signs, and periods"
        let valid = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"+-.".contains(&c);
        if name.is_empty() || name.starts_with('-') || !name.bytes().all(valid) {
            return Err(Error::Name(name.to_owned()));
        }
        let mut command = Command::new("apt-cache");
        let command = command.args(["show", "--no-all-versions", name]);
        let output = run(&self.lists.directory, command, "show").map_err(|error| match error {
            Error::Apt { .. } => self.unknown(name.to_owned()),
            other => other,
        })?;
        parse_record(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| self.unknown(name.to_owned()))
    }

    fn unknown(&self, name: String) -> Error {
        match &self.lists.complaint {
            None => Error::Unknown(name),
            Some(complaint) => Error::UnknownIn { name, complaint: complaint.clone() },
        }
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        // Else the next one does.
        let _ = empty(&self.directory);
    }
}

/// Removes all that is in a directory.
fn empty(directory: &Path) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            fs::remove_dir_all(entry.path())?;
        } else {
            fs::remove_file(entry.path())?;
        }
    }
    Ok(())
}

/// Runs one of apt's programs on the lists in `state`.
fn run(state: &Path, command: &mut Command, action: &'static str) -> Result<Output> {
    let option = |key: &str, sub: &str| format!("{key}={}", state.join(sub).display());
    let silence =
        ["http", "https", "ftp"].map(|method| format!("Acquire::{method}::Timeout={SILENCE_LIMIT}"));
    command
        .args(silence.iter().flat_map(|option| ["-o", option]))
        .args(["-o", &format!("Acquire::Retries={RETRIES}")])
        .args(["-q", "-o", &option("Dir::State::lists", "lists"), "-o", &option("Dir::Cache", "cache")])
        // As root apt would fetch as user _apt, which cannot write to a private directory.
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
        // A killed apt leaves its temporary files: here they go with the rest.
        .env("TMPDIR", state)
        .stdin(Stdio::null());
    let output = process::output_in_group(command).map_err(|source| match source.kind() {
        io::ErrorKind::NotFound => Error::NoApt,
        _ => Error::Io { path: PathBuf::from(command.get_program()), source },
    })?;
    if output.status.success() {
        return Ok(output);
    }
    let message = lines(&output.stderr).last().unwrap_or_else(|| "no message".to_owned());
    Err(Error::Apt { action, message })
}

/// What apt said, without its letters of severity.
fn lines(said: &[u8]) -> impl Iterator<Item = String> {
    let lines = said.split(|byte| *byte == b'\n').map(String::from_utf8_lossy);
    lines
        .map(|line| line.trim().trim_start_matches("E: ").trim_start_matches("W: ").to_owned())
        .filter(|line| !line.is_empty())
}

/// The one file apt just put there for `name`.
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

fn parse_record(text: &str) -> Option<Record> {
    // Of several records, the first is the candidate.
    let record = text.split("\n\n").next()?;
    let field = |name: &str| {
        let value = record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.map(|value| value.trim().to_owned())
    };
    let sha256 =
        field("SHA256").filter(|hex| hex.len() == 64 && hex.bytes().all(|c| c.is_ascii_hexdigit()))?;
    Some(Record { version: field("Version")?, sha256, depends: field("Depends").unwrap_or_default() })
}

fn sha256(path: &Path) -> Result<String> {
    let file = File::open(path).map_err(Error::io(path))?;
    let mut file = file.take(MAX_PACKAGE_BYTES);
    let mut hasher = Sha256::new();
    io::copy(&mut file, &mut hasher).map_err(Error::io(path))?;
    Ok(hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\n\
        Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), foo | bar\n\
        SHA256: 00be21c0c17f08ddf26e82d3b53fe7a41efa4a288938da6bb69e89c4b25c281d\n\nPackage: other\nVersion: 1\n";

    #[test]
    fn first_record_is_taken() {
        let record = parse_record(RECORD).expect("a record");
        assert_eq!(record.version, "6.1.192-2");
        assert!(record.sha256.starts_with("00be21c0"));
        assert!(record.depends.starts_with("linux-image-6.1.0-56-cloud-amd64"));
    }

    #[test]
    fn record_without_digest_is_none() {
        assert!(parse_record("Package: a\nVersion: 1\n").is_none());
        assert!(parse_record("Package: a\nVersion: 1\nSHA256: zz\n").is_none());
        assert!(parse_record("").is_none());
    }

    #[test]
    fn names_that_are_options_are_refused() {
        let directory = tempfile::tempdir().unwrap();
        let lock = File::open(directory.path()).unwrap();
        let lists = Lists { directory: directory.path().to_owned(), complaint: None, _lock: lock };
        let archive = Archive { lists: Arc::new(lists) };
        for name in ["", "-o", "a b", "../x", "A"] {
            assert!(matches!(archive.record(name), Err(Error::Name(_))), "{name}");
        }
    }
}
