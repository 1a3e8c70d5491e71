//! An image as the rest of the product sees it.

use std::fmt;
use std::path::PathBuf;

use sha2::{Digest as _, Sha256};

use crate::{Error, Result};

/// A content digest, `sha256:` and 64 lower-case hex digits: valid by construction, safe in a file name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

impl Digest {
    const PREFIX: &str = "sha256:";

    /// Parses a digest.
    pub fn parse(text: &str) -> Result<Self> {
        let hex = text.strip_prefix(Self::PREFIX).unwrap_or_default();
        let valid = |c: u8| c.is_ascii_digit() || (b'a'..=b'f').contains(&c);
        if hex.len() != 64 || !hex.bytes().all(valid) {
            return Err(Error::Digest(text.chars().take(128).collect()));
        }
        Ok(Self(text.to_owned()))
    }

    /// The digest of these bytes.
    pub fn of_content(bytes: &[u8]) -> Self {
        Self::of(&Sha256::digest(bytes).into())
    }

    /// The digest of a finished SHA-256.
    pub(crate) fn of(hash: &[u8; 32]) -> Self {
        let mut text = String::from(Self::PREFIX);
        for byte in hash {
            text.push_str(&format!("{byte:02x}"));
        }
        Self(text)
    }

    /// `sha256:…`
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The hex digits alone.
    pub fn hex(&self) -> &str {
        self.0.get(Self::PREFIX.len()..).unwrap_or_default()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An image in the store, ready to boot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// The tag that the image is stored under.
    pub reference: String,
    /// The digest of the image's manifest, or of a docker-archive's configuration.
    pub digest: Digest,
    /// The configuration of the image's programs.
    pub config: ImageConfig,
    /// The image's layers, lowest first.
    pub layers: Vec<Layer>,
}

/// The part of an OCI image configuration that is kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageConfig {
    /// `User`; empty = root.
    pub user: String,
    /// `WorkingDir`; empty = none.
    pub working_dir: String,
    /// `Entrypoint`.
    pub entrypoint: Vec<String>,
    /// `Cmd`.
    pub cmd: Vec<String>,
    /// `Env`, each `NAME=VALUE`.
    pub env: Vec<String>,
    /// `Volumes`: directories that are made if the image lacks them.
    pub volumes: Vec<String>,
}

/// One layer: an EROFS file that never changes. Removing the image only unlinks the file; a process that has it open
/// keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the uncompressed tar.
    pub digest: Digest,
    /// The EROFS file.
    pub path: PathBuf,
    /// The file's length in bytes, a multiple of 4096.
    pub len: u64,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// Tag.
    pub tag: String,
    /// The origin: `import`, `builtin` or `registry`; `tag` if this is another name for an image.
    pub source: String,
    /// Bytes of the image's layers.
    pub size: u64,
    /// Time of storing, in seconds since 1970.
    pub created: u64,
    /// The image's digest.
    pub digest: Digest,
}
