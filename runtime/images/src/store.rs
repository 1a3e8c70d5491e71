//! The image store: `<cache>/images`.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use crate::{Error, Image, ImageSummary, Progress, Result};

/// Images kept on this host. Any number of processes may use one store at the same time.
pub struct Store {
    root: PathBuf,
    puller: Option<Box<dyn Puller>>,
}

/// Brings an image that the store does not have. **Seam**: registry pulls are one implementation.
pub trait Puller: Send + Sync {
    /// Stores the image of `reference` under that tag.
    fn pull(&self, store: &Store, reference: &str, progress: &dyn Progress) -> Result<Imported>;
}

/// Where an image archive is read from.
pub enum ImportSource<'a> {
    /// A docker-archive, an OCI archive, or the directory of an OCI layout.
    Path(&'a Path),
    /// An open archive, such as standard input; read in place when it can seek, else through a temporary file.
    File(File),
    /// Any other stream of an archive.
    Reader(&'a mut dyn Read),
}

/// What an import stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// Every tag it was stored under.
    pub tags: Vec<String>,
    /// The image.
    pub image: Image,
    /// Bytes of its layers.
    pub size: u64,
}

impl Store {
    /// Opens the store below the cache directory `cache`, making it where there is none.
    pub fn open(cache: &Path) -> Result<Self> {
        Ok(Self { root: cache.join("images"), puller: None })
    }

    /// The same store, with a way to get what it does not have.
    pub fn with_puller(mut self, puller: Box<dyn Puller>) -> Self {
        self.puller = Some(puller);
        self
    }

    /// The image stored under `reference`, by its exact text or else normalised (`busybox` is `busybox:latest`).
    pub fn get(&self, reference: &str) -> Result<Option<Image>> {
        let _ = (&self.root, reference);
        Ok(None)
    }

    /// The image of `reference`: from the store, or a built-in one, or from the puller.
    pub fn resolve(&self, reference: &str, _progress: &dyn Progress) -> Result<Image> {
        Err(Error::NotFound(reference.to_owned()))
    }

    /// Every stored image, imported ones first, each kind by tag.
    pub fn list(&self) -> Result<Vec<ImageSummary>> {
        Ok(Vec::new())
    }

    /// Removes a tag, and the layers that no tag needs any more.
    pub fn remove(&self, tag: &str) -> Result<()> {
        Err(Error::NotFound(tag.to_owned()))
    }

    /// Stores the image of an archive under `tag`, or else under the names the archive gives.
    pub fn import(
        &self,
        _source: ImportSource<'_>,
        tag: Option<&str>,
        _progress: &dyn Progress,
    ) -> Result<Imported> {
        Err(Error::NotFound(tag.unwrap_or_default().to_owned()))
    }
}
