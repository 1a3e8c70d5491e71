//! Limits of real processes.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};

use confinement::{Limits, enter_with_nothing};
use rustix::fs::{MemfdFlags, memfd_create};

const MIB: u64 = 1 << 20;

#[test]
#[ignore = "the process that the other test confines"]
fn limited() {
    let file = File::from(memfd_create("disk", MemfdFlags::CLOEXEC).unwrap());
    enter_with_nothing(Limits::new(100 * MIB, 512 * MIB, 512 * MIB)).unwrap();
    match std::env::var("LIMITED").unwrap().as_str() {
        "write within" => file.write_all_at(b"end", 100 * MIB - 3).unwrap(),
        "write behind" => file.write_all_at(b"end", 100 * MIB).unwrap(),
        "grow" => rustix::fs::ftruncate(&file, 100 * MIB + 1).unwrap(),
        "map within" => assert!(Vec::<u8>::new().try_reserve_exact(256 << 20).is_ok()),
        _ => assert!(Vec::<u8>::new().try_reserve_exact(1 << 30).is_err()),
    }
    std::process::exit(77);
}

fn fate(what: &str) -> ExitStatus {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "limited", "--ignored", "--test-threads=1"]).env("LIMITED", what);
    command.output().unwrap().status
}

#[test]
fn files_and_memory_end_where_they_are_told_to() {
    for what in ["write within", "map within", "map beyond"] {
        assert_eq!(fate(what).code(), Some(77), "{what}");
    }
    for what in ["write behind", "grow"] {
        assert_eq!(fate(what).signal(), Some(libc::SIGXFSZ), "{what}");
    }
}
