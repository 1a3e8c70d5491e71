//! Errors of images and volumes.

use std::io;
use std::path::PathBuf;

use crate::{Digest, Form};

/// Result of an image operation.
pub type Result<T> = std::result::Result<T, Error>;

/// An error of images or volumes.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Neither the store nor the built-in images have the image, and pulling is not allowed.
    #[error(
        "image {0} is not in the store, and pulling is not allowed; pull it (matchlock pull {0}) or import it (docker save {0} | matchlock image import {0})"
    )]
    NotFound(String),
    /// No image has this tag.
    #[error("image {0} is not in the store")]
    UnknownTag(String),
    /// The text is no image reference.
    #[error("{0:?} is not an image reference")]
    Reference(String),
    /// The text is no digest of a known kind.
    #[error("{0:?} is not a sha256 digest")]
    Digest(String),
    /// The archive has no known form.
    #[error("{archive}: {why}")]
    Archive {
        /// The archive.
        archive: String,
        /// The reason.
        why: String,
    },
    /// The registry's image cannot be used.
    #[error("image {reference}: {why}")]
    Remote {
        /// The image.
        reference: String,
        /// The reason.
        why: String,
    },
    /// An image could not be pulled.
    #[error("image {reference}: {source}")]
    Pull {
        /// The image.
        reference: String,
        /// The reason.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The image is for other machines.
    #[error("image {reference} is for {found}, this host needs {wanted}")]
    Architecture {
        /// The image.
        reference: String,
        /// The machines that the image is for.
        found: String,
        /// The machines that run here.
        wanted: String,
    },
    /// A layer cannot be used.
    #[error("image {reference}, layer {layer}: {source}")]
    Layer {
        /// The image.
        reference: String,
        /// Digest of the layer's uncompressed tar.
        layer: Digest,
        /// The reason.
        source: LayerError,
    },
    /// A root file system cannot be used.
    #[error("image {reference}, the layer of {form}: {source}")]
    Root {
        /// The image.
        reference: String,
        /// The form that the root file system has.
        form: Form,
        /// The reason.
        source: LayerError,
    },
    /// A stored layer's file is gone or damaged.
    #[error(
        "image {reference}: the file of layer {layer} is missing or cut short; remove the image and import it again"
    )]
    LayerLost {
        /// The image.
        reference: String,
        /// The layer.
        layer: Digest,
    },
    /// The store's records failed.
    #[error("{path}: {source}", path = path.display())]
    Metadata {
        /// The database.
        path: PathBuf,
        /// The reason.
        source: rusqlite::Error,
    },
    /// Another process is writing to the store.
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
        /// The image.
        reference: String,
        /// The reason.
        source: debian::Error,
    },
    /// The writable disk could not be formatted.
    #[error("writable disk of {size_mb} MB: {why}")]
    UpperDisk {
        /// The disk's size.
        size_mb: u64,
        /// The message of mke2fs.
        why: String,
    },
    /// The text is no name of a volume.
    #[error("{0:?} is not a volume name: letters, digits, `_`, `.` and `-`, the first a letter or digit")]
    VolumeName(String),
    /// There is no volume of this name.
    #[error("named volume not found: {0}")]
    NoVolume(String),
    /// There is already a volume of this name.
    #[error("named volume already exists: {0}")]
    VolumeExists(String),
    /// A sandbox has the volume.
    #[error("volume {0} is in use: end the sandbox it is attached to first")]
    VolumeInUse(String),
    /// The file cannot be a sandbox's disk.
    #[error(transparent)]
    DiskImage(#[from] crate::DiskImageError),
    /// The volume could not be formatted.
    #[error("volume {name}: {why}")]
    Volume {
        /// The volume's name.
        name: String,
        /// The message of mke2fs.
        why: String,
    },
    /// The disk is too full.
    #[error("{what}: {path}: {needed} bytes are needed, {free} are free", path = path.display())]
    Space {
        /// The data that there is no room for.
        what: String,
        /// The directory.
        path: PathBuf,
        /// Bytes that are needed at least.
        needed: u64,
        /// Bytes that may be written.
        free: u64,
    },
    /// The work was given up.
    #[error("the image was given up")]
    GivenUp,
    /// The system refused an operation on a file.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
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

/// The reason why a layer cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LayerError {
    /// The layer ends in the middle.
    #[error("it ends early")]
    Truncated,
    /// The layer could not be read or decompressed.
    #[error("{0}")]
    Read(io::Error),
    /// A tar header makes no sense.
    #[error("not a valid tar: {0}")]
    Tar(&'static str),
    /// The layer exceeds a limit.
    #[error("more than {limit} {what}")]
    Limit {
        /// The limited quantity.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// An entry of the tar is not possible.
    #[error("{path:?}: {why}")]
    Entry {
        /// The entry.
        path: String,
        /// The reason.
        why: EntryError,
    },
    /// The tar is not the one that the configuration names.
    #[error("its contents have digest {0}")]
    DiffId(Digest),
    /// The blob is not the one that the manifest names.
    #[error("its blob {expected} has digest {actual}")]
    Blob {
        /// The digest that the manifest names.
        expected: Digest,
        /// The digest of the blob.
        actual: Digest,
    },
    /// The file system image could not be written.
    #[error(transparent)]
    Write(erofs::Error),
    /// A layer below, which is stored, could not be read.
    #[error("a stored layer: {0}")]
    Stored(#[from] erofs::ReadError),
}

/// The reason why an entry of a tar is not possible.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EntryError {
    /// The path leaves the root.
    #[error("has a .. in its name")]
    ParentDirectory,
    /// A part of the path is not a directory.
    #[error("is below something that is not a directory")]
    NotADirectory,
    /// The path has too many symbolic links.
    #[error("is behind a loop of symbolic links")]
    SymlinkLoop,
    /// The path has too many directories.
    #[error("has too many directories on the way to it")]
    TooDeep,
    /// The hard link has no target.
    #[error("is a hard link to {0:?}, which is neither in this layer nor below it")]
    LinkTarget(String),
    /// The hard link's target is a directory.
    #[error("is a hard link to a directory")]
    LinkToDirectory,
    /// The whiteout names nothing.
    #[error("is a whiteout without a name")]
    Whiteout,
    /// The entry makes the root something other than a directory.
    #[error("is the root, but not a directory")]
    Root,
    /// The entry's type has no meaning in a layer.
    #[error("has unknown type {0:?}")]
    Type(char),
    /// A field is out of range.
    #[error("has a bad {0}")]
    Field(&'static str),
    /// The entry cannot be stored.
    #[error(transparent)]
    Store(erofs::Error),
}
