//! Debian's stock kernels: `<store>/debian-<architecture>`.
//!
//! Not here: getting and verifying a package (`debian`), and the rest of the store.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;
use std::sync::Arc;

use debian::{Archive, EntryKind};
use waiting::CancellationToken;

use crate::lease::Lease;
use crate::store::{Kernel, Store, detect_file, remove, sync, write};
use crate::{Architecture, Error, MAX_IMAGE_BYTES, Result, image};

const PACKAGE_PREFIX: &str = "linux-image-";

/// The store's directory for fetches under way.
const FETCHING: &str = "fetching";

/// The link to the release in use.
pub(crate) const CURRENT: &str = "current";

/// The file that records a kernel's origin.
pub(crate) const ORIGIN: &str = "origin";

impl Store {
    /// The default kernel: from the store, or fetched once.
    pub fn default_kernel(&self, progress: &dyn Fn(&str)) -> Result<Kernel> {
        if let Some(kernel) = self.current()? {
            return Ok(kernel);
        }
        let _fetching = self.lock("lock")?;
        // Another process may have fetched it meanwhile.
        match self.current()? {
            Some(kernel) => Ok(kernel),
            None => {
                let scratch = self.root().join(FETCHING);
                let fetched = self.fetch(&scratch, progress);
                // A failed fetch is removed as well: half a kernel is large, and the next fetch may never come.
                let removed = remove(&scratch);
                let kernel = fetched?;
                removed.map(|()| kernel)
            }
        }
    }

    fn current(&self) -> Result<Option<Kernel>> {
        let directory = self.root().join(Architecture::host().directory());
        let release = match fs::read_link(directory.join(CURRENT)) {
            Ok(release) => release,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Error::io(directory)(error)),
        };
        let Some(lease) = Lease::take(&directory.join(&release), &self.given_up)? else { return Ok(None) };
        match kernel(release.to_string_lossy().into_owned(), lease) {
            Ok(kernel) => Ok(Some(kernel)),
            // The store's files were changed, so the kernel is fetched again.
            Err(error) => {
                tracing::warn!("{error}");
                Ok(None)
            }
        }
    }

    /// Fetches a kernel. The caller holds the lock.
    fn fetch(&self, scratch: &Path, progress: &dyn Fn(&str)) -> Result<Kernel> {
        // Leftovers of an interrupted fetch, which nobody uses while the lock is held.
        remove(scratch)?;
        progress("reading the package sources");
        // The built-in image uses the same lists.
        let archive = Archive::update(&self.root().with_file_name("apt"), &self.given_up)?;
        let name = archive.dependency(Architecture::host().meta_package(), PACKAGE_PREFIX)?;
        progress(&format!("fetching {name}"));
        let package = archive.fetch(&name, scratch)?;
        progress(&format!("unpacking {name}"));
        let staged = scratch.join("kernel");
        unpack(&package, &staged, &self.given_up)?;
        let release = name.trim_start_matches(PACKAGE_PREFIX);
        self.publish(&staged, &package, release)
    }

    /// Makes the kernel in `staged` the default one.
    fn publish(&self, staged: &Path, package: &debian::Package, release: &str) -> Result<Kernel> {
        let origin = format!("{} {} sha256:{}\n", package.name, package.version, package.sha256);
        write(&staged.join(ORIGIN), origin.as_bytes())?;
        // The content is on disk already; now the names are.
        sync(staged)?;
        let gone = || Error::NotAKernel { path: staged.to_owned(), why: "vanished from the store" };
        // Taken before any other process could see and remove the kernel.
        let lease = Lease::take(staged, &self.given_up)?.ok_or_else(gone)?;
        let directory = self.root().join(Architecture::host().directory());
        fs::create_dir_all(&directory).map_err(Error::io(&directory))?;
        let place = directory.join(release);
        remove(&place)?;
        fs::rename(staged, &place).map_err(Error::io(&place))?;
        let link = self.root().join(FETCHING).join(CURRENT);
        std::os::unix::fs::symlink(release, &link).map_err(Error::io(&link))?;
        let current = directory.join(CURRENT);
        fs::rename(&link, &current).map_err(Error::io(&current))?;
        sync(&directory)?;
        kernel(release.to_owned(), lease.renamed(&place))
    }
}

fn kernel(release: String, lease: Lease) -> Result<Kernel> {
    let path = lease.directory().join("vmlinux");
    let format = detect_file(&path)?;
    let modules = Some(lease.directory().join("modules"));
    Ok(Kernel { release, path, format, modules, lease: Some(Arc::new(lease)) })
}

/// Unpacks image and modules of a kernel package into `directory`, durably.
fn unpack(package: &debian::Package, directory: &Path, given_up: &CancellationToken) -> Result<()> {
    let modules = directory.join("modules");
    fs::create_dir_all(&modules).map_err(Error::io(&modules))?;
    let mut packed = Vec::new();
    debian::unpack(package, given_up, |entry| {
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
    let image = image::of_package(packed, Architecture::host())
        .map_err(|why| Error::NotAKernel { path: path.clone(), why })?;
    write(&path, &image)?;
    // An empty module left by a power cut would never be noticed.
    for entry in fs::read_dir(&modules).map_err(Error::io(&modules))? {
        waiting::check(given_up)?;
        sync(&entry.map_err(Error::io(&modules))?.path())?;
    }
    sync(&modules)
}
