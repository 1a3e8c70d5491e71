//! Everything a machine is made of, opened: image, kernel, initramfs, writable disk.
//!
//! Each function blocks and is meant for a thread of its own, where it ends at once when it is given up; none needs
//! another's result. Not here: the machine.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use disk::Segment;
use images::{ImageConfig, Progress, Pull};
use kernels::Lease;
use waiting::CancellationToken;

use crate::Home;
use crate::life::error::{Error, Result};
use crate::life::host;

/// An image whose layers are open as one disk.
#[derive(Debug)]
pub(crate) struct OpenImage {
    pub(crate) config: ImageConfig,
    pub(crate) layers: u16,
    pub(crate) disk: machine::Disk,
}

/// A kernel with its initramfs.
#[derive(Debug)]
pub(crate) struct OpenKernel {
    pub(crate) kernel: machine::Kernel,
    pub(crate) initramfs: OwnedFd,
    /// Keeps it in the store.
    pub(crate) lease: Option<Arc<Lease>>,
}

/// Finds the image, pulls it if that is what it takes, and opens its layers.
pub(crate) fn image(
    home: &Home,
    reference: &str,
    pull: Pull,
    given_up: CancellationToken,
    progress: &dyn Progress,
) -> Result<OpenImage> {
    let store = images::Store::open_until(home.cache(), given_up.clone())?;
    let registries = Box::new(home.registries().until(given_up));
    let image = match pull {
        Pull::Missing => store.with_puller(registries).resolve(reference, progress)?,
        Pull::Always => store.with_puller(registries).pull(reference, progress)?,
        Pull::Never => store.resolve(reference, progress)?,
    };
    // The store has just checked that they are there and whole.
    let open = |path: &Path| File::open(path).map(OwnedFd::from).map_err(Error::io(path));
    let files = image.layers.iter().map(|layer| open(&layer.path)).collect::<Result<Vec<_>>>()?;
    let no_disk = |source| Error::Layers { image: image.reference.clone(), source };
    let lengths: Vec<u64> = image.layers.iter().map(|layer| layer.len).collect();
    let count = lengths.len();
    let too_many = || no_disk(disk::composite::PlanError::TooMany(count));
    let layers = u16::try_from(count).map_err(|_| too_many())?;
    let plan = disk::composite::plan(&lengths).map_err(no_disk)?;
    let segments = plan.with_files(files).ok_or_else(too_many)?;
    Ok(OpenImage { config: image.config, layers, disk: machine::Disk { segments, readonly: true } })
}

/// Finds the kernel and its initramfs; an empty reference is the default kernel.
pub(crate) fn kernel(
    home: &Home,
    reference: &str,
    given_up: CancellationToken,
    progress: &dyn Progress,
) -> Result<OpenKernel> {
    let agent = host::agent()?;
    let registries = home.registries().until(given_up.clone());
    let store = kernels::Store::open_until(home.cache(), given_up.clone())?;
    let kernel = store.get(reference, &registries, &|step| progress.step(step, None))?;
    let initramfs = kernels::initramfs(home.cache(), &kernel, &agent, &given_up)?;
    let file = File::open(&kernel.path).map_err(Error::io(&kernel.path))?.into();
    let initramfs = File::open(&initramfs).map_err(Error::io(&initramfs))?.into();
    let lease = kernel.lease;
    Ok(OpenKernel { kernel: machine::Kernel { file, format: kernel.format }, initramfs, lease })
}

/// Makes the writable disk. Its name is gone when this returns: only the machine's descriptor keeps it, so that
/// nothing can be left behind.
pub(crate) fn upper(
    cache: &Path,
    directory: &Path,
    size_mb: u64,
    given_up: &CancellationToken,
) -> Result<machine::Disk> {
    let file = images::upper_disk(cache, directory, size_mb, given_up)?;
    let path: PathBuf = directory.join("upper.ext4");
    std::fs::remove_file(&path).map_err(Error::io(&path))?;
    let len = file.metadata().map_err(Error::io(&path))?.len();
    let segments = vec![Segment::File { file: file.into(), offset: 0, len }];
    Ok(machine::Disk { segments, readonly: false })
}
