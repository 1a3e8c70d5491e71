//! What a registry has under a name, for those who want something other than an image of it.
//!
//! Everything is bounded here; whether it is what its digest says is for the reader to check. Not here: what the
//! documents mean.

use std::io::Read;
use std::sync::Arc;

use images::Digest;
use tokio::runtime::Runtime;

use crate::body::Body;
use crate::client::Repository;
use crate::pull::{Registries, runtime};
use crate::{Error, Name};

/// Something in a registry.
pub struct Artifact {
    name: Name,
    repository: Arc<Repository>,
    // Ends after what uses it.
    _runtime: Runtime,
}

impl Registries {
    /// What `name` stands for. Nothing is asked yet.
    pub fn artifact(&self, name: &Name) -> Result<Artifact, Error> {
        let runtime = runtime()?;
        let (trust, given_up) = (self.trust(), self.given_up());
        let repository = Repository::new(name.clone(), trust, runtime.handle().clone(), given_up)?;
        Ok(Artifact { name: name.clone(), repository: Arc::new(repository), _runtime: runtime })
    }
}

impl Artifact {
    /// A manifest or index of at most this many bytes: that of the name, or one of this digest.
    pub fn manifest(&self, digest: Option<&Digest>, max_bytes: u64) -> Result<Vec<u8>, Error> {
        let version = digest.map_or(self.name.version(), Digest::as_str);
        self.repository.manifest(version, max_bytes).map(|(document, _)| document)
    }

    /// The bytes of a blob. Where its connection breaks, the next one goes on from there.
    pub fn blob(&self, digest: &Digest) -> Result<impl Read + use<'_>, Error> {
        Body::open(Arc::clone(&self.repository), digest.to_string())
    }
}
