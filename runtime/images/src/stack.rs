//! The layers of one image, each completed by those below it.
//!
//! A layer without gaps is the same in every image, as is one whose gaps make no difference: its file is named by its
//! diff id. Any other layer has a file for each chain of layers that ends with it. Not here: closing the gaps
//! (`complete`).

use std::fs::File;

use erofs::{Image, Options};

use crate::complete::{Below, MAX_LOOKUPS, complete};
use crate::error::LayerError;
use crate::layer::Converted;
use crate::metadata::StoredLayer;
use crate::store::{Room, uuid};
use crate::{Digest, Error, Result, Store};

/// A layer's file, read.
type Stored = Image<File>;

impl Store {
    /// The files of an image's layers, lowest first. The caller holds the lock, shared.
    pub(crate) fn stacked(
        &self,
        reference: &str,
        layers: &[(Digest, Converted)],
        room: &mut Room,
    ) -> Result<Vec<StoredLayer>> {
        let mut stacked: Vec<StoredLayer> = Vec::new();
        let mut below: Vec<Stored> = Vec::new();
        let last = layers.iter().rposition(|(_, converted)| converted.gaps.any());
        let mut lookups = MAX_LOOKUPS;
        for (index, (diff_id, converted)) in layers.iter().enumerate() {
            let failed =
                |source| Error::Layer { reference: reference.to_owned(), layer: diff_id.clone(), source };
            let mut layer = StoredLayer::plain(diff_id.clone(), converted.len);
            if converted.gaps.any() {
                let file = chain(stacked.iter().map(|layer| &layer.diff_id).chain([diff_id]));
                let known = self.known_layer(&file)?;
                let completed = match known {
                    Some(known) => Some(known),
                    None => {
                        let below = Below {
                            layers: &below,
                            lookups: &mut lookups,
                            metadata_bytes: self.limits.metadata_bytes,
                            given_up: &self.given_up,
                        };
                        self.completed(diff_id, *converted, below, &file, room).map_err(
                            |error| match error {
                                Failed::Layer(source) => failed(source),
                                Failed::Store(error) => error,
                            },
                        )?
                    }
                };
                if let Some(completed) = completed {
                    layer = StoredLayer { file, len: completed.len, ..layer };
                }
            }
            // Layers above the last one with gaps are not read.
            if last.is_some_and(|last| index < last) {
                below.push(self.open_layer(&layer.file, layer.len).map_err(|error| failed(error.into()))?);
            }
            stacked.push(layer);
        }
        Ok(stacked)
    }

    fn open_layer(&self, file: &Digest, len: u64) -> std::result::Result<Stored, erofs::ReadError> {
        Image::open(File::open(self.blob_path(file))?, len)
    }

    /// Makes a layer's file for its place; `None` if its own file serves.
    fn completed(
        &self,
        diff_id: &Digest,
        converted: Converted,
        below: Below<'_, File>,
        name: &Digest,
        room: &mut Room,
    ) -> std::result::Result<Option<Converted>, Failed> {
        let base = self.open_layer(diff_id, converted.len).map_err(LayerError::from)?;
        let (file, output) = self.begin_layer()?;
        let limit = room.limit(self.limits.bytes);
        let options = Options { uuid: uuid(name), max_len: limit };
        let completed = complete(&base, converted.gaps, below, output, options);
        let completed = completed.map_err(|error| match error {
            LayerError::Read(error) if waiting::is_given_up(&error) => Failed::Store(Error::GivenUp),
            error if limit < self.limits.bytes => Failed::Layer(room.named(error)),
            error => Failed::Layer(error),
        })?;
        let Some((_, completed)) = completed else { return Ok(None) };
        room.spend(completed.len);
        self.keep_layer(file, name, completed, None)?;
        Ok(Some(completed))
    }
}

/// A failure because of the layer, or of the store.
enum Failed {
    Layer(LayerError),
    Store(Error),
}

impl From<LayerError> for Failed {
    fn from(error: LayerError) -> Self {
        Self::Layer(error)
    }
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        Self::Store(error)
    }
}

/// The name of the completed file of the last of these layers.
fn chain<'a>(diff_ids: impl Iterator<Item = &'a Digest>) -> Digest {
    let mut text = String::from("layers, lowest first");
    for diff_id in diff_ids {
        text.push('\n');
        text.push_str(diff_id.as_str());
    }
    Digest::of_content(text.as_bytes())
}
