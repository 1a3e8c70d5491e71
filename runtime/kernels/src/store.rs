//! The kernel store: `<cache>/kernels`.
//!
//! ```text
//! lock                                 held while a kernel is fetched
//! debian-amd64/<release>/vmlinux       the stock kernel's ELF image, unpacked once
//! debian-amd64/<release>/modules/      its modules, flat, and modules.builtin
//! debian-amd64/<release>/origin        package, version and SHA-256 it came from
//! debian-amd64/current                 symlink to the release in use
//! initramfs/<key>.cpio                 see `initramfs`
//! ```

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use debian::{Archive, EntryKind};
use machine::KernelFormat;

use crate::{Error, MAX_IMAGE_BYTES, Result, image};

/// Debian's name of its kernel for clouds: small, with everything virtio as modules.
const META_PACKAGE: &str = "linux-image-cloud-amd64";
const PACKAGE_PREFIX: &str = "linux-image-";
const FLAVOUR: &str = "debian-amd64";

/// A kernel ready to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kernel {
    /// Its release (`uname -r`), or the file's name for a kernel of the user's own.
    pub release: String,
    /// The image.
    pub path: PathBuf,
    /// What is in the image.
    pub format: KernelFormat,
    /// Its modules; `None` = everything needed is built in.
    pub modules: Option<PathBuf>,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredKernel {
    /// Release.
    pub release: String,
    /// Package, version and digest it came from.
    pub origin: String,
    /// Whether new sandboxes get it by default.
    pub current: bool,
}

/// Kernels kept on this host.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
}

impl Store {
    /// The store below the cache directory `cache`.
    pub fn open(cache: &Path) -> Result<Self> {
        let root = cache.join("kernels");
        fs::create_dir_all(&root).map_err(Error::io(&root))?;
        Ok(Self { root })
    }

    /// The kernel of a reference: empty = the default, `file:///…` = a file.
    pub fn get(&self, reference: &str, progress: &dyn Fn(&str)) -> Result<Kernel> {
        if reference.is_empty() {
            return self.default_kernel(progress);
        }
        let path = reference.strip_prefix("file://").map(Path::new).filter(|path| path.is_absolute());
        let path = path.ok_or_else(|| Error::Reference(reference.to_owned()))?;
        // Opening a pipe would wait for whoever writes to it.
        if !fs::metadata(path).map_err(Error::unreadable(path))?.is_file() {
            return Err(Error::NotAKernel { path: path.to_owned(), why: "not a regular file" });
        }
        let release = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        Ok(Kernel { release, path: path.to_owned(), format: detect_file(path)?, modules: None })
    }

    /// The default kernel: from the store, or fetched once.
    pub fn default_kernel(&self, progress: &dyn Fn(&str)) -> Result<Kernel> {
        if let Some(kernel) = self.current()? {
            return Ok(kernel);
        }
        let lock_path = self.root.join("lock");
        let lock = File::create(&lock_path).map_err(Error::io(&lock_path))?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive)
            .map_err(|errno| Error::io(&lock_path)(errno.into()))?;
        // Another process may have fetched it meanwhile.
        match self.current()? {
            Some(kernel) => Ok(kernel),
            None => self.fetch(progress),
        }
    }

    /// Every kernel in the store.
    pub fn list(&self) -> Result<Vec<StoredKernel>> {
        let directory = self.root.join(FLAVOUR);
        let current = fs::read_link(directory.join("current")).ok();
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(directory)(error)),
        };
        let mut kernels = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::io(&directory))?;
            let Ok(origin) = fs::read_to_string(entry.path().join("origin")) else { continue };
            let release = entry.file_name().to_string_lossy().into_owned();
            if release == "current" {
                continue;
            }
            let current = current.as_deref() == Some(Path::new(&release));
            kernels.push(StoredKernel { release, origin: origin.trim().to_owned(), current });
        }
        kernels.sort_by(|a, b| a.release.cmp(&b.release));
        Ok(kernels)
    }

    fn current(&self) -> Result<Option<Kernel>> {
        let directory = self.root.join(FLAVOUR);
        let release = match fs::read_link(directory.join("current")) {
            Ok(release) => release,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(directory)(error)),
        };
        let directory = directory.join(&release);
        let path = directory.join("vmlinux");
        let format = match detect_file(&path) {
            Ok(format) => format,
            // Somebody has been at it: it is fetched again.
            Err(error) => {
                tracing::warn!("{error}");
                return Ok(None);
            }
        };
        let release = release.to_string_lossy().into_owned();
        Ok(Some(Kernel { release, path, format, modules: Some(directory.join("modules")) }))
    }

    /// Called with the lock held.
    fn fetch(&self, progress: &dyn Fn(&str)) -> Result<Kernel> {
        let scratch = self.root.join("fetching");
        // Whatever an interrupted fetch left: the lock says that nobody uses it.
        remove(&scratch)?;
        progress("reading the host's package sources");
        // The built-in image has its lists there too.
        let archive = Archive::update(&self.root.with_file_name("apt"))?;
        let name = archive.dependency(META_PACKAGE, PACKAGE_PREFIX)?;
        progress(&format!("fetching {name}"));
        let package = archive.fetch(&name, &scratch)?;
        progress(&format!("unpacking {name}"));
        let staged = scratch.join("kernel");
        unpack(&package, &staged)?;
        let origin = format!("{} {} sha256:{}\n", package.name, package.version, package.sha256);
        write(&staged.join("origin"), origin.as_bytes())?;
        let release = name.trim_start_matches(PACKAGE_PREFIX);
        let directory = self.root.join(FLAVOUR);
        fs::create_dir_all(&directory).map_err(Error::io(&directory))?;
        let place = directory.join(release);
        remove(&place)?;
        fs::rename(&staged, &place).map_err(Error::io(&place))?;
        let link = scratch.join("current");
        std::os::unix::fs::symlink(release, &link).map_err(Error::io(&link))?;
        let current = directory.join("current");
        fs::rename(&link, &current).map_err(Error::io(&current))?;
        remove(&scratch)?;
        self.current()?.ok_or(Error::NotAKernel { path: place, why: "vanished from the store" })
    }
}

/// Image and modules of a kernel package, into `directory`.
fn unpack(package: &debian::Package, directory: &Path) -> Result<()> {
    let modules = directory.join("modules");
    fs::create_dir_all(&modules).map_err(Error::io(&modules))?;
    let mut packed = Vec::new();
    debian::unpack(package, |entry| {
        if entry.kind != EntryKind::File {
            return Ok(());
        }
        let file = entry.path.file_name().and_then(|name| name.to_str()).unwrap_or_default().to_owned();
        if entry.path.starts_with("boot") && file.starts_with("vmlinuz-") {
            entry.data.take(MAX_IMAGE_BYTES).read_to_end(&mut packed)?;
        } else if file.contains(".ko") || file == "modules.builtin" {
            let mut out = File::create(modules.join(&file))?;
            io::copy(entry.data, &mut out)?;
        }
        Ok(())
    })?;
    let path = directory.join("vmlinux");
    let elf = image::unpack(&packed).map_err(|why| Error::NotAKernel { path: path.clone(), why })?;
    write(&path, &elf)
}

fn detect_file(path: &Path) -> Result<KernelFormat> {
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

/// Writes a file and makes it durable: the rename that publishes it must not come first on disk.
pub(crate) fn write(path: &Path, data: &[u8]) -> Result<()> {
    let mut file = File::create(path).map_err(Error::io(path))?;
    file.write_all(data).and_then(|()| file.sync_data()).map_err(Error::io(path))
}

fn remove(directory: &Path) -> Result<()> {
    match fs::remove_dir_all(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(Error::io(directory)(error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let quiet = |_: &str| {};
        assert!(matches!(store.get("file://relative", &quiet), Err(Error::Reference(_))));
        assert!(matches!(store.get("ghcr.io/a/b:1", &quiet), Err(Error::Reference(_))));
        assert!(matches!(store.get("file:///nonexistent", &quiet), Err(Error::Unreadable { .. })));
        assert!(matches!(store.get("file:///dev/null", &quiet), Err(Error::NotAKernel { .. })));
        let text = dir.path().join("text");
        fs::write(&text, "no kernel").unwrap();
        let error = store.get(&format!("file://{}", text.display()), &quiet).unwrap_err();
        assert!(error.to_string().ends_with("is not a bootable kernel: neither ELF nor bzImage"), "{error}");
        assert_eq!(store.list().unwrap(), []);
    }
}
