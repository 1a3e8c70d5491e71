//! The archive of packages: the host's own sources if it has apt, else a mirror of Debian's.
//!
//! The mirror also has packages that a host's complete sources lack, such as Debian's kernel on another distribution.
//! Not here: reading either (`apt`, `mirror`).

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock, Weak};

use tokio::sync::Mutex;
use waiting::CancellationToken;

use crate::apt::Apt;
use crate::mirror::{Index, Indexes, Mirror};
use crate::record::Record;
use crate::{Error, Result};

/// The lists that are in use in this process. A caller that wants them while they are read waits, and shares them.
static IN_USE: Mutex<Weak<Lists>> = Mutex::const_new(Weak::new());

/// All packages, as of now.
#[derive(Debug)]
pub struct Archive {
    lists: Arc<Lists>,
    given_up: CancellationToken,
}

/// The lists in a directory of ours, which no other process uses while this lives.
#[derive(Debug)]
struct Lists {
    directory: PathBuf,
    /// The host's own sources, which are asked first.
    apt: Option<Apt>,
    mirror: Mirror,
    /// The mirror's indexes, fetched when they are needed.
    indexes: OnceLock<Indexes>,
    /// Held while they are fetched.
    fetching: Mutex<()>,
    _lock: File,
}

/// A verified package file.
#[derive(Debug, Clone)]
pub struct Package {
    /// The package's name.
    pub name: String,
    /// The package's version.
    pub version: String,
    /// The file's SHA-256 in hex, from its signed record.
    pub sha256: String,
    /// The file's path.
    pub path: PathBuf,
}

/// The source that has a package.
enum Source<'a> {
    Apt(&'a Apt),
    Mirror(&'a Indexes, &'a Index),
}

impl Archive {
    /// Reads the signed lists of the host's package sources, or of a mirror of Debian's, into `directory`, which must
    /// serve no other purpose: it is empty before and after.
    ///
    /// Other processes wait until the directory is free; callers in this process share its lists. This call, and
    /// every later one on the result, ends at once when `given_up` is cancelled.
    pub fn update(directory: &Path, given_up: &CancellationToken) -> Result<Self> {
        // A mirror that the user names is used even on a host with apt.
        let chosen = Mirror::chosen()?;
        Self::shared(directory, given_up, |directory, lock| {
            let apt = match chosen {
                Some(_) => None,
                None => match Apt::update(directory, given_up) {
                    Ok(apt) => Some(apt),
                    Err(Error::NoApt) => None,
                    Err(error) => return Err(error),
                },
            };
            let mirror = chosen.map_or_else(Mirror::usual, Ok)?;
            Lists::new(directory, apt, mirror, lock, given_up)
        })
    }

    /// Reads the indexes of one mirror only.
    pub fn of_mirror(directory: &Path, mirror: Mirror, given_up: &CancellationToken) -> Result<Self> {
        Self::shared(directory, given_up, |directory, lock| {
            Lists::new(directory, None, mirror, lock, given_up)
        })
    }

    fn shared(
        directory: &Path,
        given_up: &CancellationToken,
        make: impl FnOnce(&Path, File) -> Result<Lists>,
    ) -> Result<Self> {
        let mut in_use = waiting::wait_for(given_up, IN_USE.lock()).map_err(Error::io(directory))?;
        let given_up = given_up.clone();
        if let Some(lists) = in_use.upgrade().filter(|lists| lists.directory == directory) {
            return Ok(Self { lists, given_up });
        }
        fs::create_dir_all(directory).map_err(Error::io(directory))?;
        let lock = File::open(directory).and_then(|lock| waiting::lock(lock, &given_up));
        let lock = lock.map_err(Error::io(directory))?;
        // Leftovers of a killed process.
        empty(directory).map_err(Error::io(directory))?;
        let lists = Arc::new(make(directory, lock)?);
        *in_use = Arc::downgrade(&lists);
        Ok(Self { lists, given_up })
    }

    /// The first dependency of `meta` whose name starts with `prefix`: the package that a meta-package stands for.
    pub fn dependency(&self, meta: &str, prefix: &str) -> Result<String> {
        let (record, source) = self.record(meta)?;
        let names = record.depends.split([',', '|']).filter_map(|item| item.split_whitespace().next());
        let mut matching = names.filter(|name| name.starts_with(prefix));
        matching.next().map(str::to_owned).ok_or_else(|| {
            let name = format!("{prefix}* (by {meta})");
            match source {
                Source::Apt(apt) => apt.unknown(name),
                Source::Mirror(indexes, _) => indexes.unknown(name),
            }
        })
    }

    /// Fetches package `name` into `directory` and verifies it.
    pub fn fetch(&self, name: &str, directory: &Path) -> Result<Package> {
        match self.record(name)? {
            (record, Source::Apt(apt)) => apt.package(name, &record, directory, &self.given_up),
            (record, Source::Mirror(_, index)) => index.package(name, &record, directory, &self.given_up),
        }
    }

    fn record(&self, name: &str) -> Result<(Record, Source<'_>)> {
        check(name)?;
        let lists = &*self.lists;
        if let Some(apt) = &lists.apt {
            match apt.record(name, &self.given_up) {
                Ok(record) => return Ok((record, Source::Apt(apt))),
                Err(error @ Error::Unknown(_)) => tracing::info!("{error}; a mirror of Debian's is asked"),
                Err(error) => return Err(error),
            }
        }
        let indexes = lists.indexes(&self.given_up)?;
        let record = indexes.record(name, &self.given_up)?;
        let (record, index) = record.ok_or_else(|| indexes.unknown(name.to_owned()))?;
        Ok((record, Source::Mirror(indexes, index)))
    }
}

impl Lists {
    fn new(
        directory: &Path,
        apt: Option<Apt>,
        mirror: Mirror,
        lock: File,
        given_up: &CancellationToken,
    ) -> Result<Self> {
        let fetch_now = apt.is_none();
        let (indexes, fetching) = (OnceLock::new(), Mutex::const_new(()));
        let lists = Self { directory: directory.to_owned(), apt, mirror, indexes, fetching, _lock: lock };
        if fetch_now {
            lists.indexes(given_up)?;
        }
        Ok(lists)
    }

    fn indexes(&self, given_up: &CancellationToken) -> Result<&Indexes> {
        let fetching = waiting::wait_for(given_up, self.fetching.lock());
        let _fetching = fetching.map_err(Error::io(&self.directory))?;
        match self.indexes.get() {
            Some(indexes) => Ok(indexes),
            None => {
                let fetched = Indexes::fetch(&self.mirror, &self.directory, given_up)?;
                Ok(self.indexes.get_or_init(|| fetched))
            }
        }
    }
}

impl Drop for Lists {
    fn drop(&mut self) {
        // If this fails, the next use empties the directory.
        let _ = empty(&self.directory);
    }
}

/// Debian policy §5.6.1: "must consist only of lower case letters, digits, plus and minus signs, and periods"
pub(crate) fn check(name: &str) -> Result<()> {
    let valid = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit() || b"+-.".contains(&c);
    if name.is_empty() || name.starts_with('-') || !name.bytes().all(valid) {
        return Err(Error::Name(name.to_owned()));
    }
    Ok(())
}

/// Removes the content of a directory.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_are_options_are_refused() {
        for name in ["", "-o", "a b", "../x", "A", "a/b"] {
            assert!(matches!(check(name), Err(Error::Name(_))), "{name}");
        }
        assert!(check("linux-image-6.1.0-1-cloud-amd64").is_ok());
    }
}
