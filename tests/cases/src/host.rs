//! The host's side: acts on the shared directory while the guest has it, by lines of words between tabs.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

/// The one that acts for the host.
pub trait Host {
    /// Has a line done; returns an answer in one line, which begins with `error` if it could not be done.
    fn ask(&mut self, line: &str) -> String;
}

/// A host in the same process.
#[derive(Debug)]
pub struct Local(pub PathBuf);

impl Host for Local {
    fn ask(&mut self, line: &str) -> String {
        act(&self.0, line)
    }
}

/// Does on a shared directory what a line says, `VERB PATH MORE`, and answers it.
#[must_use]
pub fn act(shared: &Path, line: &str) -> String {
    let mut words = line.splitn(3, '\t').map(str::to_owned);
    let mut word = || words.next().unwrap_or_default();
    let (verb, path, more) = (word(), shared.join(word()), word());
    done(&verb, &path, &more).unwrap_or_else(|error| format!("error: {error}"))
}

fn done(verb: &str, path: &Path, more: &str) -> io::Result<String> {
    match verb {
        "directory" => fs::create_dir(path)?,
        "write" => fs::write(path, more)?,
        "append" => {
            let mut file = OpenOptions::new().append(true).open(path)?;
            file.write_all(more.as_bytes())?;
            file.sync_all()?;
        }
        "remove" => fs::remove_file(path)?,
        "link" => symlink(more, path)?,
        "rename" => fs::rename(path, path.with_file_name(more))?,
        "mode" => return Ok(format!("{:o}", fs::symlink_metadata(path)?.mode() & 0o7777)),
        other => return Err(io::Error::other(format!("unknown act {other:?}"))),
    }
    Ok(String::new())
}
