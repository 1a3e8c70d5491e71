//! What a registry has under a name: where it is, and whether this host's policy lets it be used.
//!
//! For images it is the seam's other side (`pull`); others read it as it is. Everything is bounded here; whether documents
//! and blobs are what their digests say is for the reader to check. Not here: what they mean.

use std::io::Read;
use std::sync::{Arc, OnceLock};

use images::Digest;
use waiting::CancellationToken;
use web::Connections;

use crate::body::Body;
use crate::client::Repository;
use crate::signatures::{Demands, MAX_LIST_BYTES, MAX_PAYLOAD_BYTES, Signature};
use crate::{Error, Name, Trust, mirrors, signatures};

/// Something in a registry.
pub struct Artifact {
    name: Name,
    /// Its signatures.
    demands: Demands,
    /// Mirrors, and then the registry itself.
    places: Vec<Arc<Repository>>,
    /// The one that has it.
    chosen: OnceLock<Arc<Repository>>,
}

impl Artifact {
    /// What `name` stands for. Nothing is asked yet.
    pub(crate) fn new(name: Name, trust: &Trust, given_up: &CancellationToken) -> Result<Self, Error> {
        let connections = Connections::new().map_err(|error| Error::Host(error.to_string()))?;
        let connections = Arc::new(connections);
        let demands = signatures::demands(trust.policy.as_deref(), &name)?;
        let open = |place| {
            let (connections, given_up) = (Arc::clone(&connections), given_up.clone());
            Repository::new(place, trust, connections, given_up).map(Arc::new)
        };
        let places = mirrors::places(&trust.registries()?, &name)?.into_iter().map(open);
        let places = places.collect::<Result<_, _>>()?;
        Ok(Self { name, demands, places, chosen: OnceLock::new() })
    }

    /// The manifest or index of the name, of at most this many bytes, and its media type as the registry says. The first
    /// place that has it is where the rest comes from.
    pub fn root(&self, max_bytes: u64) -> Result<(Vec<u8>, Option<String>), Error> {
        let mut errors = Vec::new();
        for place in &self.places {
            tracing::debug!("{} is asked for at {}", self.name, place.host());
            match place.manifest(self.name.version(), max_bytes) {
                Ok(manifest) => {
                    self.check(place, &manifest.0)?;
                    let _ = self.chosen.set(Arc::clone(place));
                    return Ok(manifest);
                }
                Err(Error::GivenUp) => return Err(Error::GivenUp),
                Err(error) => errors.push(error),
            }
        }
        Err(if errors.len() == 1 { errors.remove(0) } else { Error::Everywhere(errors) })
    }

    /// Another manifest of at most this many bytes.
    pub fn manifest(&self, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>, Error> {
        self.repository()?.manifest(digest.as_str(), max_bytes).map(|(document, _)| document)
    }

    /// A short blob.
    pub(crate) fn document(&self, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>, Error> {
        self.repository()?.blob(digest.as_str(), "configuration", max_bytes)
    }

    /// The bytes of a blob, as long as this lives. Where its connection breaks, the next one goes on from there.
    pub fn blob(&self, digest: &Digest) -> Result<Box<dyn Read + Send>, Error> {
        Ok(Box::new(Body::open(Arc::clone(self.repository()?), digest.to_string())?))
    }

    /// Whether it has the signatures that this host's policy demands.
    fn check(&self, place: &Repository, manifest: &[u8]) -> Result<(), Error> {
        if !self.demands.any() {
            return Ok(());
        }
        let digest = Digest::of_content(manifest);
        let listed = match place.manifest(&signatures::tag(&digest), MAX_LIST_BYTES) {
            Ok((listed, _)) => signatures::listed(&listed),
            Err(Error::NotFound { .. }) => Vec::new(),
            Err(error) => return Err(error),
        };
        let signature = |(blob, signature): (Digest, String)| {
            let payload = place.blob(blob.as_str(), "signature", MAX_PAYLOAD_BYTES)?;
            Ok(Signature { payload, signature })
        };
        let signatures = listed.into_iter().map(signature).collect::<Result<Vec<_>, Error>>()?;
        self.demands.met(&self.name, &digest, &signatures)
    }

    fn repository(&self) -> Result<&Arc<Repository>, Error> {
        let unasked = || Error::Host("nothing was asked for its manifest".to_owned());
        self.chosen.get().ok_or_else(unasked)
    }
}
