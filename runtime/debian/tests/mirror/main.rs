//! A mirror that is signed with a key of the test's own, and falsified at each step.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod given_up;
mod server;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use debian::{Archive, Error, Keys, Mirror, Package, ReleaseError, Suite};
use pgp::composed::{ArmorOptions, CleartextSignedMessage, KeyType, SecretKeyParamsBuilder, SignedSecretKey};
use pgp::types::Password;
use rand::rngs::OsRng;
use served::http::Asked;
use server::{File, Server};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use waiting::CancellationToken;

const RELEASE: &str = "dists/test/InRelease";
const PACKAGE: &str = "pool/main/l/linux/image_1_amd64.deb";
const DAY: u64 = 24 * 3600;

fn architecture() -> &'static str {
    if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" }
}

fn key() -> SignedSecretKey {
    let mut parameters = SecretKeyParamsBuilder::default();
    parameters.key_type(KeyType::Ed25519Legacy).can_certify(true).can_sign(true);
    parameters.primary_user_id("test".into());
    parameters.build().unwrap().generate(OsRng).unwrap()
}

fn sha256(data: &[u8]) -> String {
    Sha256::digest(data).iter().map(|byte| format!("{byte:02x}")).collect()
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn date(seconds: u64) -> String {
    let time = jiff::Timestamp::from_second(i64::try_from(seconds).unwrap()).unwrap();
    time.strftime("%a, %d %b %Y %H:%M:%S UTC").to_string()
}

/// The content of a mirror; each field may be false.
#[derive(Clone)]
struct Says {
    /// The suite that is falsified.
    suite: &'static str,
    codename: &'static str,
    version: &'static str,
    date: u64,
    valid_until: Option<u64>,
    by_hash: bool,
    lists: &'static str,
    package: Vec<u8>,
    package_len: Option<u64>,
    filename: &'static str,
}

impl Says {
    fn truth() -> Self {
        let package = (0..200_000u32).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        Self {
            suite: "test",
            codename: "test",
            version: "1",
            date: now() - DAY,
            valid_until: None,
            by_hash: true,
            lists: "Packages.xz",
            package,
            package_len: None,
            filename: PACKAGE,
        }
    }
}

/// A mirror, and a host that reads it.
struct World {
    key: SignedSecretKey,
    server: Server,
    directory: TempDir,
    index: String,
    /// Whether the mirror has a suite of updates, or should have one.
    has_updates: bool,
    /// How long the mirror may send nothing.
    silence: Duration,
}

impl World {
    fn new(says: &Says) -> Self {
        let mut world = Self {
            key: key(),
            server: Server::start(),
            directory: tempfile::tempdir().unwrap(),
            index: String::new(),
            has_updates: false,
            silence: Duration::from_secs(1),
        };
        world.publish(says);
        world
    }

    fn publish(&mut self, says: &Says) {
        let Says { package, filename, version, suite, .. } = says;
        let len = says.package_len.unwrap_or(package.len() as u64);
        let packages = format!(
            "Package: meta\nVersion: {version}\nDepends: foo, image-1 (= 1)\nFilename: pool/meta.deb\nSize: 1\nSHA256: {}\n\n\
             Package: image-1\nVersion: {version}\nFilename: {filename}\nSize: {len}\nSHA256: {}\n",
            sha256(b"x"),
            sha256(package),
        );
        let mut packed = Vec::new();
        std::io::copy(&mut liblzma::read::XzEncoder::new(packages.as_bytes(), 6), &mut packed).unwrap();
        let folder = format!("main/binary-{}", architecture());
        let mut text = format!("Origin: Test\nCodename: {}\nDate: {}\n", says.codename, date(says.date));
        if let Some(until) = says.valid_until {
            text.push_str(&format!("Valid-Until: {}\n", date(until)));
        }
        if says.by_hash {
            text.push_str("Acquire-By-Hash: yes\n");
        }
        let digest = sha256(&packed);
        text.push_str(&format!("SHA256:\n {digest} {} {folder}/{}\n", packed.len(), says.lists));
        let name = if says.by_hash { format!("by-hash/SHA256/{digest}") } else { says.lists.to_owned() };
        self.index = format!("dists/{suite}/{folder}/{name}");
        self.put(&format!("dists/{suite}/InRelease"), signed(&text, &self.key).into_bytes());
        self.put(&self.index, packed);
        self.put(filename, package.clone());
    }

    fn put(&self, path: &str, body: Vec<u8>) {
        self.server.put(path, File { body, ..File::default() });
    }

    fn lists(&self) -> PathBuf {
        self.directory.path().join("lists")
    }

    fn downloads(&self) -> PathBuf {
        self.directory.path().join("downloads")
    }

    fn update(&self) -> Result<Archive, Error> {
        self.update_until(&CancellationToken::new())
    }

    fn update_until(&self, given_up: &CancellationToken) -> Result<Archive, Error> {
        let public = self.key.to_public_key().to_armored_string(ArmorOptions::default()).unwrap();
        let keys = Keys::parse([public.as_str()]).unwrap();
        let suite = |name: &str, required| {
            let (url, not_before) = (self.server.url.clone(), now() - 6 * DAY);
            Suite { url, name: name.into(), required, not_before }
        };
        let mut suites = vec![suite("test", true)];
        suites.extend(self.has_updates.then(|| suite("test-security", false)));
        let mirror = Mirror { suites, keys, silence: self.silence };
        Archive::of_mirror(&self.lists(), mirror, given_up)
    }

    fn fetch(&self) -> Result<Package, Error> {
        self.update()?.fetch("image-1", &self.downloads())
    }

    /// The error that comes in place of a package, of which no file is left.
    #[track_caller]
    fn refused(&self) -> Error {
        let error = self.fetch().unwrap_err();
        assert!(names(&self.lists()).is_empty() && names(&self.downloads()).is_empty(), "{error}");
        error
    }

    #[track_caller]
    fn not_believed(&self) -> ReleaseError {
        match self.refused() {
            Error::Release { source, .. } => source,
            error => panic!("{error}"),
        }
    }

    fn asked(&self, path: &str) -> Vec<usize> {
        let path = format!("/debian/{path}");
        let asked = self.server.http.asked(&path);
        asked.iter().filter(|asked| asked.path == path).map(Asked::from).collect()
    }
}

fn signed(text: &str, key: &SignedSecretKey) -> String {
    let message = CleartextSignedMessage::sign(OsRng, text, &key.primary_key, &Password::empty()).unwrap();
    message.to_armored_string(ArmorOptions::default()).unwrap()
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

#[test]
fn a_package_comes_by_a_chain_of_digests() {
    for by_hash in [true, false] {
        let says = Says { by_hash, valid_until: Some(now() + DAY), ..Says::truth() };
        let world = World::new(&says);
        let archive = world.update().unwrap();
        assert_eq!(archive.dependency("meta", "image-").unwrap(), "image-1");
        assert_eq!(archive.dependency("meta", "foo").unwrap(), "foo");
        let missing = archive.dependency("meta", "x").unwrap_err();
        assert!(matches!(missing, Error::UnknownOn { .. }), "{missing}");
        let unknown = archive.fetch("image", &world.downloads()).unwrap_err();
        assert!(matches!(unknown, Error::UnknownOn { .. }), "{unknown}");
        let package = archive.fetch("image-1", &world.downloads()).unwrap();
        assert_eq!(
            (package.version.as_str(), package.sha256.as_str()),
            ("1", sha256(&says.package).as_str())
        );
        assert!(fs::read(&package.path).unwrap() == says.package);
        assert_eq!(world.asked(&world.index), [0], "once for all that is looked up in it");
        drop(archive);
        assert!(names(&world.lists()).is_empty());
        world.fetch().unwrap();
    }
}

#[test]
fn a_release_must_be_signed_by_a_known_key() {
    let world = World::new(&Says::truth());
    let text = |world: &World| {
        let mut text = String::new();
        world.server.change(RELEASE, |file| text = String::from_utf8(file.body.clone()).unwrap());
        text
    };
    let good = text(&world);
    let other = World::new(&Says::truth());
    let (_, signature) = good.split_once("-----BEGIN PGP SIGNATURE").unwrap();
    let digest = world.index.rsplit('/').next().unwrap();
    for wrong in [
        text(&other),
        good.replace("Origin: Test", "Origin: Best"),
        good.replace(digest, &"0".repeat(64)),
        format!("-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n\n-----BEGIN PGP SIGNATURE{signature}"),
    ] {
        world.put(RELEASE, wrong.into_bytes());
        assert_eq!(world.not_believed(), ReleaseError::Signature);
    }
    let (head, _) = good.split_once("-----BEGIN PGP SIGNATURE").unwrap();
    for wrong in [
        String::new(),
        "<html>captive portal</html>".to_owned(),
        head.to_owned(),
        format!("Codename: test\n{good}"),
        format!("{good}Codename: test\n"),
        good.split_once("\n\n").unwrap().1.to_owned(),
    ] {
        world.put(RELEASE, wrong.into_bytes());
        assert_eq!(world.not_believed(), ReleaseError::Malformed);
    }
    world.put(RELEASE, vec![b'\n'; 1 << 20]);
    assert!(world.refused().to_string().contains("more than 524288 bytes"));
    assert_eq!(world.asked(&world.index), [] as [usize; 0], "nothing is asked on the word of such a release");
    world.put(RELEASE, good.into_bytes());
    world.fetch().unwrap();
}

#[test]
fn a_release_must_be_the_one_asked_for_and_of_now() {
    let mut world = World::new(&Says { codename: "other", ..Says::truth() });
    assert_eq!(world.not_believed(), ReleaseError::Suite("other".into(), "test".into()));
    let past = now() - 60;
    world.publish(&Says { valid_until: Some(past), ..Says::truth() });
    assert_eq!(world.not_believed(), ReleaseError::Expired(date(past)));
    let future = now() + 2 * DAY;
    world.publish(&Says { date: future, ..Says::truth() });
    assert_eq!(world.not_believed(), ReleaseError::Future(date(future)));
    world.publish(&Says { lists: "Packages.gz", ..Says::truth() });
    let missing = format!("main/binary-{}/Packages.xz", architecture());
    assert_eq!(world.not_believed(), ReleaseError::NotListed(missing));

    world.publish(&Says { date: now() - 5 * DAY, ..Says::truth() });
    world.fetch().unwrap();
    world.publish(&Says { date: now() - 4 * DAY, ..Says::truth() });
    world.fetch().unwrap();
    fs::remove_dir_all(world.downloads()).unwrap();
    let before = now() - 5 * DAY;
    world.publish(&Says { date: before, ..Says::truth() });
    assert_eq!(world.not_believed(), ReleaseError::Older(date(before)));
}

/// An old release stays signed, so a host that has seen no release yet could be taken back by it.
#[test]
fn an_old_release_is_not_taken_at_first_either() {
    let before = now() - 7 * DAY;
    let world = World::new(&Says { date: before, ..Says::truth() });
    assert_eq!(world.not_believed(), ReleaseError::Outdated(date(before)));
}

#[test]
fn an_index_must_be_what_the_release_says() {
    let world = World::new(&Says::truth());
    world.server.change(&world.index, |file| *file.body.last_mut().unwrap() ^= 1);
    assert!(matches!(world.refused(), Error::Digest { .. }));
    world.server.change(&world.index, |file| file.body.truncate(file.body.len() - 1));
    assert!(matches!(world.refused(), Error::Size { .. }));
    world.server.change(&world.index, |file| file.body.extend([0; 10]));
    let error = world.refused().to_string();
    assert!(error.contains(" has more than "), "{error}");
    world.server.files.lock().unwrap().remove(&format!("/debian/{}", world.index));
    let error = world.refused().to_string();
    assert!(error.ends_with("answered with status 404"), "{error}");
    assert_eq!(world.asked(PACKAGE), [] as [usize; 0]);
}

#[test]
fn a_package_must_be_what_the_index_says() {
    let mut world = World::new(&Says::truth());
    world.server.change(PACKAGE, |file| file.body[1000] ^= 1);
    assert!(matches!(world.refused(), Error::Digest { .. }));
    world.server.change(PACKAGE, |file| file.body.truncate(1000));
    assert!(matches!(world.refused(), Error::Size { actual: 1000, .. }));
    world.server.change(PACKAGE, |file| file.body.resize(900_000, 0));
    let error = world.refused().to_string();
    assert!(error.contains(" has more than 800000 bytes"), "{error}");
    world.publish(&Says { package_len: Some(1 << 40), ..Says::truth() });
    assert!(matches!(world.refused(), Error::Format("it is over the size limit")));
    world.publish(&Says { filename: "../../../etc/passwd", ..Says::truth() });
    assert!(matches!(world.refused(), Error::Format("its record names no file")));
}

#[test]
fn the_newest_of_a_release_and_its_updates_is_taken() {
    const UPDATES: &str = "dists/test-security/InRelease";
    let fetched = |world: &World| {
        let package = world.fetch().unwrap();
        (package.version, fs::read(package.path).unwrap())
    };
    let says = |version, mark: u8| Says { version, package: vec![mark; 1000], ..Says::truth() };
    let updates = |version, mark| {
        let (suite, filename) = ("test-security", "pool/updates/image_2_amd64.deb");
        Says { suite, codename: suite, filename, ..says(version, mark) }
    };
    let mut world = World::new(&says("6.1.9-1", 1));
    world.has_updates = true;
    // A mirror may lack updates.
    assert_eq!(fetched(&world), ("6.1.9-1".into(), vec![1; 1000]));
    world.publish(&updates("6.1.10-1", 2));
    assert_eq!(fetched(&world), ("6.1.10-1".into(), vec![2; 1000]));
    let index = world.index.clone();
    world.publish(&says("6.1.11-1", 3));
    assert_eq!(fetched(&world), ("6.1.11-1".into(), vec![3; 1000]));

    // Updates that are not trusted are an error: ignoring them would be a way to keep them from a host.
    world.publish(&says("6.1.9-1", 1));
    world.server.http.forget();
    fs::remove_dir_all(world.downloads()).unwrap();
    world.server.change(UPDATES, |file| file.body[100] ^= 1);
    assert_eq!(world.not_believed(), ReleaseError::Signature);
    world.publish(&Says { date: now() - 7 * DAY, ..updates("6.1.12-1", 4) });
    assert!(matches!(world.not_believed(), ReleaseError::Outdated(_)));
    world.publish(&Says { codename: "test", ..updates("6.1.12-1", 4) });
    assert!(matches!(world.not_believed(), ReleaseError::Suite(..)));
    assert_eq!(world.asked(&index), [] as [usize; 0]);
    // A wrong file behind a good signature is an attack or a fault, and reported.
    world.publish(&updates("6.1.12-1", 4));
    world.server.change(&world.index, |file| *file.body.last_mut().unwrap() ^= 1);
    assert!(matches!(world.refused(), Error::Digest { .. }));

    // A file that is not signed counts as missing, and so do expired updates.
    let without = |world: &World| assert_eq!(fetched(world), ("6.1.9-1".into(), vec![1; 1000]));
    world.put(UPDATES, b"<html>no such page</html>".to_vec());
    without(&world);
    world.publish(&Says { valid_until: Some(now() - 60), ..updates("6.1.12-1", 4) });
    without(&world);
    world.server.change(UPDATES, |file| file.body[100] ^= 1);
    fs::remove_dir_all(world.downloads()).unwrap();
    assert_eq!(world.not_believed(), ReleaseError::Signature);
}

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    let says = Says::truth();
    let world = World::new(&says);
    world.server.change(PACKAGE, |file| file.cuts = (300_000, 2));
    assert!(fs::read(world.fetch().unwrap().path).unwrap() == says.package);
    assert_eq!(world.asked(PACKAGE), [0, 300_000, 600_000]);

    let world = World::new(&says);
    world.server.change(PACKAGE, |file| (file.cuts, file.no_ranges) = ((300_000, 1), true));
    assert!(fs::read(world.fetch().unwrap().path).unwrap() == says.package);
    assert_eq!(world.asked(PACKAGE), [0, 300_000]);

    let world = World::new(&says);
    world.server.change(PACKAGE, |file| file.cuts = (0, u32::MAX));
    assert!(matches!(world.refused(), Error::Mirror { .. }));
    assert_eq!(world.asked(PACKAGE), [0, 0, 0], "then it is given up");
}

#[test]
fn a_mirror_that_says_nothing_is_given_up() {
    let world = World::new(&Says::truth());
    world.server.change(RELEASE, |file| file.stall = Some(0));
    let error = world.refused().to_string();
    assert!(error.ends_with("nothing came for 1 s"), "{error}");
    let url = world.server.url.clone();
    let keys = Keys::debian().unwrap();
    drop(world);
    let directory = tempfile::tempdir().unwrap();
    let suites = vec![Suite { url, name: "test".into(), required: true, not_before: 0 }];
    let mirror = Mirror { suites, keys, silence: Duration::from_secs(5) };
    let lists = directory.path().join("lists");
    let error = Archive::of_mirror(&lists, mirror, &CancellationToken::new()).map(drop).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("onnection refused"), "{error}");
}
