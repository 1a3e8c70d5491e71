//! The pull: a registry as a remote of the image store.

use std::io::Read;

use images::{Digest, Document, Imported, Progress, Puller, Remote, Store};
use waiting::CancellationToken;

use crate::{Artifact, Error, Name, Trust};

/// Every registry that a reference may name.
#[derive(Debug, Clone)]
pub struct Registries {
    trust: Trust,
    given_up: CancellationToken,
}

impl Registries {
    /// Registries as this host knows them. Nothing is read or requested before a pull.
    #[must_use]
    pub fn new(trust: Trust) -> Self {
        Self { trust, given_up: CancellationToken::new() }
    }

    /// The same registries, with pulls that end at once when `given_up` is cancelled.
    #[must_use]
    pub fn until(self, given_up: CancellationToken) -> Self {
        Self { given_up, ..self }
    }

    /// The artifact of this name. Nothing is requested yet.
    pub fn artifact(&self, name: &Name) -> Result<Artifact, Error> {
        Artifact::new(name.clone(), &self.trust, &self.given_up)
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
        let image = Pulled { reference, artifact: self.artifact(&name).map_err(failed)? };
        store.fetch(tag, &image, wanted.as_ref(), progress)
    }
}

impl Puller for Registries {
    fn pull(&self, store: &Store, reference: &str, progress: &dyn Progress) -> images::Result<Imported> {
        self.pull_as(store, reference, reference, progress)
    }
}

struct Pulled<'a> {
    reference: &'a str,
    artifact: Artifact,
}

impl Pulled<'_> {
    fn failed(&self, error: Error) -> images::Error {
        images::Error::Pull { reference: self.reference.to_owned(), source: Box::new(error) }
    }
}

impl Remote for Pulled<'_> {
    fn manifest(&self, max_bytes: u64) -> images::Result<(Vec<u8>, Option<String>)> {
        self.artifact.root(max_bytes).map_err(|error| self.failed(error))
    }

    fn document(&self, kind: Document, digest: &Digest, max_bytes: u64) -> images::Result<Vec<u8>> {
        let document = match kind {
            Document::Manifest => self.artifact.manifest(digest, max_bytes),
            Document::Config => self.artifact.document(digest, max_bytes),
        };
        document.map_err(|error| self.failed(error))
    }

    fn layer(&self, digest: &Digest) -> images::Result<Box<dyn Read + Send>> {
        self.artifact.blob(digest).map_err(|error| self.failed(error))
    }
}
