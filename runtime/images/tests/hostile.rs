//! Small archives that are large inside, processes that are killed, and access to the store's files.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

use images::fixtures::{self, ImageFixture, LayerBuilder};
use images::{Error, ImportSource, Imported, Quiet, Store};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{CWD, FileType, Mode, mknodat};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::{Value, json};
use waiting::CancellationToken;

fn import(cache: &Path, archive: &[u8]) -> images::Result<Imported> {
    Store::open(cache)?.import(ImportSource::Reader(&mut &*archive), None, &Quiet)
}

fn refusal(archive: &[u8]) -> String {
    let cache = tempfile::tempdir().unwrap();
    let error = import(cache.path(), archive).map(drop).unwrap_err().to_string();
    assert_eq!(Store::open(cache.path()).unwrap().list().unwrap(), []);
    error
}

fn image() -> ImageFixture {
    ImageFixture::new(vec![LayerBuilder::default().file("a", 0o644, b"a").build()])
}

#[test]
fn names_of_members_are_bounded() {
    let long = "x".repeat(4000);
    let many = (0..5000).fold(LayerBuilder::default(), |archive, index| {
        archive.pax(&[("path", format!("{index}/{long}").as_bytes())]).file("x", 0o644, b"")
    });
    // Without an image's mark this is a root file system, which may have any number of members; the mark may come
    // last.
    let marked = |archive: LayerBuilder| archive.file("manifest.json", 0o644, b"[]").build();
    let error = refusal(&marked(many));
    assert!(error.ends_with("more than 16777216 bytes of names"), "{error}");
    let links = (0..5000).fold(LayerBuilder::default(), |archive, index| {
        archive.pax(&[("linkpath", long.as_bytes())]).symlink(&index.to_string(), "")
    });
    let error = refusal(&marked(links));
    assert!(error.ends_with("more than 16777216 bytes of names"), "{error}");
}

#[test]
fn a_configuration_is_stored_once_and_bounded() {
    let mut image = image();
    image.config = json!({ "Env": ["A=".to_owned() + &"x".repeat(200 << 10)] });
    let tags: Vec<String> = (0..1024).map(|index| format!("tag-{index}")).collect();
    let mut tags: Vec<&str> = tags.iter().map(String::as_str).collect();
    let cache = tempfile::tempdir().unwrap();
    import(cache.path(), &image.docker_archive(&tags)).unwrap();
    let store = Store::open(cache.path()).unwrap();
    assert_eq!(store.get("tag-1023").unwrap().unwrap().config.env[0].len(), 2 + (200 << 10));
    let files = fs::read_dir(cache.path().join("images")).unwrap();
    let len: u64 = files.map(|file| file.unwrap().metadata().unwrap().len()).sum();
    assert!(len < 4 << 20, "{} KiB for {} names", len >> 10, tags.len());
    // The image is removed with the last of its names.
    import(cache.path(), &self::image().docker_archive(&tags)).unwrap();
    let database = rusqlite::Connection::open(cache.path().join("images/metadata.db")).unwrap();
    let configs = database.query_row("SELECT count(*) FROM configs", [], |row| row.get::<_, u32>(0));
    assert_eq!(configs.unwrap(), 1);

    tags.push("one-more");
    let error = refusal(&self::image().docker_archive(&tags));
    assert!(error.ends_with("more than 1024 names"), "{error}");
    image.config = json!({ "Cmd": vec![""; 10_000] });
    let error = refusal(&image.docker_archive(&["x"]));
    assert!(error.ends_with("image x has a configuration of more than 262144 bytes"), "{error}");
}

/// A document of an OCI layout: its descriptor, and its member.
fn document(contents: &Value) -> (Value, (String, Vec<u8>)) {
    let bytes = contents.to_string().into_bytes();
    let hash = fixtures::sha256(&bytes);
    let descriptor = json!({
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "digest": format!("sha256:{hash}"),
        "size": bytes.len(),
    });
    (descriptor, (format!("blobs/sha256/{hash}"), bytes))
}

#[test]
fn documents_are_read_so_often_and_no_more() {
    // Nothing here is for this machine, however often the documents are read.
    let bomb = |leaf: Value, width: usize| {
        let (one, last) = document(&json!({ "manifests": [leaf] }));
        let (two, middle) = document(&json!({ "manifests": vec![one; width] }));
        let (three, first) = document(&json!({ "manifests": vec![two; width] }));
        let index = json!({ "manifests": vec![three; width] }).to_string().into_bytes();
        fixtures::archive(&[last, middle, first, ("index.json".to_owned(), index)])
    };
    let platform = json!({ "architecture": "mips", "os": "linux" });
    let foreign = json!({ "digest": format!("sha256:{}", "0".repeat(64)), "size": 1, "platform": platform });
    let error = refusal(&bomb(foreign.clone(), 256));
    assert!(error.ends_with("more than 1024 documents"), "{error}");
    let mut large = foreign;
    large["annotations"] = json!({ "a": "x".repeat(3 << 20) });
    let error = refusal(&bomb(large, 5));
    assert!(error.ends_with("more than 67108864 bytes of documents"), "{error}");
    // Many images of one archive are well within the limit.
    let members = image().oci_members("x");
    let (_, index) = members.iter().find(|(name, _)| name == "index.json").unwrap();
    let index: Value = serde_json::from_slice(index).unwrap();
    let named = |index: usize, descriptor: &Value| {
        let mut descriptor = descriptor.clone();
        descriptor["annotations"] = json!({ "org.opencontainers.image.ref.name": format!("image-{index}") });
        descriptor
    };
    let all: Vec<Value> = (0..256).map(|number| named(number, &index["manifests"][0])).collect();
    let mut members: Vec<_> = members.into_iter().filter(|(name, _)| name != "index.json").collect();
    members.push(("index.json".to_owned(), json!({ "manifests": all }).to_string().into_bytes()));
    let cache = tempfile::tempdir().unwrap();
    assert_eq!(import(cache.path(), &fixtures::archive(&members)).unwrap().stored.len(), 256);
}

#[test]
fn a_full_disk_is_said_before_it_is_full() {
    let directory = tempfile::tempdir().unwrap();
    let disk = rustix::fs::statvfs(directory.path()).unwrap();
    let len = 2 * disk.f_blocks * disk.f_frsize;
    let check = |path: &Path, what: &str| {
        let cache = tempfile::tempdir().unwrap();
        let error = Store::open(cache.path()).unwrap().import(ImportSource::Path(path), None, &Quiet);
        let error = error.map(drop).unwrap_err();
        assert!(matches!(error, Error::Space { needed, .. } if needed == len), "{error}");
        let error = error.to_string();
        assert!(error.starts_with(what) && error.contains(" bytes are needed, "), "{error}");
    };
    // A compressed archive, which has to be unpacked first.
    let compressed = directory.path().join("archive.tar.gz");
    let mut file = File::create(&compressed).unwrap();
    file.write_all(&[31, 139, 8, 0]).unwrap();
    if file.set_len(len).is_err() {
        skip::skip("large-files", format!("this file system has no files of {len} bytes"));
        return;
    }
    check(&compressed, &format!("{}: ", compressed.display()));
    // A layer of an archive that is read in place.
    let config = image().config_json();
    let manifest = json!([{ "Config": "config", "RepoTags": ["x"], "Layers": ["layer"] }]);
    let mut archive = fixtures::archive(&[
        ("config".to_owned(), config),
        ("manifest.json".to_owned(), manifest.to_string().into_bytes()),
    ]);
    archive.truncate(archive.len() - 1024);
    let mut header = tar::Header::new_gnu();
    header.set_path("layer").unwrap();
    header.set_size(len);
    header.set_cksum();
    archive.extend_from_slice(header.as_bytes());
    let plain = directory.path().join("archive.tar");
    let mut file = File::create(&plain).unwrap();
    file.write_all(&archive).unwrap();
    file.set_len(archive.len() as u64 + len).unwrap();
    check(&plain, "image x, layer sha256:");
    // A stored layer is not written again, however long the archive says it is.
    let cache = tempfile::tempdir().unwrap();
    let store = Store::open(cache.path()).unwrap();
    store.import(ImportSource::Reader(&mut &*image().docker_archive(&["y"])), None, &Quiet).unwrap();
    store.import(ImportSource::Path(&plain), None, &Quiet).unwrap();
}

#[test]
fn a_store_is_its_owners_alone() {
    let cache = tempfile::tempdir().unwrap();
    let images = cache.path().join("images");
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let store = Store::open(cache.path()).unwrap();
    let private = |store: Store| {
        // The import makes all of SQLite's files.
        store.import(ImportSource::Reader(&mut &*image().docker_archive(&["x"])), None, &Quiet).unwrap();
        assert_eq!(mode(&images), 0o700);
        for file in fs::read_dir(&images).unwrap().map(|file| file.unwrap().path()) {
            if file.to_str().unwrap().contains("metadata.db") {
                assert_eq!(mode(&file), 0o600, "{}", file.display());
            }
        }
    };
    private(store);
    // A store that an earlier release made readable.
    fs::set_permissions(&images, fs::Permissions::from_mode(0o755)).unwrap();
    fs::set_permissions(images.join("metadata.db"), fs::Permissions::from_mode(0o644)).unwrap();
    private(Store::open(cache.path()).unwrap());
}

#[test]
fn stores_of_earlier_versions_are_taken_over() {
    const TO_3: &str = "ALTER TABLE blobs DROP COLUMN gaps; ALTER TABLE image_layers DROP COLUMN diff_id;
        PRAGMA user_version = 3;";
    const TO_2: &str = "ALTER TABLE blobs DROP COLUMN pending_since; PRAGMA user_version = 2;";
    const TO_1: &str = "ALTER TABLE images ADD COLUMN config TEXT NOT NULL DEFAULT '';
        UPDATE images SET config = (SELECT config FROM configs WHERE configs.digest = images.digest);
        DROP TABLE configs; PRAGMA user_version = 1;";
    for steps in [&[TO_3][..], &[TO_3, TO_2], &[TO_3, TO_2, TO_1]] {
        let cache = tempfile::tempdir().unwrap();
        let imported = import(cache.path(), &image().docker_archive(&["x", "y"])).unwrap();
        let database = rusqlite::Connection::open(cache.path().join("images/metadata.db")).unwrap();
        database.execute_batch(&steps.concat()).unwrap();
        drop(database);
        let store = Store::open(cache.path()).unwrap();
        assert_eq!(store.get("x").unwrap().unwrap(), imported.image);
        assert_eq!(store.get("y").unwrap().unwrap().config, imported.image.config);
        store.remove("x").unwrap();
        assert_eq!(store.get("y").unwrap().unwrap().config, imported.image.config);
        assert_eq!(store.gc().unwrap().blobs, 0);
        store.remove("y").unwrap();
        assert_eq!(fs::read_dir(cache.path().join("images/blobs")).unwrap().count(), 0);
    }
}

/// The variable that names the child's directory.
const DIRECTORY: &str = "MATCHLOCK_TEST_DIRECTORY";

#[test]
#[ignore = "the child's side of another test"]
fn make_an_upper_disk() {
    let cache = std::env::var(DIRECTORY).unwrap();
    drop(images::upper_disk(cache.as_ref(), cache.as_ref(), 64, &CancellationToken::new()));
}

#[test]
fn formatting_ends_with_whoever_wanted_it_and_the_next_one_clears_up() {
    let cache = tempfile::tempdir().unwrap();
    let pipe = cache.path().join("pipe");
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let bin = cache.path().join("bin");
    fs::create_dir(&bin).unwrap();
    let script = format!("#!/bin/sh\necho $$ > {}\nexec /bin/sleep 1000\n", pipe.display());
    fs::write(bin.join("mke2fs"), script).unwrap();
    fs::set_permissions(bin.join("mke2fs"), fs::Permissions::from_mode(0o755)).unwrap();
    let mut parent = Command::new(std::env::current_exe().unwrap());
    parent.args(["--exact", "make_an_upper_disk", "--ignored"]).stdout(Stdio::null());
    let mut parent = parent.env("PATH", &bin).env(DIRECTORY, cache.path()).spawn().unwrap();
    let pid = fs::read_to_string(&pipe).unwrap();
    let pid = Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    let formatting = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    parent.kill().unwrap();
    parent.wait().unwrap();
    let limit = Timespec { tv_sec: 10, tv_nsec: 0 };
    assert_eq!(poll(&mut [PollFd::new(&formatting, PollFlags::IN)], Some(&limit)).unwrap(), 1, "it goes on");

    let uppers = || {
        let names = fs::read_dir(cache.path().join("uppers")).unwrap();
        names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect::<Vec<_>>()
    };
    assert!(uppers()[0].starts_with("new-"));
    images::upper_disk(cache.path(), cache.path(), 64, &CancellationToken::new()).unwrap();
    assert_eq!(uppers(), ["v1-64.ext4"]);
}
