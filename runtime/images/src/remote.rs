//! Images from elsewhere, document by document and layer by layer, straight into the store.
//!
//! A remote is never believed: documents and layers must have their digests, and the lengths that were announced for
//! them. Not here: talking to a remote (the `registry` crate).

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::error::LayerError;
use crate::layer::Converted;
use crate::manifest::{self, Document, MAX_DOCUMENT_BYTES, PlannedImage, PlannedLayer, Source};
use crate::reference::check;
use crate::space::check_space;
use crate::store::{Room, now};
use crate::{Digest, Error, Imported, Progress, Result, Store};

/// Layers that are fetched at the same time.
const PARALLEL_LAYERS: usize = 3;

/// A place that an image can be fetched from. **Seam**: a registry is one.
pub trait Remote: Sync {
    /// The manifest or index of the image's name, of at most this many bytes, and the media type that the remote
    /// gives it.
    fn manifest(&self, max_bytes: u64) -> Result<(Vec<u8>, Option<String>)>;
    /// A document of at most this many bytes.
    fn document(&self, kind: Document, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>>;
    /// The bytes of a layer.
    fn layer(&self, digest: &Digest) -> Result<Box<dyn Read + Send>>;
}

impl Store {
    /// Stores the remote's image under the tag `reference`. If `wanted` is given, the image must have that digest.
    pub fn fetch(
        &self,
        reference: &str,
        remote: &dyn Remote,
        wanted: Option<&Digest>,
        progress: &dyn Progress,
    ) -> Result<Imported> {
        check(reference)?;
        let fetched = self.fetch_image(reference, remote, wanted, progress);
        // The tag's former image may not be needed any more, and the layers of a failed pull are not.
        let collected = self.collect();
        let fetched = fetched?;
        collected?;
        Ok(fetched)
    }

    fn fetch_image(
        &self,
        reference: &str,
        remote: &dyn Remote,
        wanted: Option<&Digest>,
        progress: &dyn Progress,
    ) -> Result<Imported> {
        let _writing = self.lock_shared()?;
        progress.step(&format!("manifest of {reference}"), None);
        let (root, media_type) = remote.manifest(MAX_DOCUMENT_BYTES)?;
        let digest = Digest::of_content(&root);
        if let Some(wanted) = wanted.filter(|wanted| **wanted != digest) {
            return Err(wrong(reference, format!("what came for {wanted} has the digest {digest}")));
        }
        // The document's own media type is covered by its digest, the remote's is not.
        let media_type = manifest::media_type(&root).or(media_type);
        let size = root.len() as u64;
        let source = Fetched { reference, remote, root: (digest.clone(), root), lengths: Mutex::default() };
        let mut plan =
            manifest::named_image(&source, media_type, &digest, size).map_err(|error| match error {
                // Inside the documents an image is known by its digest only.
                Error::Architecture { found, wanted, .. } => {
                    Error::Architecture { reference: reference.to_owned(), found, wanted }
                }
                other => other,
            })?;
        if plan.layers.is_empty() {
            return Err(wrong(reference, "its image has no layers".to_owned()));
        }
        plan.names = vec![reference.to_owned()];
        let lengths = source.lengths.into_inner().unwrap_or_else(PoisonError::into_inner);
        let total = lengths.values().fold(0, |sum: u64, len| sum.saturating_add(*len));
        check_space(&self.tmp(), self.missing(&plan, &lengths)?, format!("image {reference}"))?;
        progress.step(&format!("{} layers of {reference}", plan.layers.len()), Some(total));
        // Each of the layers that are fetched together may use all the room that is left.
        let room = Mutex::new(self.room());
        let layers = self.fetch_layers(reference, remote, &plan, &lengths, &room, progress)?;
        let mut room = room.into_inner().unwrap_or_else(PoisonError::into_inner);
        self.save(plan, "registry".to_owned(), &layers, &mut room)
    }

    /// Bytes of the layers that are not here yet. Unpacked they hardly need less.
    fn missing(&self, plan: &PlannedImage, lengths: &HashMap<Digest, u64>) -> Result<u64> {
        let mut bytes = 0_u64;
        for layer in &plan.layers {
            if self.known_layer(&layer.diff_id)?.is_none() {
                let len = layer.blob.as_ref().and_then(|blob| lengths.get(blob));
                bytes = bytes.saturating_add(len.copied().unwrap_or_default());
            }
        }
        Ok(bytes)
    }

    /// Waits until no other process fetches this layer.
    fn right_to_fetch(&self, layer: &PlannedLayer) -> Result<Fetching> {
        let path = self.tmp().join(format!("fetching-{}", layer.diff_id.hex()));
        let lock = File::options().write(true).create(true).truncate(false).open(&path);
        let lock = lock.and_then(|lock| waiting::lock(lock, &self.given_up)).map_err(Error::io(&path))?;
        Ok(Fetching { path, _lock: lock })
    }

    /// Fetches several layers at a time. After an error no more are begun, and those under way end first.
    fn fetch_layers(
        &self,
        reference: &str,
        remote: &dyn Remote,
        plan: &PlannedImage,
        lengths: &HashMap<Digest, u64>,
        room: &Mutex<Room>,
        progress: &dyn Progress,
    ) -> Result<Vec<(Digest, Converted)>> {
        let one = |layer: &PlannedLayer| -> Result<Converted> {
            let known = |blob: &Digest| Some((blob.clone(), *lengths.get(blob)?));
            let blob = layer.blob.as_ref().and_then(known);
            let no_blob = || wrong(reference, format!("layer {} has no digest", layer.diff_id));
            let (blob, len) = blob.ok_or_else(no_blob)?;
            if let Some(known) = self.known_layer(&layer.diff_id)? {
                progress.advance(len);
                return Ok(known);
            }
            // One process fetches a layer, the others wait for it.
            let fetching = self.right_to_fetch(layer)?;
            if let Some(known) = self.known_layer(&layer.diff_id)? {
                progress.advance(len);
                return Ok(known);
            }
            // The announced length is the most that is read.
            let bytes = remote.layer(&blob).map_err(|error| of_layer(reference, layer, error))?.take(len);
            let mut allowed = locked(room).clone();
            let converted = self.new_layer(reference, layer, bytes, &mut allowed, Some(now()), progress)?;
            locked(room).spend(converted.len);
            fetching.end();
            Ok(converted)
        };
        let work = Mutex::new((plan.layers.iter().enumerate(), Vec::new()));
        std::thread::scope(|scope| {
            for _ in 0..PARALLEL_LAYERS.min(plan.layers.len()) {
                scope.spawn(|| {
                    loop {
                        let Some((index, layer)) = locked(&work).0.next() else { return };
                        let result = one(layer).map(|converted| (layer.diff_id.clone(), converted));
                        let mut work = locked(&work);
                        if result.is_err() {
                            work.0 = [].iter().enumerate();
                        }
                        work.1.push((index, result));
                    }
                });
            }
        });
        let (_, mut done) = work.into_inner().unwrap_or_else(PoisonError::into_inner);
        done.sort_by_key(|(index, _)| *index);
        done.into_iter().map(|(_, result)| result).collect()
    }
}

/// The right to fetch one layer, as long as it is held.
struct Fetching {
    path: PathBuf,
    _lock: File,
}

impl Fetching {
    /// Ends the fetching of a layer that is there now: waiting processes see it, and later ones find no lock.
    fn end(self) {
        // A file that stays is removed with other garbage.
        let _ = fs::remove_file(&self.path);
    }
}

/// A remote's documents, including its root.
struct Fetched<'a> {
    reference: &'a str,
    remote: &'a dyn Remote,
    root: (Digest, Vec<u8>),
    /// The lengths of the layers that the documents name.
    lengths: Mutex<HashMap<Digest, u64>>,
}

impl Source for Fetched<'_> {
    fn document(&self, kind: Document, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>> {
        if *digest == self.root.0 {
            return Ok(self.root.1.clone());
        }
        self.remote.document(kind, digest, max_bytes)
    }

    fn layer(&self, digest: &Digest, len: u64) -> Result<String> {
        locked(&self.lengths).insert(digest.clone(), len);
        Ok(digest.to_string())
    }

    fn error(&self, why: String) -> Error {
        wrong(self.reference, why)
    }
}

/// Adds the layer to an error, whether the layer never came or broke off.
fn of_layer(reference: &str, layer: &PlannedLayer, error: Error) -> Error {
    match error {
        Error::Pull { source, .. } => Error::Layer {
            reference: reference.to_owned(),
            layer: layer.diff_id.clone(),
            source: LayerError::Read(io::Error::other(source)),
        },
        other => other,
    }
}

fn wrong(reference: &str, why: String) -> Error {
    Error::Remote { reference: reference.to_owned(), why }
}

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
