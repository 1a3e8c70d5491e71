//! The writable disk of one sandbox: an ext4 image with as many holes as possible.
//!
//! `mke2fs` formats one template for each size, and a sandbox gets a copy of it. A template has a few hundred KiB of
//! data whatever its size, so the copy takes a millisecond.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::fs::SeekFrom;
use waiting::CancellationToken;

use crate::cache::{make_cache, make_directory};
use crate::{Error, Result};

/// Raised when templates are made differently.
const VERSION: u32 = 1;

/// Prefix of unfinished templates.
const UNFINISHED: &str = "new-";

/// The features, all of them named, so that the host's mke2fs.conf has no effect.
///
/// No journal: the disk never outlives its sandbox, so nobody would replay it, and every change would be written
/// twice. No checksums of metadata: the host's own file system keeps the file safe. `uninit_bg` marks the groups'
/// inode tables as zero, or the guest's kernel would write them all.
const FEATURES: &str = "none,dir_index,dir_nlink,ext_attr,extent,extra_isize,filetype,flex_bg,huge_file,large_file,sparse_super,uninit_bg,64bit";

/// Makes `<dest_dir>/upper.ext4`, an empty ext4 of `size_mb` MiB, sparse, opened for reading and writing.
///
/// Takes milliseconds: a template of each size is made once below `cache` and copied. Waiting for one ends at once when it
/// is given up. The caller owns the file and removes it.
pub fn upper_disk(cache: &Path, dest_dir: &Path, size_mb: u64, given_up: &CancellationToken) -> Result<File> {
    make_cache(cache).map_err(Error::io(cache))?;
    let template = template(cache, size_mb, given_up)?;
    let path = dest_dir.join("upper.ext4");
    let disk =
        File::options().read(true).write(true).create_new(true).open(&path).map_err(Error::io(&path))?;
    if let Err(error) = copy_sparse(&template, &disk) {
        // A half-made disk is of no use.
        let _ = fs::remove_file(&path);
        return Err(Error::Io { path, source: error });
    }
    Ok(disk)
}

/// The template of a size, made if there is none.
fn template(cache: &Path, size_mb: u64, given_up: &CancellationToken) -> Result<File> {
    let dir = cache.join("uppers");
    let path = dir.join(format!("v{VERSION}-{size_mb}.ext4"));
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other.map_err(Error::io(path)),
    }
    make_directory(&dir).map_err(Error::io(&dir))?;
    // One process makes templates, the others wait; unfinished files that it finds belong to dead processes.
    let lock = File::open(&dir).and_then(|lock| waiting::lock(lock, given_up));
    let _lock = lock.map_err(Error::io(&dir))?;
    match File::open(&path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        other => return other.map_err(Error::io(path)),
    }
    for entry in fs::read_dir(&dir).map_err(Error::io(&dir))? {
        let entry = entry.map_err(Error::io(&dir))?;
        if entry.file_name().as_encoded_bytes().starts_with(UNFINISHED.as_bytes()) {
            fs::remove_file(entry.path()).map_err(Error::io(entry.path()))?;
        }
    }
    let file = tempfile::Builder::new().prefix(UNFINISHED).tempfile_in(&dir).map_err(Error::io(&dir))?;
    let len = size_mb.checked_mul(1 << 20).ok_or_else(|| upper_error(size_mb, "it is too large"))?;
    file.as_file().set_len(len).map_err(Error::io(file.path()))?;
    format(file.path(), FEATURES, given_up, |why| upper_error(size_mb, why))?;
    file.as_file().sync_all().map_err(Error::io(file.path()))?;
    file.persist(&path).map_err(|error| Error::Io { path: path.clone(), source: error.error })
}

/// Formats a file of the final length as an ext4 with exactly these features. `wrong` makes an error of the message
/// of mke2fs.
pub(crate) fn format(
    path: &Path,
    features: &str,
    given_up: &CancellationToken,
    wrong: impl Fn(&str) -> Error,
) -> Result<()> {
    let command = |program: &str| {
        let mut command = Command::new(program);
        command
            .args([
                "-q",
                "-F",
                "-O",
                features,
                "-b",
                "4096",
                "-I",
                "256",
                "-i",
                "16384",
                "-m",
                "0",
                "-e",
                "remount-ro",
            ])
            // Discarding tells mke2fs that every unwritten block is zero.
            .args(["-E", "discard,lazy_itable_init=1,lazy_journal_init=1"])
            .arg(path)
            .env("MKE2FS_CONFIG", "/dev/null")
            .env("LC_ALL", "C")
            .stdin(Stdio::null());
        waiting::output(&mut command, given_up)
    };
    // The administrator's programs are not in everyone's PATH.
    let output =
        ["mke2fs", "/usr/sbin/mke2fs", "/sbin/mke2fs"].into_iter().map(command).find_map(|run| match run {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            other => Some(other),
        });
    let output = match output {
        None => return Err(wrong("mke2fs is not installed (Debian package e2fsprogs)")),
        Some(Err(error)) if waiting::is_given_up(&error) => return Err(Error::GivenUp),
        Some(Err(error)) => return Err(wrong(&format!("mke2fs: {error}"))),
        Some(Ok(output)) => output,
    };
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    Err(wrong(said.lines().rfind(|line| !line.trim().is_empty()).unwrap_or("mke2fs died").trim()))
}

fn upper_error(size_mb: u64, why: &str) -> Error {
    Error::UpperDisk { size_mb, why: why.to_owned() }
}

/// Makes `to` a copy of `from`, including holes.
pub(crate) fn copy_sparse(from: &File, to: &File) -> io::Result<()> {
    to.set_len(from.metadata()?.len())?;
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    loop {
        at = match rustix::fs::seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // lseek(2): "ENXIO … there are no more data"
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        };
        let end = rustix::fs::seek(from, SeekFrom::Hole(at))?;
        while at < end {
            let want = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let part = buffer.get_mut(..want).unwrap_or_default();
            from.read_exact_at(part, at)?;
            to.write_all_at(part, at)?;
            at += want as u64;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    #[test]
    fn disks_are_sparse_ext4_and_separate() {
        let cache = tempfile::tempdir().unwrap();
        let make = |name: &str| {
            let dir = cache.path().join(name);
            fs::create_dir(&dir).unwrap();
            upper_disk(cache.path(), &dir, 5120, &CancellationToken::new()).unwrap()
        };
        let (one, two) = (make("one"), make("two"));
        one.write_all_at(b"mine", 1 << 30).unwrap();
        let metadata = two.metadata().unwrap();
        assert_eq!(metadata.len(), 5120 << 20);
        assert!(metadata.blocks() * 512 < 1 << 20, "{} KiB in use", metadata.blocks() / 2);
        let mut magic = [0; 2];
        two.read_exact_at(&mut magic, 1024 + 0x38).unwrap();
        assert_eq!(u16::from_le_bytes(magic), 0xef53);
        let checked =
            Command::new("/sbin/e2fsck").args(["-fn"]).arg(cache.path().join("two/upper.ext4")).output();
        assert!(checked.unwrap().status.success());
        // Only the template stays in the cache.
        assert_eq!(fs::read_dir(cache.path().join("uppers")).unwrap().count(), 1);
    }

    #[test]
    fn a_size_that_cannot_be_says_so() {
        let cache = tempfile::tempdir().unwrap();
        for size_mb in [0, u64::MAX] {
            let error =
                upper_disk(cache.path(), cache.path(), size_mb, &CancellationToken::new()).unwrap_err();
            assert!(matches!(error, Error::UpperDisk { .. }), "{error}");
        }
        assert_eq!(fs::read_dir(cache.path().join("uppers")).unwrap().count(), 0);
        assert!(!cache.path().join("upper.ext4").exists());
    }
}
