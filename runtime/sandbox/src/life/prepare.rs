//! The parts of a machine, opened: image, kernel, initramfs, writable disk.
//!
//! Each function blocks, ends at once when its work is given up, and is meant for a thread of its own; none needs
//! another's result. Not here: the machine.

use std::fs::File;
use std::io;
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

/// An image whose layers are open.
#[derive(Debug)]
pub(crate) struct OpenImage {
    pub(crate) reference: String,
    pub(crate) config: ImageConfig,
    /// Lowest layer first.
    pub(crate) layers: Vec<OpenFile>,
}

/// A file whose length is known.
#[derive(Debug)]
pub(crate) struct OpenFile {
    file: OwnedFd,
    len: u64,
}

impl OpenFile {
    fn open(path: &Path) -> Result<Self> {
        let open = || {
            let file = File::open(path)?;
            let len = file.metadata()?.len();
            Ok(Self { file: file.into(), len })
        };
        open().map_err(Error::io(path))
    }

    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self { file: self.file.try_clone()?, len: self.len })
    }
}

impl OpenImage {
    /// The same open files, for another machine.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let Self { reference, config, layers } = self;
        let layers = layers.iter().map(OpenFile::try_clone).collect::<io::Result<_>>()?;
        Ok(Self { reference: reference.clone(), config: config.clone(), layers })
    }
}

/// A kernel with its initramfs.
#[derive(Debug)]
pub(crate) struct OpenKernel {
    pub(crate) kernel: machine::Kernel,
    pub(crate) initramfs: OwnedFd,
    /// All of the kernel's modules, if programs may load them, and its release.
    pub(crate) modules: Option<(OpenFile, String)>,
    /// Keeps the kernel in its store.
    pub(crate) lease: Option<Arc<Lease>>,
}

impl OpenKernel {
    /// The same open files, for another machine.
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        let modules = self.modules.as_ref();
        let modules = modules.map(|(tree, release)| Ok::<_, io::Error>((tree.try_clone()?, release.clone())));
        Ok(Self {
            kernel: self.kernel.try_clone()?,
            initramfs: self.initramfs.try_clone()?,
            modules: modules.transpose()?,
            lease: self.lease.clone(),
        })
    }
}

/// Finds the image, pulling it if need be, and opens its layers.
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
    // The store has just checked that the layers are there and whole.
    let layers = image.layers.iter().map(|layer| OpenFile::open(&layer.path)).collect::<Result<_>>()?;
    Ok(OpenImage { reference: image.reference, config: image.config, layers })
}

/// The modules, if the disk has room for them behind so many layers.
pub(crate) fn if_room(modules: Option<(OpenFile, String)>, layers: usize) -> Option<(OpenFile, String)> {
    let has_room = layers < disk::composite::MAX_FILES;
    if modules.is_some() && !has_room {
        tracing::warn!("an image of {layers} layers leaves no room for kernel modules");
    }
    modules.filter(|_| has_room)
}

/// The read-only disk: a partition for each layer, lowest first, and one after them for the modules. Returns the
/// number of layers as well.
pub(crate) fn read_only_disk(
    reference: &str,
    layers: Vec<OpenFile>,
    modules: Option<OpenFile>,
) -> Result<(machine::Disk, u16)> {
    let no_disk = |source| Error::Layers { image: reference.to_owned(), source };
    let count = layers.len();
    let too_many = || no_disk(disk::composite::PlanError::TooMany(count));
    let number = u16::try_from(count).map_err(|_| too_many())?;
    let (files, lengths): (Vec<_>, Vec<_>) =
        layers.into_iter().chain(modules).map(|open| (open.file, open.len)).unzip();
    let plan = disk::composite::plan(&lengths).map_err(no_disk)?;
    let segments = plan.with_files(files).ok_or_else(too_many)?;
    Ok((machine::Disk { segments, readonly: true }, number))
}

/// Finds the kernel and its initramfs, and all of its modules if programs may load them; an empty reference is the default
/// kernel.
pub(crate) fn kernel(
    home: &Home,
    reference: &str,
    with_modules: bool,
    extras: kernels::Extras,
    given_up: CancellationToken,
    progress: &dyn Progress,
) -> Result<OpenKernel> {
    let agent = host::agent()?;
    let registries = home.registries().until(given_up.clone());
    let store = kernels::Store::open_until(home.cache(), given_up.clone())?;
    let kernel = store.get(reference, &registries, &|step| progress.step(step, None))?;
    let initramfs = kernels::initramfs(home.cache(), &kernel, &agent, extras, &given_up)?;
    let file = File::open(&kernel.path).map_err(Error::io(&kernel.path))?.into();
    let initramfs = File::open(&initramfs).map_err(Error::io(&initramfs))?.into();
    let modules = if with_modules {
        kernels::module_tree(&kernel, &given_up, &|step| progress.step(step, None))?
    } else {
        None
    };
    let modules =
        modules.map(|path| Ok::<_, Error>((OpenFile::open(&path)?, kernel.release.clone()))).transpose()?;
    let lease = kernel.lease;
    Ok(OpenKernel { kernel: machine::Kernel { file, format: kernel.format }, initramfs, modules, lease })
}

/// Makes the writable disk and removes its name: only the machine's descriptor keeps it, so that nothing can be left
/// behind.
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
