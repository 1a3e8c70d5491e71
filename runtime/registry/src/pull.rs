//! The pull: a registry as what the store fetches from.

use std::io::Read;
use std::sync::{Arc, OnceLock};

use images::{Digest, Document, Imported, Progress, Puller, Remote, Store};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::body::Body;
use crate::client::Repository;
use crate::signatures::{Demands, MAX_LIST_BYTES, MAX_PAYLOAD_BYTES, Signature};
use crate::{Error, Name, Trust, mirrors, signatures};

/// Every registry that a reference may name.
#[derive(Debug, Clone)]
pub struct Registries {
    trust: Trust,
    given_up: Option<watch::Receiver<bool>>,
}

impl Registries {
    /// Registries as this host knows them. Nothing is read or asked before a pull.
    #[must_use]
    pub fn new(trust: Trust) -> Self {
        Self { trust, given_up: None }
    }

    /// The same, whose pulls end at once when this becomes true, or whoever could make it true is gone.
    #[must_use]
    pub fn until(self, given_up: watch::Receiver<bool>) -> Self {
        Self { given_up: Some(given_up), ..self }
    }

    /// Pulls `reference` and stores it under `tag`.
    pub fn pull_as(
        &self,
        store: &Store,
        reference: &str,
        tag: &str,
        progress: &dyn Progress,
    ) -> images::Result<Imported> {
        let failed =
            |error: Error| images::Error::Pull { reference: reference.to_owned(), source: Box::new(error) };
        let name = Name::parse(reference).map_err(|error| failed(error.into()))?;
        let wanted = name.digest().cloned();
        let runtime = runtime().map_err(failed)?;
        let demands = signatures::demands(self.trust.policy.as_deref(), &name).map_err(failed)?;
        let places = mirrors::places(&self.trust.registries_conf, &name).map_err(failed)?;
        let open =
            |place| Repository::new(place, &self.trust, runtime.handle().clone(), self.given_up.clone());
        let places = places.into_iter().map(|place| open(place).map(Arc::new)).collect::<Result<_, _>>();
        let image =
            Pulled { reference, name, demands, places: places.map_err(failed)?, chosen: OnceLock::new() };
        store.fetch(tag, &image, wanted.as_ref(), progress)
    }
}

impl Puller for Registries {
    fn pull(&self, store: &Store, reference: &str, progress: &dyn Progress) -> images::Result<Imported> {
        self.pull_as(store, reference, reference, progress)
    }
}

/// Connections live on a thread of their own, so that several layers can be read at once by threads that block.
fn runtime() -> Result<Runtime, Error> {
    // The one implementation there is: an error says that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.map_err(|error| Error::Host(error.to_string()))
}

struct Pulled<'a> {
    reference: &'a str,
    name: Name,
    /// Its signatures.
    demands: Demands,
    /// Mirrors, and then the registry itself.
    places: Vec<Arc<Repository>>,
    /// The one that has the image.
    chosen: OnceLock<Arc<Repository>>,
}

impl Pulled<'_> {
    fn failed(&self, error: Error) -> images::Error {
        images::Error::Pull { reference: self.reference.to_owned(), source: Box::new(error) }
    }

    /// The first place that has it, and what it answers.
    fn choose(&self, max_bytes: u64) -> Result<(Vec<u8>, Option<String>), Error> {
        let mut errors = Vec::new();
        for place in &self.places {
            tracing::debug!("{} is asked for at {}", self.reference, place.host());
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

    /// Whether the image has the signatures that this host's policy demands.
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

    fn repository(&self) -> images::Result<&Arc<Repository>> {
        let unasked = || self.failed(Error::Host("nothing was asked for its manifest".to_owned()));
        self.chosen.get().ok_or_else(unasked)
    }
}

impl Remote for Pulled<'_> {
    fn manifest(&self, max_bytes: u64) -> images::Result<(Vec<u8>, Option<String>)> {
        self.choose(max_bytes).map_err(|error| self.failed(error))
    }

    fn document(&self, kind: Document, digest: &Digest, max_bytes: u64) -> images::Result<Vec<u8>> {
        let repository = self.repository()?;
        let document = match kind {
            Document::Manifest => {
                repository.manifest(digest.as_str(), max_bytes).map(|(document, _)| document)
            }
            Document::Config => repository.blob(digest.as_str(), "configuration", max_bytes),
        };
        document.map_err(|error| self.failed(error))
    }

    fn layer(&self, digest: &Digest) -> images::Result<Box<dyn Read + Send>> {
        let body = Body::open(Arc::clone(self.repository()?), digest.to_string());
        Ok(Box::new(body.map_err(|error| self.failed(error))?))
    }
}
