//! Layers in their places: gaps of a layer are filled from the layers below it.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use erofs::reader::Inode;
use images::fixtures::{ImageFixture, LayerBuilder};
use images::{Image, ImportSource, Quiet, Store};

type Files = BTreeMap<Vec<u8>, Inode>;

fn layer() -> LayerBuilder {
    LayerBuilder::default()
}

fn import(cache: &Path, tag: &str, layers: Vec<LayerBuilder>) -> images::Result<Image> {
    let layers = layers.into_iter().map(LayerBuilder::build).collect();
    let archive = ImageFixture::new(layers).docker_archive(&[tag]);
    let store = Store::open(cache).unwrap();
    store.import(ImportSource::Reader(&mut archive.as_slice()), None, &Quiet).map(|imported| imported.image)
}

/// The layers of an image, read back.
fn files(layers: Vec<LayerBuilder>) -> Vec<Files> {
    let cache = tempfile::tempdir().unwrap();
    let image = import(cache.path(), "x", layers).unwrap();
    let read = |layer: &images::Layer| erofs::reader::read(&fs::read(&layer.path).unwrap());
    image.layers.iter().map(read).collect()
}

fn refusal(layers: Vec<LayerBuilder>) -> String {
    let cache = tempfile::tempdir().unwrap();
    let error = import(cache.path(), "x", layers).unwrap_err();
    let store = Store::open(cache.path()).unwrap();
    assert!(store.list().unwrap().is_empty());
    assert_eq!(names(cache.path()), [""; 0], "nothing is left");
    error.to_string()
}

fn names(cache: &Path) -> Vec<String> {
    let entries = fs::read_dir(cache.join("images/blobs")).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[track_caller]
fn described(files: &Files, path: &str, mode: u16, owner: (u32, u32)) {
    let found = &files[path.as_bytes()].attributes;
    assert_eq!((found.mode, (found.uid, found.gid)), (mode, owner), "{path}");
}

#[test]
fn a_directory_that_a_layer_does_not_name_stays_what_it_was() {
    let below = layer()
        .dir("home", 0o755)
        .owned(1000, 1001)
        .pax(&[("SCHILY.xattr.user.note", b"mine")])
        .dir("home/app", 0o700)
        .dir("home/app/deep", 0o2770)
        .owned(0, 0)
        .dir("tmp", 0o1777)
        .dir("plain", 0o755)
        .dir("gone", 0o700)
        .file("file", 0o644, b"");
    let above = layer()
        .file("home/app/.cfg", 0o644, b"x")
        .file("home/app/deep/.wh.old", 0o644, b"")
        .file("tmp/x", 0o644, b"")
        .file("plain/x", 0o644, b"")
        .file(".wh.gone", 0o644, b"")
        .file("gone/x", 0o644, b"")
        .file("file/x", 0o644, b"")
        .file("new/x", 0o644, b"");
    let layers = files(vec![below, above]);
    let top = &layers[1];
    described(top, "home/app", 0o700, (1000, 1001));
    described(top, "home/app/deep", 0o2770, (1000, 1001));
    described(top, "tmp", 0o1777, (0, 0));
    for as_ever in ["home", "plain", "gone", "file", "new"] {
        described(top, as_ever, 0o755, (0, 0));
    }
    let xattrs = &top[&b"home/app"[..]].attributes.xattrs;
    assert_eq!(xattrs, &BTreeMap::from([(b"user.note".to_vec(), b"mine".to_vec())]));
    let xattrs = &top[&b"home/app/deep"[..]].attributes.xattrs;
    assert!(xattrs.keys().eq([&b"trusted.overlay.origin"[..]]), "{xattrs:?}");
    let xattrs = &top[&b"gone"[..]].attributes.xattrs;
    assert!(xattrs.keys().eq([&b"trusted.overlay.opaque"[..]]), "{xattrs:?}");
    assert_eq!(top[&b"home/app/.cfg"[..]].data, b"x");
    // The layer that the file was made from, and every other entry in it, stay the same.
    assert_eq!(top[&b"home/app/deep/old"[..]].st_mode >> 12, 0o02);
}

#[test]
fn what_lies_between_counts() {
    let below = || layer().owned(1, 1).dir("a", 0o700).dir("a/b", 0o711).dir("c", 0o700);
    let use_all = || layer().file("a/b/x", 0o644, b"").file("c/x", 0o644, b"");
    // Through a layer that implies the directory as well, and is completed itself.
    let layers = files(vec![below(), use_all(), use_all()]);
    for top in &layers[1..] {
        described(top, "a", 0o700, (1, 1));
        described(top, "a/b", 0o711, (1, 1));
        described(top, "c", 0o700, (1, 1));
    }
    // The directory described anew, removed, hidden, and in the place of a file.
    let layers = files(vec![below(), layer().owned(2, 2).dir("a", 0o750), use_all()]);
    described(&layers[2], "a", 0o750, (2, 2));
    described(&layers[2], "a/b", 0o711, (1, 1));
    let layers = files(vec![below(), layer().file(".wh.a", 0o644, b"").file("c", 0o600, b""), use_all()]);
    for as_ever in ["a", "a/b", "c"] {
        described(&layers[2], as_ever, 0o755, (0, 0));
    }
    let opaque = layer().owned(3, 3).dir("a", 0o700).file("a/.wh..wh..opq", 0o644, b"");
    let layers = files(vec![below(), opaque, use_all()]);
    described(&layers[2], "a", 0o700, (3, 3));
    described(&layers[2], "a/b", 0o755, (0, 0));
    // A directory that the layer itself empties keeps its attributes, and the entries below it are new.
    let own = layer().file("a/.wh..wh..opq", 0o644, b"").file("a/b/x", 0o644, b"");
    let layers = files(vec![below(), own]);
    described(&layers[1], "a", 0o700, (1, 1));
    described(&layers[1], "a/b", 0o755, (0, 0));
    // A directory's own entry describes it, before or after the entries inside.
    for first in [true, false] {
        let own = if first {
            layer().dir("a", 0o555).file("a/x", 0o644, b"")
        } else {
            layer().file("a/x", 0o644, b"").dir("a", 0o555)
        };
        described(&files(vec![below(), own])[1], "a", 0o555, (0, 0));
    }
}

#[test]
fn a_hard_link_may_lead_to_a_layer_below() {
    let mut sparse = vec![0; 300_000];
    sparse[200_000..].fill(7);
    let below = || {
        layer()
            .dir("usr", 0o755)
            .dir("usr/lib", 0o755)
            .symlink("lib", "usr/lib")
            .owned(5, 6)
            .file("usr/lib/a", 0o4755, b"contents")
            .hard_link("usr/lib/same", "usr/lib/a")
            .file("large", 0o600, &sparse)
            .symlink("link", "usr")
    };
    let above = layer()
        .hard_link("one", "usr/lib/a")
        .hard_link("two", "/lib/a")
        .hard_link("dir/three", "usr/lib/same")
        .hard_link("four", "one")
        .hard_link("large2", "large")
        .hard_link("link2", "link")
        .file("own", 0o644, b"");
    let layers = files(vec![below(), layer().dir("other", 0o700), above]);
    let top = &layers[2];
    let one = &top[&b"one"[..]];
    assert_eq!((one.data.as_slice(), one.st_mode, one.links), (&b"contents"[..], 0o104_755, 4));
    assert_eq!((one.attributes.uid, one.attributes.gid), (5, 6));
    for name in ["two", "dir/three", "four"] {
        assert_eq!(top[name.as_bytes()].nid, one.nid, "{name}");
    }
    assert!(top[&b"large2"[..]].data == sparse);
    assert_eq!((&*top[&b"link2"[..]].data, top[&b"link2"[..]].st_mode >> 12), (&b"usr"[..], 0o12));
    assert!(one.attributes.xattrs.is_empty());

    for (target, why) in [
        ("nothing", "\"b\": is a hard link to \"nothing\", which is neither in this layer nor below it"),
        (
            "usr/lib/a/x",
            "\"b\": is a hard link to \"usr/lib/a/x\", which is neither in this layer nor below it",
        ),
        ("usr", "\"b\": is a hard link to a directory"),
    ] {
        let error = refusal(vec![below(), layer().hard_link("b", target)]);
        assert!(error.ends_with(why), "{error}");
    }
    let hidden = layer().file("usr/lib/.wh.a", 0o644, b"");
    assert!(refusal(vec![below(), hidden, layer().hard_link("b", "usr/lib/a")]).contains("neither"));
    assert!(refusal(vec![layer().hard_link("b", "a")]).contains("neither"));
    let around = layer().symlink("x", "y").symlink("y", "x");
    assert!(refusal(vec![around, layer().hard_link("b", "x/a")]).contains("neither"));
}

#[test]
fn a_completed_layer_is_one_of_its_chain() {
    let cache = tempfile::tempdir().unwrap();
    let above = || layer().file("a/x", 0o644, b"");
    let import = |tag: &str, mode| import(cache.path(), tag, vec![layer().dir("a", mode), above()]).unwrap();
    let (first, second, third) = (import("1", 0o700), import("2", 0o711), import("3", 0o755));
    let digests = [&first, &second, &third].map(|image| image.layers[1].digest.clone());
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    let mode = |image: &Image| {
        let files = erofs::reader::read(&fs::read(&image.layers[1].path).unwrap());
        files[&b"a"[..]].attributes.mode
    };
    assert_eq!([&first, &second, &third].map(mode), [0o700, 0o711, 0o755]);
    // Three lower layers, and the upper one as it is and completed twice.
    assert_eq!(names(cache.path()).len(), 6);
    let store = Store::open(cache.path()).unwrap();
    assert_eq!(store.get("1").unwrap().unwrap(), first);
    assert_eq!(import("1", 0o700), first);
    store.remove("3").unwrap();
    store.remove("2").unwrap();
    assert_eq!(store.gc().unwrap().blobs, 0);
    // The layer's own file stays for the next image with it.
    assert_eq!(names(cache.path()).len(), 3);
    assert_eq!(import("4", 0o700).layers, first.layers);
    store.remove("1").unwrap();
    store.remove("4").unwrap();
    assert_eq!(names(cache.path()).len(), 0);
}
