//! Disk space of files that a guest wrote and removed goes back to the host.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use blackbox::{Home, done};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("space::of_a_volume_comes_back_at_the_end", of_a_volume_comes_back_at_the_end),
    ("space::of_the_root_comes_back_meanwhile", of_the_root_comes_back_meanwhile),
];

const MIB: u64 = 1 << 20;

/// How long a running guest may take to give space back.
const LIMIT: Duration = Duration::from_secs(60);

/// MiB that a file takes on the host's disk.
fn taken(file: &Path) -> u64 {
    fs::metadata(file).unwrap().blocks() * 512 / MIB
}

/// The root's disk, which has no name: found as an open file of a process of the only sandbox.
fn upper_disk(home: &Home) -> PathBuf {
    let pids =
        home.processes().into_iter().filter_map(|process| process.split(' ').next().map(str::to_owned));
    let files = pids.flat_map(|pid| fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten());
    let mut paths = files.map(|file| file.path());
    let is_upper =
        |path: &PathBuf| fs::read_link(path).is_ok_and(|to| to.to_string_lossy().contains("upper.ext4"));
    paths.find(is_upper).unwrap()
}

fn of_a_volume_comes_back_at_the_end() {
    let home = Home::with_own_volumes();
    let created = home.done(["volume", "create", "data", "--size", "256"]);
    assert_eq!(created.status, 0, "{created:?}");
    let image = home.cache().join("volumes/data.ext4");
    let before = taken(&image);
    let run = |script: &str| {
        let done = done(home.run(["--disk", "@data:/data"]).args(["--", "sh", "-c", script]));
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    };
    run("dd if=/dev/zero of=/data/large bs=1M count=64 2>/dev/null; echo kept >/data/kept");
    let full = taken(&image);
    assert!(full >= before + 64, "{before} MiB, then {full} MiB");
    // Written in another sandbox, so that only the removal gives space back.
    run("rm /data/large");
    let after = taken(&image);
    assert!(after <= before + 8, "{before} MiB, full {full} MiB, then {after} MiB");
    // Written and removed in one sandbox.
    run(
        "dd if=/dev/zero of=/data/large bs=1M count=64 2>/dev/null; sync; rm /data/large; test $(cat /data/kept) = kept",
    );
    let after = taken(&image);
    assert!(after <= before + 8, "{before} MiB, then {after} MiB");
    home.assert_nothing_left();
}

fn of_the_root_comes_back_meanwhile() {
    let home = Home::new();
    let id = home.detached(&[]);
    let disk = upper_disk(&home);
    let exec = |script: &str| {
        let done = done(&mut home.matchlock(["exec", &id, "--", "sh", "-c", script]));
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    };
    let before = taken(&disk);
    exec("dd if=/dev/zero of=/large bs=1M count=64 2>/dev/null; sync");
    let full = taken(&disk);
    assert!(full >= before + 64, "{before} MiB, then {full} MiB");
    exec("rm /large; sync");
    let start = Instant::now();
    while taken(&disk) > before + 8 {
        assert!(start.elapsed() < LIMIT, "{before} MiB, full {full} MiB, still {} MiB", taken(&disk));
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(home.done(["kill", &id]).status, 0);
    assert_eq!(home.done(["rm", &id]).status, 0);
    home.assert_nothing_left();
}
