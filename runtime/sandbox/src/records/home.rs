//! The home of a user's sandboxes, and the lock that tells whether a sandbox's owner lives.
//!
//! ```text
//! ~/.matchlock/                0700
//!     state.db                 records
//!     state.lock               held while the database is made
//!     reserve                  blocks kept back for a full disk
//!     vms.lock                 shared while a directory is made or removed, exclusive while orphans are looked for
//!     vms/<id>/                0700, one per sandbox
//!         lock                 flock held by the owner as long as it lives: the only truth about that
//!         control.sock         see `control`
//!         logs/vm.log          see `console`
//!         audit.jsonl          0600, what the guest sent outside: see `audit`
//!         changes/N, N.of      changes of an overlay, and the note of what it is over: see `overlay`
//! ~/.cache/matchlock/          images and kernels
//! ```
//!
//! Under sudo this is the home of the user who called sudo, and the process is that user's then. If root's `HOME` is another
//! user's, it becomes that one's.
//!
//! Not here: the content of records.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use broker::Powers;
use registry::{Registries, Trust};
use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use rustix::io::Errno;

use crate::Id;
use crate::records::error::{Error, Result};
use crate::records::user;

/// The directories that outlive their owner.
const LOGS: &str = "logs";
const CHANGES: &str = "changes";

/// The file that does.
pub(crate) const AUDIT: &str = "audit.jsonl";

/// The file that the owner holds a lock on.
const LOCK: &str = "lock";

/// How many ids are tried until one is free; an id has 32 random bits.
const ID_ATTEMPTS: usize = 16;

/// State and cache of one user.
#[derive(Debug, Clone)]
pub struct Home {
    state: PathBuf,
    cache: PathBuf,
}

impl Home {
    /// The home below `$HOME`, or below the user database's home directory if that is not set; for root under sudo,
    /// below the home of the user who called it.
    ///
    /// If that, or the owner of root's `$HOME`, is another user, this process becomes that user's for good; with
    /// `powers`, it has a broker for what still takes root. Then it must have one thread.
    pub fn from_env(powers: Option<Powers>) -> Result<Self> {
        let (user, home) = match user::behind_sudo(std::env::var_os("SUDO_USER").as_deref())? {
            Some((user, home)) => (Some(user), home),
            None => {
                let home = std::env::var_os("HOME").filter(|home| !home.is_empty()).map(PathBuf::from);
                let home = home.or_else(user::home_of_this_user).filter(|home| home.is_absolute());
                let home = home.ok_or(Error::NoHome)?;
                (user::of_home(&home)?, home)
            }
        };
        user.map_or(Ok(()), |user| broker::become_user(&user, powers))?;
        Ok(Self::at(&home))
    }

    /// The home below this directory.
    #[must_use]
    pub fn at(home: &Path) -> Self {
        Self { state: home.join(".matchlock"), cache: home.join(".cache/matchlock") }
    }

    /// The directory of images and kernels.
    #[must_use]
    pub fn cache(&self) -> &Path {
        &self.cache
    }

    /// The directories of matchlock's own, without links, where they are or will be.
    pub(crate) fn own(&self) -> [PathBuf; 2] {
        [&self.state, &self.cache].map(|own| real(own))
    }

    /// Registries with this user's logins and certificates.
    #[must_use]
    pub fn registries(&self) -> Registries {
        Registries::new(Trust::of_user(self.state.parent().unwrap_or(&self.state)))
    }

    /// The directory of a sandbox.
    #[must_use]
    pub fn vm_directory(&self, id: &Id) -> PathBuf {
        self.vms().join(id.as_str())
    }

    pub(crate) fn database(&self) -> PathBuf {
        self.state.join("state.db")
    }

    pub(crate) fn vms(&self) -> PathBuf {
        self.state.join("vms")
    }

    pub(crate) fn vm(&self, id: &Id) -> VmPaths {
        VmPaths { directory: self.vm_directory(id) }
    }

    /// Makes the state directories.
    pub(crate) fn make(&self) -> Result<()> {
        let vms = self.vms();
        DirBuilder::new().recursive(true).mode(0o700).create(&vms).map_err(Error::io(&vms))
    }

    /// Takes the lock of `vms/`: shared to add or remove a directory, exclusive to judge the sandboxes that are
    /// there.
    pub(crate) fn lock_vms(&self, operation: FlockOperation) -> Result<File> {
        let path = self.state.join("vms.lock");
        let file = lock_file(&path).map_err(Error::io(&path))?;
        wait_for(&file, operation).map_err(Error::io(&path))?;
        Ok(file)
    }
}

/// The files of one sandbox.
#[derive(Debug, Clone)]
pub(crate) struct VmPaths {
    directory: PathBuf,
}

impl VmPaths {
    pub(crate) fn at(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub(crate) fn directory(&self) -> &Path {
        &self.directory
    }

    pub(crate) fn lock(&self) -> PathBuf {
        self.directory.join(LOCK)
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.directory.join("control.sock")
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.directory.join(LOGS)
    }

    /// The file of what the guest sent outside.
    pub(crate) fn audit(&self) -> PathBuf {
        self.directory.join(AUDIT)
    }

    /// The directory of changes of overlays.
    pub(crate) fn changes(&self) -> PathBuf {
        self.directory.join(CHANGES)
    }

    /// The directory for the changes of an overlay, and the file that says what that is over.
    pub(crate) fn overlay(&self, number: usize) -> (PathBuf, PathBuf) {
        let changes = self.changes();
        (changes.join(number.to_string()), changes.join(format!("{number}.of")))
    }

    /// Whether a living process owns the sandbox.
    pub(crate) fn is_owned(&self) -> io::Result<bool> {
        let Some(file) = self.open_lock()? else { return Ok(false) };
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(false),
            Err(Errno::WOULDBLOCK) => Ok(true),
            Err(error) => Err(error.into()),
        }
    }

    /// Opens the lock's file; `None` if there is none.
    pub(crate) fn open_lock(&self) -> io::Result<Option<File>> {
        // NONBLOCK: the user may have put a FIFO there, which would wait for its other end.
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        match rustix::fs::open(self.lock(), flags, Mode::empty()) {
            Ok(file) => Ok(Some(file.into())),
            // A link is no owner's lock, and opening its target might have an effect.
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// The sandbox's owner, to wait for its end.
    pub(crate) fn owner(&self) -> io::Result<Owner> {
        self.open_lock().map(Owner)
    }

    /// Removes the files that only a living owner needs, as many as possible, and returns their names; the log, the
    /// audit and changes of overlays stay.
    pub(crate) fn remove_leftovers(&self) -> io::Result<Vec<String>> {
        self.remove_all_but(&[LOGS, CHANGES, AUDIT])
    }

    /// Removes an owner's own files but its lock, so that it can write its record before the lock goes.
    pub(crate) fn remove_own(&self) -> io::Result<()> {
        self.remove_all_but(&[LOGS, CHANGES, AUDIT, LOCK]).map(drop)
    }

    /// Removes the lock's file.
    pub(crate) fn remove_lock(&self) -> io::Result<()> {
        fs::remove_file(self.lock())
    }

    fn remove_all_but(&self, kept: &[&str]) -> io::Result<Vec<String>> {
        let mut removed = Vec::new();
        let mut failed = None;
        let entries = match fs::read_dir(&self.directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name();
            if kept.iter().any(|kept| name == *kept) {
                continue;
            }
            let result = match entry.file_type()?.is_dir() {
                true => fs::remove_dir_all(entry.path()),
                false => fs::remove_file(entry.path()),
            };
            match result {
                Ok(()) => removed.push(name.to_string_lossy().into_owned()),
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        removed.sort();
        failed.map_or(Ok(removed), Err)
    }

    /// Removes the whole directory.
    pub(crate) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}

/// The owner of a sandbox, if it has one. Still valid after its directory is gone.
#[derive(Debug)]
pub(crate) struct Owner(Option<File>);

impl Owner {
    /// Waits for the owner's end.
    pub(crate) fn wait(&self) -> io::Result<()> {
        self.0.as_ref().map_or(Ok(()), |file| wait_for(file, FlockOperation::LockShared))
    }
}

/// A sandbox's directory, owned by this process until it is dropped or the process ends in any way.
#[derive(Debug)]
pub(crate) struct OwnedVm {
    pub(crate) id: Id,
    pub(crate) paths: VmPaths,
    _lock: File,
}

impl OwnedVm {
    /// Makes the directory of a new sandbox.
    pub(crate) fn create(home: &Home) -> Result<Self> {
        home.make()?;
        let _adding = home.lock_vms(FlockOperation::LockShared)?;
        for _ in 0..ID_ATTEMPTS {
            let id = Id::random()?;
            let paths = home.vm(&id);
            match DirBuilder::new().mode(0o700).create(paths.directory()) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
                Err(error) => return Err(Error::io(paths.directory())(error)),
            }
            let lock = lock_file(&paths.lock()).map_err(Error::io(&paths.lock()))?;
            flock(&lock, FlockOperation::NonBlockingLockExclusive)
                .map_err(|errno| Error::io(&paths.lock())(errno.into()))?;
            return Ok(Self { id, paths, _lock: lock });
        }
        Err(Error::io(&home.vms())(io::Error::from(io::ErrorKind::AlreadyExists)))
    }
}

/// A path without links, as far as it is there.
fn real(path: &Path) -> PathBuf {
    let real = path.ancestors().find_map(|above| {
        let rest = path.strip_prefix(above).ok()?;
        Some(fs::canonicalize(above).ok()?.join(rest))
    });
    real.unwrap_or_else(|| path.to_owned())
}

fn lock_file(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path)
}

fn wait_for(file: &File, operation: FlockOperation) -> io::Result<()> {
    Ok(rustix::io::retry_on_intr(|| flock(file, operation))?)
}
