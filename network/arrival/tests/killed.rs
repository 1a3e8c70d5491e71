//! A process that is killed leaves nothing of its networks. By itself, as it counts the namespaces of the whole host.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use arrival::Arrival;

/// Networks of the process, far more than other processes make and end meanwhile.
const COUNT: usize = 200;
const NOISE: usize = COUNT / 3;
const PATIENCE: Duration = Duration::from_secs(60);

/// How many network namespaces the kernel has, within some.
fn namespaces() -> Option<usize> {
    let caches = fs::read_to_string("/proc/slabinfo").ok()?;
    let line = caches.lines().find(|line| line.starts_with("net_namespace "))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The process that is killed: the next test starts it.
#[test]
#[ignore = "holds networks until it is killed"]
fn holds_networks() {
    let networks: Vec<_> =
        (0..COUNT).map(|_| std::thread::spawn(Arrival::enter).join().unwrap().unwrap()).collect();
    writeln!(std::io::stdout(), "\nholds {}", networks.len()).unwrap();
    std::io::stdin().lines().for_each(drop);
}

#[test]
fn nothing_is_left_of_a_process_that_is_killed() {
    if !rustix::process::geteuid().is_root() {
        return skip::skip("root", "network namespaces of a thread take root");
    }
    if !std::path::Path::new("/dev/net/tun").exists() {
        return skip::skip("/dev/net/tun", tap::Error::NoDevice);
    }
    if namespaces().is_none() {
        return skip::skip("slabinfo", "the kernel does not say how many network namespaces there are");
    }
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "holds_networks", "--ignored", "--nocapture"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == format!("holds {COUNT}")), "the process made no networks");
    let during = namespaces().unwrap();
    assert!(during >= COUNT, "{during} of {COUNT}");
    child.kill().unwrap();
    child.wait().unwrap();
    let start = Instant::now();
    // The kernel takes namespaces away after their last descriptor.
    while namespaces().unwrap() > during - (COUNT - NOISE) {
        assert!(start.elapsed() < PATIENCE, "{} left of {during}", namespaces().unwrap());
        std::thread::sleep(Duration::from_millis(20));
    }
}
