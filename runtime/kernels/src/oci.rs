//! Kernels from registries: `<store>/oci`.
//!
//! Such a kernel is the first layer of an image or artifact: the file itself, or a tar with it as `kernel` (for arm64:
//! `kernel-arm64`), packed with gzip or zstd or not at all. It has everything built in, since the layer has no place for
//! modules. A reference is looked up once; a later change of its tag is not noticed.
//!
//! ```text
//! oci.lock                    held while a kernel is fetched
//! oci/refs/<key>              a reference that was requested, and the digest of its manifest
//! oci/<digest>/kernel         the kernel of that manifest
//! oci/<digest>/origin         digests of manifest and layer
//! ```
//!
//! Not here: registries (`registry`).

use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use images::Digest;
use registry::{Artifact, Name, Registries};
use serde::Deserialize;
use sha2::{Digest as _, Sha256};
use waiting::Wanted;

use crate::lease::Lease;
use crate::stock::ORIGIN;
use crate::store::{Kernel, Store, detect_file, remove, sync, write};
use crate::{Architecture, Error, MAX_IMAGE_BYTES, Result};

/// The store's directory for these kernels.
pub(crate) const OCI: &str = "oci";

/// Its directory for references.
pub(crate) const REFS: &str = "refs";

/// The store's directory for fetches under way.
const FETCHING: &str = "fetching-oci";

/// Longest manifest or index.
const MAX_DOCUMENT_BYTES: u64 = 1 << 20;

/// Most bytes of a layer, packed and unpacked.
const MAX_LAYER_BYTES: u64 = 512 << 20;

/// Largest file of the store's own that records a reference.
const MAX_REFERENCE_BYTES: u64 = 4096;

/// A reference that was requested, and its manifest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Known {
    pub(crate) reference: String,
    /// SHA-256 of the manifest, in hex.
    pub(crate) digest: String,
}

impl Store {
    /// The kernel of `name`: from the store, or fetched once.
    pub(crate) fn oci_kernel(
        &self,
        name: &Name,
        registries: &Registries,
        progress: &dyn Fn(&str),
    ) -> Result<Kernel> {
        if let Some(kernel) = self.known_kernel(name)? {
            return Ok(kernel);
        }
        let _fetching = self.lock("oci.lock")?;
        // Another process may have fetched it meanwhile.
        match self.known_kernel(name)? {
            Some(kernel) => Ok(kernel),
            None => {
                let fetched = self.fetch_oci(name, registries, progress);
                // A failed fetch is removed as well: half a kernel is large, and the next fetch may never come.
                let removed = remove(&self.root().join(FETCHING));
                let kernel = fetched?;
                removed.map(|()| kernel)
            }
        }
    }

    fn known_kernel(&self, name: &Name) -> Result<Option<Kernel>> {
        let reference = name.to_string();
        let known =
            read_known(&self.reference_path(&reference))?.filter(|known| known.reference == reference);
        let Some(known) = known else { return Ok(None) };
        self.kernel_of(&known)
    }

    fn kernel_of(&self, known: &Known) -> Result<Option<Kernel>> {
        let Some(lease) = Lease::take(&self.root().join(OCI).join(&known.digest), &self.given_up)? else {
            return Ok(None);
        };
        let path = lease.directory().join("kernel");
        match detect_file(&path) {
            Ok(format) => {
                let (release, lease) = (known.reference.clone(), Some(Arc::new(lease)));
                Ok(Some(Kernel { release, path, format, modules: None, lease }))
            }
            // The store's files were changed, so the kernel is fetched again.
            Err(error) => {
                tracing::warn!("{error}");
                Ok(None)
            }
        }
    }

    fn reference_path(&self, reference: &str) -> PathBuf {
        let key = &hex(&Sha256::digest(reference))[..16];
        self.root().join(OCI).join(REFS).join(key)
    }

    /// Every reference that was requested.
    pub(crate) fn references(&self) -> Result<Vec<(PathBuf, Known)>> {
        let directory = self.root().join(OCI).join(REFS);
        let entries = match fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(Error::io(directory)(error)),
        };
        let mut references = Vec::new();
        for entry in entries {
            let path = entry.map_err(Error::io(&directory))?.path();
            references.extend(read_known(&path)?.map(|known| (path, known)));
        }
        Ok(references)
    }

    /// Fetches a kernel. The caller holds the lock.
    fn fetch_oci(&self, name: &Name, registries: &Registries, progress: &dyn Fn(&str)) -> Result<Kernel> {
        let reference = name.to_string();
        let scratch = self.root().join(FETCHING);
        // Leftovers of an interrupted fetch, which nobody uses while the lock is held.
        remove(&scratch)?;
        self.sweep_oci()?;
        let staged = scratch.join("staged");
        fs::create_dir_all(&staged).map_err(Error::io(&staged))?;
        progress(&format!("fetching kernel {reference}"));
        let failed = |source| Error::Registry { reference: reference.clone(), source };
        let fetch = Fetch { reference: &reference, from: registries.artifact(name).map_err(failed)? };
        let (manifest, layer) = fetch.layer(name.digest())?;
        let mut blob = Wanted::new(fetch.blob(&layer, &scratch.join("layer"))?, &self.given_up);
        progress(&format!("unpacking kernel {reference}"));
        let path = staged.join("kernel");
        let mut image = File::create(&path).map_err(Error::io(&path))?;
        let unpacked = unpack(&mut blob, &mut image, Architecture::host());
        waiting::check(&self.given_up)?;
        unpacked.map_err(|source| fetch.unpacking(source, &path))?;
        image.sync_data().map_err(Error::io(&path))?;
        detect_file(&path).map_err(|error| match error {
            // The temporary path would mean nothing to the user.
            Error::NotAKernel { why, .. } => fetch.wrong(format!("it is not a bootable kernel: {why}")),
            other => other,
        })?;
        write(&staged.join(ORIGIN), format!("manifest {manifest} layer {}\n", layer.digest).as_bytes())?;
        sync(&staged)?;
        let known = Known { reference, digest: manifest.hex().to_owned() };
        self.publish_oci(&staged, &known)
    }

    fn publish_oci(&self, staged: &Path, known: &Known) -> Result<Kernel> {
        let gone = || Error::NotAKernel { path: staged.to_owned(), why: "vanished from the store" };
        // Another reference may have brought the same manifest.
        let kernel = match self.kernel_of(known)? {
            Some(kernel) => kernel,
            None => {
                // Taken before any other process could see and remove the kernel.
                let lease = Lease::take(staged, &self.given_up)?.ok_or_else(gone)?;
                let place = self.root().join(OCI).join(&known.digest);
                fs::create_dir_all(self.root().join(OCI)).map_err(Error::io(&place))?;
                remove(&place)?;
                fs::rename(staged, &place).map_err(Error::io(&place))?;
                sync(&self.root().join(OCI))?;
                let path = place.join("kernel");
                let format = detect_file(&path)?;
                let lease = Some(Arc::new(lease.renamed(&place)));
                Kernel { release: known.reference.clone(), path, format, modules: None, lease }
            }
        };
        let link = self.reference_path(&known.reference);
        let references = self.root().join(OCI).join(REFS);
        fs::create_dir_all(&references).map_err(Error::io(&references))?;
        let staged = self.root().join(FETCHING).join("reference");
        write(&staged, format!("{}\n{}\n", known.reference, known.digest).as_bytes())?;
        fs::rename(&staged, &link).map_err(Error::io(&link))?;
        sync(&references)?;
        Ok(kernel)
    }
}

fn read_known(path: &Path) -> Result<Option<Known>> {
    let mut text = String::new();
    let read = File::open(path).and_then(|file| file.take(MAX_REFERENCE_BYTES).read_to_string(&mut text));
    match read {
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(Error::io(path)(error)),
    }
    let mut lines = text.lines().map(str::to_owned);
    let (Some(reference), Some(digest)) = (lines.next(), lines.next()) else { return Ok(None) };
    // The digest becomes a path.
    let valid = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    Ok(valid.then_some(Known { reference, digest }))
}

fn hex(hash: &[u8]) -> String {
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// OCI image specification, image index and image manifest: the members that are read.
#[derive(Deserialize)]
struct Document {
    manifests: Option<Vec<Descriptor>>,
    layers: Option<Vec<Descriptor>>,
}

#[derive(Deserialize, Clone)]
struct Descriptor {
    digest: String,
    size: u64,
    platform: Option<Platform>,
}

#[derive(Deserialize, Clone)]
struct Platform {
    architecture: String,
    os: String,
}

/// A layer's descriptor in a manifest.
struct LayerBlob {
    digest: Digest,
    size: u64,
}

/// A fetch under way.
struct Fetch<'a> {
    reference: &'a str,
    from: Artifact,
}

impl Fetch<'_> {
    fn wrong(&self, why: impl Into<String>) -> Error {
        Error::Artifact { reference: self.reference.to_owned(), why: why.into() }
    }

    fn registry(&self, source: registry::Error) -> Error {
        Error::Registry { reference: self.reference.to_owned(), source }
    }

    /// The digest and content of a manifest, which must have the digest `wanted` if that is given.
    fn read(&self, bytes: &[u8], wanted: Option<&Digest>) -> Result<(Digest, Document)> {
        let digest = Digest::of_content(bytes);
        if let Some(wanted) = wanted.filter(|wanted| **wanted != digest) {
            return Err(self.wrong(format!("what came for {wanted} has the digest {digest}")));
        }
        let document =
            serde_json::from_slice(bytes).map_err(|_| self.wrong("its manifest is not understood"))?;
        Ok((digest, document))
    }

    /// The manifest for this host's architecture, and its first layer.
    fn layer(&self, wanted: Option<&Digest>) -> Result<(Digest, LayerBlob)> {
        let (root, _) = self.from.root(MAX_DOCUMENT_BYTES).map_err(|error| self.registry(error))?;
        let (mut manifest, mut document) = self.read(&root, wanted)?;
        if let Some(manifests) = document.manifests.take() {
            let descriptor = choose(&manifests, Architecture::host())
                .ok_or_else(|| self.wrong(format!("it has no kernel for {}", Architecture::host().name())))?;
            let wanted =
                digest(&descriptor.digest).ok_or_else(|| self.wrong("its index names no sha256 digest"))?;
            let bytes = self.from.manifest(&wanted, MAX_DOCUMENT_BYTES);
            (manifest, document) = self.read(&bytes.map_err(|error| self.registry(error))?, Some(&wanted))?;
        }
        let layers = document.layers.unwrap_or_default();
        let first = layers.first().ok_or_else(|| self.wrong("it has no layers"))?;
        let digest = digest(&first.digest).ok_or_else(|| self.wrong("its layer has no sha256 digest"))?;
        if first.size > MAX_LAYER_BYTES {
            return Err(self.wrong(format!("its layer has more than {MAX_LAYER_BYTES} bytes")));
        }
        Ok((manifest, LayerBlob { digest, size: first.size }))
    }

    /// Fetches a layer into a file, and checks its digest.
    fn blob(&self, layer: &LayerBlob, path: &Path) -> Result<File> {
        let mut from = self.from.blob(&layer.digest).map_err(|error| self.registry(error))?.take(layer.size);
        let mut file =
            File::options().read(true).write(true).create_new(true).open(path).map_err(Error::io(path))?;
        let mut hasher = Sha256::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            let count = from.read(&mut buffer).map_err(|error| self.broken(error))?;
            let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { break };
            hasher.update(bytes);
            file.write_all(bytes).map_err(Error::io(path))?;
        }
        let actual = hex(&hasher.finalize());
        if actual != layer.digest.hex() {
            return Err(
                self.wrong(format!("what came for layer {} has the digest sha256:{actual}", layer.digest))
            );
        }
        file.seek(SeekFrom::Start(0)).map_err(Error::io(path))?;
        Ok(file)
    }

    /// Turns an error of the body into one of the registry.
    fn broken(&self, error: io::Error) -> Error {
        match error.downcast::<registry::Error>() {
            Ok(error) => self.registry(error),
            Err(error) => self.wrong(error.to_string()),
        }
    }

    fn unpacking(&self, error: Unpack, path: &Path) -> Error {
        match error {
            Unpack::Wrong(why) => self.wrong(why),
            Unpack::Io(error) => Error::io(path)(error),
        }
    }
}

fn digest(text: &str) -> Option<Digest> {
    Digest::parse(text).ok()
}

/// The manifest of an index for this architecture. A descriptor without an architecture is for every one.
fn choose(manifests: &[Descriptor], architecture: Architecture) -> Option<&Descriptor> {
    let fits = |manifest: &&Descriptor| {
        let platform = manifest.platform.as_ref();
        platform
            .is_some_and(|platform| platform.os == "linux" && platform.architecture == architecture.name())
    };
    let silent = |manifest: &&Descriptor| manifest.platform.is_none();
    manifests.iter().find(fits).or_else(|| manifests.iter().find(silent))
}

/// The reason why a layer yielded no kernel.
#[derive(Debug)]
pub(crate) enum Unpack {
    /// The layer is wrong.
    Wrong(&'static str),
    /// The kernel cannot be written.
    Io(io::Error),
}

const BROKEN: Unpack = Unpack::Wrong("its layer is broken");

/// Writes the kernel of a layer to `out`.
pub(crate) fn unpack(
    layer: &mut (impl Read + Seek),
    out: &mut impl Write,
    architecture: Architecture,
) -> Result<(), Unpack> {
    let mut magic = [0; 4];
    let known = read_up_to(layer, &mut magic).map_err(|_| BROKEN)?;
    layer.seek(SeekFrom::Start(0)).map_err(|_| BROKEN)?;
    // RFC 1952 §2.3.1 and RFC 8878 §3.1.1: the magic numbers.
    let plain: Box<dyn Read + '_> = match magic.get(..known) {
        Some([0x1f, 0x8b, ..]) => Box::new(flate2::read::MultiGzDecoder::new(BufReader::new(layer))),
        Some([0x28, 0xb5, 0x2f, 0xfd]) => Box::new(zstd::Decoder::new(layer).map_err(|_| BROKEN)?),
        _ => Box::new(BufReader::new(layer)),
    };
    // The most that a layer may unpack to.
    let mut plain = plain.take(MAX_LAYER_BYTES);
    let mut head = [0; 512];
    let known = read_up_to(&mut plain, &mut head).map_err(|_| BROKEN)?;
    let head = head.get(..known).unwrap_or_default();
    let whole = head.chain(plain);
    // POSIX.1-2024 pax, ustar: "ustar" at offset 257.
    if head.get(257..262) != Some(b"ustar") {
        return copy(whole, out).map(drop);
    }
    let names: &[&[u8]] = match architecture {
        Architecture::Amd64 => &[b"kernel"],
        Architecture::Arm64 => &[b"kernel-arm64", b"kernel"],
    };
    let mut archive = tar::Archive::new(whole);
    // Raw: long names would be held in memory, and the kernel's is short.
    for entry in archive.entries().map_err(|_| BROKEN)?.raw(true) {
        let entry = entry.map_err(|_| BROKEN)?;
        let name = entry.path_bytes();
        let name = name.strip_prefix(b"./").unwrap_or(&name);
        if names.contains(&name) && entry.header().entry_type().is_file() {
            let len = entry.size();
            // A tar's reader ends early if the tar does.
            return if copy(entry, out)? == len { Ok(()) } else { Err(BROKEN) };
        }
    }
    Err(Unpack::Wrong("its layer has no file named kernel"))
}

/// Copies; returns the number of bytes.
fn copy(mut from: impl Read, out: &mut impl Write) -> Result<u64, Unpack> {
    let mut buffer = vec![0; 64 << 10];
    let mut total = 0;
    loop {
        let count = from.read(&mut buffer).map_err(|_| BROKEN)?;
        let Some(bytes) = buffer.get(..count).filter(|bytes| !bytes.is_empty()) else { return Ok(total) };
        total += bytes.len() as u64;
        if total > MAX_IMAGE_BYTES {
            return Err(Unpack::Wrong("its kernel is over the size limit"));
        }
        out.write_all(bytes).map_err(Unpack::Io)?;
    }
}

fn read_up_to(from: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) {
        match from.read(room)? {
            0 => break,
            count => filled += count,
        }
    }
    Ok(filled)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Cursor;

    fn tar_of(files: &[(&str, &[u8])]) -> Vec<u8> {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, data) in files {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, *data).unwrap();
        }
        tar.into_inner().unwrap()
    }

    fn unpacked(layer: &[u8], architecture: Architecture) -> Result<Vec<u8>, &'static str> {
        let mut out = Vec::new();
        match unpack(&mut Cursor::new(layer), &mut out, architecture) {
            Ok(()) => Ok(out),
            Err(Unpack::Wrong(why)) => Err(why),
            Err(Unpack::Io(error)) => panic!("{error}"),
        }
    }

    #[test]
    fn a_kernel_is_found_in_every_form() {
        let two = tar_of(&[("kernel-arm64", b"arm"), ("x", b"x"), ("./kernel", b"intel")]);
        let gzip = |data: &[u8]| {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(data).unwrap();
            gzip.finish().unwrap()
        };
        for layer in [two.clone(), gzip(&two), zstd::encode_all(two.as_slice(), 1).unwrap()] {
            assert_eq!(unpacked(&layer, Architecture::Amd64).unwrap(), b"intel");
            assert_eq!(unpacked(&layer, Architecture::Arm64).unwrap(), b"arm");
        }
        let one = tar_of(&[("kernel", b"any")]);
        assert_eq!(unpacked(&one, Architecture::Arm64).unwrap(), b"any");
        let long: Vec<u8> = (0..100_000u32).flat_map(u32::to_le_bytes).collect();
        for file in [&b""[..], b"short", &long] {
            for layer in [file.to_vec(), gzip(file), zstd::encode_all(file, 1).unwrap()] {
                assert_eq!(unpacked(&layer, Architecture::Amd64).unwrap(), file);
            }
        }
    }

    /// Starts look up a kernel and open it, while it is removed and published again and again.
    #[test]
    fn a_start_that_has_found_a_kernel_can_open_it() {
        const ROUNDS: usize = 50;
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        let name = Name::parse("r.io/kernel:1").unwrap();
        let known = Known { reference: name.to_string(), digest: "a".repeat(64) };
        let mut image = vec![7; 0x1000];
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        let ended = std::sync::atomic::AtomicBool::new(false);
        let (mut removed, mut kept) = (0, 0);
        std::thread::scope(|scope| {
            let start = || {
                let mut found = 0;
                while !ended.load(std::sync::atomic::Ordering::Relaxed) {
                    if let Some(kernel) = store.known_kernel(&name).unwrap() {
                        std::thread::yield_now();
                        assert!(fs::read(&kernel.path).unwrap() == image);
                        found += 1;
                    }
                }
                found
            };
            let starts = [scope.spawn(start), scope.spawn(start)];
            while removed < ROUNDS && !starts.iter().any(|start| start.is_finished()) {
                let staged = store.root().join(FETCHING).join("staged");
                fs::create_dir_all(&staged).unwrap();
                fs::write(staged.join("kernel"), &image).unwrap();
                fs::write(staged.join(ORIGIN), "here\n").unwrap();
                drop(store.publish_oci(&staged, &known).unwrap());
                match store.remove(&known.reference) {
                    Ok(_) => removed += 1,
                    Err(Error::InUse(_)) => kept += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            ended.store(true, std::sync::atomic::Ordering::Relaxed);
            let found: usize = starts.into_iter().map(|start| start.join().unwrap()).sum();
            assert!(removed == ROUNDS && found > 0, "{removed} removed, {kept} kept, {found} found");
        });
    }

    #[test]
    fn hostile_layers_are_errors() {
        let none = "its layer has no file named kernel";
        let long_name = "x/".repeat(200);
        for (layer, why) in [
            (tar_of(&[("boot/kernel", b"x")]), none),
            (tar_of(&[("kernel-arm64", b"x")]), none),
            (tar_of(&[(&format!("{long_name}kernel"), b"x")]), none),
            (b"\x1f\x8bno gzip".to_vec(), "its layer is broken"),
            (b"\x28\xb5\x2f\xfdno zstd".to_vec(), "its layer is broken"),
        ] {
            assert_eq!(unpacked(&layer, Architecture::Amd64), Err(why));
        }
        let mut link = tar::Header::new_gnu();
        link.set_entry_type(tar::EntryType::Symlink);
        link.set_size(0);
        let mut tar = tar::Builder::new(Vec::new());
        tar.append_link(&mut link, "kernel", "/etc/passwd").unwrap();
        assert_eq!(unpacked(&tar.into_inner().unwrap(), Architecture::Amd64), Err(none));
        let mut cut = tar_of(&[("kernel", &[7; 4096])]);
        cut.truncate(1024);
        assert_eq!(unpacked(&cut, Architecture::Amd64), Err("its layer is broken"));
        // A few thousand bytes that unpack to more than the limit.
        let bomb = zstd::encode_all(io::repeat(0).take(MAX_IMAGE_BYTES + 1), 1).unwrap();
        assert_eq!(unpacked(&bomb, Architecture::Amd64), Err("its kernel is over the size limit"));
    }

    /// Every truncation and many single-byte changes: an error or some bytes, never a panic.
    #[test]
    fn changed_layers_do_not_panic() {
        let tar = tar_of(&[("x", b"x"), ("kernel", b"kernel")]);
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&tar).unwrap();
        for layer in [gzip.finish().unwrap(), zstd::encode_all(tar.as_slice(), 1).unwrap(), tar] {
            for end in 0..layer.len() {
                let _ = unpacked(&layer[..end], Architecture::Amd64);
            }
            for at in 0..layer.len() {
                let mut changed = layer.clone();
                changed[at] ^= 0x55;
                let _ = unpacked(&changed, Architecture::Amd64);
            }
        }
    }

    #[test]
    fn an_index_is_for_its_platforms() {
        let of = |text: &str| serde_json::from_str::<Document>(text).unwrap().manifests.unwrap();
        let manifests = of(r#"{"manifests":[
            {"digest":"a","size":1,"platform":{"os":"linux","architecture":"arm64"}},
            {"digest":"b","size":1,"platform":{"os":"unknown","architecture":"amd64"}},
            {"digest":"c","size":1,"platform":{"os":"linux","architecture":"amd64"}}]}"#);
        let chosen = |manifests: &[Descriptor], architecture| {
            choose(manifests, architecture).map(|manifest| manifest.digest.clone())
        };
        assert_eq!(chosen(&manifests, Architecture::Amd64).as_deref(), Some("c"));
        assert_eq!(chosen(&manifests, Architecture::Arm64).as_deref(), Some("a"));
        assert_eq!(chosen(&manifests[1..2], Architecture::Amd64), None);
        assert_eq!(
            chosen(&of(r#"{"manifests":[{"digest":"d","size":1}]}"#), Architecture::Arm64).as_deref(),
            Some("d")
        );
    }

    #[test]
    fn what_a_reference_stands_for_is_read_with_care() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("known");
        assert_eq!(read_known(&path).unwrap(), None);
        let digest = "0".repeat(64);
        for (text, good) in [
            (format!("a/b:1\n{digest}\n"), true),
            ("a/b:1\n".to_owned(), false),
            ("a/b:1\n../../etc\n".to_owned(), false),
            (String::new(), false),
        ] {
            fs::write(&path, &text).unwrap();
            assert_eq!(read_known(&path).unwrap().is_some(), good, "{text}");
        }
    }
}
