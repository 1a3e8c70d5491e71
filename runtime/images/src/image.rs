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

    /// Reads a digest from outside.
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
    /// The tag it is stored under.
    pub reference: String,
    /// Its manifest's digest; for a docker-archive, its configuration's.
    pub digest: Digest,
    /// How its programs are to be run.
    pub config: ImageConfig,
    /// Its layers, lowest first.
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
    /// `Volumes`: directories that are made where the image does not have them.
    pub volumes: Vec<String>,
}

/// One layer: an EROFS file that never changes. Removing the image only unlinks it; who has it open keeps it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Digest of the uncompressed tar it was made from.
    pub digest: Digest,
    /// The EROFS file.
    pub path: PathBuf,
    /// Its length in bytes, a multiple of 4096.
    pub len: u64,
}

/// One line of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageSummary {
    /// Tag.
    pub tag: String,
    /// Where it came from: `import`, `builtin`, `registry`; `tag` if it is another name for one.
    pub source: String,
    /// Bytes of its layers.
    pub size: u64,
    /// When it was stored, seconds since 1970.
    pub created: u64,
    /// Its digest.
    pub digest: Digest,
}
