//! Archives into the store and out again: every form, every damage, other processes at the same time.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use images::fixtures::{self, ImageFixture, LayerBuilder};
use images::{Error, Image, ImportSource, Imported, LayerError, Quiet, Store};
use tempfile::TempDir;

/// A store, and its files as other processes see them.
struct Cache(TempDir);

impl Cache {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn store(&self) -> Store {
        Store::open(self.0.path()).unwrap()
    }

    fn files(&self, dir: &str) -> Vec<String> {
        let dir = self.0.path().join("images").join(dir);
        let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.collect();
        names.sort();
        names
    }

    /// Checks that the store has no image and no other file.
    fn assert_empty(&self) {
        // Opening the store removes leftovers.
        assert_eq!(self.store().list().unwrap(), []);
        assert_eq!(self.files("tmp"), [""; 0]);
    }
}

type Members = Vec<(String, Vec<u8>)>;

fn two_layers() -> ImageFixture {
    let base =
        LayerBuilder::default().dir("etc", 0o755).file("etc/name", 0o644, b"base\n").file("gone", 0o644, b"");
    let top = LayerBuilder::default().file("etc/name", 0o644, b"top\n").file(".wh.gone", 0o644, b"");
    let mut image = ImageFixture::new(vec![base.build(), top.build()]);
    image.config = serde_json::json!({
        "User": "app", "WorkingDir": "/srv", "Entrypoint": ["/bin/app"], "Cmd": null, "Env": ["A=b"], "Labels": {},
    });
    image
}

fn import(store: &Store, archive: &[u8], tag: Option<&str>) -> images::Result<Imported> {
    store.import(ImportSource::Reader(&mut &*archive), tag, &Quiet)
}

fn assert_two_layers(image: &Image) {
    assert_eq!(image.config.user, "app");
    assert_eq!(image.config.working_dir, "/srv");
    assert_eq!(image.config.entrypoint, ["/bin/app"]);
    assert_eq!(image.config.cmd, [""; 0]);
    assert_eq!(image.config.env, ["A=b"]);
    let layers: Vec<_> = image
        .layers
        .iter()
        .map(|layer| {
            let bytes = fs::read(&layer.path).unwrap();
            assert_eq!(bytes.len() as u64, layer.len);
            erofs::reader::read(&bytes)
        })
        .collect();
    assert_eq!(layers[0][&b"etc/name"[..]].data, b"base\n");
    assert_eq!(layers[1][&b"etc/name"[..]].data, b"top\n");
    assert_eq!(layers[1][&b"gone"[..]].st_mode >> 12, 0o02);
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}

/// The image with its layers compressed.
fn compressed(image: &ImageFixture) -> ImageFixture {
    let plain = image.layers.clone();
    let layers = vec![gzip(&plain[0]), zstd::encode_all(plain[1].as_slice(), 3).unwrap()];
    ImageFixture {
        layers,
        uncompressed: plain.into_iter().enumerate().collect(),
        config: image.config.clone(),
    }
}

#[test]
fn every_form_is_the_same_image() {
    let image = two_layers();
    let docker = image.docker_archive(&["example/app:1"]);
    let files = tempfile::tempdir().unwrap();
    let path = |name: &str, bytes: &[u8]| {
        let path = files.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    };
    let layout = files.path().join("layout");
    compressed(&image).write_oci_layout("example/app:1", &layout);
    let oci = fixtures::archive(&image.oci_members("example/app:1"));
    // Newer versions of Docker save both forms in one archive.
    let mut both = image.oci_members("ignored");
    let manifest = serde_json::json!([{
        "Config": format!("blobs/sha256/{}", fixtures::sha256(&image.config_json())),
        "RepoTags": ["example/app:1"],
        "Layers": image.layers.iter().map(|layer| format!("blobs/sha256/{}", fixtures::sha256(layer))).collect::<Vec<_>>(),
    }]);
    both.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
    let paths = [
        path("docker.tar", &docker),
        path("docker.tar.gz", &gzip(&docker)),
        path("docker-compressed.tar", &compressed(&image).docker_archive(&["example/app:1"])),
        path("oci.tar", &oci),
        path("both.tar", &fixtures::archive(&both)),
        layout,
    ];
    let mut layers = Vec::new();
    for path in paths {
        let cache = Cache::new();
        let imported = cache.store().import(ImportSource::Path(&path), None, &Quiet).unwrap();
        assert!(imported.tags().eq(["example/app:1"]), "{path:?}");
        let image = cache.store().get("docker.io/example/app:1").unwrap().unwrap();
        assert_eq!(image, imported.image);
        assert_two_layers(&image);
        assert_eq!(imported.stored[0].size, imported.size());
        layers.push(image.layers.iter().map(|layer| fs::read(&layer.path).unwrap()).collect::<Vec<_>>());
        assert_eq!(cache.files("tmp"), [""; 0]);
    }
    assert!(layers.windows(2).all(|pair| pair[0] == pair[1]), "the same bytes from every form");
    // A pipe, and a file that is read in place from its current offset.
    let cache = Cache::new();
    assert_two_layers(&import(&cache.store(), &docker, Some("piped")).unwrap().image);
    let mut file = fs::File::open(path("offset.tar", &[b"header".as_slice(), &docker].concat())).unwrap();
    file.read_exact(&mut [0; 6]).unwrap();
    let imported = cache.store().import(ImportSource::File(file), Some("file"), &Quiet).unwrap();
    assert_two_layers(&imported.image);
}

#[test]
fn tags_share_layers_and_take_them_along() {
    let cache = Cache::new();
    let store = cache.store();
    let image = two_layers();
    import(&store, &image.docker_archive(&["a:1", "b:1"]), None).unwrap();
    let blobs = cache.files("blobs");
    assert_eq!(blobs.len(), 2);
    assert!(blobs[0].starts_with("sha256_") && blobs[0].ends_with(".erofs"), "{blobs:?}");
    let inode = |name: &str| fs::metadata(cache.0.path().join("images/blobs").join(name)).unwrap().ino();
    let before = inode(&blobs[0]);
    // Another image with the same base; the base is not converted again.
    let other = LayerBuilder::default().file("other", 0o644, b"x").build();
    let other = ImageFixture::new(vec![image.layers[0].clone(), other]);
    import(&store, &other.docker_archive(&[]), Some("c")).unwrap();
    assert_eq!(cache.files("blobs").len(), 3);
    assert_eq!(inode(&blobs[0]), before);
    let tags = |store: &Store| store.list().unwrap().into_iter().map(|image| image.tag).collect::<Vec<_>>();
    assert_eq!(tags(&store), ["a:1", "b:1", "c"]);
    assert_eq!(store.list().unwrap()[2].source, "import");
    store.remove("a:1").unwrap();
    assert_eq!(cache.files("blobs").len(), 3);
    store.remove("b:1").unwrap();
    assert_eq!(cache.files("blobs").len(), 2);
    // The tag now stands for the new image only.
    import(&store, &ImageFixture::new(vec![other.layers[1].clone()]).docker_archive(&[]), Some("c")).unwrap();
    assert_eq!(cache.files("blobs").len(), 1);
    store.remove("docker.io/library/c:latest").unwrap();
    assert_eq!(cache.files("blobs"), [""; 0]);
    assert!(matches!(store.remove("c"), Err(Error::UnknownTag(tag)) if tag == "c"));
    cache.assert_empty();
}

#[test]
fn archives_of_several_images() {
    let image = two_layers();
    let single = ImageFixture::new(vec![image.layers[0].clone()]);
    let name = |image: &ImageFixture| format!("{}.json", fixtures::sha256(&image.config_json()));
    let layers = |image: &ImageFixture| {
        image.layers.iter().map(|layer| fixtures::sha256(layer)).collect::<Vec<String>>()
    };
    let entry = |image: &ImageFixture, tags: &[&str]| serde_json::json!({ "Config": name(image), "RepoTags": tags, "Layers": layers(image) });
    let manifest = serde_json::json!([entry(&image, &["two"]), entry(&single, &["one"])]);
    let mut members: Vec<_> =
        image.layers.iter().map(|layer| (fixtures::sha256(layer), layer.clone())).collect();
    members.push((name(&image), image.config_json()));
    members.push((name(&single), single.config_json()));
    members.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
    let archive = fixtures::archive(&members);
    let cache = Cache::new();
    assert!(import(&cache.store(), &archive, None).unwrap().tags().eq(["two", "one"]));
    assert_eq!(cache.store().get("one").unwrap().unwrap().layers.len(), 1);
    // One image by its name; a name that none has does not choose one.
    let cache = Cache::new();
    assert_eq!(import(&cache.store(), &archive, Some("one:latest")).unwrap().image.layers.len(), 1);
    let error = import(&cache.store(), &archive, Some("three")).unwrap_err().to_string();
    assert!(error.contains("several images (two, one), none of them three"), "{error}");
    let nameless = image.docker_archive(&[]);
    let error = import(&cache.store(), &nameless, None).unwrap_err().to_string();
    assert!(error.ends_with("has no name; give a tag"), "{error}");
}

#[test]
fn what_a_layer_hides_is_left_out() {
    let opaque = LayerBuilder::default().file(".wh..wh..opq", 0o644, b"").file("a", 0o644, b"").build();
    let mut image = two_layers();
    image.layers.push(opaque);
    let cache = Cache::new();
    let layers = import(&cache.store(), &image.docker_archive(&["x"]), None).unwrap().image.layers;
    assert_eq!(layers.len(), 1);
    // The layer was stored before.
    assert_eq!(import(&cache.store(), &image.docker_archive(&["y"]), None).unwrap().image.layers, layers);
    assert_eq!(cache.files("blobs").len(), 1);
}

#[test]
fn a_hundred_layers() {
    let layer = |index: usize| LayerBuilder::default().file(&format!("file-{index}"), 0o644, b"x").build();
    let cache = Cache::new();
    let many = ImageFixture::new((0..255).map(layer).collect());
    assert_eq!(
        import(&cache.store(), &many.docker_archive(&["many"]), None).unwrap().image.layers.len(),
        255
    );
    let more = ImageFixture::new((0..256).map(layer).collect());
    let error = import(&cache.store(), &more.docker_archive(&["more"]), None).unwrap_err().to_string();
    assert!(error.contains("256 layers"), "{error}");
}

/// Imports a changed archive, which must fail and leave nothing.
fn refused(archive: &[u8]) -> Error {
    let cache = Cache::new();
    let error = import(&cache.store(), archive, Some("bad")).map(drop).unwrap_err();
    // At once, not only when the store is opened next.
    assert_eq!((cache.files("blobs"), cache.files("tmp")), (vec![], vec![]), "{error}");
    cache.assert_empty();
    error
}

#[test]
fn wrong_contents_are_refused() {
    let image = two_layers();
    let mut wrong = image.clone();
    wrong.uncompressed = vec![(1, b"something else".to_vec())];
    let error = refused(&wrong.docker_archive(&[]));
    assert!(
        matches!(&error, Error::Layer { reference, source: LayerError::DiffId(_), .. } if reference == "bad"),
        "{error}"
    );
    // An OCI layout names every blob by its digest; each blob is changed by one byte.
    for (index, (path, _)) in image.oci_members("x").iter().enumerate() {
        let mut members = image.oci_members("x");
        let bytes = &mut members[index].1;
        let middle = bytes.len() / 2;
        bytes[middle] ^= 1;
        if path.starts_with("blobs") {
            let error = refused(&fixtures::archive(&members));
            assert!(!error.to_string().is_empty(), "{path}");
        }
    }
    // A layer that is cut short, where its length is not checked first.
    let compressed = compressed(&image);
    for layer in 0..2 {
        let mut cut = compressed.clone();
        let len = cut.layers[layer].len();
        cut.layers[layer].truncate(len - 10);
        let error = refused(&cut.docker_archive(&[]));
        assert!(matches!(&error, Error::Layer { source: LayerError::Truncated, .. }), "{error}");
    }
}

/// Some writers omit the end marker, and the padding of the last file.
#[test]
fn a_layer_may_end_with_the_last_byte_of_its_last_file() {
    let layer = LayerBuilder::default().file("a", 0o644, b"one").file("b", 0o644, &[b'2'; 700]).build();
    let end = 512 + 512 + 512 + 700;
    for (len, good) in
        [(end, true), (end + 324, true), (end + 1, false), (end - 1, false), (end - 700, false)]
    {
        let archive = ImageFixture::new(vec![layer[..len].to_vec()]).docker_archive(&["x"]);
        if good {
            import(&Cache::new().store(), &archive, None).unwrap();
        } else {
            let error = refused(&archive);
            assert!(matches!(&error, Error::Layer { source: LayerError::Truncated, .. }), "{len}: {error}");
        }
    }
}

#[test]
fn an_image_without_layers_is_refused() {
    let error = refused(&ImageFixture::new(Vec::new()).docker_archive(&[]));
    assert!(error.to_string().ends_with("its image has no layers"), "{error}");
}

#[test]
fn wrong_documents_are_refused() {
    let image = two_layers();
    let with = |change: &dyn Fn(&mut Members)| {
        let mut members = image.oci_members("x");
        change(&mut members);
        refused(&fixtures::archive(&members)).to_string()
    };
    let index = |members: &mut Members, text: &str| {
        let document = members.iter_mut().find(|(name, _)| name == "index.json").unwrap();
        document.1 = text.as_bytes().to_vec();
    };
    let error = with(&|members| members.retain(|(name, _)| name != "index.json"));
    assert!(error.contains("index.json is missing"), "{error}");
    assert!(with(&|members| index(members, "{")).contains("index.json: EOF"));
    assert!(with(&|members| index(members, "{}")).contains("no image for linux/"));
    let deep = format!(r#"{{"other":{}"#, "[".repeat(100_000));
    assert!(with(&|members| index(members, &deep)).contains("index.json: "));
    let escape = r#"{"manifests":[{"mediaType":"x","digest":"sha256:../../../etc/passwd","size":1}]}"#;
    assert!(with(&|members| index(members, escape)).contains("is not a sha256 digest"));
    let missing = format!(r#"{{"manifests":[{{"digest":"sha256:{}","size":1}}]}}"#, "0".repeat(64));
    assert!(with(&|members| index(members, &missing)).contains("is missing"));
    let foreign = format!(
        r#"{{"manifests":[{{"digest":"sha256:{}","size":1,"platform":{{"architecture":"s390x","os":"linux"}}}}]}}"#,
        "0".repeat(64)
    );
    assert!(with(&|members| index(members, &foreign)).contains("no image for linux/"));
    let docker = |text: &str| {
        let members = [("manifest.json".to_owned(), text.as_bytes().to_vec())];
        refused(&fixtures::archive(&members)).to_string()
    };
    assert!(docker("[]").contains("holds no image"));
    assert!(docker("{}").contains("manifest.json"));
    assert!(docker(r#"[{"Config":"../../etc/passwd"}]"#).contains("is missing"));
    assert!(refused(b"no archive at all").to_string().contains("not a valid archive"));
    assert!(refused(b"").to_string().contains("neither"));
    assert!(refused(&[31, 139, 8, 0, 0]).to_string().contains("the archive: "));
}

#[test]
fn other_machines_images_are_refused() {
    let image = two_layers();
    let config = String::from_utf8(image.config_json()).unwrap();
    let config = config.replace("amd64", "s390x").replace("arm64", "s390x").into_bytes();
    let layers: Vec<String> = image.layers.iter().map(|layer| fixtures::sha256(layer)).collect();
    let manifest = serde_json::json!([{ "Config": "config", "RepoTags": ["x"], "Layers": layers }]);
    let mut members: Vec<_> = layers.into_iter().zip(image.layers).collect();
    members.push(("config".to_owned(), config));
    members.push(("manifest.json".to_owned(), manifest.to_string().into_bytes()));
    let error = refused(&fixtures::archive(&members)).to_string();
    assert!(error.starts_with("image x is for linux/s390x, this host needs linux/"), "{error}");
}

#[test]
fn changed_documents_never_panic() {
    let image = two_layers();
    let docker = image.docker_archive(&["x"]);
    let oci = fixtures::archive(&image.oci_members("x"));
    let cache = Cache::new();
    let store = cache.store();
    let mut state = 0x5eed_u64;
    let mut below = |limit: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(state >> 33).unwrap() % limit
    };
    for archive in [docker, oci] {
        // The documents are at the end.
        let texts: Vec<usize> = (0..archive.len()).filter(|at| b"{}[]\":,".contains(&archive[*at])).collect();
        for _ in 0..150 {
            let mut changed = archive.clone();
            for _ in 0..=below(3) {
                changed[texts[below(texts.len())]] = b"{}[]\":,0x"[below(9)];
            }
            let _ = import(&store, &changed, Some("x"));
        }
    }
    assert!(import(&store, &image.docker_archive(&[]), Some("x")).is_ok());
}

#[test]
fn leftovers_go_and_the_living_stay() {
    let cache = Cache::new();
    let images = cache.0.path().join("images");
    let image = two_layers();
    import(&cache.store(), &image.docker_archive(&["kept"]), None).unwrap();
    // The leftovers of a killed import: an unfinished file, a layer of no image, a directory of a fetch.
    fs::write(images.join("tmp/layer-dead"), "x").unwrap();
    fs::create_dir_all(images.join("tmp/fetch/apt")).unwrap();
    fs::write(images.join("blobs/sha256_dead.erofs"), "x").unwrap();
    // A live import, which waits for the rest of its archive.
    let (receiver, mut sender) = std::io::pipe().unwrap();
    let archive = ImageFixture::new(vec![LayerBuilder::default().file("a", 0o644, b"live").build()])
        .docker_archive(&[]);
    let (first, rest) = archive.split_at(1000);
    sender.write_all(first).unwrap();
    let store = cache.store();
    assert_eq!(cache.files("tmp"), [""; 0], "nobody was writing");
    assert_eq!(cache.files("blobs").len(), 2);
    std::thread::scope(|scope| {
        let writing = scope.spawn(|| {
            let mut receiver = receiver;
            store.import(ImportSource::Reader(&mut receiver), Some("live"), &Quiet)
        });
        // The import has begun once it holds the lock.
        let lock = fs::File::open(images.join("lock")).unwrap();
        while lock.try_lock().is_ok() {
            lock.unlock().unwrap();
            std::thread::yield_now();
        }
        fs::write(images.join("tmp/not-mine"), "x").unwrap();
        drop(cache.store());
        cache.store().remove("kept").unwrap();
        assert_eq!(cache.files("tmp"), ["not-mine"], "somebody is writing");
        assert_eq!(cache.files("blobs").len(), 2);
        sender.write_all(rest).unwrap();
        drop(sender);
        writing.join().unwrap().unwrap();
    });
    assert_eq!(cache.files("tmp"), [""; 0]);
    assert_eq!(cache.files("blobs").len(), 1);
    assert_eq!(cache.store().list().unwrap().len(), 1);
}

#[test]
fn many_at_the_same_time() {
    let cache = Cache::new();
    let image = two_layers();
    std::thread::scope(|scope| {
        for index in 0..8 {
            let (cache, image) = (&cache, &image);
            scope.spawn(move || {
                let store = cache.store();
                let tag = format!("image-{index}");
                assert_two_layers(&import(&store, &image.docker_archive(&[]), Some(&tag)).unwrap().image);
                if index % 2 == 0 {
                    store.remove(&tag).unwrap();
                }
            });
        }
    });
    let store = cache.store();
    assert_eq!(store.list().unwrap().len(), 4);
    for image in store.list().unwrap() {
        assert_two_layers(&store.get(&image.tag).unwrap().unwrap());
    }
    assert_eq!(cache.files("blobs").len(), 2);
    assert_eq!(cache.files("tmp"), [""; 0]);
}

#[test]
fn lost_layers_are_noticed() {
    let cache = Cache::new();
    let store = cache.store();
    let image = two_layers();
    let archive = image.docker_archive(&["x"]);
    let imported = import(&store, &archive, None).unwrap().image;
    let path: &Path = &imported.layers[1].path;
    fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o644)).unwrap();
    fs::OpenOptions::new().write(true).open(path).unwrap().set_len(100).unwrap();
    assert!(
        matches!(store.get("x"), Err(Error::LayerLost { layer, .. }) if layer == imported.layers[1].digest)
    );
    // Importing again repairs it.
    assert_eq!(import(&store, &archive, None).unwrap().image, imported);
    assert_two_layers(&store.get("x").unwrap().unwrap());
}

#[test]
fn what_is_not_there_says_what_to_do() {
    let cache = Cache::new();
    let error = cache.store().resolve("example/none", &Quiet).unwrap_err().to_string();
    assert!(error.contains("docker save example/none | matchlock image import example/none"), "{error}");
    assert!(matches!(cache.store().get("not a reference"), Err(Error::Reference(_))));
    let missing = cache.store().import(ImportSource::Path(Path::new("/nonexistent/x")), None, &Quiet);
    assert!(missing.unwrap_err().to_string().starts_with("/nonexistent/x: "));
}

#[test]
fn an_archive_may_be_compressed_and_what_is_not_read_is_named() {
    let archive = two_layers().docker_archive(&["x"]);
    let mut xz = Vec::new();
    liblzma::read::XzEncoder::new(archive.as_slice(), 1).read_to_end(&mut xz).unwrap();
    // Parallel writers make such files.
    let mut parts = Vec::new();
    for part in archive.chunks(archive.len() / 2) {
        liblzma::read::XzEncoder::new(part, 1).read_to_end(&mut parts).unwrap();
    }
    let files = tempfile::tempdir().unwrap();
    let path = files.path().join("archive");
    for packed in [gzip(&archive), zstd::encode_all(archive.as_slice(), 1).unwrap(), xz.clone(), parts] {
        let cache = Cache::new();
        assert_two_layers(&import(&cache.store(), &packed, None).unwrap().image);
        let cache = Cache::new();
        fs::write(&path, packed).unwrap();
        let imported = cache.store().import(ImportSource::Path(&path), None, &Quiet).unwrap();
        assert_two_layers(&imported.image);
    }
    let mut image = two_layers();
    let mut layer = Vec::new();
    liblzma::read::XzEncoder::new(image.layers[0].as_slice(), 1).read_to_end(&mut layer).unwrap();
    image.uncompressed = vec![(0, std::mem::replace(&mut image.layers[0], layer))];
    let archive = fixtures::archive(&image.oci_members("x"));
    assert_two_layers(&import(&Cache::new().store(), &archive, Some("x")).unwrap().image);

    let cache = Cache::new();
    for (start, name) in [(&b"BZh91AY&SYxxxxxxxx"[..], "bzip2"), (b"\x04\x22\x4d\x18xxxxxxxxxxxx", "lz4")] {
        fs::write(&path, start).unwrap();
        let by_path = cache.store().import(ImportSource::Path(&path), Some("x"), &Quiet).unwrap_err();
        for error in [by_path, import(&cache.store(), start, Some("x")).unwrap_err()] {
            let why = format!("it is compressed with {name}, which is not read here; gzip, zstd and xz are");
            assert!(error.to_string().ends_with(&why), "{error}");
        }
    }
    for cut in [1, 20, xz.len() / 2, xz.len() - 1] {
        assert!(import(&cache.store(), &xz[..cut], None).is_err(), "{cut}");
    }
    cache.assert_empty();
}

#[test]
fn a_configuration_is_what_programs_can_have() {
    let cache = Cache::new();
    let with = |config: serde_json::Value| {
        let mut image = two_layers();
        image.config = config;
        import(&cache.store(), &image.docker_archive(&["x"]), None).map(|imported| imported.image)
    };
    let image =
        with(serde_json::json!({"Env": ["A=", "bare"], "Volumes": {"/data": {}, "/a/b": {}}})).unwrap();
    assert_eq!(image.config.volumes, ["/a/b", "/data"]);
    assert_eq!(cache.store().get("x").unwrap().unwrap().config, image.config);
    for (config, word) in [
        (serde_json::json!({"Env": ["A=b", "=x"]}), r#""=x""#),
        (serde_json::json!({"Env": [""]}), r#""""#),
        (serde_json::json!({"Env": ["A=\u{0}"]}), r#""A=\0""#),
        (serde_json::json!({"Cmd": ["a\u{0}b"]}), r#""a\0b""#),
        (serde_json::json!({"WorkingDir": "\u{0}"}), r#""\0""#),
        (serde_json::json!({"Volumes": {"/\u{0}": {}}}), r#""/\0""#),
    ] {
        let error = with(config).unwrap_err().to_string();
        let why = format!(" has a configuration that no program can have: {word}");
        assert!(error.ends_with(&why), "{error}");
    }
}
