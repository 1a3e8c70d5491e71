//! The list of kernels in the store, and their removal.
//!
//! Not here: adding kernels.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use registry::Name;

use crate::lease::unused;
use crate::oci::{Known, OCI, REFS};
use crate::stock::{CURRENT, ORIGIN};
use crate::store::{Store, remove};
use crate::{Architecture, Error, Result};

/// Directory for kernels that are being removed; nobody uses its content.
const REMOVED: &str = "removed";

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKernel {
    /// The kernel's release, or the reference that it was requested by.
    pub identifier: String,
    /// The architecture of its processors.
    pub architecture: Architecture,
    /// Package, version and digest; for a registry's kernel, the digests of manifest and layer.
    pub origin: String,
    /// Bytes of the kernel's files.
    pub size: u64,
    /// Whether new sandboxes get it by default.
    pub current: bool,
    /// Whether a sandbox runs on the kernel, or is starting on it.
    pub in_use: bool,
}

impl Store {
    /// Every kernel in the store.
    pub fn list(&self) -> Result<Vec<StoredKernel>> {
        // Checking whether a kernel is in use makes it look used to others.
        let _looking = self.lock("list.lock")?;
        let mut kernels = Vec::new();
        for place in self.places()? {
            // A kernel without an origin was never finished.
            let Ok(origin) = fs::read_to_string(place.directory.join(ORIGIN)) else { continue };
            let size = size(&place.directory).map_err(Error::io(&place.directory))?;
            let in_use = unused(&place.directory)?.is_none();
            let Place { identifier, architecture, current, .. } = place;
            let origin = origin.trim().to_owned();
            kernels.push(StoredKernel { identifier, architecture, origin, size, current, in_use });
        }
        kernels.sort_by(|a, b| a.identifier.cmp(&b.identifier));
        Ok(kernels)
    }

    /// Removes a kernel and every file made for it; returns the bytes of its files.
    pub fn remove(&self, identifier: &str) -> Result<u64> {
        let _looking = self.lock("list.lock")?;
        let removed = self.root().join(REMOVED);
        // Leftovers of an interrupted removal.
        remove(&removed)?;
        // A reference has several spellings.
        let whole = Name::parse(identifier).ok().map(|name| name.to_string());
        let is_it = |place: &Place| {
            place.identifier == identifier
                || place.name.is_some() && Some(place.identifier.as_str()) == whole.as_deref()
        };
        let places = self.places()?;
        let place = places.iter().find(|place| is_it(place));
        let place = place.ok_or_else(|| Error::Unknown(identifier.to_owned()))?;
        if places.iter().filter(|other| other.directory == place.directory).count() > 1 {
            // The kernel is removed with its last name.
            place.forget_name()?;
            return Ok(0);
        }
        let in_use = || Error::InUse(identifier.to_owned());
        let lock = unused(&place.directory)?.ok_or_else(in_use)?;
        let size = size(&place.directory).map_err(Error::io(&place.directory))?;
        place.forget_name()?;
        fs::rename(&place.directory, &removed).map_err(Error::io(&place.directory))?;
        // A start that waits for the lock finds another kernel there, or none.
        drop(lock);
        remove(&removed)?;
        Ok(size)
    }

    /// Removes kernels of registries without a name: leftovers of killed processes. No fetch may be under way.
    pub(crate) fn sweep_oci(&self) -> Result<()> {
        let _looking = self.lock("list.lock")?;
        let removed = self.root().join(REMOVED);
        remove(&removed)?;
        let named: Vec<_> = self.references()?.into_iter().map(|(_, known)| known.digest).collect();
        let directory = self.root().join(OCI);
        for entry in entries(&directory)? {
            let name = entry.file_name();
            let known = name == REFS || named.iter().any(|digest| name == digest.as_str());
            if known || unused(&entry.path())?.is_none() {
                continue;
            }
            fs::rename(entry.path(), &removed).map_err(Error::io(entry.path()))?;
            remove(&removed)?;
        }
        Ok(())
    }

    fn places(&self) -> Result<Vec<Place>> {
        let mut places = Vec::new();
        for architecture in Architecture::ALL {
            let directory = self.root().join(architecture.directory());
            let current = fs::read_link(directory.join(CURRENT)).ok();
            for entry in entries(&directory)? {
                if !entry.file_type().map_err(Error::io(entry.path()))?.is_dir() {
                    continue;
                }
                let current = current.as_deref() == Some(Path::new(&entry.file_name()));
                let identifier = entry.file_name().to_string_lossy().into_owned();
                let name = current.then(|| directory.join(CURRENT));
                places.push(Place { identifier, architecture, directory: entry.path(), current, name });
            }
        }
        for (name, known) in self.references()? {
            let Known { reference: identifier, digest } = known;
            let (architecture, name) = (Architecture::host(), Some(name));
            let directory = self.root().join(OCI).join(digest);
            places.push(Place { identifier, architecture, directory, current: false, name });
        }
        // Of a kernel that is being removed, only the name may be left.
        places.retain(|place| place.directory.is_dir());
        Ok(places)
    }
}

/// The place of a kernel.
struct Place {
    identifier: String,
    architecture: Architecture,
    directory: PathBuf,
    current: bool,
    /// The file with its name, which is removed first.
    name: Option<PathBuf>,
}

impl Place {
    fn forget_name(&self) -> Result<()> {
        self.name.as_ref().map_or(Ok(()), |name| fs::remove_file(name).map_err(Error::io(name)))
    }
}

/// The entries of a directory; none if it does not exist.
fn entries(directory: &Path) -> Result<Vec<fs::DirEntry>> {
    match fs::read_dir(directory) {
        Ok(entries) => entries.collect::<io::Result<_>>().map_err(Error::io(directory)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(Error::io(directory)(error)),
    }
}

/// Bytes of the files below a directory.
fn size(directory: &Path) -> io::Result<u64> {
    let mut bytes = 0;
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        bytes += match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => size(&entry.path())?,
            Ok(metadata) => metadata.len(),
            // A start has just renamed the file.
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(error) => return Err(error),
        };
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::lease::Lease;
    use waiting::CancellationToken;

    /// Two of Debian's kernels, of which the newer is the default.
    fn stored(cache: &Path) -> Store {
        let store = Store::open(cache).unwrap();
        let directory = store.root().join("debian-amd64");
        for (release, size) in [("6.1.0-1", 1000), ("6.1.0-2", 2000)] {
            let modules = directory.join(release).join("modules");
            fs::create_dir_all(&modules).unwrap();
            fs::write(modules.join("a.ko"), vec![0; size]).unwrap();
            fs::write(directory.join(release).join(ORIGIN), format!("package of {release}\n")).unwrap();
        }
        fs::create_dir_all(directory.join("6.1.0-3/modules")).unwrap();
        std::os::unix::fs::symlink("6.1.0-2", directory.join(CURRENT)).unwrap();
        store
    }

    fn told(store: &Store) -> Vec<(String, u64, bool, bool)> {
        let list = store.list().unwrap().into_iter();
        list.map(|kernel| (kernel.identifier, kernel.size, kernel.current, kernel.in_use)).collect()
    }

    #[test]
    fn what_is_there_is_told_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let store = stored(dir.path());
        let newer = ("6.1.0-2".to_owned(), 2000 + 19, true, false);
        assert_eq!(told(&store), [("6.1.0-1".to_owned(), 1000 + 19, false, false), newer.clone()]);
        assert_eq!(store.list().unwrap()[0].origin, "package of 6.1.0-1");
        assert_eq!(store.list().unwrap()[0].architecture, Architecture::Amd64);
        fs::create_dir_all(store.root().join("removed/half")).unwrap();
        assert_eq!(store.remove("6.1.0-1").unwrap(), 1019);
        assert_eq!(told(&store), [newer]);
        assert_eq!(store.remove("6.1.0-2").unwrap(), 2019);
        assert!(fs::symlink_metadata(store.root().join("debian-amd64").join(CURRENT)).is_err());
        for unknown in ["6.1.0-1", CURRENT, "", "..", "modules"] {
            assert!(matches!(store.remove(unknown), Err(Error::Unknown(_))), "{unknown}");
        }
        assert_eq!(told(&store), []);
        assert!(!store.root().join("removed").exists());
    }

    /// A kernel with two names, and one without a name.
    #[test]
    fn a_kernel_of_a_registry_goes_with_its_last_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let oci = store.root().join(OCI);
        fs::create_dir_all(oci.join(REFS)).unwrap();
        for digest in ["a", "b"].map(|digit| digit.repeat(64)) {
            fs::create_dir(oci.join(&digest)).unwrap();
            fs::write(oci.join(&digest).join("kernel"), vec![0; 100]).unwrap();
            fs::write(oci.join(&digest).join(ORIGIN), "here\n").unwrap();
        }
        let digest = "a".repeat(64);
        for (file, reference) in [("1", "r.io/x:1"), ("2", "docker.io/library/x:latest")] {
            fs::write(oci.join(REFS).join(file), format!("{reference}\n{digest}\n")).unwrap();
        }
        let listed = |reference: &str| (reference.to_owned(), 105, false, false);
        assert_eq!(told(&store), [listed("docker.io/library/x:latest"), listed("r.io/x:1")]);
        let lease = Lease::take(&oci.join(&digest), &CancellationToken::new()).unwrap().unwrap();
        store.sweep_oci().unwrap();
        assert!(!oci.join("b".repeat(64)).exists());
        assert_eq!(store.remove("r.io/x:1").unwrap(), 0);
        assert!(matches!(store.remove("x"), Err(Error::InUse(_))));
        drop(lease);
        store.sweep_oci().unwrap();
        assert_eq!(store.remove("x").unwrap(), 105);
        assert_eq!(told(&store), []);
        assert_eq!(entries(&oci).unwrap().len(), 1);
    }

    #[test]
    fn what_is_in_use_is_told_and_stays() {
        let dir = tempfile::tempdir().unwrap();
        let store = stored(dir.path());
        let directory = store.root().join("debian-amd64/6.1.0-2");
        let lease = Lease::take(&directory, &CancellationToken::new()).unwrap().unwrap();
        assert!(told(&store)[1].3);
        assert!(matches!(store.remove("6.1.0-2"), Err(Error::InUse(_))));
        assert!(directory.join("modules/a.ko").is_file());
        drop(lease);
        store.remove("6.1.0-2").unwrap();
        assert!(!directory.exists());
    }

    /// Two listings check whether each other's kernel is in use, again and again.
    #[test]
    fn looking_is_not_using() {
        let dir = tempfile::tempdir().unwrap();
        let store = stored(dir.path());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        assert!(store.list().unwrap().iter().all(|kernel| !kernel.in_use));
                    }
                });
            }
        });
    }
}
