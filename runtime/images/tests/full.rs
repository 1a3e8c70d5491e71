//! A disk without one free block: its content can be listed and removed, which makes room. And no import fills a
//! disk.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use images::fixtures::{ImageFixture, LayerBuilder};
use images::small_disk::{fill, small_disk};
use images::{ImportSource, Quiet, Store};

#[test]
fn images_can_be_removed_from_a_full_disk() {
    let Some(disk) = small_disk("images_can_be_removed_from_a_full_disk", 8) else { return };
    let filler = disk.join("filler");
    let import = || {
        let layer = LayerBuilder::default().file("large", 0o644, &[7; 1 << 20]).build();
        let archive = ImageFixture::new(vec![layer]).docker_archive(&[]);
        let source = ImportSource::Reader(&mut archive.as_slice());
        Store::open(&disk).and_then(|store| store.import(source, Some("x"), &Quiet))
    };
    import().unwrap();
    for round in 0..3 {
        fill(&filler, 4096);
        let store = Store::open(&disk).unwrap();
        assert_eq!(store.list().unwrap().len(), 1, "round {round}");
        store.remove("x").unwrap();
        drop(store);
        std::fs::remove_file(&filler).unwrap();
        import().unwrap();
    }
}

/// The length of a layer is known when it is unpacked: an import leaves a little room, and all of it after a failure.
#[test]
fn an_import_leaves_some_of_the_disk() {
    let Some(disk) = small_disk("an_import_leaves_some_of_the_disk", 64) else { return };
    let free = || {
        let space = rustix::fs::statvfs(&disk).unwrap();
        space.f_bavail * space.f_frsize
    };
    let layer = LayerBuilder::default().file("large", 0o644, &vec![7; 80 << 20]).build();
    let packed = zstd::encode_all(layer.as_slice(), 1).unwrap();
    let image = ImageFixture { uncompressed: vec![(0, layer.clone())], ..ImageFixture::new(vec![packed]) };
    let archive = images::fixtures::archive(&image.oci_members("x"));
    let store = Store::open(&disk).unwrap();
    let before = free();
    let source = ImportSource::Reader(&mut archive.as_slice());
    let error = store.import(source, Some("x"), &Quiet).unwrap_err().to_string();
    assert!(error.ends_with("No space left on device but the 1342177 bytes that are kept free"), "{error}");
    let packed = zstd::encode_all(layer.as_slice(), 1).unwrap();
    let source = ImportSource::Reader(&mut packed.as_slice());
    let error = store.import(source, Some("x"), &Quiet).unwrap_err().to_string();
    assert!(error.ends_with(" bytes that are kept free"), "{error}");
    assert!(free() + (64 << 10) > before, "{} of {before}", free());
}
