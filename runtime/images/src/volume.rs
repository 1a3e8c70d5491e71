//! Named volumes: ext4 images that outlive sandboxes.
//!
//! A volume is one sparse file in the cache, `<name>.ext4`; an unfinished file has a name that no volume can have. A
//! volume in use is left alone (`disk_image`). Not here: mounting.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;
use tempfile::NamedTempFile;
use waiting::CancellationToken;

use crate::cache::{make_cache, make_directory};
use crate::disk_image;
use crate::upper::{self, copy_sparse};
use crate::{DiskImage, DiskImageError, Error, Result};

/// Prefix of the names of unfinished files.
const UNFINISHED: &str = ".new-";

const EXTENSION: &str = "ext4";

/// Longest file name without its extension.
const MAX_NAME_BYTES: usize = 255 - ".ext4".len();

/// The features, all of them named, so that the host's mke2fs.conf has no effect. Unlike a sandbox's own disk, a
/// volume is kept, so it has a journal and checksums.
const FEATURES: &str = "none,has_journal,dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,huge_file,large_file,metadata_csum,sparse_super,64bit";

/// A named volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// The volume's name.
    pub name: String,
    /// The image's size in bytes; the host may not have allocated most of them.
    pub size: u64,
    /// The image's path.
    pub path: PathBuf,
}

/// The volumes of one user.
#[derive(Debug)]
pub struct Volumes {
    directory: PathBuf,
}

impl Volumes {
    /// Opens the volumes below `cache`.
    pub fn open(cache: &Path) -> Result<Self> {
        make_cache(cache).map_err(Error::io(cache))?;
        let directory = cache.join("volumes");
        make_directory(&directory).map_err(Error::io(&directory))?;
        Ok(Self { directory })
    }

    /// Makes an empty volume.
    pub fn create(&self, name: &str, size_mb: u64) -> Result<Volume> {
        let path = self.path(name)?;
        self.add(name, &path, |file| {
            let wrong = |why: &str| Error::Volume { name: name.to_owned(), why: why.to_owned() };
            let size =
                size_mb.checked_mul(1 << 20).filter(|size| *size > 0).ok_or_else(|| wrong("no such size"))?;
            file.as_file().set_len(size).map_err(Error::io(file.path()))?;
            upper::format(file.path(), FEATURES, &CancellationToken::new(), wrong)
        })
    }

    /// Makes a volume with the content of another.
    pub fn copy(&self, from: &str, to: &str) -> Result<Volume> {
        let (source, path) = (self.path(from)?, self.path(to)?);
        let source = open_unused(from, &source, false)?;
        self.add(to, &path, |file| {
            copy_sparse(&source, file.as_file()).map_err(Error::io(file.path()))?;
            let metadata = source.metadata().map_err(Error::io(file.path()))?;
            let set = || {
                file.as_file().set_permissions(fs::Permissions::from_mode(metadata.mode() & 0o7777))?;
                file.as_file().set_modified(metadata.modified()?)
            };
            set().map_err(Error::io(file.path()))
        })
    }

    /// All volumes, by name.
    pub fn list(&self) -> Result<Vec<Volume>> {
        let mut volumes = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(Error::io(&self.directory))? {
            let path = entry.map_err(Error::io(&self.directory))?.path();
            let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default().to_owned();
            if path.extension().is_none_or(|extension| extension != EXTENSION) || !valid(&name) {
                continue;
            }
            match path.symlink_metadata() {
                Ok(metadata) if metadata.is_file() => {
                    volumes.push(Volume { name, size: metadata.len(), path });
                }
                // A file of any other type cannot be attached.
                Ok(_) => {}
                // The volume was removed meanwhile.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(Error::Io { path, source: error }),
            }
        }
        volumes.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(volumes)
    }

    /// Removes a volume and its content.
    pub fn remove(&self, name: &str) -> Result<()> {
        let path = self.path(name)?;
        // Held to the end, so that another process finds the volume in use, or gone.
        let _unused = open_unused(name, &path, true)?;
        fs::remove_file(&path).map_err(|error| missing(error, name, path))
    }

    /// Opens a volume for a sandbox.
    pub fn attach(&self, name: &str, writable: bool) -> Result<DiskImage> {
        let path = self.path(name)?;
        let file = disk_image::open(&path, writable, OFlags::NOFOLLOW)
            .map_err(|error| missing(error, name, path))?;
        match DiskImage::check(file, writable) {
            Err(DiskImageError::Gone) => Err(Error::NoVolume(name.to_owned())),
            checked => Ok(checked?),
        }
    }

    /// Lets `fill` write a file, and makes it a volume unless there is one of its name.
    fn add(
        &self,
        name: &str,
        path: &Path,
        fill: impl FnOnce(&NamedTempFile) -> Result<()>,
    ) -> Result<Volume> {
        // One process makes volumes, the others wait; unfinished files that it finds belong to dead processes.
        let lock = File::open(&self.directory).map_err(Error::io(&self.directory))?;
        lock.lock().map_err(Error::io(&self.directory))?;
        for entry in fs::read_dir(&self.directory).map_err(Error::io(&self.directory))? {
            let entry = entry.map_err(Error::io(&self.directory))?;
            if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
                fs::remove_file(entry.path()).map_err(Error::io(entry.path()))?;
            }
        }
        if path.symlink_metadata().is_ok() {
            return Err(Error::VolumeExists(name.to_owned()));
        }
        let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&self.directory);
        let file = file.map_err(Error::io(&self.directory))?;
        fill(&file)?;
        file.as_file().sync_all().map_err(Error::io(file.path()))?;
        let size = file.as_file().metadata().map_err(Error::io(file.path()))?.len();
        file.persist_noclobber(path).map_err(|error| match error.error.kind() {
            io::ErrorKind::AlreadyExists => Error::VolumeExists(name.to_owned()),
            _ => Error::Io { path: path.to_owned(), source: error.error },
        })?;
        Ok(Volume { name: name.to_owned(), size, path: path.to_owned() })
    }

    fn path(&self, name: &str) -> Result<PathBuf> {
        match valid(name) {
            true => Ok(self.directory.join(format!("{name}.{EXTENSION}"))),
            false => Err(Error::VolumeName(name.to_owned())),
        }
    }
}

/// `^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`
pub(crate) fn valid(name: &str) -> bool {
    name.len() <= MAX_NAME_BYTES
        && name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_.-".contains(&byte))
}

/// Opens a volume that nobody writes, or that nobody uses at all.
fn open_unused(name: &str, path: &Path, exclusive: bool) -> Result<File> {
    let file = disk_image::open(path, false, OFlags::NOFOLLOW)
        .map_err(|error| missing(error, name, path.to_owned()))?;
    match disk_image::lock(&file, exclusive) {
        Ok(()) => Ok(file),
        Err(DiskImageError::InUse) => Err(Error::VolumeInUse(name.to_owned())),
        Err(DiskImageError::Gone) => Err(Error::NoVolume(name.to_owned())),
        Err(other) => Err(other.into()),
    }
}

fn missing(error: io::Error, name: &str, path: PathBuf) -> Error {
    match error.kind() {
        io::ErrorKind::NotFound => Error::NoVolume(name.to_owned()),
        _ => Error::Io { path, source: error },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt;
    use std::process::Command;

    use super::*;

    fn names(volumes: &Volumes) -> Vec<String> {
        volumes.list().unwrap().into_iter().map(|volume| volume.name).collect()
    }

    #[test]
    fn a_volume_is_a_sparse_ext4_with_a_journal() {
        let cache = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(cache.path()).unwrap();
        assert_eq!(volumes.list().unwrap(), []);
        let volume = volumes.create("data", 256).unwrap();
        assert_eq!((volume.name.as_str(), volume.size), ("data", 256 << 20));
        assert_eq!(volume.path, cache.path().join("volumes/data.ext4"));
        let used = volume.path.metadata().unwrap().blocks() * 512;
        assert!(used < 16 << 20, "{used} bytes in use");
        let checked = Command::new("/sbin/e2fsck").arg("-fn").arg(&volume.path).output().unwrap();
        assert!(checked.status.success(), "{checked:?}");
        let shown = Command::new("/sbin/dumpe2fs").arg("-h").arg(&volume.path).output().unwrap();
        assert!(String::from_utf8_lossy(&shown.stdout).contains("has_journal"), "{shown:?}");
        assert_eq!(volumes.list().unwrap(), [volume]);
    }

    #[test]
    fn volumes_are_copied_and_removed() {
        let cache = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(cache.path()).unwrap();
        let first = volumes.create("b", 16).unwrap();
        File::options().write(true).open(&first.path).unwrap().write_all_at(b"mine", 9 << 20).unwrap();
        let second = volumes.copy("b", "a").unwrap();
        assert_eq!(fs::read(&first.path).unwrap(), fs::read(&second.path).unwrap());
        let times = [&first, &second].map(|volume| volume.path.metadata().unwrap().modified().unwrap());
        assert_eq!(times[0], times[1]);
        assert_eq!(names(&volumes), ["a", "b"]);
        for existing in [volumes.create("a", 16), volumes.copy("b", "a"), volumes.copy("a", "a")] {
            assert_eq!(existing.unwrap_err().to_string(), "named volume already exists: a");
        }
        volumes.remove("a").unwrap();
        for gone in [volumes.remove("a"), volumes.copy("a", "c").map(drop)] {
            assert_eq!(gone.unwrap_err().to_string(), "named volume not found: a");
        }
        assert_eq!(names(&volumes), ["b"]);
    }

    #[test]
    fn names_are_no_paths() {
        let cache = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(cache.path()).unwrap();
        let long = "a".repeat(251);
        for name in ["", ".", "..", "-a", "_a", "../a", "a/b", "a b", "a\n", "ä", ".new-a", long.as_str()] {
            assert!(matches!(volumes.create(name, 16), Err(Error::VolumeName(_))), "{name:?}");
            assert!(matches!(volumes.remove(name), Err(Error::VolumeName(_))), "{name:?}");
        }
        volumes.create(&"a".repeat(250), 16).unwrap();
        volumes.create("A0_.-", 16).unwrap();
    }

    #[test]
    fn what_could_not_be_made_leaves_nothing() {
        let cache = tempfile::tempdir().unwrap();
        let volumes = Volumes::open(cache.path()).unwrap();
        for size_mb in [0, u64::MAX] {
            assert!(matches!(volumes.create("a", size_mb), Err(Error::Volume { .. })));
        }
        fs::write(cache.path().join("volumes/.new-dead"), "").unwrap();
        fs::write(cache.path().join("volumes/other.txt"), "").unwrap();
        fs::create_dir(cache.path().join("volumes/directory.ext4")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", cache.path().join("volumes/link.ext4")).unwrap();
        assert_eq!(names(&volumes), Vec::<String>::new());
        volumes.create("a", 16).unwrap();
        assert!(!cache.path().join("volumes/.new-dead").exists());
        assert_eq!(names(&volumes), ["a"]);
    }
}
