//! A disk without one free block: what is on it can be listed and removed, which makes room.
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
