//! The cache's own directory, which is its owner's alone: a lock of anybody else on a directory in it would hold up every
//! start.
//!
//! Not here: what is in it.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Makes the cache directory, and closes it to everybody else where it is there and open to them.
pub fn make_cache(cache: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(cache)?;
    let mode = fs::metadata(cache)?.permissions().mode() & 0o7777;
    match mode & 0o077 {
        0 => Ok(()),
        _ => fs::set_permissions(cache, Permissions::from_mode(mode & 0o7700)),
    }
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
        // On a larger disk, for example.
        let elsewhere = tempfile::tempdir().unwrap();
        fs::set_permissions(elsewhere.path(), Permissions::from_mode(0o755)).unwrap();
        fs::remove_dir_all(&cache).unwrap();
        symlink(elsewhere.path(), &cache).unwrap();
        make_cache(&cache).unwrap();
        assert_eq!(mode(elsewhere.path()), 0o700);
        let file = home.path().join("file");
        fs::write(&file, "").unwrap();
        assert!(make_cache(&file).is_err() && make_cache(&file.join("below")).is_err());
    }
}
