//! Acts that other shared folders are known to fail at, by a guest on every kind of folder.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use blackbox::{Home, done, end, spawn};
use share_cases::{ALONE, BOTH, READ_ONLY};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("cases::on_every_kind_of_folder", on_every_kind_of_folder)];

/// The program with the cases, which runs in the guest.
pub(crate) fn program() -> Option<PathBuf> {
    std::env::var_os("MATCHLOCK_TEST_CASES").map(PathBuf::from)
}

/// The promise of a second, and time for an emulated guest to see that it is kept.
const SOON_MS: &str = "4000";

fn on_every_kind_of_folder() {
    let home = Home::new();
    let [plain, over, kept] = [(); 3].map(|()| tempfile::tempdir().unwrap());
    fs::write(kept.path().join("file"), "text").unwrap();
    let volume = |host: &Path, rest: &str| format!("{}:{rest}", host.display());
    let volumes = [
        volume(&program().unwrap(), "/share-cases:ro"),
        volume(plain.path(), "/plain:host_fs"),
        volume(over.path(), "/over"),
        volume(kept.path(), "/kept:ro"),
        ":/memory:memory".to_owned(),
    ];
    let id = home.detached(&volumes.iter().flat_map(|volume| ["-v", volume]).collect::<Vec<_>>());
    let failed: Vec<String> = [
        ("/plain", SOON_MS, Some(plain.path()), ALONE + BOTH),
        ("/over", SOON_MS, Some(over.path()), ALONE + BOTH),
        ("/memory", "alone", None, ALONE),
        ("/kept", "readonly", None, READ_ONLY),
    ]
    .into_iter()
    .flat_map(|(folder, setting, host, count)| hold(&home, &id, folder, setting, host, count))
    .collect();
    assert!(failed.is_empty(), "{failed:#?}");
    assert_eq!(blackbox::names(kept.path()), ["file"]);
    assert_eq!(done(&mut home.matchlock(["kill", &id])).status, 0);
    assert_eq!(done(&mut home.matchlock(["rm", &id])).status, 0);
    home.assert_nothing_left();
}

/// Runs the cases in a folder of the guest; returns those that fail.
fn hold(
    home: &Home,
    id: &str,
    folder: &str,
    setting: &str,
    host: Option<&Path>,
    count: usize,
) -> Vec<String> {
    let mut command = home.matchlock(["exec", "-i", id, "--", "/share-cases", folder, setting]);
    let mut child = spawn(command.stdin(Stdio::piped()));
    let (mut stdin, stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let (mut ran, mut failed) = (0, Vec::new());
    for line in BufReader::new(stdout).lines() {
        let line = line.unwrap();
        match line.strip_prefix("host\t") {
            Some(act) => writeln!(stdin, "{}", share_cases::act(host.unwrap(), act)).unwrap(),
            None => {
                ran += 1;
                failed.extend(line.starts_with("FAILED").then(|| format!("{folder}: {line}")));
            }
        }
    }
    drop(stdin);
    let done = end(child);
    assert_eq!((done.status, ran), (0, count), "{folder}: {done:?}");
    failed
}
