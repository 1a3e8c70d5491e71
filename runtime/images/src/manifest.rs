//! The documents of an archive or a registry: `manifest.json` of docker-archives, `index.json` of OCI layouts.
//!
//! Every document is bounded before it is parsed, and every digest is checked before it becomes a member's name.
//! Layers are only named here; they are verified when they are read.

use serde::Deserialize;

use crate::archive::Archive;
use crate::{Digest, Error, Form, ImageConfig, Result};

/// Largest manifest, index or configuration.
pub(crate) const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

/// Most manifests, indexes and configurations of one archive.
const MAX_DOCUMENTS: u32 = 1024;

/// Most bytes of all these documents.
const MAX_DOCUMENTS_BYTES: u64 = 64 << 20;

/// Most bytes of memory for the kept part of a configuration: far more than a program could be started with.
const MAX_CONFIG_COST: usize = 256 << 10;

/// Bytes of memory for a word of a configuration beside its own.
const WORD_COST: usize = 32;

/// Most layers of one image: each is a partition of one disk, and Linux does not look at more.
pub(crate) const MAX_LAYERS: usize = 255;

/// Most images of one archive.
const MAX_IMAGES: usize = 256;

/// Most names of all images of one archive.
const MAX_NAMES: usize = 1024;

/// Indexes within indexes.
const MAX_DEPTH: u32 = 3;

/// An image of an archive that is not converted yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedImage {
    /// The names that the archive gives the image.
    pub(crate) names: Vec<String>,
    pub(crate) digest: Digest,
    pub(crate) config: ImageConfig,
    pub(crate) layers: Vec<PlannedLayer>,
}

/// A layer of an archive that is not converted yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PlannedLayer {
    pub(crate) diff_id: Digest,
    /// The member's name.
    pub(crate) member: String,
    /// The member's digest, if the archive gives it.
    pub(crate) blob: Option<Digest>,
}

/// Tells an archive's form from its members. Other files may be called `manifest.json` and `index.json` too, so in an
/// archive that looks like a root file system they must also be an image's documents.
pub(crate) fn form(archive: &Archive) -> Result<Form> {
    let found = |name| archive.find(name).map(|member| member.is_some());
    if !archive.has_root_names() {
        // Newer docker-archives are OCI layouts as well; only `manifest.json` has all names of their images.
        return match (found("manifest.json")?, found("index.json")? || found("oci-layout")?) {
            (true, _) => Ok(Form::DockerArchive),
            (false, true) => Ok(Form::OciLayout),
            (false, false) => root_form(archive),
        };
    }
    // A member that cannot be read as a document is none.
    let read = |name| archive.bytes(name, MAX_DOCUMENT_BYTES).ok();
    let images = read("manifest.json").and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let images: Vec<DockerImage> = images.unwrap_or_default();
    let index = read("index.json").and_then(|bytes| serde_json::from_slice(&bytes).ok());
    let has_manifests = index.is_some_and(|index: Index| index.manifests.is_some());
    if images.first().is_some_and(|image| archive.find(&image.config).is_ok_and(|file| file.is_some())) {
        Ok(Form::DockerArchive)
    } else if has_manifests && read("oci-layout").is_some() {
        Ok(Form::OciLayout)
    } else {
        root_form(archive)
    }
}

fn root_form(archive: &Archive) -> Result<Form> {
    if archive.is_empty()? {
        let why = "neither a docker-archive nor an OCI layout nor a root file system: there is nothing in it";
        return Err(archive.error(why));
    }
    Ok(if archive.is_directory() { Form::RootDirectory } else { Form::RootTar })
}

/// Every image of the archive that this host can run.
pub(crate) fn plans(archive: &Archive, form: Form) -> Result<Vec<PlannedImage>> {
    archive.is_whole()?;
    let mut documents = Documents::of(archive);
    let plans = match form {
        Form::DockerArchive => docker(archive, &mut documents)?,
        _ => oci(archive, &mut documents)?,
    };
    if plans.iter().map(|plan| plan.names.len()).sum::<usize>() > MAX_NAMES {
        return Err(archive.error(format!("more than {MAX_NAMES} names")));
    }
    Ok(plans)
}

/// A kind of document; registries keep the two at different addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    /// A manifest or an index.
    Manifest,
    /// A configuration.
    Config,
}

/// A source of an image's documents and layers.
pub(crate) trait Source {
    /// Reads a document of at most this many bytes. The caller verifies it.
    fn document(&self, kind: Document, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>>;
    /// Finds a layer that will be read later, and returns its name if it exists and has this length.
    fn layer(&self, digest: &Digest, len: u64) -> Result<String>;
    /// An error about the image.
    fn error(&self, why: String) -> Error;
}

impl Source for Archive {
    fn document(&self, _: Document, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>> {
        self.bytes(&blob_name(digest), max_bytes)
    }

    fn layer(&self, digest: &Digest, len: u64) -> Result<String> {
        let member = blob_name(digest);
        let actual = self.member(&member)?.len();
        if actual == len {
            return Ok(member);
        }
        Err(Self::error(self, format!("layer {digest} has {actual} bytes, its manifest says {len}")))
    }

    fn error(&self, why: String) -> Error {
        Self::error(self, why)
    }
}

/// An image's documents. They may name one another again and again, so every reading counts.
struct Documents<'a, S> {
    source: &'a S,
    count: u32,
    bytes: u64,
}

impl<'a, S: Source> Documents<'a, S> {
    fn of(source: &'a S) -> Self {
        Self { source, count: 0, bytes: 0 }
    }

    fn error(&self, why: impl Into<String>) -> Error {
        self.source.error(why.into())
    }

    fn counted(&mut self, bytes: Vec<u8>) -> Result<Vec<u8>> {
        self.count += 1;
        self.bytes += bytes.len() as u64;
        if self.count > MAX_DOCUMENTS {
            return Err(self.error(format!("more than {MAX_DOCUMENTS} documents")));
        }
        if self.bytes > MAX_DOCUMENTS_BYTES {
            return Err(self.error(format!("more than {MAX_DOCUMENTS_BYTES} bytes of documents")));
        }
        Ok(bytes)
    }

    /// Reads and verifies the document that a descriptor names.
    fn blob(&mut self, kind: Document, descriptor: &Descriptor) -> Result<(Digest, Vec<u8>)> {
        let digest = Digest::parse(&descriptor.digest)?;
        let bytes = self.counted(self.source.document(kind, &digest, MAX_DOCUMENT_BYTES)?)?;
        let actual = sha256(&bytes);
        // OCI image specification, descriptor: "if the size or the digest does not match, the content should not be
        // trusted"
        if actual != digest || bytes.len() as u64 != descriptor.size {
            let len = bytes.len();
            return Err(self.error(format!("blob {digest} has {len} bytes and digest {actual}")));
        }
        Ok((digest, bytes))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Option<Vec<String>>,
}

fn docker(archive: &Archive, documents: &mut Documents<'_, Archive>) -> Result<Vec<PlannedImage>> {
    let manifest = documents.counted(archive.bytes("manifest.json", MAX_DOCUMENT_BYTES)?)?;
    let images: Vec<DockerImage> = document(archive, "manifest.json", &manifest)?;
    if images.len() > MAX_IMAGES {
        return Err(archive.error(format!("more than {MAX_IMAGES} images")));
    }
    let plan = |image: DockerImage| {
        let config = documents.counted(archive.bytes(&image.config, MAX_DOCUMENT_BYTES)?)?;
        let names = image.repo_tags.unwrap_or_default();
        let members = image.layers.unwrap_or_default();
        let what = names.first().map_or(image.config.as_str(), String::as_str);
        let (config_json, digest) = (document(archive, &image.config, &config)?, sha256(&config));
        let layers = members.into_iter().map(|member| (member, None)).collect();
        let (config, layers) = contents(archive, what, &config_json, layers)?;
        Ok(PlannedImage { names, digest, config, layers })
    };
    images.into_iter().map(plan).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Index {
    manifests: Option<Vec<Descriptor>>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Manifest {
    config: Descriptor,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize, Clone)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    media_type: Option<String>,
    digest: String,
    size: u64,
    platform: Option<Platform>,
    #[serde(default)]
    annotations: Option<std::collections::BTreeMap<String, String>>,
}

#[derive(Deserialize, Clone)]
struct Platform {
    architecture: String,
    os: String,
}

/// The image that a registry's manifest or index describes, for this host; `media_type` comes from the registry.
pub(crate) fn named_image(
    source: &impl Source,
    media_type: Option<String>,
    digest: &Digest,
    size: u64,
) -> Result<PlannedImage> {
    let digest = digest.as_str().to_owned();
    let descriptor = Descriptor { media_type, digest, size, platform: None, annotations: None };
    let plan = oci_image(&mut Documents::of(source), &descriptor, 0)?;
    plan.ok_or_else(|| source.error(format!("no image for linux/{} in its index", host_architecture())))
}

/// The media type that a document gives itself.
pub(crate) fn media_type(document: &[u8]) -> Option<String> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Typed {
        media_type: Option<String>,
    }
    serde_json::from_slice::<Typed>(document).ok()?.media_type
}

fn oci(archive: &Archive, documents: &mut Documents<'_, Archive>) -> Result<Vec<PlannedImage>> {
    let index = documents.counted(archive.bytes("index.json", MAX_DOCUMENT_BYTES)?)?;
    let index: Index = document(archive, "index.json", &index)?;
    let mut plans = Vec::new();
    let mut refused = None;
    for descriptor in index.manifests.unwrap_or_default().iter().take(MAX_IMAGES) {
        let annotation = |key| descriptor.annotations.as_ref()?.get(key).cloned();
        // containerd keeps the whole name beside OCI's, which may be a tag alone.
        let name = annotation("io.containerd.image.name")
            .or_else(|| annotation("org.opencontainers.image.ref.name"));
        match oci_image(documents, descriptor, 0) {
            Ok(Some(plan)) => plans.push(PlannedImage { names: name.into_iter().collect(), ..plan }),
            Ok(None) => {}
            // Other images of the index may be for this machine.
            Err(error @ Error::Architecture { .. }) => refused = Some(error),
            Err(error) => return Err(error),
        }
    }
    match (plans.is_empty(), refused) {
        (true, Some(error)) => Err(error),
        (true, None) => {
            Err(archive.error(format!("no image for linux/{} in its index", host_architecture())))
        }
        _ => Ok(plans),
    }
}

/// The image that a descriptor of an index leads to; `None` if it is for another machine, or no image.
fn oci_image<S: Source>(
    documents: &mut Documents<'_, S>,
    descriptor: &Descriptor,
    depth: u32,
) -> Result<Option<PlannedImage>> {
    let archive = documents.source;
    let foreign =
        |platform: &Platform| platform.os != "linux" || platform.architecture != host_architecture();
    if descriptor.platform.as_ref().is_some_and(foreign) {
        return Ok(None);
    }
    let (digest, bytes) = documents.blob(Document::Manifest, descriptor)?;
    match descriptor.media_type.as_deref() {
        Some(
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json",
        ) => {
            if depth >= MAX_DEPTH {
                return Err(documents.error("indexes nested too deeply"));
            }
            let index: Index = document(archive, digest.as_str(), &bytes)?;
            for inner in index.manifests.unwrap_or_default().iter().take(MAX_IMAGES) {
                if let Some(plan) = oci_image(documents, inner, depth + 1)? {
                    // The name stands for the index.
                    return Ok(Some(PlannedImage { digest, ..plan }));
                }
            }
            Ok(None)
        }
        Some(
            "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json",
        )
        | None => {
            let manifest: Manifest = document(archive, digest.as_str(), &bytes)?;
            let (_, config) = documents.blob(Document::Config, &manifest.config)?;
            // One layer over the limit is enough for a refusal.
            let layers = manifest.layers.unwrap_or_default().into_iter().take(MAX_LAYERS + 1);
            let layers = layers.map(|layer| layer_blob(archive, &layer)).collect::<Result<Vec<_>>>()?;
            let what =
                descriptor.annotations.as_ref().and_then(|all| all.get("org.opencontainers.image.ref.name"));
            let what = what.map_or(digest.as_str(), String::as_str);
            let config = document(archive, manifest.config.digest.as_str(), &config)?;
            let (config, layers) = contents(archive, what, &config, layers)?;
            Ok(Some(PlannedImage { names: Vec::new(), digest, config, layers }))
        }
        Some(other) => Err(archive.error(format!("{digest} has unknown media type {other:?}"))),
    }
}

/// The layer that a descriptor names; its bytes tell how it is compressed.
fn layer_blob(archive: &impl Source, descriptor: &Descriptor) -> Result<(String, Option<Digest>)> {
    let digest = Digest::parse(&descriptor.digest)?;
    let media_type = descriptor.media_type.as_deref().unwrap_or_default();
    let known = matches!(
        media_type,
        "application/vnd.oci.image.layer.v1.tar"
            | "application/vnd.oci.image.layer.v1.tar+gzip"
            | "application/vnd.oci.image.layer.v1.tar+zstd"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip"
            | "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd"
            | "application/vnd.docker.image.rootfs.diff.tar"
            | "application/vnd.docker.image.rootfs.diff.tar.gzip"
            | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
    );
    if !known {
        return Err(archive.error(format!("layer {digest} has unknown media type {media_type:?}")));
    }
    Ok((archive.layer(&digest, descriptor.size)?, Some(digest)))
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

#[derive(Deserialize)]
struct ConfigFile {
    #[serde(default)]
    architecture: String,
    #[serde(default)]
    os: String,
    config: Option<Execution>,
    rootfs: Option<RootFs>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Execution {
    user: Option<String>,
    working_dir: Option<String>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    volumes: Option<std::collections::BTreeMap<String, serde::de::IgnoredAny>>,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Option<Vec<String>>,
}

/// Reads a configuration, and the layers with their diff ids; `what` names the image in errors.
fn contents(
    archive: &impl Source,
    what: &str,
    config: &ConfigFile,
    layers: Vec<(String, Option<Digest>)>,
) -> Result<(ImageConfig, Vec<PlannedLayer>)> {
    let wanted = host_architecture();
    let os = if config.os.is_empty() { "linux" } else { config.os.as_str() };
    let architecture = if config.architecture.is_empty() { wanted } else { config.architecture.as_str() };
    if os != "linux" || architecture != wanted {
        return Err(Error::Architecture {
            reference: what.to_owned(),
            found: format!("{os}/{architecture}"),
            wanted: format!("linux/{wanted}"),
        });
    }
    let diff_ids = config.rootfs.as_ref().and_then(|rootfs| rootfs.diff_ids.as_deref()).unwrap_or_default();
    if diff_ids.len() != layers.len() || layers.len() > MAX_LAYERS {
        let (layers, ids) = (layers.len(), diff_ids.len());
        return Err(archive
            .error(format!("image {what} has {layers} layers and {ids} diff ids (at most {MAX_LAYERS})")));
    }
    let layers = layers
        .into_iter()
        .zip(diff_ids)
        .map(|((member, blob), diff_id)| Ok(PlannedLayer { diff_id: Digest::parse(diff_id)?, member, blob }));
    let execution = config.config.as_ref();
    let text = |get: fn(&Execution) -> &Option<String>| {
        execution.and_then(|all| get(all).clone()).unwrap_or_default()
    };
    let list = |get: fn(&Execution) -> &Option<Vec<String>>| {
        execution.and_then(|all| get(all).clone()).unwrap_or_default()
    };
    let config = ImageConfig {
        user: text(|all| &all.user),
        working_dir: text(|all| &all.working_dir),
        entrypoint: list(|all| &all.entrypoint),
        cmd: list(|all| &all.cmd),
        env: list(|all| &all.env),
        volumes: execution
            .and_then(|all| all.volumes.as_ref())
            .into_iter()
            .flatten()
            .map(|(path, _)| path.clone())
            .collect(),
    };
    if let Some(word) = unusable(&config) {
        let word: String = word.chars().take(100).collect();
        return Err(
            archive.error(format!("image {what} has a configuration that no program can have: {word:?}"))
        );
    }
    if !fits(&config) {
        return Err(
            archive.error(format!("image {what} has a configuration of more than {MAX_CONFIG_COST} bytes"))
        );
    }
    Ok((config, layers.collect::<Result<_>>()?))
}

/// Every word of a configuration.
fn words(config: &ImageConfig) -> impl Iterator<Item = &String> {
    let lists = [&config.entrypoint, &config.cmd, &config.env, &config.volumes];
    lists.into_iter().flatten().chain([&config.user, &config.working_dir])
}

/// A word of a configuration that no program could be started with: a variable without a name, or one with a NUL.
fn unusable(config: &ImageConfig) -> Option<&String> {
    let nameless = config.env.iter().find(|variable| variable.is_empty() || variable.starts_with('='));
    nameless.or_else(|| words(config).find(|word| word.contains('\0')))
}

/// Whether a configuration is small enough to be kept.
pub(crate) fn fits(config: &ImageConfig) -> bool {
    words(config).map(|word| WORD_COST + word.len()).sum::<usize>() <= MAX_CONFIG_COST
}

fn document<'a, T: Deserialize<'a>>(archive: &impl Source, name: &str, bytes: &'a [u8]) -> Result<T> {
    serde_json::from_slice(bytes).map_err(|error| {
        let name: String = name.chars().take(200).collect();
        archive.error(format!("{name}: {error}"))
    })
}

fn sha256(bytes: &[u8]) -> Digest {
    Digest::of_content(bytes)
}

/// The host's architecture in OCI's words, which are Go's.
pub(crate) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
