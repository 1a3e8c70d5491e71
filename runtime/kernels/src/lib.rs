//! Guest kernels: their origins, their store, and the initramfs that goes with each.
//!
//! The default is Debian's stock cloud kernel, fetched as a signed package, unpacked once to an ELF image (PVH) with
//! its modules beside it. A path or `file:///…` names a kernel of the user's own with everything built in; any other
//! reference names one in a registry. Not here: loading a kernel into a guest (`vmm`), and the program in the
//! initramfs (`guest_agent`).

#![cfg_attr(test, allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, reason = "tests"))]

mod architecture;
mod cpio;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod image;
mod initramfs;
mod lease;
mod listing;
mod made_once;
mod module_index;
mod module_tree;
mod modules;
mod oci;
mod stock;
mod store;

pub use architecture::Architecture;
pub use initramfs::{Archive, Extras, File, initramfs};
pub use lease::Lease;
pub use listing::StoredKernel;
pub use module_tree::module_tree;
pub use store::{Kernel, Store};

use std::io;
use std::path::PathBuf;

/// Largest kernel image, packed or unpacked.
pub const MAX_IMAGE_BYTES: u64 = 256 << 20;

/// Result of a kernel operation.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error of kernels.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The reference has no known form.
    #[error("kernel reference {0:?} is neither an absolute path, file:///path nor an image reference")]
    Reference(String),
    /// The registry failed.
    #[error("kernel {reference}: {source}")]
    Registry {
        /// The reference.
        reference: String,
        /// The reason.
        source: registry::Error,
    },
    /// The registry's artifact of this name is no kernel.
    #[error("kernel {reference}: {why}")]
    Artifact {
        /// The reference.
        reference: String,
        /// The reason.
        why: String,
    },
    /// No machine here can boot the file.
    #[error("{path} is not a bootable kernel: {why}", path = path.display())]
    NotAKernel {
        /// The file.
        path: PathBuf,
        /// The reason.
        why: &'static str,
    },
    /// The file cannot be read.
    #[error("kernel {path}: {source}", path = path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The store has no kernel of this name.
    #[error("kernel not found: {0}")]
    Unknown(String),
    /// The kernel is in use, and cannot be removed now.
    #[error("kernel {0} is in use")]
    InUse(String),
    /// A kernel module that the guest needs is missing.
    #[error("kernel {release} has no module {module}")]
    Module {
        /// Kernel release.
        release: String,
        /// Module name.
        module: String,
    },
    /// The default kernel's package could not be had.
    #[error(transparent)]
    Package(#[from] debian::Error),
    /// The work was given up.
    #[error("the kernel was given up")]
    GivenUp,
    /// The system refused an operation on a file.
    #[error("{path}: {source}", path = path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl From<waiting::GivenUp> for Error {
    fn from(_: waiting::GivenUp) -> Self {
        Self::GivenUp
    }
}

impl Error {
    pub(crate) fn unreadable(path: &std::path::Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Unreadable { path, source }
    }

    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| match waiting::is_given_up(&source) {
            true => Self::GivenUp,
            false => Self::Io { path, source },
        }
    }
}
