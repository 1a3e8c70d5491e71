//! The pull: a registry as what the store fetches from.

use std::io::Read;
use std::sync::Arc;

use images::{Digest, Document, Imported, Progress, Puller, Remote, Store};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;

use crate::body::Body;
use crate::client::Repository;
use crate::{Error, Name, Trust};

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

    pub(crate) fn trust(&self) -> &Trust {
        &self.trust
    }

    pub(crate) fn given_up(&self) -> Option<watch::Receiver<bool>> {
        self.given_up.clone()
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
        let version = name.version().to_owned();
        let repository = Repository::new(name, &self.trust, runtime.handle().clone(), self.given_up.clone())
            .map_err(failed)?;
        tracing::debug!("{reference} is asked for at {}", repository.host());
        let image = Pulled { reference, version, repository: Arc::new(repository) };
        store.fetch(tag, &image, wanted.as_ref(), progress)
    }
}

impl Puller for Registries {
    fn pull(&self, store: &Store, reference: &str, progress: &dyn Progress) -> images::Result<Imported> {
        self.pull_as(store, reference, reference, progress)
    }
}

/// Connections live on a thread of their own, so that several layers can be read at once by threads that block.
pub(crate) fn runtime() -> Result<Runtime, Error> {
    // The one implementation there is: an error says that it is installed already.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.map_err(|error| Error::Host(error.to_string()))
}

struct Pulled<'a> {
    reference: &'a str,
    version: String,
    repository: Arc<Repository>,
}

impl Pulled<'_> {
    fn failed(&self, error: Error) -> images::Error {
        images::Error::Pull { reference: self.reference.to_owned(), source: Box::new(error) }
    }
}

impl Remote for Pulled<'_> {
    fn manifest(&self, max_bytes: u64) -> images::Result<(Vec<u8>, Option<String>)> {
        self.repository.manifest(&self.version, max_bytes).map_err(|error| self.failed(error))
    }

    fn document(&self, kind: Document, digest: &Digest, max_bytes: u64) -> images::Result<Vec<u8>> {
        let document = match kind {
            Document::Manifest => {
                self.repository.manifest(digest.as_str(), max_bytes).map(|(document, _)| document)
            }
            Document::Config => self.repository.blob(digest.as_str(), max_bytes),
        };
        document.map_err(|error| self.failed(error))
    }

    fn layer(&self, digest: &Digest) -> images::Result<Box<dyn Read + Send>> {
        let body = Body::open(Arc::clone(&self.repository), digest.to_string());
        Ok(Box::new(body.map_err(|error| self.failed(error))?))
    }
}
