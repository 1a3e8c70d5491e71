//! An image or other artifact in a registry: the place that has it, and the check against this host's policy.
//!
//! For images this is the far side of the seam (`pull`); others read it directly. Everything is bounded here, but
//! digests are checked by the reader. Not here: the meaning of documents and blobs.

use std::io::Read;
use std::sync::{Arc, OnceLock};

use images::Digest;
use waiting::CancellationToken;
use web::Connections;

use crate::body::Body;
use crate::client::Repository;
use crate::signatures::{Demands, MAX_LIST_BYTES, MAX_PAYLOAD_BYTES, Signature};
use crate::{Error, Name, Trust, mirrors, signatures};

/// An artifact in a registry.
pub struct Artifact {
    name: Name,
    /// The signatures that the policy demands.
    demands: Demands,
    /// The mirrors, and then the registry itself.
    places: Vec<Arc<Repository>>,
    /// The place that has the artifact.
    chosen: OnceLock<Arc<Repository>>,
}

impl Artifact {
    /// The artifact of `name`. Nothing is requested yet.
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

    /// The manifest or index of the name, of at most this many bytes, and the media type that the registry gives it.
    /// Later requests go to the first place that has it.
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

    /// Another manifest, of at most this many bytes.
    pub fn manifest(&self, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>, Error> {
        self.repository()?.manifest(digest.as_str(), max_bytes).map(|(document, _)| document)
    }

    /// A short blob.
    pub(crate) fn document(&self, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>, Error> {
        self.repository()?.blob(digest.as_str(), "configuration", max_bytes)
    }

    /// The bytes of a blob, readable while this lives. After a broken connection the next one goes on from there.
    pub fn blob(&self, digest: &Digest) -> Result<Box<dyn Read + Send>, Error> {
        Ok(Box::new(Body::open(Arc::clone(self.repository()?), digest.to_string())?))
    }

    /// Checks that the artifact has the signatures that this host's policy demands.
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
