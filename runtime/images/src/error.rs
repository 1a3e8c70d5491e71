//! Why an image could not be had.

use std::io;
use std::path::PathBuf;

use crate::{Digest, Form};

/// Result of an image operation.
pub type Result<T> = std::result::Result<T, Error>;

/// Why an image could not be had.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Neither the store nor the built-in images have it, and there is nothing to pull with.
    #[error(
        "image {0} is not in the store, and pulling is not allowed; pull it (matchlock pull {0}) or import it (docker save {0} | matchlock image import {0})"
    )]
    NotFound(String),
    /// No image has this tag.
    #[error("image {0} is not in the store")]
    UnknownTag(String),
    /// Not the text of an image reference.
    #[error("{0:?} is not an image reference")]
    Reference(String),
    /// Not a digest of a kind that is understood.
    #[error("{0:?} is not a sha256 digest")]
    Digest(String),
    /// The archive is of no known form.
    #[error("{archive}: {why}")]
    Archive {
        /// Which archive.
        archive: String,
        /// What is wrong with it.
        why: String,
    },
    /// What a registry has is no image that can be used.
    #[error("image {reference}: {why}")]
    Remote {
        /// Which image.
        reference: String,
        /// What is wrong with it.
        why: String,
    },
    /// An image could not be pulled.
    #[error("image {reference}: {source}")]
    Pull {
        /// Which image.
        reference: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The image is for other machines.
    #[error("image {reference} is for {found}, this host needs {wanted}")]
    Architecture {
        /// Which image.
        reference: String,
        /// What it is for.
        found: String,
        /// What runs here.
        wanted: String,
    },
    /// A layer could not be taken.
    #[error("image {reference}, layer {layer}: {source}")]
    Layer {
        /// Which image.
        reference: String,
        /// Digest of the layer's uncompressed tar.
        layer: Digest,
        /// Why.
        source: LayerError,
    },
    /// A root file system could not be taken.
    #[error("image {reference}, the layer of {form}: {source}")]
    Root {
        /// Which image.
        reference: String,
        /// What it is made of.
        form: Form,
        /// Why.
        source: LayerError,
    },
    /// A stored layer's file is gone or damaged.
    #[error(
        "image {reference}: the file of layer {layer} is missing or cut short; remove the image and import it again"
    )]
    LayerLost {
        /// Which image.
        reference: String,
        /// Which layer.
        layer: Digest,
    },
    /// The store's records.
    #[error("{path}: {source}", path = path.display())]
    Metadata {
        /// The database.
        path: PathBuf,
        /// Why.
        source: rusqlite::Error,
    },
    /// Somebody else is writing.
    #[error("{path}: an image is being pulled or imported; try again when that is done", path = path.display())]
    Busy {
        /// The store.
        path: PathBuf,
    },
    /// The store is of a later version.
    #[error("{path} was written by a later version of matchlock", path = path.display())]
    Version {
        /// The database.
        path: PathBuf,
    },
    /// A built-in image's package could not be had.
    #[error("built-in image {reference}: {source}")]
    Package {
        /// Which image.
        reference: String,
        /// Why.
        source: debian::Error,
    },
    /// The writable disk could not be formatted.
    #[error("writable disk of {size_mb} MB: {why}")]
    UpperDisk {
        /// Its size.
        size_mb: u64,
        /// What mke2fs said.
        why: String,
    },
    /// No name a volume can have.
    #[error("{0:?} is not a volume name: letters, digits, `_`, `.` and `-`, the first a letter or digit")]
    VolumeName(String),
    /// There is no volume of this name.
    #[error("named volume not found: {0}")]
    NoVolume(String),
    /// There is a volume of this name.
    #[error("named volume already exists: {0}")]
    VolumeExists(String),
    /// A sandbox has it.
    #[error("volume {0} is in use: end the sandbox it is attached to first")]
    VolumeInUse(String),
    /// A file that cannot be a sandbox's disk.
    #[error(transparent)]
    DiskImage(#[from] crate::DiskImageError),
    /// The volume could not be formatted.
    #[error("volume {name}: {why}")]
    Volume {
        /// Its name.
        name: String,
        /// What mke2fs said.
        why: String,
    },
    /// The disk is too full.
    #[error("{what}: {path}: {needed} bytes are needed, {free} are free", path = path.display())]
    Space {
        /// What there is no room for.
        what: String,
        /// Where.
        path: PathBuf,
        /// What is to be written there, at least.
        needed: u64,
        /// What can be.
        free: u64,
    },
    /// Whoever wanted it does not any more.
    #[error("the image was given up")]
    GivenUp,
    /// The system refused.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match waiting::is_given_up(&source) {
            true => Self::GivenUp,
            false => Self::Io { path, source },
        }
    }

    pub(crate) fn archive(archive: &str, why: impl Into<String>) -> Self {
        Self::Archive { archive: archive.to_owned(), why: why.into() }
    }
}

/// Why a layer could not be taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The layer ends in the middle.
    #[error("it ends early")]
    Truncated,
    /// It could not be read or decompressed.
    #[error("{0}")]
    Read(io::Error),
    /// A tar header makes no sense.
    #[error("not a valid tar: {0}")]
    Tar(&'static str),
    /// It is over a limit.
    #[error("more than {limit} {what}")]
    Limit {
        /// What there is too much of.
        what: &'static str,
        /// How much is taken.
        limit: u64,
    },
    /// An entry of the tar cannot be.
    #[error("{path:?}: {why}")]
    Entry {
        /// Which entry.
        path: String,
        /// Why.
        why: EntryError,
    },
    /// The tar is not the one that the configuration names.
    #[error("its contents have digest {0}")]
    DiffId(Digest),
    /// The blob is not the one that the manifest names.
    #[error("its blob {expected} has digest {actual}")]
    Blob {
        /// What the manifest says.
        expected: Digest,
        /// What it is.
        actual: Digest,
    },
    /// The file system image could not be written.
    #[error(transparent)]
    Write(erofs::Error),
    /// A layer below, which is stored, could not be read.
    #[error("a stored layer: {0}")]
    Stored(#[from] erofs::ReadError),
}

/// Why an entry of a tar cannot be.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// It leaves the root.
    #[error("has a .. in its name")]
    ParentDirectory,
    /// Something on the way to it is not a directory.
    #[error("is below something that is not a directory")]
    NotADirectory,
    /// Too many symbolic links on the way to it.
    #[error("is behind a loop of symbolic links")]
    SymlinkLoop,
    /// Too many directories on the way to it.
    #[error("has too many directories on the way to it")]
    TooDeep,
    /// A hard link to nothing.
    #[error("is a hard link to {0:?}, which is neither in this layer nor below it")]
    LinkTarget(String),
    /// A hard link to a directory.
    #[error("is a hard link to a directory")]
    LinkToDirectory,
    /// A whiteout of nothing.
    #[error("is a whiteout without a name")]
    Whiteout,
    /// The root is not a directory.
    #[error("is the root, but not a directory")]
    Root,
    /// A type that has no meaning in a layer.
    #[error("has unknown type {0:?}")]
    Type(char),
    /// A field out of range.
    #[error("has a bad {0}")]
    Field(&'static str),
    /// It cannot be stored.
    #[error(transparent)]
    Store(erofs::Error),
}
