//! The image store: `<cache>/images`.
//!
//! ```text
//! metadata.db                     records of images
//! reserve                         blocks kept back for a full disk
//! blobs/sha256_<hex>.erofs        layers, by diff id
//! tmp/                            files being written
//! lock                            held shared to write blobs, exclusively to delete any
//! ```
//!
//! A layer's file appears by a rename, complete and synced; an image appears by one transaction. While nobody writes, a
//! file in `tmp`, or one in `blobs` that no image has, is therefore garbage of an interrupted import, and the next import
//! that finds the lock free deletes it. Not here: archives (`manifest`), the conversion of a layer (`layer`).

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::{SystemTime, UNIX_EPOCH};

use tempfile::NamedTempFile;
use waiting::CancellationToken;

use crate::archive::Archive;
use crate::cache::{make_cache, make_directory};
use crate::collect::Collected;
use crate::error::LayerError;
use crate::layer::{self, Converted, Limits};
use crate::manifest::{self, PlannedImage, PlannedLayer};
use crate::metadata::{Metadata, Record, StoredLayer, make_private};
use crate::reference::{check, normalized};
use crate::space::{LayerFile, check_space};
use crate::stream::{Broken, Digests};
use crate::{
    Digest, Error, Form, Image, ImageConfig, ImageSummary, Layer, Progress, Result, builtin, stream,
};

/// The images kept on this host. Any number of processes may use one store at the same time.
pub struct Store {
    pub(crate) root: PathBuf,
    pub(crate) metadata: Metadata,
    puller: Option<Box<dyn Puller>>,
    pub(crate) given_up: CancellationToken,
    pub(crate) limits: Limits,
}

/// A way to get an image that the store does not have. **Seam**: registry pulls are one implementation.
pub trait Puller: Send + Sync {
    /// Stores the image of `reference` under that tag.
    fn pull(&self, store: &Store, reference: &str, progress: &dyn Progress) -> Result<Imported>;
}

/// The condition for asking a registry.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Pull {
    /// The registry is asked for an image that the store does not have.
    #[default]
    Missing,
    /// The registry is asked in any case; parts that have not changed are not fetched again.
    Always,
    /// The registry is never asked.
    Never,
}

impl FromStr for Pull {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        match text {
            "missing" => Ok(Self::Missing),
            "always" => Ok(Self::Always),
            "never" => Ok(Self::Never),
            _ => Err("it may be missing, always, never".to_owned()),
        }
    }
}

/// The source of an image archive.
pub enum ImportSource<'a> {
    /// A docker-archive, an OCI archive or the tar of a root file system; or the directory of an OCI layout or of a
    /// root file system.
    Path(&'a Path),
    /// An open archive, such as standard input; read in place when it can seek, else through a temporary file.
    File(File),
    /// Any other stream of an archive.
    Reader(&'a mut dyn Read),
}

/// The result of an import.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Imported {
    /// The summary of every tag that was stored.
    pub stored: Vec<ImageSummary>,
    /// The image; the first one of an archive that holds several.
    pub image: Image,
}

impl Imported {
    /// Every tag that was stored.
    pub fn tags(&self) -> impl Iterator<Item = &str> {
        self.stored.iter().map(|summary| summary.tag.as_str())
    }

    /// Bytes of the image's layers.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.image.layers.iter().map(|layer| layer.len).sum()
    }
}

impl Store {
    /// Opens the store below the cache directory `cache`, and makes it if there is none.
    pub fn open(cache: &Path) -> Result<Self> {
        Self::open_until(cache, CancellationToken::new())
    }

    /// Opens the store as [`Store::open`] does. Waits for other processes and for packages, here and later, end at
    /// once when `given_up` is cancelled.
    pub fn open_until(cache: &Path, given_up: CancellationToken) -> Result<Self> {
        make_cache(cache).map_err(Error::io(cache))?;
        let root = cache.join("images");
        make_directory(&root).map_err(Error::io(&root))?;
        // The content of images is private.
        make_private(&root)?;
        for dir in ["blobs", "tmp"] {
            let dir = root.join(dir);
            fs::create_dir_all(&dir).map_err(Error::io(&dir))?;
            // The store deletes unknown files there, so a link to another place must not be followed.
            if !fs::symlink_metadata(&dir).map_err(Error::io(&dir))?.is_dir() {
                return Err(Error::io(&dir)(io::ErrorKind::NotADirectory.into()));
            }
        }
        let metadata = Metadata::open(&root.join("metadata.db"), &given_up)?;
        let store = Self { root, metadata, puller: None, given_up, limits: Limits::default() };
        store.repair()?;
        Ok(store)
    }

    /// The same store, with a way to get images that it does not have.
    #[must_use]
    pub fn with_puller(mut self, puller: Box<dyn Puller>) -> Self {
        self.puller = Some(puller);
        self
    }

    /// The image stored under `reference`: by its exact text, or else in normal form (`busybox` is `busybox:latest`).
    pub fn get(&self, reference: &str) -> Result<Option<Image>> {
        check(reference)?;
        let Some(record) = self.metadata.image(reference)? else { return Ok(None) };
        let image = self.image(record);
        for layer in &image.layers {
            if !fs::metadata(&layer.path).is_ok_and(|file| file.len() == layer.len) {
                return Err(Error::LayerLost { reference: image.reference, layer: layer.digest.clone() });
            }
        }
        Ok(Some(image))
    }

    /// The summary of `reference`, looked up as by [`Store::get`].
    pub fn summary(&self, reference: &str) -> Result<Option<ImageSummary>> {
        check(reference)?;
        Ok(self.metadata.image(reference)?.map(|record| record.summary))
    }

    /// Gets the image of `reference` with the puller, even if the store has it.
    pub fn pull(&self, reference: &str, progress: &dyn Progress) -> Result<Image> {
        check(reference)?;
        match &self.puller {
            Some(puller) => Ok(puller.pull(self, reference, progress)?.image),
            None => Err(Error::NotFound(reference.to_owned())),
        }
    }

    /// The image of `reference`: from the store, or a built-in one, or from the puller.
    pub fn resolve(&self, reference: &str, progress: &dyn Progress) -> Result<Image> {
        let stored = match self.get(reference) {
            // A built-in image can be made again.
            Err(Error::LayerLost { .. }) if builtin::is_one(&normalized(reference)) => None,
            other => other?,
        };
        if let Some(image) = stored {
            return Ok(image);
        }
        if builtin::is_one(&normalized(reference)) {
            return builtin::make(self, progress);
        }
        self.pull(reference, progress)
    }

    /// Every stored image, those of registries last, each kind by tag.
    pub fn list(&self) -> Result<Vec<ImageSummary>> {
        self.metadata.images()
    }

    /// Gives an image one more tag, which may have stood for another image.
    pub fn tag(&self, reference: &str, tag: &str) -> Result<ImageSummary> {
        check(reference)?;
        check(tag)?;
        let record = self.metadata.image(reference)?;
        let mut record = record.ok_or_else(|| Error::UnknownTag(reference.to_owned()))?;
        record.summary = ImageSummary { tag: tag.to_owned(), source: "tag".to_owned(), ..record.summary };
        self.metadata.save(&[tag.to_owned()], &record)?;
        self.collect()?;
        Ok(record.summary)
    }

    /// Removes a tag, and the layers that no tag needs any more.
    pub fn remove(&self, tag: &str) -> Result<Collected> {
        check(tag)?;
        if !self.metadata.remove(tag)? {
            return Err(Error::UnknownTag(tag.to_owned()));
        }
        self.collect()
    }

    /// Stores the image of an archive under `tag`, or else every image of it under the names in the archive.
    pub fn import(
        &self,
        source: ImportSource<'_>,
        tag: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Imported> {
        self.import_as(source, tag, None, progress).map(|(imported, _)| imported)
    }

    /// Imports as [`Store::import`] does, and returns the form that the source was taken for. A root file system
    /// needs a tag; `config` is its programs' configuration, which an image brings along.
    pub fn import_as(
        &self,
        source: ImportSource<'_>,
        tag: Option<&str>,
        config: Option<ImageConfig>,
        progress: &dyn Progress,
    ) -> Result<(Imported, Form)> {
        tag.map_or(Ok(()), check)?;
        let imported = self.import_source(source, tag, config, progress);
        // Tags that were in use before may have left layers behind, and so may an import that failed halfway.
        let collected = self.collect();
        let imported = imported?;
        collected?;
        Ok(imported)
    }

    fn import_source(
        &self,
        source: ImportSource<'_>,
        tag: Option<&str>,
        config: Option<ImageConfig>,
        progress: &dyn Progress,
    ) -> Result<(Imported, Form)> {
        let _writing = self.lock_shared()?;
        let archive = Archive::open(source, &self.root.join("tmp"), progress)?;
        let form = manifest::form(&archive)?;
        let imported = match (form, config) {
            (Form::RootTar | Form::RootDirectory, config) => {
                self.import_root(&archive, form, tag, config.unwrap_or_default(), progress)?
            }
            (_, None) => self.import_images(&archive, form, tag, progress)?,
            (_, Some(_)) => return Err(archive.error(format!("is {form}, which says itself how to run it"))),
        };
        Ok((imported, form))
    }

    fn import_images(
        &self,
        archive: &Archive,
        form: Form,
        tag: Option<&str>,
        progress: &dyn Progress,
    ) -> Result<Imported> {
        let plans = named(archive, manifest::plans(archive, form)?, tag)?;
        let mut room = self.room();
        let mut imported: Option<Imported> = None;
        for plan in plans {
            if plan.layers.is_empty() {
                return Err(archive.error("its image has no layers"));
            }
            let one = self.take(archive, plan, &mut room, progress)?;
            match &mut imported {
                Some(imported) => imported.stored.extend(one.stored),
                None => imported = Some(one),
            }
        }
        imported.ok_or_else(|| archive.error("it holds no image"))
    }

    /// Stores one image of an archive.
    fn take(
        &self,
        archive: &Archive,
        plan: PlannedImage,
        room: &mut Room,
        progress: &dyn Progress,
    ) -> Result<Imported> {
        let reference = plan.names.first().cloned().unwrap_or_default();
        let mut layers = Vec::new();
        for (index, layer) in plan.layers.iter().enumerate() {
            let member = archive.member(&layer.member)?;
            progress.step(&format!("layer {} of {}", index + 1, plan.layers.len()), Some(member.len()));
            if self.known_layer(&layer.diff_id)?.is_none() {
                let what = format!("image {reference}, layer {}", layer.diff_id);
                // The unpacked size is not known yet, but hardly less than the packed one.
                check_space(&self.tmp(), member.len(), what)?;
            }
            layers.push((layer.diff_id.clone(), self.layer(&reference, layer, member, room, progress)?));
        }
        let source = "import".to_owned();
        self.save(plan, source, &layers, room)
    }

    /// Records an image whose layers are all stored.
    pub(crate) fn save(
        &self,
        plan: PlannedImage,
        source: String,
        layers: &[(Digest, Converted)],
        room: &mut Room,
    ) -> Result<Imported> {
        // No layer below an opaque root is ever seen.
        let lowest = layers.iter().rposition(|(_, converted)| converted.opaque_root).unwrap_or(0);
        let tag = plan.names.first().cloned().unwrap_or_default();
        let layers = self.stacked(&tag, layers.get(lowest..).unwrap_or_default(), room)?;
        let size = layers.iter().map(|layer| layer.len).sum();
        let summary = ImageSummary { tag, source, size, created: now(), digest: plan.digest };
        let record = Record { summary, config: plan.config, layers };
        self.metadata.save(&plan.names, &record)?;
        let stored =
            plan.names.into_iter().map(|tag| ImageSummary { tag, ..record.summary.clone() }).collect();
        Ok(Imported { stored, image: self.image(record) })
    }

    /// The bytes that one import or pull may write.
    pub(crate) fn room(&self) -> Room {
        Room { left: self.limits.import_bytes, limit: self.limits.import_bytes }
    }

    /// Finds a layer whose file is stored.
    pub(crate) fn known_layer(&self, diff_id: &Digest) -> Result<Option<Converted>> {
        let known = self.metadata.blob(diff_id)?;
        let path = self.blob_path(diff_id);
        Ok(known.filter(|known| fs::metadata(&path).is_ok_and(|file| file.len() == known.len)))
    }

    /// Makes sure that a layer's file is stored. The caller holds the lock, shared.
    pub(crate) fn layer(
        &self,
        reference: &str,
        layer: &PlannedLayer,
        blob: impl Read + Send,
        room: &mut Room,
        progress: &dyn Progress,
    ) -> Result<Converted> {
        match self.known_layer(&layer.diff_id)? {
            Some(known) => Ok(known),
            None => self.new_layer(reference, layer, blob, room, None, progress),
        }
    }

    /// Makes a layer's file. The caller holds the lock, shared.
    pub(crate) fn new_layer(
        &self,
        reference: &str,
        layer: &PlannedLayer,
        blob: impl Read + Send,
        room: &mut Room,
        pending_since: Option<u64>,
        progress: &dyn Progress,
    ) -> Result<Converted> {
        let (file, output) = self.begin_layer()?;
        let limits = Limits { bytes: room.limit(self.limits.bytes), ..self.limits };
        let converted = convert(layer, blob, output, limits, progress).map_err(|source| Error::Layer {
            reference: reference.to_owned(),
            layer: layer.diff_id.clone(),
            source: if limits.bytes < self.limits.bytes { room.named(source) } else { source },
        })?;
        room.spend(converted.len);
        self.keep_layer(file, &layer.diff_id, converted, pending_since)?;
        Ok(converted)
    }

    /// An unfinished layer's file, and its writer.
    pub(crate) fn begin_layer(&self) -> Result<(NamedTempFile, LayerFile)> {
        let tmp = self.tmp();
        let file = tempfile::Builder::new().prefix("layer-").tempfile_in(&tmp).map_err(Error::io(&tmp))?;
        let output = LayerFile::new(file.as_file().try_clone().map_err(Error::io(&tmp))?);
        Ok((file, output))
    }

    /// Names the finished file of a layer.
    pub(crate) fn keep_layer(
        &self,
        file: NamedTempFile,
        name: &Digest,
        converted: Converted,
        pending_since: Option<u64>,
    ) -> Result<()> {
        let path = self.blob_path(name);
        readable(file.as_file()).and_then(|()| file.as_file().sync_all()).map_err(Error::io(file.path()))?;
        file.persist(&path).map_err(|error| Error::Io { path, source: error.error })?;
        sync_directory(&self.root.join("blobs"))?;
        self.metadata.save_blob(name, converted, pending_since)
    }

    /// Holds off deletions while layer files are written that no image has yet.
    pub(crate) fn lock_shared(&self) -> Result<File> {
        let lock = waiting::lock_shared(self.lock_file("lock")?, &self.given_up);
        lock.map_err(Error::io(self.root.join("lock")))
    }

    /// A lock file of the store, not yet locked.
    pub(crate) fn lock_file(&self, name: &str) -> Result<File> {
        let path = self.root.join(name);
        File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&path)
            .map_err(Error::io(path))
    }

    /// The directory for unfinished files.
    pub(crate) fn tmp(&self) -> PathBuf {
        self.root.join("tmp")
    }

    /// The directory of the host's package lists, which the kernel store uses too.
    pub(crate) fn package_lists(&self) -> PathBuf {
        self.root.with_file_name("apt")
    }

    fn image(&self, record: Record) -> Image {
        let layer = |StoredLayer { file, diff_id, len }: StoredLayer| {
            let path = self.blob_path(&file);
            Layer { digest: diff_id, path, len }
        };
        Image {
            reference: record.summary.tag,
            digest: record.summary.digest,
            config: record.config,
            layers: record.layers.into_iter().map(layer).collect(),
        }
    }

    pub(crate) fn blob_path(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs").join(blob_name(digest))
    }
}

/// The bytes that may still be written.
#[derive(Clone)]
pub(crate) struct Room {
    left: u64,
    limit: u64,
}

impl Room {
    pub(crate) fn spend(&mut self, bytes: u64) {
        self.left = self.left.saturating_sub(bytes);
    }

    /// The most bytes of one file.
    pub(crate) fn limit(&self, bytes: u64) -> u64 {
        bytes.min(self.left)
    }

    /// The error to report for a layer that reached the limit of what was left.
    pub(crate) fn named(&self, error: LayerError) -> LayerError {
        match error {
            LayerError::Limit { what: "bytes in a layer", .. }
            | LayerError::Write(erofs::Error::ImageSize { .. }) => {
                LayerError::Limit { what: "bytes in the layers of an import", limit: self.limit }
            }
            other => other,
        }
    }
}

/// The images to store, each with its tags.
fn named(archive: &Archive, mut plans: Vec<PlannedImage>, tag: Option<&str>) -> Result<Vec<PlannedImage>> {
    let Some(tag) = tag else {
        for plan in &plans {
            plan.names.iter().try_for_each(|name| check(name))?;
            if plan.names.is_empty() {
                return Err(archive.error(format!("image {} has no name; give a tag", plan.digest)));
            }
        }
        return Ok(plans);
    };
    if plans.len() > 1 {
        let matching =
            |plan: &PlannedImage| plan.names.iter().any(|name| normalized(name) == normalized(tag));
        let names: Vec<String> = plans.iter().flat_map(|plan| plan.names.clone()).take(10).collect();
        plans.retain(matching);
        if plans.len() != 1 {
            let names = names.join(", ");
            return Err(archive.error(format!("several images ({names}), none of them {tag}; give no tag")));
        }
    }
    for plan in &mut plans {
        plan.names = vec![tag.to_owned()];
    }
    Ok(plans)
}

/// Converts a layer, and verifies its digest.
fn convert(
    layer: &PlannedLayer,
    blob: impl Read + Send,
    output: LayerFile,
    limits: Limits,
    progress: &dyn Progress,
) -> std::result::Result<Converted, LayerError> {
    let uuid = uuid(&layer.diff_id);
    let other = |digests: &Digests| match &layer.blob {
        Some(expected) if *expected != digests.blob => {
            Some(LayerError::Blob { expected: expected.clone(), actual: digests.blob.clone() })
        }
        _ if layer.diff_id != digests.diff_id => Some(LayerError::DiffId(digests.diff_id.clone())),
        _ => None,
    };
    match stream::run(blob, limits.bytes, progress, |tar| layer::convert(tar, output, uuid, limits)) {
        Ok(((_, converted), digests)) => other(&digests).map_or(Ok(converted), Err),
        // Wrong bytes are reported as such, whatever else is wrong with them.
        Err(Broken { error, digests }) => Err(digests.as_ref().and_then(other).unwrap_or(error)),
    }
}

/// A UUID of the layer's digest. RFC 9562 §5.8: "UUIDv8 provides a format for experimental or vendor-specific use
/// cases".
pub(crate) fn uuid(digest: &Digest) -> [u8; 16] {
    let mut uuid = [0; 16];
    for (byte, hex) in uuid.iter_mut().zip(digest.hex().as_bytes().chunks(2)) {
        *byte = std::str::from_utf8(hex)
            .ok()
            .and_then(|hex| u8::from_str_radix(hex, 16).ok())
            .unwrap_or_default();
    }
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs()
}

pub(crate) fn blob_name(digest: &Digest) -> String {
    format!("{}.erofs", digest.as_str().replace(':', "_"))
}

/// Temporary files start out private; layers are for everyone who may use the store.
fn readable(file: &File) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt;
    file.set_permissions(fs::Permissions::from_mode(0o444))
}

fn sync_directory(path: &Path) -> Result<()> {
    File::open(path).and_then(|directory| directory.sync_all()).map_err(Error::io(path))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Quiet;
    use crate::fixtures::{ImageFixture, LayerBuilder};

    #[test]
    fn what_is_elsewhere_is_not_collected() {
        for dir in ["blobs", "tmp"] {
            let (cache, elsewhere) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
            fs::write(elsewhere.path().join("mine"), "kept").unwrap();
            fs::create_dir(cache.path().join("images")).unwrap();
            std::os::unix::fs::symlink(elsewhere.path(), cache.path().join("images").join(dir)).unwrap();
            let error = Store::open(cache.path()).map(drop).unwrap_err().to_string();
            assert!(error.ends_with(&format!("images/{dir}: not a directory")), "{error}");
            assert!(elsewhere.path().join("mine").exists());
        }
    }

    #[test]
    fn an_import_writes_so_much_and_no_more() {
        let cache = tempfile::tempdir().unwrap();
        let mut store = Store::open(cache.path()).unwrap();
        let layer = |name: &str| LayerBuilder::default().file(name, 0o644, &[1; 100_000]).build();
        let archive = ImageFixture::new(["a", "b", "c"].map(layer).into()).docker_archive(&["x"]);
        let import = |store: &Store| store.import(ImportSource::Reader(&mut &*archive), None, &Quiet);
        for limit in [1, 110_000, 300_000] {
            store.limits.import_bytes = limit;
            let error = import(&store).unwrap_err().to_string();
            let expected = format!(": more than {limit} bytes in the layers of an import");
            assert!(error.ends_with(&expected), "{error}");
        }
        store.limits.import_bytes = 500_000;
        let imported = import(&store).unwrap();
        // A layer that is stored already is not written.
        store.limits.import_bytes = 0;
        assert_eq!(import(&store).unwrap(), imported);
    }
}
