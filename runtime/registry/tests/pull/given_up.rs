//! Pulls that are given up while they wait for another process on this host.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use images::{Quiet, Store};
use registry::Registries;
use rustix::fs::{CWD, FileType, Mode, mknodat};
use waiting::testing::given_up_at_once;

use crate::trust;

/// The variable that names the child's directory.
const DIRECTORY: &str = "MATCHLOCK_TEST_DIRECTORY";

#[test]
#[ignore = "the child's side of another test"]
fn pull_until_the_helper_has_begun() {
    let directory = PathBuf::from(std::env::var(DIRECTORY).unwrap());
    let store = Store::open(&directory).unwrap();
    let begun = || directory.join("begun").exists();
    let error = given_up_at_once(begun, |token| {
        let registries = Registries::new(trust(&directory)).until(token.clone());
        registries.pull_as(&store, "127.0.0.1:1/x", "x", &Quiet)
    });
    assert!(error.to_string().ends_with("the pull was given up"), "{error}");
    // The write ends the process that waits for the pipe.
    fs::write(directory.join("pipe"), "go").unwrap();
}

#[test]
fn a_credential_helper_that_asks_a_person() {
    let directory = tempfile::tempdir().unwrap();
    let (pipe, bin) = (directory.path().join("pipe"), directory.path().join("bin"));
    mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    fs::create_dir(&bin).unwrap();
    let helper = bin.join("docker-credential-slow");
    let begun = directory.path().join("begun");
    let script = format!("#!/bin/sh\n: > {}\nread -r answer < {}\n", begun.display(), pipe.display());
    fs::write(&helper, script).unwrap();
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755)).unwrap();
    fs::write(directory.path().join("docker.json"), r#"{"credsStore":"slow"}"#).unwrap();
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "given_up::pull_until_the_helper_has_begun", "--ignored"]).stdout(Stdio::null());
    assert!(child.env("PATH", &bin).env(DIRECTORY, directory.path()).status().unwrap().success());
}
