//! The built-in image, from the package registry to the store.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use images::{Quiet, Store};

#[test]
fn busybox_needs_no_import() {
    if std::process::Command::new("apt-get").arg("--version").output().is_err() {
        skip::skip("apt", "apt-get is not installed");
        return;
    }
    let cache = tempfile::tempdir().unwrap();
    let store = Store::open(cache.path()).unwrap();
    assert!(store.get("busybox").unwrap().is_none());
    let image = store.resolve("docker.io/library/busybox", &Quiet).unwrap();
    assert_eq!(image.reference, "busybox:latest");
    assert_eq!(image.config.cmd, ["sh"]);
    let layer = std::fs::read(&image.layers[0].path).unwrap();
    let files = erofs::reader::read(&layer);
    assert!(files[&b"bin/busybox"[..]].data.starts_with(b"\x7fELF"));
    // A second lookup finds the image, and a damaged one is made again.
    assert_eq!(store.resolve("busybox", &Quiet).unwrap(), image);
    let path = &image.layers[0].path;
    std::fs::remove_file(path).unwrap();
    assert_eq!(store.resolve("busybox:latest", &Quiet).unwrap(), image);
    assert_eq!(std::fs::read(path).unwrap(), layer);
    assert_eq!(std::fs::read_dir(cache.path().join("images/tmp")).unwrap().count(), 0);
}
