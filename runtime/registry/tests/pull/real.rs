//! Debian's registry, filled by skopeo.

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use images::Store;
use images::fixtures::sha256;
use served::Registry;
use tempfile::TempDir;

use crate::{files, image, pull};

/// The bcrypt hash of "secret", the only kind that the registry takes.
const PASSWORD: &str = "tester:$2b$04$EBlGtm35FMk7k4mKC32RduRo9rmy2EWoh7a.4yBiPZ6IOySHdkVSC\n";

/// A running registry, and its directory.
struct Running {
    registry: Registry,
    directory: TempDir,
}

impl Running {
    /// Starts a registry, or skips the test.
    fn start(more: &str, directory: TempDir) -> Option<Self> {
        for program in ["docker-registry", "skopeo", "openssl"] {
            if Command::new(program).arg("--version").output().is_err() {
                skip::skip("registry", format!("{program} is not installed"));
                return None;
            }
        }
        let registry = Registry::start(&directory.path().join("data"), more).unwrap();
        Some(Self { registry, directory })
    }

    fn address(&self) -> &str {
        self.registry.address()
    }

    fn push(&self, name: &str, options: &[&str]) {
        let archive = self.directory.path().join("archive.tar");
        fs::write(&archive, image().docker_archive(&["x:1"])).unwrap();
        let mut skopeo = Command::new("skopeo");
        skopeo.args(["--insecure-policy", "copy", "--dest-tls-verify=false"]).args(options);
        skopeo.arg(format!("docker-archive:{}", archive.display()));
        skopeo.arg(format!("docker://{}/{name}", self.address()));
        let output = skopeo.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

fn store() -> (TempDir, Store) {
    let cache = tempfile::tempdir().unwrap();
    let store = Store::open(cache.path()).unwrap();
    (cache, store)
}

#[test]
fn by_tag_and_by_digest_and_again() {
    let Some(registry) = Running::start("", tempfile::tempdir().unwrap()) else { return };
    registry.push("some/image:1", &[]);
    let (cache, store) = store();
    let nowhere = Path::new("/nowhere");
    let reference = format!("{}/some/image:1", registry.address());
    let pulled = pull(&store, nowhere, &reference).unwrap();
    assert!(pulled.tags().eq([reference.as_str()]));
    assert_eq!(pulled.image.layers.len(), 3);
    assert_eq!(pulled.image.config.cmd, ["sh"]);
    assert_eq!(store.list().unwrap()[0].source, "registry");
    let stored = store.get(&reference).unwrap().unwrap();
    assert_eq!(stored, pulled.image);

    let by_digest = format!("{}/some/image@{}", registry.address(), stored.digest);
    assert_eq!(pull(&store, nowhere, &by_digest).unwrap().image.layers, stored.layers);
    assert_eq!(pull(&store, nowhere, &reference).unwrap().image, stored);
    assert_eq!(files(cache.path(), "blobs"), 3, "nothing twice");

    let missing = format!("{}/some/image:2", registry.address());
    let error = pull(&store, nowhere, &missing).unwrap_err().to_string();
    assert_eq!(error, format!("image {missing}: {} does not have it (404)", registry.address()));
    drop(registry);
    let error = pull(&store, nowhere, &reference).unwrap_err().to_string();
    assert!(error.contains("onnection refused"), "{error}");
    assert_eq!(store.get(&reference).unwrap().unwrap(), stored, "what is there stays");
}

/// The image keeps the requested name, wherever the host's configuration has it pulled from.
#[test]
fn by_way_of_mirrors() {
    let Some(registry) = Running::start("", tempfile::tempdir().unwrap()) else { return };
    registry.push("hub/some/image:1", &[]);
    let (_cache, store) = store();
    let directory = registry.directory.path();
    let configured = |mirrors: &[&str], blocked: bool| {
        let table = format!(
            "[[registry]]\nprefix = \"images.example\"\nlocation = \"127.0.0.1:1\"\nblocked = {blocked}\n"
        );
        let mirrors = mirrors.iter().map(|at| format!("[[registry.mirror]]\nlocation = \"{at}\"\n"));
        fs::write(directory.join("registries.conf"), table + &mirrors.collect::<String>()).unwrap();
        pull(&store, directory, "images.example/some/image:1").map_err(|error| error.to_string())
    };
    let (good, other) = (format!("{}/hub", registry.address()), format!("{}/other", registry.address()));
    let pulled = configured(&["127.0.0.1:1/gone", &other, &good], false).unwrap();
    assert_eq!(pulled.image.layers.len(), 3);
    assert_eq!(store.list().unwrap()[0].tag, "images.example/some/image:1");
    let error = configured(&[&other], false).unwrap_err();
    let wanted = format!(
        "image images.example/some/image:1: {} does not have it (404); 127.0.0.1:1: ",
        registry.address()
    );
    assert!(error.starts_with(&wanted), "{error}");
    assert!(configured(&[&good], true).unwrap_err().ends_with("images.example is blocked"));
}

/// Signs the payload that cosign would sign, and pushes it to the tag that cosign would use.
fn sign(registry: &Running, image: &str, digest: &str, signed_name: &str) {
    let work = tempfile::tempdir_in(registry.directory.path()).unwrap();
    let at = |name: &str| work.path().join(name);
    let payload = serde_json::json!({"optional": null, "critical": {
        "type": "cosign container image signature", "image": {"docker-manifest-digest": digest},
        "identity": {"docker-reference": signed_name}}});
    fs::write(at("payload"), payload.to_string()).unwrap();
    let mut openssl = Command::new("openssl");
    openssl.args(["dgst", "-sha256", "-sign"]).arg(registry.directory.path().join("cosign.key")).arg("-out");
    assert!(openssl.arg(at("signature")).arg(at("payload")).status().unwrap().success());
    let signature = base64::engine::general_purpose::STANDARD.encode(fs::read(at("signature")).unwrap());
    let put = |bytes: &[u8], name: Option<&str>| {
        let hex = sha256(bytes);
        fs::write(at("layout").join(name.unwrap_or(&format!("blobs/sha256/{hex}"))), bytes).unwrap();
        serde_json::json!({"digest": format!("sha256:{hex}"), "size": bytes.len()})
    };
    fs::create_dir_all(at("layout/blobs/sha256")).unwrap();
    put(br#"{"imageLayoutVersion": "1.0.0"}"#, Some("oci-layout"));
    let mut layer = put(payload.to_string().as_bytes(), None);
    layer["mediaType"] = "application/vnd.dev.cosign.simplesigning.v1+json".into();
    layer["annotations"] = serde_json::json!({"dev.cosignproject.cosign/signature": signature});
    let mut config =
        put(br#"{"architecture": "", "os": "", "rootfs": {"type": "layers", "diff_ids": []}}"#, None);
    config["mediaType"] = "application/vnd.oci.image.config.v1+json".into();
    let manifest = serde_json::json!({"schemaVersion": 2, "config": config, "layers": [layer],
        "mediaType": "application/vnd.oci.image.manifest.v1+json"});
    let mut entry = put(manifest.to_string().as_bytes(), None);
    entry["mediaType"] = manifest["mediaType"].clone();
    put(
        serde_json::json!({"schemaVersion": 2, "manifests": [entry]}).to_string().as_bytes(),
        Some("index.json"),
    );
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["--insecure-policy", "copy", "--quiet", "--dest-tls-verify=false"]);
    skopeo.arg(format!("oci:{}", at("layout").display()));
    let tag = digest.replace(':', "-");
    let output = skopeo.arg(format!("docker://{}/{image}:{tag}.sig", registry.address())).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn with_signatures_where_the_policy_demands_them() {
    let Some(registry) = Running::start("", tempfile::tempdir().unwrap()) else { return };
    let directory = registry.directory.path();
    for (name, curve) in [("cosign", "P-256"), ("other", "P-256"), ("large", "P-384")] {
        let mut key = Command::new("openssl");
        key.current_dir(directory).args([
            "genpkey",
            "-algorithm",
            "EC",
            "-out",
            &format!("{name}.key"),
            "-pkeyopt",
        ]);
        assert!(key.arg(format!("ec_paramgen_curve:{curve}")).output().unwrap().status.success());
        let mut public = Command::new("openssl");
        public.current_dir(directory).args(["pkey", "-pubout", "-in", &format!("{name}.key"), "-out"]);
        assert!(public.arg(format!("{name}.pub")).output().unwrap().status.success());
    }
    registry.push("image:1", &[]);
    let (_cache, store) = store();
    let reference = format!("{}/image:1", registry.address());
    let digest = pull(&store, directory, &reference).unwrap().image.digest.to_string();
    let demand = |key: &str, identity: &str| {
        let demand = format!(
            r#"{{"type": "sigstoreSigned", "keyPath": "{}/{key}.pub"{identity}}}"#,
            directory.display()
        );
        let policy = format!(
            r#"{{"default": [{{"type": "reject"}}], "transports": {{"docker": {{"": [{demand}]}}}}}}"#
        );
        fs::write(directory.join("policy.json"), policy).unwrap();
    };
    let pull =
        |reference: &str| pull(&store, directory, reference).map(drop).map_err(|error| error.to_string());
    let refused = |found: u32| {
        let policy = directory.join("policy.json");
        format!(
            "image {reference}: {} demands a signature for {reference}; of {found} there, none is good",
            policy.display()
        )
    };
    demand("cosign", "");
    assert_eq!(pull(&reference), Err(refused(0)));
    // The signature is for another name: somebody moved it here.
    sign(&registry, "image", &digest, "elsewhere.example/image:1");
    assert_eq!(pull(&reference), Err(refused(1)));
    // The signature is for another image under this name.
    sign(&registry, "image", &digest.replace(['0', '1'], "2"), &reference);
    sign(&registry, "image", &digest, &reference);
    assert_eq!(pull(&reference), Ok(()));
    assert_eq!(pull(&format!("{}/image@{digest}", registry.address())), Ok(()));
    demand("other", "");
    assert_eq!(pull(&reference), Err(refused(1)));
    demand("large", "");
    assert!(pull(&reference).unwrap_err().ends_with("only ECDSA P-256 keys are understood"));
    // By default cosign signs without a tag.
    sign(&registry, "image", &digest, &format!("{}/image", registry.address()));
    demand("cosign", "");
    assert_eq!(pull(&reference), Err(refused(1)));
    demand("cosign", r#", "signedIdentity": {"type": "matchRepository"}"#);
    assert_eq!(pull(&reference), Ok(()));
    assert_eq!(store.list().unwrap().len(), 2);
}

/// An authority `ca.crt`, and its certificate `leaf.crt` for the loopback address.
fn certificates(directory: &Path) -> bool {
    let key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"];
    let openssl = |args: &[&str]| {
        let run = Command::new("openssl").current_dir(directory).args(args).output();
        run.is_ok_and(|output| output.status.success())
    };
    let authority =
        ["req", "-x509", "-days", "2", "-subj", "/CN=authority", "-keyout", "ca.key", "-out", "ca.crt"];
    let request = ["req", "-new", "-subj", "/CN=leaf", "-keyout", "leaf.key", "-out", "leaf.csr"];
    let sign = ["x509", "-req", "-days", "2", "-in", "leaf.csr", "-CA", "ca.crt", "-CAkey", "ca.key"];
    fs::write(directory.join("extensions"), "subjectAltName=IP:127.0.0.1\n").unwrap();
    openssl(&[&authority[..], &key].concat())
        && openssl(&[&request[..], &key].concat())
        && openssl(&[&sign[..], &["-CAcreateserial", "-extfile", "extensions", "-out", "leaf.crt"]].concat())
}

#[test]
fn with_tls_of_an_authority_of_its_own_and_a_login() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::write(at("htpasswd"), PASSWORD).unwrap();
    if !certificates(directory.path()) {
        return skip::skip("registry", "openssl made no certificates");
    }
    let path = directory.path().display();
    let http = format!("  tls: {{certificate: {path}/leaf.crt, key: {path}/leaf.key}}\n");
    let auth = format!("auth: {{htpasswd: {{realm: test, path: {path}/htpasswd}}}}\n");
    let Some(registry) = Running::start(&format!("{http}{auth}"), directory) else { return };
    registry.push("image:1", &["--dest-creds", "tester:secret"]);
    let (_cache, store) = store();
    let at = |name: &str| registry.directory.path().join(name);
    let reference = format!("{}/image:1", registry.address());
    let pull = || pull(&store, registry.directory.path(), &reference).map_err(|error| error.to_string());

    // Without the authority the registry is taken for one without TLS, which the server refuses.
    assert!(pull().is_err());
    let trusted = at("certs.d").join(registry.address());
    fs::create_dir_all(&trusted).unwrap();
    fs::copy(at("ca.crt"), trusted.join("ca.crt")).unwrap();
    let no_login = format!(
        "image {reference}: {0} wants a login, or does not have it (401): docker login {0}",
        registry.address()
    );
    assert_eq!(pull().unwrap_err(), no_login);
    let login = |credentials: &str| {
        let auth = base64::engine::general_purpose::STANDARD.encode(credentials);
        let config = format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, registry.address());
        fs::write(at("docker.json"), config).unwrap();
    };
    login("tester:wrong");
    assert_eq!(pull().unwrap_err(), no_login);
    login("tester:secret");
    assert_eq!(pull().unwrap().image.layers.len(), 3);
}
