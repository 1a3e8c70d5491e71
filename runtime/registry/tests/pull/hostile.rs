//! Registries that break off, lie, want a token, or are busy.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use base64::Engine as _;
use images::fixtures::sha256;
use images::{Quiet, Store};
use registry::{Registries, Trust};
use served::http::{Answer, Asked, Server, ok, status};
use tempfile::TempDir;
use waiting::CancellationToken;
use waiting::testing::{given_up_at_once, is_waited_for};

use crate::{files, image, pull, trust};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// The documents and layers of the image, by digest, and its manifest.
struct Content {
    blobs: Vec<(String, Vec<u8>)>,
    manifest: Vec<u8>,
}

impl Content {
    fn new() -> Arc<Self> {
        let members = image().oci_members("x");
        let index = members.iter().find(|(name, _)| name == "index.json").unwrap();
        let index: serde_json::Value = serde_json::from_slice(&index.1).unwrap();
        let digest = index["manifests"][0]["digest"].as_str().unwrap().to_owned();
        let blobs: Vec<_> = members.iter().filter(|(name, _)| name.starts_with("blobs/")).collect();
        let blobs: Vec<_> = blobs
            .into_iter()
            .map(|(_, bytes)| (format!("sha256:{}", sha256(bytes)), bytes.clone()))
            .collect();
        let manifest = blobs.iter().find(|(name, _)| *name == digest).unwrap().1.clone();
        Arc::new(Self { blobs, manifest })
    }

    /// The answer of an honest registry.
    fn answer(&self, asked: &Asked) -> Answer {
        let last = asked.path.rsplit('/').next().unwrap();
        let manifest =
            |bytes: &[u8]| Answer { headers: vec![("Content-Type", MANIFEST.into())], ..ok(bytes) };
        match self.blobs.iter().find(|(digest, _)| digest == last) {
            Some((_, bytes)) if asked.path.contains("/manifests/") => manifest(bytes),
            Some((_, bytes)) => ok(bytes),
            None if asked.path.contains("/manifests/") => manifest(&self.manifest),
            None => status(404),
        }
    }

    /// The longest blob and its digest.
    fn large(&self) -> (String, Vec<u8>) {
        self.blobs.iter().max_by_key(|(_, bytes)| bytes.len()).cloned().unwrap()
    }
}

struct Bed {
    cache: TempDir,
    store: Store,
    server: Server,
}

impl Bed {
    fn new(handler: impl Fn(&Content, &Asked) -> Answer + Send + Sync + 'static) -> Self {
        let content = Content::new();
        let server = Server::start(move |asked| handler(&content, asked)).unwrap();
        let cache = tempfile::tempdir().unwrap();
        let store = Store::open(cache.path()).unwrap();
        Self { cache, store, server }
    }

    fn reference(&self) -> String {
        format!("{}/x:1", self.server.address)
    }

    fn pull(&self) -> Result<usize, String> {
        let pulled = pull(&self.store, Path::new("/nowhere"), &self.reference());
        let layers = pulled.map(|pulled| pulled.image.layers.len()).map_err(|error| error.to_string());
        if layers.is_err() {
            assert!(self.store.list().unwrap().is_empty());
            assert_eq!(files(self.cache.path(), "tmp"), 0, "nothing half is left of a pull that failed");
        }
        layers
    }

    /// Pulls, and returns the error after the image's name.
    fn error(&self) -> String {
        let error = self.pull().unwrap_err();
        error
            .strip_prefix(&format!("image {}", self.reference()))
            .unwrap_or_else(|| panic!("{error}"))
            .to_owned()
    }
}

fn is_large(content: &Content, asked: &Asked) -> bool {
    asked.path.ends_with(&content.large().0)
}

#[test]
fn a_broken_layer_goes_on_from_where_it_broke() {
    for ranges in [true, false] {
        let breaks = AtomicU32::new(0);
        let bed = Bed::new(move |content, asked| {
            let answer = content.answer(asked);
            if !is_large(content, asked) {
                return answer;
            }
            let answer = if ranges && asked.from() > 0 { answer.part(asked.from()) } else { answer };
            // Each connection gets further.
            let times = breaks.fetch_add(1, Ordering::Relaxed);
            let cut = (times < 4).then(|| (times as usize + 1) * if ranges { 100_000 } else { 300_000 });
            Answer { cut, ..answer }
        });
        assert_eq!(bed.pull(), Ok(3), "ranges {ranges}");
        let large = Content::new().large().0;
        let ranges: Vec<_> =
            bed.server.asked(&large).iter().map(|asked| asked.header("range").map(str::to_owned)).collect();
        assert_eq!(ranges.len(), 5);
        assert!(ranges[0].is_none() && ranges[1..].iter().all(Option::is_some), "{ranges:?}");
    }
}

#[test]
fn a_layer_that_breaks_again_and_again_or_stalls_is_an_error() {
    let bed = Bed::new(|content, asked| {
        let cut = is_large(content, asked).then_some(0);
        Answer { cut, ..content.answer(asked) }
    });
    let large = Content::new().large().0;
    let error = bed.error();
    assert!(error.starts_with(&format!(", layer {large}: {}: ", bed.server.address)), "{error}");
    assert_eq!(bed.server.asked(&large).len(), 3);
    let bed = Bed::new(|content, asked| {
        let stall = is_large(content, asked).then_some(10);
        Answer { stall, ..content.answer(asked) }
    });
    assert!(bed.error().ends_with(": no more than 10 bytes came in 2 s"));
}

#[test]
fn what_has_another_digest_or_length_is_refused() {
    let bed = Bed::new(|content, asked| {
        let mut answer = content.answer(asked);
        if is_large(content, asked) {
            answer.body[5000] ^= 1;
        }
        answer
    });
    assert!(bed.error().contains("digest"));
    // As long as it should be, with other content.
    let bed = Bed::new(|content, asked| {
        let mut answer = content.answer(asked);
        if is_large(content, asked) {
            answer.body.fill(b'x');
        }
        answer
    });
    let (large, bytes) = Content::new().large();
    let other = sha256(&vec![b'x'; bytes.len()]);
    assert_eq!(bed.error(), format!(", layer {large}: its blob {large} has digest sha256:{other}"));
    // Longer than announced, and perhaps endless.
    let bed = Bed::new(|content, asked| {
        let mut answer = content.answer(asked);
        if is_large(content, asked) {
            answer.body.extend([0; 100_000]);
        }
        answer
    });
    assert_eq!(bed.pull(), Ok(3), "what follows is not looked at");
    let bed = Bed::new(|content, asked| {
        let answer = content.answer(asked);
        if asked.path.contains("/manifests/") {
            return answer;
        }
        if is_large(content, asked) || answer.body.len() > 1000 { answer } else { ok(b"{}") }
    });
    assert!(bed.error().contains("has 2 bytes and digest sha256:"));
    let bed = Bed::new(|_, _| ok(&vec![b' '; 5 << 20]));
    assert!(bed.error().contains("sent more than 4194304 bytes for a manifest"));
}

#[test]
fn what_is_no_image_for_this_host_says_so() {
    for (document, media_type, wanted) in [
        ("", MANIFEST, "EOF while parsing"),
        ("{}", "text/html", "has unknown media type \"text/html\""),
        (r#"{"mediaType":"a/b"}"#, MANIFEST, "has unknown media type \"a/b\""),
        (r#"{"manifests":[]}"#, INDEX, "no image for linux/"),
        (
            r#"{"manifests":[{"digest":"sha256:00","size":1,"platform":{"os":"linux","architecture":"s390x"}}]}"#,
            INDEX,
            "no image for linux/",
        ),
        (r#"{"manifests":[{"digest":"sha256:00","size":1}]}"#, INDEX, "is not a sha256 digest"),
    ] {
        let bed = Bed::new(move |_, _| Answer {
            headers: vec![("Content-Type", media_type.into())],
            ..ok(document.as_bytes())
        });
        let error = bed.pull().unwrap_err();
        assert!(error.contains(wanted), "{error}");
    }
}

/// An error names the image, and the layer if it is about one.
#[test]
fn errors_name_the_image_and_the_layer() {
    for (code, wanted) in [(404, "does not have it (404)"), (403, "does not allow it (403)")] {
        let bed = Bed::new(
            move |content, asked| {
                if is_large(content, asked) { status(code) } else { content.answer(asked) }
            },
        );
        let large = Content::new().large().0;
        assert_eq!(bed.error(), format!(", layer {large}: {} {wanted}", bed.server.address));
    }
    let foreign = br#"{"architecture":"s390x","os":"linux"}"#;
    let bed = Bed::new(|content, asked| {
        let digest = format!("sha256:{}", sha256(foreign));
        let config = serde_json::json!({"digest": digest, "size": foreign.len()});
        let document = serde_json::json!({"mediaType": MANIFEST, "config": config, "layers": []});
        match asked.path.contains("/blobs/") {
            true => ok(foreign),
            false => Answer { body: document.to_string().into_bytes(), ..content.answer(asked) },
        }
    });
    assert!(bed.error().starts_with(" is for linux/s390x, this host needs "));
    let honest = Arc::new(AtomicU32::new(0));
    let switch = Arc::clone(&honest);
    let bed = Bed::new(move |content, asked| {
        let mut answer = content.answer(asked);
        if asked.path.contains("/manifests/") && switch.load(Ordering::Relaxed) == 0 {
            let mut manifest: serde_json::Value = serde_json::from_slice(&answer.body).unwrap();
            manifest["layers"][0]["size"] = u64::MAX.into();
            answer.body = manifest.to_string().into_bytes();
        }
        answer
    });
    assert!(bed.error().contains(": 18446744073709551615 bytes are needed, "));
    // A layer that is stored needs no room.
    honest.store(1, Ordering::Relaxed);
    assert_eq!(bed.pull(), Ok(3));
    honest.store(0, Ordering::Relaxed);
    assert_eq!(bed.pull(), Ok(3));
}

#[test]
fn an_index_leads_to_this_hosts_image() {
    let architecture = if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" };
    let bed = Bed::new(move |content, asked| {
        if !asked.path.ends_with("/manifests/1") {
            return content.answer(asked);
        }
        let size = content.manifest.len();
        let digest = format!("sha256:{}", sha256(&content.manifest));
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": [
            {"mediaType": MANIFEST, "digest": format!("sha256:{}", "0".repeat(64)), "size": 2, "platform": {"os": "linux", "architecture": "s390x"}},
            {"mediaType": MANIFEST, "digest": digest, "size": size, "platform": {"os": "linux", "architecture": architecture}},
        ]});
        ok(index.to_string().as_bytes())
    });
    assert_eq!(bed.pull(), Ok(3));
    assert_eq!(bed.server.asked(&"0".repeat(64)).len(), 0);
}

#[test]
fn statuses() {
    for (code, wanted) in [
        (401, " wants a login, or does not have it (401): docker login "),
        (403, " does not allow it (403)"),
        (404, " does not have it (404)"),
        (418, " answered with status 418"),
    ] {
        let bed = Bed::new(move |_, _| status(code));
        let error = bed.error();
        assert!(error.contains(wanted), "{error}");
        assert_eq!(bed.server.asked("").len(), 1, "once is enough");
    }
    let bed = Bed::new(|_, _| status(500));
    assert!(bed.error().ends_with(" answered with status 500"));
    assert_eq!(bed.server.asked("").len(), 4);
    // A wait that is too long is refused.
    let bed = Bed::new(|_, _| Answer { headers: vec![("Retry-After", "3600".into())], ..status(429) });
    assert!(bed.error().ends_with(" has had too many requests (429); try again later"));
    assert_eq!(bed.server.asked("").len(), 1);
    let busy = AtomicU32::new(0);
    let bed = Bed::new(move |content, asked| match busy.fetch_add(1, Ordering::Relaxed) {
        0 => Answer { headers: vec![("Retry-After", "0".into())], ..status(429) },
        1 => status(503),
        _ => content.answer(asked),
    });
    assert_eq!(bed.pull(), Ok(3));
}

/// The token is for the registry alone: the server that a blob is redirected to does not get it.
#[test]
fn tokens_and_redirects() {
    let content = Content::new();
    let elsewhere = Server::start(move |asked| content.answer(asked)).unwrap();
    let token_service = Server::start(|asked| {
        assert_eq!(asked.path, "/token?scope=repository%3Ax%3Apull&service=reg");
        ok(br#"{"token":"t0k3n"}"#)
    });
    let token_service = token_service.unwrap();
    let (there, realm) = (elsewhere.address.clone(), token_service.address.clone());
    let bed = Bed::new(move |content, asked| {
        if asked.header("authorization") != Some("Bearer t0k3n") {
            let header = format!(r#"Bearer realm="http://{realm}/token",service="reg""#);
            return Answer { headers: vec![("WWW-Authenticate", header)], ..status(401) };
        }
        if asked.path.contains("/blobs/") {
            return redirect(&there, asked);
        }
        content.answer(asked)
    });
    assert_eq!(bed.pull(), Ok(3));
    assert_eq!(token_service.asked("").len(), 1);
    let asked = elsewhere.asked("/blobs/");
    assert_eq!(asked.len(), 4);
    assert!(asked.iter().all(|asked| asked.header("authorization").is_none()));
    let nobody = Server::start(|_| status(404)).unwrap();
    let header = format!(r#"Bearer realm="http://{}/token""#, nobody.address);
    let bed =
        Bed::new(move |_, _| Answer { headers: vec![("WWW-Authenticate", header.clone())], ..status(401) });
    let wanted = format!(": {}: its way to log in: nothing gives tokens there (404)", bed.server.address);
    assert_eq!(bed.error(), wanted);
    let bed = Bed::new(|_, asked| Answer { headers: vec![("Location", asked.path.clone())], ..status(302) });
    assert!(bed.error().contains("too many redirects"));
}

/// Pulls with these credentials for the registry in Docker's configuration.
fn pull_with(bed: &Bed, credentials: &serde_json::Value) -> String {
    let directory = tempfile::tempdir().unwrap();
    let config = serde_json::json!({"auths": {bed.server.address.as_str(): credentials}});
    std::fs::write(directory.path().join("docker.json"), config.to_string()).unwrap();
    pull(&bed.store, directory.path(), &bed.reference()).unwrap_err().to_string()
}

/// Credentials are for the registry and its token service: not for a server that it redirects to, nor for the token
/// service that such a server names.
#[test]
fn credentials_do_not_follow_redirects() {
    let secret = base64::engine::general_purpose::STANDARD.encode("me:secret");
    for credentials in [serde_json::json!({"auth": secret}), serde_json::json!({"identitytoken": "secret"})] {
        for challenge in [r#"Bearer realm="http://{third}/token""#, r#"Basic realm="x""#] {
            let third = Server::start(|_| ok(br#"{"token":"t0k3n"}"#)).unwrap();
            let challenge = challenge.replace("{third}", &third.address);
            let elsewhere = Server::start(move |_| Answer {
                headers: vec![("WWW-Authenticate", challenge.clone())],
                ..status(401)
            });
            let elsewhere = elsewhere.unwrap();
            let there = elsewhere.address.clone();
            let bed = Bed::new(move |content, asked| match is_large(content, asked) {
                true => redirect(&there, asked),
                false => content.answer(asked),
            });
            let error = pull_with(&bed, &credentials);
            let wanted = ": 127.0.0.1 redirects to 127.0.0.1, which wants a login (401)";
            let wanted = wanted.replacen("127.0.0.1", &bed.server.address, 1);
            assert!(error.contains(&wanted), "{error}");
            assert!(third.asked("").is_empty(), "{:?}", third.asked(""));
            let asked = elsewhere.asked("");
            assert!(!asked.is_empty() && asked.iter().all(|asked| asked.header("authorization").is_none()));
        }
    }
}

fn redirect(to: &str, asked: &Asked) -> Answer {
    Answer { headers: vec![("Location", format!("http://{to}{}", asked.path))], ..status(307) }
}

/// After the status 307 a request is repeated with its body, which has the token.
#[test]
fn a_refresh_token_is_not_redirected() {
    let third = Server::start(|_| ok(br#"{"token":"t0k3n"}"#)).unwrap();
    let there = third.address.clone();
    let service = Server::start(move |asked| redirect(&there, asked)).unwrap();
    let realm = format!(r#"Bearer realm="http://{}/token""#, service.address);
    let bed =
        Bed::new(move |_, _| Answer { headers: vec![("WWW-Authenticate", realm.clone())], ..status(401) });
    let error = pull_with(&bed, &serde_json::json!({"identitytoken": "secret"}));
    assert!(error.ends_with("a redirect of a request with a secret to another server"), "{error}");
    assert_eq!((service.asked("").len(), third.asked("").len()), (1, 0));
}

/// As in Docker, an image that needs no login needs no helper.
#[test]
fn a_public_image_needs_no_login() {
    let directory = tempfile::tempdir().unwrap();
    let config = directory.path().join("docker.json");
    let public = Arc::new(AtomicBool::new(true));
    let switch = Arc::clone(&public);
    let bed = Bed::new(move |content, asked| match switch.load(Ordering::Relaxed) {
        true => content.answer(asked),
        false => status(401),
    });
    for (content, why) in [
        (r#"{"credsStore":"not-there"}"#, ": its helper docker-credential-not-there cannot be run"),
        ("", ""),
        ("\u{feff}{}", ""),
        ("{", ": is not Docker's configuration"),
    ] {
        std::fs::write(&config, content).unwrap();
        public.store(true, Ordering::Relaxed);
        assert_eq!(pull(&bed.store, directory.path(), &bed.reference()).unwrap().image.layers.len(), 3);
        public.store(false, Ordering::Relaxed);
        let error = pull(&bed.store, directory.path(), &bed.reference()).unwrap_err().to_string();
        let mut wanted = format!(" (401): docker login {}", bed.server.address);
        if !why.is_empty() {
            wanted = format!("{wanted}; there are no credentials now: {}{why}", config.display());
        }
        assert!(error.ends_with(&wanted), "{error}");
    }
}

#[test]
fn a_failed_pull_can_be_tried_again_and_what_came_of_it_is_kept_a_day() {
    let good = Arc::new(AtomicU32::new(0));
    let switch = Arc::clone(&good);
    let bed = Bed::new(move |content, asked| {
        if is_large(content, asked) && switch.load(Ordering::Relaxed) == 0 {
            status(404)
        } else {
            content.answer(asked)
        }
    });
    assert!(bed.error().contains("does not have it (404)"));
    // The small layers stay, so that another pull need not fetch them again.
    assert_eq!(files(bed.cache.path(), "blobs"), 2);
    let records = rusqlite::Connection::open(bed.cache.path().join("images/metadata.db")).unwrap();
    let day = "UPDATE blobs SET pending_since = pending_since - 86401 WHERE digest = (SELECT min(digest) FROM blobs)";
    assert_eq!(records.execute(day, []).unwrap(), 1);
    let store = Store::open(bed.cache.path()).unwrap();
    assert_eq!(files(bed.cache.path(), "blobs"), 1, "a day is over for one");
    let collected = store.gc().unwrap();
    assert_eq!((collected.blobs, files(bed.cache.path(), "blobs")), (1, 0));
    assert!(bed.error().contains("does not have it (404)"));
    let before = bed.server.asked("/blobs/").len();
    good.store(1, Ordering::Relaxed);
    assert_eq!(bed.pull(), Ok(3));
    assert_eq!(bed.server.asked("/blobs/").len() - before, 2, "configuration and large layer");
    assert_eq!(store.gc().unwrap(), images::Collected::default());
    store.remove(&bed.reference()).unwrap();
    assert_eq!(files(bed.cache.path(), "blobs"), 0);
}

/// Pulls as [`pull`] does, until `token` is cancelled.
fn pull_until(bed: &Bed, token: &CancellationToken) -> images::Result<()> {
    let trust = Trust { silence: Duration::from_secs(600), ..trust(Path::new("/nowhere")) };
    let store = Store::open_until(bed.cache.path(), token.clone())?;
    let reference = bed.reference();
    Registries::new(trust).until(token.clone()).pull_as(&store, &reference, &reference, &Quiet).map(drop)
}

#[test]
fn a_pull_that_is_given_up_ends_at_once() {
    // The pull is in the middle of a layer, or before its first byte.
    for stall in [300_000, 0] {
        let silent = Arc::new(AtomicBool::new(true));
        let switch = Arc::clone(&silent);
        let bed = Bed::new(move |content, asked| {
            let stalls = switch.load(Ordering::Relaxed) && is_large(content, asked);
            Answer { stall: stalls.then_some(stall), ..content.answer(asked) }
        });
        let large = Content::new().large().0;
        let begun = || !bed.server.asked(&large).is_empty();
        let error = given_up_at_once(begun, |token| pull_until(&bed, token)).to_string();
        assert!(error.ends_with("the pull was given up"), "{error}");
        assert_eq!(files(bed.cache.path(), "tmp"), 0);
        silent.store(false, Ordering::Relaxed);
        assert_eq!(bed.pull(), Ok(3));
    }
}

#[test]
fn a_layer_that_another_process_fetches_is_not_waited_for_once_given_up() {
    let bed = Bed::new(|content, asked| content.answer(asked));
    // The layer is not compressed, so the store knows it by the same digest.
    let name = Content::new().large().0.replace("sha256:", "images/tmp/fetching-");
    let held = File::create(bed.cache.path().join(name)).unwrap();
    held.lock().unwrap();
    // The process that fetches would hold this lock.
    let writing = File::create(bed.cache.path().join("images/lock")).unwrap();
    writing.lock_shared().unwrap();
    // Another layer may still be on its way.
    let error = given_up_at_once(|| is_waited_for(&held), |token| pull_until(&bed, token)).to_string();
    assert!(error.ends_with("was given up"), "{error}");
    drop((held, writing));
    assert_eq!(bed.pull(), Ok(3));
}

/// Two pulls want the same image at the same time: each layer is fetched once, and both succeed.
#[test]
fn two_at_once_share_the_work() {
    let bed = Bed::new(|content, asked| content.answer(asked));
    // As good as two processes, since locks are between open files.
    let other = Store::open(bed.cache.path()).unwrap();
    let reference = format!("{}/x:2", bed.server.address);
    std::thread::scope(|scope| {
        let second = scope.spawn(|| pull(&other, Path::new("/nowhere"), &reference).map(drop));
        assert_eq!(bed.pull(), Ok(3));
        second.join().unwrap().unwrap();
    });
    for (digest, bytes) in &Content::new().blobs {
        if bytes.starts_with(b"{") {
            continue;
        }
        assert_eq!(bed.server.asked(digest).len(), 1, "{digest}");
    }
    assert_eq!(bed.store.list().unwrap().len(), 2);
    assert_eq!(files(bed.cache.path(), "blobs"), 3);
}

/// While one pulls, nothing is collected: not by another's pull, and not on request.
#[test]
fn who_is_writing_is_left_alone() {
    let (reached, wait) = std::sync::mpsc::channel();
    let ended = reached.clone();
    let (go, gate) = std::sync::mpsc::channel::<()>();
    let gate = std::sync::Mutex::new(gate);
    let bed = Bed::new(move |content, asked| {
        if is_large(content, asked) {
            let _ = reached.send(Ok(3));
            let _ = gate.lock().unwrap().recv();
        }
        content.answer(asked)
    });
    let other = Store::open(bed.cache.path()).unwrap();
    std::thread::scope(|scope| {
        let pulling = scope.spawn(|| {
            let outcome = bed.pull();
            // A pull that ends before this layer is not waited for.
            let _ = ended.send(outcome.clone());
            outcome
        });
        assert_eq!(wait.recv().unwrap(), Ok(3));
        let error = other.gc().unwrap_err().to_string();
        assert!(error.ends_with("try again when that is done"), "{error}");
        drop(go);
        assert_eq!(pulling.join().unwrap(), Ok(3));
    });
    assert_eq!(other.gc().unwrap(), images::Collected::default());
}
