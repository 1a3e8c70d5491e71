//! A disk without one free block: what is on it can be listed and removed, which makes room.
#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::Command;

use images::fixtures::{ImageFixture, LayerBuilder};
use images::{ImportSource, Quiet, Store};

/// Where the small disk is, for the test that runs on it.
const DISK: &str = "MATCHLOCK_TEST_FULL_DISK";

/// Runs the test of this name again, on a disk of 8 MiB.
fn on_a_small_disk(test: &str) {
    let disk = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=8m none "$0" && exec "$@""#;
    let status = Command::new("unshare")
        .args(["--map-root-user", "--mount", "sh", "-c", script])
        .arg(disk.path())
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", test])
        .env(DISK, disk.path())
        .status();
    assert!(status.unwrap().success());
}

fn fill(directory: &Path) {
    let mut file = File::create(directory.join("filler")).unwrap();
    let full = loop {
        if let Err(error) = file.write_all(&[1; 4096]) {
            break error;
        }
    };
    assert_eq!(full.kind(), io::ErrorKind::StorageFull);
}

#[test]
fn images_can_be_removed_from_a_full_disk() {
    let Some(disk) = std::env::var_os(DISK).map(PathBuf::from) else {
        return on_a_small_disk("images_can_be_removed_from_a_full_disk");
    };
    let import = || {
        let layer = LayerBuilder::default().file("large", 0o644, &[7; 1 << 20]).build();
        let archive = ImageFixture::new(vec![layer]).docker_archive(&[]);
        let source = ImportSource::Reader(&mut archive.as_slice());
        Store::open(&disk).and_then(|store| store.import(source, Some("x"), &Quiet))
    };
    import().unwrap();
    for round in 0..3 {
        fill(&disk);
        let store = Store::open(&disk).unwrap();
        assert_eq!(store.list().unwrap().len(), 1, "round {round}");
        store.remove("x").unwrap();
        drop(store);
        std::fs::remove_file(disk.join("filler")).unwrap();
        import().unwrap();
    }
}
