//! Root file systems into the store: tars and directories, the attributes that they keep, and the forms that they are
//! told from.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;

use images::fixtures::{ImageFixture, LayerBuilder, archive};
use images::{Form, ImageConfig, ImportSource, Imported, Quiet, Store};
use rustix::fs::{CWD, FileType, Mode, XattrFlags};

fn store() -> (tempfile::TempDir, Store) {
    let cache = tempfile::tempdir().unwrap();
    let store = Store::open(cache.path()).unwrap();
    (cache, store)
}

fn import(store: &Store, source: ImportSource<'_>) -> images::Result<(Imported, Form)> {
    store.import_as(source, Some("x:1"), None, &Quiet)
}

fn import_tar(store: &Store, tar: &[u8]) -> images::Result<(Imported, Form)> {
    import(store, ImportSource::Reader(&mut &*tar))
}

fn files(imported: &Imported) -> BTreeMap<Vec<u8>, erofs::reader::Inode> {
    let [layer] = imported.image.layers.as_slice() else { panic!("{:?}", imported.image.layers) };
    erofs::reader::read(&fs::read(&layer.path).unwrap()).into_iter().collect()
}

/// A small tree with one of each kind of file.
fn tree(root: &Path) {
    fs::create_dir_all(root.join("usr/bin")).unwrap();
    fs::create_dir(root.join("tmp")).unwrap();
    fs::set_permissions(root.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    fs::write(root.join("usr/bin/tool"), "tool").unwrap();
    fs::set_permissions(root.join("usr/bin/tool"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(root.join("usr/bin/tool"), root.join("usr/bin/also")).unwrap();
    symlink("usr/bin", root.join("bin")).unwrap();
    symlink("/etc/passwd", root.join("passwd")).unwrap();
    fs::write(root.join("n".repeat(200)), "long").unwrap();
    symlink("t".repeat(300), root.join("far")).unwrap();
    rustix::fs::mknodat(CWD, root.join("fifo"), FileType::Fifo, Mode::from(0o600), 0).unwrap();
    let sparse = File::create(root.join("sparse")).unwrap();
    sparse.write_all_at(b"data", 1 << 20).unwrap();
    sparse.set_len(3 << 20).unwrap();
    drop(std::os::unix::net::UnixListener::bind(root.join("socket")).unwrap());
}

#[test]
fn a_directory_is_taken_as_it_is() {
    let (_cache, store) = store();
    let root = tempfile::tempdir().unwrap();
    tree(root.path());
    let xattr = rustix::fs::setxattr(root.path().join("usr"), "user.a", b"b\0", XattrFlags::empty()).is_ok();
    if !xattr {
        skip::skip("xattr", "the temporary directory has no extended attributes");
    }
    let (imported, form) = import(&store, ImportSource::Path(root.path())).unwrap();
    assert_eq!(form, Form::RootDirectory);
    assert!(imported.tags().eq(["x:1"]));
    let files = files(&imported);
    let names: Vec<String> = files.keys().map(|name| String::from_utf8(name.clone()).unwrap()).collect();
    let long = "n".repeat(200);
    let expected = ["", "bin", "far", "fifo", &long, "passwd", "sparse", "tmp", "usr", "usr/bin"];
    let expected = expected.into_iter().chain(["usr/bin/also", "usr/bin/tool"]);
    assert_eq!(names, expected.collect::<Vec<_>>());
    let file = |name: &str| &files[name.as_bytes()];
    assert_eq!(file("usr/bin/tool").data, b"tool");
    assert_eq!(file("usr/bin/tool").attributes.mode, 0o4755);
    assert_eq!(file("usr/bin/tool").links, 2);
    assert_eq!(file("tmp").attributes.mode, 0o1777);
    assert_eq!(file("bin").data, b"usr/bin");
    // A link is kept as such, not followed.
    assert_eq!(file("passwd").data, b"/etc/passwd");
    assert_eq!(file("far").data, "t".repeat(300).as_bytes());
    assert_eq!(file(&long).data, b"long");
    assert_eq!(file("fifo").st_mode >> 12, 0o01);
    let sparse = &file("sparse").data;
    assert_eq!(sparse.len(), 3 << 20);
    assert_eq!(&sparse[1 << 20..][..4], b"data");
    assert_eq!(sparse.iter().filter(|byte| **byte != 0).count(), 4);
    let on_host = fs::metadata(root.path().join("usr/bin/tool")).unwrap();
    let tool = &file("usr/bin/tool").attributes;
    assert_eq!((tool.uid, tool.gid), (on_host.uid(), on_host.gid()));
    assert_eq!(tool.mtime.seconds, on_host.mtime());
    assert_eq!(i64::from(tool.mtime.nanoseconds), on_host.mtime_nsec());
    if xattr {
        assert_eq!(file("usr").attributes.xattrs[&b"user.a"[..]], b"b\0");
    }
    // Holes are not stored.
    assert!(imported.size() < 1 << 20, "{}", imported.size());
}

#[test]
fn the_same_tree_has_the_same_digest() {
    let (_cache, store) = store();
    let root = tempfile::tempdir().unwrap();
    tree(root.path());
    let take = || import(&store, ImportSource::Path(root.path())).unwrap().0.image;
    let first = take();
    assert_eq!(take(), first);
    fs::write(root.path().join("usr/new"), "").unwrap();
    assert_ne!(take().digest, first.digest);
}

#[test]
fn owners_and_devices_are_kept() {
    if !rustix::process::geteuid().is_root() {
        skip::skip("root", "only root can make devices and give files away");
        return;
    }
    let (_cache, store) = store();
    let root = tempfile::tempdir().unwrap();
    let device = root.path().join("null");
    if rustix::fs::mknodat(
        CWD,
        &device,
        FileType::CharacterDevice,
        Mode::from(0o666),
        rustix::fs::makedev(1, 300),
    )
    .is_err()
    {
        skip::skip("mknod", "devices cannot be made here");
        return;
    }
    std::os::unix::fs::lchown(&device, Some(3_000_000), Some(70_000)).unwrap();
    let (imported, _) = import(&store, ImportSource::Path(root.path())).unwrap();
    let null = &files(&imported)[&b"null"[..]];
    assert_eq!((null.attributes.uid, null.attributes.gid), (3_000_000, 70_000));
    assert_eq!(null.st_mode >> 12, 0o02);
}

#[test]
fn what_cannot_be_read_is_named() {
    let (_cache, store) = store();
    if rustix::process::geteuid().is_root() {
        skip::skip("user", "root can read everything");
        return;
    }
    let root = tempfile::tempdir().unwrap();
    fs::write(root.path().join("secret"), "").unwrap();
    fs::set_permissions(root.path().join("secret"), fs::Permissions::from_mode(0o0)).unwrap();
    let error = import(&store, ImportSource::Path(root.path())).unwrap_err().to_string();
    assert!(error.starts_with("image x:1, the layer of a root file system's directory: secret: "), "{error}");
}

#[test]
fn a_tar_is_taken_however_it_is_compressed() {
    let (_cache, store) = store();
    let tar = LayerBuilder::default().dir("etc", 0o755).file("etc/name", 0o640, b"me").build();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    let forms = [tar.clone(), gzip.finish().unwrap(), zstd::encode_all(tar.as_slice(), 1).unwrap()];
    let config = ImageConfig { user: "app".to_owned(), cmd: vec!["sh".to_owned()], ..Default::default() };
    let mut digests = Vec::new();
    for form in &forms {
        let path = _cache.path().join("root.tar");
        fs::write(&path, form).unwrap();
        for source in [ImportSource::Path(&path), ImportSource::Reader(&mut form.as_slice())] {
            let (imported, form) =
                store.import_as(source, Some("x:1"), Some(config.clone()), &Quiet).unwrap();
            assert_eq!(form, Form::RootTar);
            assert_eq!(imported.image.config, config);
            assert_eq!(files(&imported)[&b"etc/name"[..]].data, b"me");
            digests.push(imported.image.digest);
        }
    }
    digests.dedup();
    assert_eq!(digests.len(), 1);
}

#[test]
fn names_of_image_documents_may_be_files_of_a_root() {
    let (_cache, store) = store();
    for (name, text) in [
        ("manifest.json", r#"{"name":"app","icons":[]}"#),
        ("manifest.json", r#"[]"#),
        ("manifest.json", r#"[{"Config":"usr/none","Layers":[]}]"#),
        ("index.json", r#"{"manifests":[]}"#),
        ("index.json", "{}"),
    ] {
        let tar = LayerBuilder::default().dir("usr", 0o755).file(name, 0o644, text.as_bytes()).build();
        let (imported, form) = import_tar(&store, &tar).unwrap();
        assert_eq!(form, Form::RootTar);
        assert_eq!(files(&imported)[name.as_bytes()].data, text.as_bytes());
        let root = tempfile::tempdir().unwrap();
        fs::create_dir(root.path().join("etc")).unwrap();
        fs::write(root.path().join(name), text).unwrap();
        assert_eq!(import(&store, ImportSource::Path(root.path())).unwrap().1, Form::RootDirectory);
    }
    // An image's archive stays one, whatever other files are in it.
    let image = ImageFixture::new(vec![LayerBuilder::default().file("a", 0o644, b"").build()]);
    let mut members = image.oci_members("y");
    members.push(("usr/share/x".to_owned(), Vec::new()));
    assert_eq!(import_tar(&store, &archive(&members)).unwrap().1, Form::OciLayout);
    assert_eq!(import_tar(&store, &image.docker_archive(&["y"])).unwrap().1, Form::DockerArchive);
}

#[test]
fn a_root_may_have_more_files_than_an_archive_members() {
    let (_cache, store) = store();
    let mut layer = LayerBuilder::default().dir("usr", 0o755);
    for number in 0..70_000 {
        layer = layer.file(&format!("usr/{number}"), 0o644, b"");
    }
    let (imported, _) = import_tar(&store, &layer.build()).unwrap();
    assert_eq!(files(&imported).len(), 70_002);
}

#[test]
fn what_is_refused_leaves_nothing() {
    let (cache, store) = store();
    let tar = LayerBuilder::default().file("usr/a", 0o644, &[1; 5000]).build();
    let error = store.import(ImportSource::Reader(&mut tar.as_slice()), None, &Quiet).unwrap_err();
    assert!(
        error.to_string().contains("is a root file system's tar, which has no name; give a tag"),
        "{error}"
    );
    let error = import_tar(&store, &tar[..3000]).unwrap_err().to_string();
    assert!(error.contains("ends early"), "{error}");
    let empty = tempfile::tempdir().unwrap();
    let error = import(&store, ImportSource::Path(empty.path())).unwrap_err().to_string();
    assert!(error.contains("there is nothing in it"), "{error}");
    let image = ImageFixture::new(vec![tar]).docker_archive(&["y"]);
    let config = Some(ImageConfig::default());
    let error =
        store.import_as(ImportSource::Reader(&mut image.as_slice()), None, config, &Quiet).unwrap_err();
    assert!(error.to_string().contains("is a docker-archive, which says itself how to run it"), "{error}");
    for dir in ["blobs", "tmp"] {
        assert_eq!(fs::read_dir(cache.path().join("images").join(dir)).unwrap().count(), 0, "{dir}");
    }
}
