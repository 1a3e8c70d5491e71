//! Kernels from a real registry, Debian's `docker-registry`; a few requests push them there.

#![allow(clippy::unwrap_used, clippy::panic, missing_docs, reason = "tests")]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kernels::{Error, Kernel, Store};
use machine::KernelFormat;
use registry::{Registries, Trust};
use served::Registry;
use sha2::{Digest, Sha256};
use tempfile::TempDir;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const TAR: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// A running registry.
struct Running {
    _registry: Registry,
    address: String,
    _directory: TempDir,
}

impl Running {
    /// Starts a registry, or skips the test.
    fn start() -> Option<Self> {
        let directory = tempfile::tempdir().unwrap();
        match Registry::start(&directory.path().join("data"), "") {
            Ok(registry) => {
                let address = registry.address().to_owned();
                Some(Self { _registry: registry, address, _directory: directory })
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                skip::skip("registry", "docker-registry is not installed");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// Sends a request; returns status line and headers of the answer.
    fn request(&self, method: &str, path: &str, kind: &str, body: &[u8]) -> String {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n",
            self.address,
            body.len()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let answer = String::from_utf8_lossy(&answer).into_owned();
        assert!(answer.starts_with("HTTP/1.1 20"), "{answer}");
        answer
    }

    /// OCI distribution specification, pushing a blob: POST, then PUT. Returns the digest.
    fn push_blob(&self, blob: &[u8]) -> String {
        let answer = self.request("POST", "/v2/kernels/linux/blobs/uploads/", "text/plain", b"");
        let location = answer.lines().find_map(|line| line.strip_prefix("Location: ")).unwrap();
        let place = location.split_once(&self.address).unwrap().1;
        let digest = digest(blob);
        let path = format!("{place}&digest={digest}");
        self.request("PUT", &path, "application/octet-stream", blob);
        digest
    }

    /// Pushes a manifest; returns its digest.
    fn push_manifest(&self, tag: &str, kind: &str, manifest: &serde_json::Value) -> String {
        let text = manifest.to_string();
        let tag = if tag.is_empty() { digest(text.as_bytes()) } else { tag.to_owned() };
        self.request("PUT", &format!("/v2/kernels/linux/manifests/{tag}"), kind, text.as_bytes());
        digest(text.as_bytes())
    }

    /// Pushes an artifact with this first layer; returns the manifest's digest.
    fn push(&self, tag: &str, layer: &[u8]) -> String {
        let config = self.push_blob(b"{}");
        let digest = self.push_blob(layer);
        let manifest = serde_json::json!({
            "schemaVersion": 2,
            "mediaType": MANIFEST,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2},
            "layers": [{"mediaType": TAR, "digest": digest, "size": layer.len()}],
        });
        self.push_manifest(tag, MANIFEST, &manifest)
    }

    fn reference(&self, version: &str) -> String {
        format!("{}/kernels/linux{version}", self.address)
    }
}

fn digest(data: &[u8]) -> String {
    let hex: String = Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}

/// A file that counts as a kernel: Documentation/arch/x86/boot.rst, boot flag and "HdrS".
fn bzimage(mark: u8) -> Vec<u8> {
    let mut image = vec![mark; 100_000];
    image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
    image[0x202..0x206].copy_from_slice(b"HdrS");
    image
}

fn tar_gz(files: &[(&str, &[u8])]) -> Vec<u8> {
    let gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    let mut tar = tar::Builder::new(gzip);
    for (name, data) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(data.len() as u64);
        header.set_mode(0o644);
        tar.append_data(&mut header, name, *data).unwrap();
    }
    tar.into_inner().unwrap().finish().unwrap()
}

fn get(store: &Store, reference: &str) -> Result<Kernel, Error> {
    get_under(None, store, reference)
}

/// Gets a kernel under this policy.
fn get_under(policy: Option<PathBuf>, store: &Store, reference: &str) -> Result<Kernel, Error> {
    let trust = Trust {
        certificates: Vec::new(),
        docker_config: None,
        registries_conf: None,
        registries_conf_d: Vec::new(),
        policy,
        silence: Duration::from_secs(5),
    };
    store.get(reference, &Registries::new(trust), &|_| {})
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn by_tag_by_digest_and_by_index_each_kernel_once() {
    let Some(registry) = Running::start() else { return };
    let cache = tempfile::tempdir().unwrap();
    let store = Store::open(cache.path()).unwrap();
    let image = bzimage(1);
    let manifest = registry.push("tar", &tar_gz(&[("kernel", &image), ("kernel-arm64", b"other")]));
    let mut kernels = Vec::new();
    let by_digest = registry.reference(&format!("@{manifest}"));
    for reference in [registry.reference(":tar"), registry.reference(":tar"), by_digest.clone()] {
        let kernel = get(&store, &reference).unwrap();
        assert_eq!((kernel.release.as_str(), kernel.format), (reference.as_str(), KernelFormat::BzImage));
        assert!(fs::read(&kernel.path).unwrap() == image && kernel.modules.is_none());
        kernels.push(kernel);
    }
    let list = store.list().unwrap();
    assert_eq!(list.len(), 2);
    assert!(
        list.iter()
            .all(|kernel| kernel.in_use && kernel.origin.starts_with(&format!("manifest {manifest} ")))
    );
    assert!(matches!(store.remove(&by_digest), Ok(0)));
    assert!(matches!(store.remove(&registry.reference(":tar")), Err(Error::InUse(_))));
    kernels.clear();

    // Both architectures, the other one first; and one that is the kernel itself.
    let raw = bzimage(2);
    let wrong = registry.push("", b"not for here");
    let right = registry.push("", &raw);
    let (here, other) =
        if std::env::consts::ARCH == "aarch64" { ("arm64", "amd64") } else { ("amd64", "arm64") };
    let entry = |digest: &str, architecture: &str| {
        serde_json::json!({"mediaType": MANIFEST, "digest": digest, "size": 1,
            "platform": {"os": "linux", "architecture": architecture}})
    };
    let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX,
        "manifests": [entry(&wrong, other), entry(&right, here)]});
    registry.push_manifest("", INDEX, &index);
    let whole = registry.push_manifest("index", INDEX, &index);
    let kernel = get(&store, &registry.reference(":index")).unwrap();
    assert!(fs::read(&kernel.path).unwrap() == raw);
    get(&store, &registry.reference(&format!("@{whole}"))).unwrap();
    drop(kernel);
    let reference = registry.reference(":index");
    let tag = registry.reference(":tar");
    // A stored kernel needs no registry any more.
    drop(registry);
    let kernel = get(&store, &reference).unwrap();
    assert!(fs::read(&kernel.path).unwrap() == raw);
    drop(kernel);
    for reference in [tag, reference] {
        store.remove(&reference).unwrap();
        assert!(matches!(get(&store, &reference), Err(Error::Registry { .. })));
    }
    let root = cache.path().join("kernels");
    assert_eq!(names(&root.join("oci/refs")).len(), 1);
    assert_eq!(names(&root.join("oci")).len(), 2);
}

#[test]
fn what_is_no_kernel_is_told_and_not_kept() {
    let Some(registry) = Running::start() else { return };
    let cache = tempfile::tempdir().unwrap();
    let store = Store::open(cache.path()).unwrap();
    let told = |tag: &str| {
        let error = get(&store, &registry.reference(tag)).unwrap_err().to_string();
        assert_eq!(store.list().unwrap(), []);
        assert!(!cache.path().join("kernels/fetching-oci").exists(), "what came of it is gone");
        error
    };
    registry.push("empty", &tar_gz(&[("README", b"x")]));
    let reference = registry.reference(":empty");
    assert_eq!(told(":empty"), format!("kernel {reference}: its layer has no file named kernel"));
    registry.push("text", &tar_gz(&[("kernel", b"no kernel")]));
    let reference = registry.reference(":text");
    let wanted = format!("kernel {reference}: it is not a bootable kernel: neither ELF nor bzImage");
    assert_eq!(told(":text"), wanted);
    let host = &registry.address;
    let reference = registry.reference(":none");
    assert_eq!(told(":none"), format!("kernel {reference}: {host} does not have it (404)"));
    let config = registry.push_blob(b"{}");
    let layers = |layers: serde_json::Value| {
        serde_json::json!({"schemaVersion": 2, "mediaType": MANIFEST, "layers": layers,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config, "size": 2}})
    };
    registry.push_manifest("nothing", MANIFEST, &layers(serde_json::json!([])));
    assert!(told(":nothing").ends_with(": it has no layers"));
    let blob = registry.push_blob(&bzimage(1));
    let wrong = |size: u64| serde_json::json!([{"mediaType": TAR, "digest": blob, "size": size}]);
    registry.push_manifest("huge", MANIFEST, &layers(wrong(1 << 40)));
    assert!(told(":huge").ends_with("its layer has more than 536870912 bytes"));
    registry.push_manifest("short", MANIFEST, &layers(wrong(1000)));
    assert!(told(":short").contains(&format!("what came for layer {blob} has the digest sha256:")));
    // The policy on images is one on kernels too.
    registry.push("good", &bzimage(1));
    let policy = cache.path().join("policy.json");
    fs::write(&policy, r#"{"default": [{"type": "reject"}]}"#).unwrap();
    let error = get_under(Some(policy), &store, &registry.reference(":good")).unwrap_err().to_string();
    assert!(error.contains("policy.json"), "{error}");
    let root = cache.path().join("kernels");
    assert_eq!(names(&root.join("oci")), [] as [String; 0]);
}
