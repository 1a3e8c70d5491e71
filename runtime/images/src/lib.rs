//! Container images: their origins, their store, and the layers of a sandbox's disk.
//!
//! An image is a configuration and an ordered list of layers. Each layer is converted once, streaming, from its tar
//! to a read-only EROFS file named by its diff id; the guest joins them with overlayfs. This crate takes part in two
//! paths: `import` (archive → layers → one SQLite transaction) and `resolve` (tag → layer files).
//!
//! Not here: composing layer files into one disk (`disk`), mounting them (`guest_agent`), registry pulls (they come
//! through [`Puller`]). No part of an image ever becomes a path on the host: a layer is a tree in memory and one
//! file.

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod archive;
mod builtin;
mod cache;
mod collect;
mod complete;
mod disk_image;
mod error;
#[cfg(feature = "fixtures")]
pub mod fixtures;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod image;
mod layer;
mod manifest;
mod metadata;
mod progress;
mod reference;
mod remote;
mod reserve;
mod rootfs;
#[cfg(feature = "fixtures")]
pub mod small_disk;
mod space;
mod stack;
mod store;
mod stream;
mod tar_stream;
mod upper;
mod volume;
mod walk;

pub use cache::{make_cache, make_directory};
pub use collect::Collected;
pub use disk_image::{DiskImage, DiskImageError};
pub use error::{EntryError, Error, LayerError, Result};
pub use image::{Digest, Image, ImageConfig, ImageSummary, Layer};
pub use manifest::Document;
pub use progress::{Progress, Quiet};
pub use reference::check as check_reference;
pub use remote::Remote;
pub use reserve::with_reserve;
pub use rootfs::Form;
pub use store::{ImportSource, Imported, Pull, Puller, Store};
pub use upper::upper_disk;
pub use volume::{Volume, Volumes};
