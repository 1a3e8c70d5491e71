//! The kernel store: `<cache>/kernels`.
//!
//! ```text
//! lock                                 held while a kernel is fetched
//! list.lock                            held while a process looks which kernels are in use
//! removed/                             a kernel that is being removed
//! debian-amd64/<release>/vmlinux       the stock kernel's ELF image, unpacked once
//! debian-amd64/<release>/modules/      its modules, flat, and modules.builtin
//! debian-amd64/<release>/initramfs/    see `initramfs`; goes with its kernel
//! debian-amd64/<release>/tree/         see `module_tree`; goes with its kernel
//! debian-amd64/<release>/origin        its package's name, version and SHA-256
//! debian-amd64/current                 symlink to the release in use
//! oci/                                 see `oci`
//! initramfs/<key>.cpio                 of kernels without modules
//! ```
//!
//! A process that uses a kernel holds a shared lock on its directory (`lease`).

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use machine::KernelFormat;
use registry::{Name, Registries};
use waiting::CancellationToken;

use crate::lease::Lease;
use crate::{Error, Result, image};

/// A kernel ready to boot.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The kernel's release (`uname -r`); for a kernel of the user's own, the file's name.
    pub release: String,
    /// The image's path.
    pub path: PathBuf,
    /// The image's format.
    pub format: KernelFormat,
    /// The directory of its modules; `None` = everything needed is built in.
    pub modules: Option<PathBuf>,
    /// Keeps a kernel of the store in its place, and in use, as long as this lives.
    pub lease: Option<Arc<Lease>>,
}

/// Kernels kept on this host.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    pub(crate) given_up: CancellationToken,
}

impl Store {
    /// Opens the store below the cache directory `cache`.
    pub fn open(cache: &Path) -> Result<Self> {
        Self::open_until(cache, CancellationToken::new())
    }

    /// Opens the store as [`Store::open`] does; waits for other processes and for packages end at once when
    /// `given_up` is cancelled.
    pub fn open_until(cache: &Path, given_up: CancellationToken) -> Result<Self> {
        images::make_cache(cache).map_err(Error::io(cache))?;
        let root = cache.join("kernels");
        images::make_directory(&root).map_err(Error::io(&root))?;
        Ok(Self { root, given_up })
    }

    /// The kernel of a reference: empty = the default, `file:///…` or an absolute path = a file, anything else is
    /// looked up in its registry.
    pub fn get(&self, reference: &str, registries: &Registries, progress: &dyn Fn(&str)) -> Result<Kernel> {
        if reference.is_empty() {
            return self.default_kernel(progress);
        }
        let path = Path::new(reference.strip_prefix("file://").unwrap_or(reference));
        if path.is_absolute() {
            return file(path);
        }
        let wrong = || Error::Reference(reference.to_owned());
        // For an image this would be a tag of "file".
        let name = reference.strip_prefix("file:").is_none().then(|| Name::parse(reference).ok()).flatten();
        let name = name.ok_or_else(wrong)?;
        self.oci_kernel(&name, registries, progress)
    }

    /// The store's directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Takes the lock of this name, for as long as the file lives.
    pub(crate) fn lock(&self, name: &str) -> Result<File> {
        let path = self.root.join(name);
        let lock = File::create(&path).and_then(|lock| waiting::lock(lock, &self.given_up));
        lock.map_err(Error::io(path))
    }
}

/// A kernel of the user's own.
fn file(path: &Path) -> Result<Kernel> {
    // Opening a pipe would wait for its writer.
    if !fs::metadata(path).map_err(Error::unreadable(path))?.is_file() {
        return Err(Error::NotAKernel { path: path.to_owned(), why: "not a regular file" });
    }
    let release = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Kernel { release, path: path.to_owned(), format: detect_file(path)?, modules: None, lease: None })
}

pub(crate) fn detect_file(path: &Path) -> Result<KernelFormat> {
    let mut head = Vec::new();
    let mut file = File::open(path).map_err(Error::unreadable(path))?;
    Read::by_ref(&mut file)
        .take(image::HEAD_BYTES as u64)
        .read_to_end(&mut head)
        .map_err(Error::unreadable(path))?;
    let not_a_kernel = |why| Error::NotAKernel { path: path.to_owned(), why };
    let format = image::detect(&head).map_err(not_a_kernel)?;
    if format == KernelFormat::Elf {
        image::check_elf(file).map_err(not_a_kernel)?;
    }
    Ok(format)
}

/// Writes a file durably: on disk, the rename that publishes it must not come first.
pub(crate) fn write(path: &Path, data: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(Error::io(path))?;
    file.write_all(data).and_then(|()| file.sync_data()).map_err(Error::io(path))
}

/// Makes a file's content or a directory's names durable.
pub(crate) fn sync(path: &Path) -> Result<()> {
    File::open(path).and_then(|file| file.sync_all()).map_err(Error::io(path))
}

/// Removes a directory with its content, if it exists.
pub(crate) fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(directory)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use registry::Trust;
    use std::time::Duration;

    #[test]
    fn references() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let trust = Trust {
            certificates: Vec::new(),
            docker_config: None,
            registries_conf: None,
            registries_conf_d: Vec::new(),
            policy: None,
            silence: Duration::from_secs(5),
        };
        let registries = Registries::new(trust);
        let get = |reference: &str| store.get(reference, &registries, &|_| {});
        for wrong in ["file://relative", "./vmlinux", "../vmlinux", "~/vmlinux", "UPPER/case", "file:x"] {
            let error = get(wrong).unwrap_err();
            assert!(matches!(&error, Error::Reference(_)), "{wrong}: {error}");
        }
        // Nothing listens on this port.
        let error = get("127.0.0.1:1/a/b:1").unwrap_err();
        assert!(
            matches!(&error, Error::Registry { reference, .. } if reference == "127.0.0.1:1/a/b:1"),
            "{error}"
        );
        for prefix in ["", "file://"] {
            let get = |path: &str| get(&format!("{prefix}{path}"));
            assert!(matches!(get("/nonexistent"), Err(Error::Unreadable { .. })));
            assert!(matches!(get("/dev/null"), Err(Error::NotAKernel { .. })));
            let text = dir.path().join("text");
            fs::write(&text, "no kernel").unwrap();
            let error = get(text.to_str().unwrap()).unwrap_err();
            assert!(
                error.to_string().ends_with("is not a bootable kernel: neither ELF nor bzImage"),
                "{error}"
            );
        }
        assert_eq!(store.list().unwrap(), []);
    }
}
