//! An image of a root file system: one layer with everything in a tar or a directory, and a configuration of our own.
//!
//! The layer's digest is known when its last byte has been read, so its file gets its name last. Not here: reading a
//! directory as a tar (`walk`), converting a layer (`layer`), telling the forms apart (`manifest`).

use std::fmt;
use std::io::Read;

use crate::archive::Archive;
use crate::error::LayerError;
use crate::layer::{self, Converted, Limits};
use crate::manifest::{PlannedImage, fits, host_architecture};
use crate::space::check_space;
use crate::{Digest, Error, ImageConfig, Imported, Progress, Result, Store, stream};

/// The form of an import's source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// An archive of `docker save`.
    DockerArchive,
    /// An OCI layout, as a directory or in an archive.
    OciLayout,
    /// A tar of files.
    RootTar,
    /// A directory of files.
    RootDirectory,
}

impl fmt::Display for Form {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::DockerArchive => "a docker-archive",
            Self::OciLayout => "an OCI layout",
            Self::RootTar => "a root file system's tar",
            Self::RootDirectory => "a root file system's directory",
        })
    }
}

impl Store {
    /// Stores a root file system as an image. The caller holds the lock, shared.
    pub(crate) fn import_root(
        &self,
        archive: &Archive,
        form: Form,
        tag: Option<&str>,
        config: ImageConfig,
        progress: &dyn Progress,
    ) -> Result<Imported> {
        let tag = tag.ok_or_else(|| archive.error(format!("is {form}, which has no name; give a tag")))?;
        if !fits(&config) {
            return Err(archive.error("the configuration is too long"));
        }
        let (tar, len) = archive.whole()?;
        progress.step("layer 1 of 1", len);
        check_space(&self.tmp(), len.unwrap_or_default(), format!("image {tag}"))?;
        let (diff_id, converted) = self.unnamed_layer(tag, form, tar, progress)?;
        let plan = PlannedImage {
            names: vec![tag.to_owned()],
            digest: digest(&config, &diff_id),
            config,
            layers: Vec::new(),
        };
        let mut room = self.room();
        room.spend(converted.len);
        self.save(plan, "import".to_owned(), &[(diff_id, converted)], &mut room)
    }

    /// Makes the file of a layer whose digest is not known beforehand.
    fn unnamed_layer(
        &self,
        reference: &str,
        form: Form,
        tar: impl Read + Send,
        progress: &dyn Progress,
    ) -> Result<(Digest, Converted)> {
        let (file, output) = self.begin_layer()?;
        let limits = Limits { bytes: self.limits.bytes.min(self.limits.import_bytes), ..self.limits };
        // Nobody looks up a layer by the UUID in its file, which is written before the digest is known.
        let uuid = [0; 16];
        let streamed =
            stream::run(tar, limits.bytes, progress, |tar| layer::convert(tar, output, uuid, limits));
        let root_error = |source: LayerError| Error::Root { reference: reference.to_owned(), form, source };
        let ((_, converted), digests) = streamed.map_err(|broken| root_error(broken.error))?;
        let digest = digests.diff_id;
        if let Some(known) = self.known_layer(&digest)? {
            return Ok((digest, known));
        }
        self.keep_layer(file, &digest, converted, None)?;
        Ok((digest, converted))
    }
}

/// The digest of the configuration that the image would have in an archive.
fn digest(config: &ImageConfig, diff_id: &Digest) -> Digest {
    let config = serde_json::json!({
        "architecture": host_architecture(),
        "os": "linux",
        "config": {
            "User": config.user,
            "WorkingDir": config.working_dir,
            "Entrypoint": config.entrypoint,
            "Cmd": config.cmd,
            "Env": config.env,
        },
        "rootfs": { "type": "layers", "diff_ids": [diff_id.as_str()] },
    });
    Digest::of_content(config.to_string().as_bytes())
}
