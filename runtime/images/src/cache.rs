//! The cache's own directory, which is its owner's alone: another user's lock on a directory in it would hold up
//! every start.
//!
//! Not here: the content of the cache.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::Path;

/// Makes the cache directory, or closes an existing one to other users. A directory that belongs to another user, or
/// is reached by a symbolic link, stays as it is: directories made in it are closed themselves.
pub fn make_cache(cache: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(cache)?;
    let found = fs::symlink_metadata(cache)?;
    let mode = found.permissions().mode() & 0o7777;
    if mode & 0o077 == 0 {
        return Ok(());
    }
    if !found.is_dir() || found.uid() != rustix::process::geteuid().as_raw() {
        return Ok(());
    }
    fs::set_permissions(cache, Permissions::from_mode(mode & 0o7700))
}

/// Makes a directory in the cache, which is closed even if the cache's own directory is not.
pub fn make_directory(directory: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(directory)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::{Store, Volumes};

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o7777
    }

    #[test]
    fn it_is_private_however_it_was_made() {
        let home = tempfile::tempdir().unwrap();
        let cache = home.path().join(".cache/matchlock");
        type Open = fn(&Path);
        let all: [Open; 3] = [
            |cache| drop(Store::open(cache).unwrap()),
            |cache| drop(Volumes::open(cache).unwrap()),
            |cache| {
                let directory = tempfile::tempdir().unwrap();
                drop(crate::upper_disk(cache, directory.path(), 16, &Default::default()).unwrap());
            },
        ];
        for open in all {
            let _ = fs::remove_dir_all(&cache);
            open(&cache);
            assert_eq!(mode(&cache), 0o700);
            fs::set_permissions(&cache, Permissions::from_mode(0o775)).unwrap();
            open(&cache);
            assert_eq!(mode(&cache), 0o700);
        }
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(make_cache(&file).is_err() && make_cache(&file.join("below")).is_err());
    }

    fn is_open(cache: &Path) {
        drop(Store::open(cache).unwrap());
        drop(Volumes::open(cache).unwrap());
        drop(crate::upper_disk(cache, tempfile::tempdir().unwrap().path(), 16, &Default::default()).unwrap());
        for directory in ["images", "volumes", "uppers"] {
            assert_eq!(mode(&cache.join(directory)) & 0o777, 0o700, "{directory}");
        }
    }

    #[test]
    fn what_a_symbolic_link_leads_to_stays_as_it_is() {
        let (home, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        fs::set_permissions(elsewhere.path(), Permissions::from_mode(0o755)).unwrap();
        let cache = home.path().join("matchlock");
        symlink(elsewhere.path(), &cache).unwrap();
        is_open(&cache);
        assert_eq!(mode(elsewhere.path()), 0o755);
    }

    /// Such as a volume of a container.
    #[test]
    fn somebody_elses_directory_stays_as_it_is() {
        if !rustix::process::geteuid().is_root() {
            return skip::skip("root", "only root gives directories away");
        }
        let home = tempfile::tempdir().unwrap();
        for open in [0o777, 0o2775] {
            let cache = home.path().join(format!("{open:o}"));
            fs::create_dir(&cache).unwrap();
            std::os::unix::fs::chown(&cache, Some(1000), Some(1000)).unwrap();
            fs::set_permissions(&cache, Permissions::from_mode(open)).unwrap();
            is_open(&cache);
            assert_eq!(mode(&cache), open);
        }
    }
}
