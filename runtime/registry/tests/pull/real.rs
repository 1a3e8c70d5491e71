//! Debian's registry, filled by skopeo.

use std::fs;
use std::path::Path;
use std::process::Command;

use base64::Engine as _;
use images::Store;
use served::Registry;
use tempfile::TempDir;

use crate::{files, image, pull};

/// bcrypt, which is all that the registry takes, of "secret".
const PASSWORD: &str = "tester:$2b$04$EBlGtm35FMk7k4mKC32RduRo9rmy2EWoh7a.4yBiPZ6IOySHdkVSC\n";

/// A running registry, and what it has and is made of.
struct Running {
    registry: Registry,
    directory: TempDir,
}

impl Running {
    /// Starts one, or says why it cannot be.
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

/// The name stays what was asked for; what it is pulled from is the host's configuration's business.
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

/// An authority `ca.crt`, and `leaf.crt` of it for the loopback.
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

    // Without its authority it is taken for a registry without TLS, which its server refuses.
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
