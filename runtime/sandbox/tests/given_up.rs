//! A sandbox that is given up while its parts are prepared ends at once, whatever it waits for.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

use std::fs::{self, File};
use std::io::Write;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use images::{Pull, Quiet};
use policy::network::{Arrival, Network};
use sandbox::{FileWatch, Home, ImageOverrides, Spec, Start, Stop, Terms};
use served::http::{Answer, Server, ok};
use tokio::sync::oneshot;
use waiting::testing::{AT_ONCE, is_waited_for};

/// The variable that names the child's home.
const DIRECTORY: &str = "MATCHLOCK_TEST_DIRECTORY";

fn spec() -> Spec {
    Spec {
        image: "busybox".into(),
        pull: Pull::Missing,
        kernel: String::new(),
        machine: policy::machine::WantedMachine::Auto,
        resources: policy::resources::WantedResources { cpus: 1.0, memory_mb: 128, disk_size_mb: 64 },
        disks: Vec::new(),
        mounts: Vec::new(),
        masks: policy::files::WantedMasks::default(),
        watch: FileWatch::default(),
        network: Network { arrival: Arrival::None, ..Network::default() },
        env: Vec::new(),
        entrypoint: None,
        image_config: ImageOverrides::default(),
        privileged: false,
        launch_entrypoint: false,
        init: false,
        unenforced_timeout_seconds: None,
        time_limit: None,
        keep: false,
        grace: Duration::ZERO,
    }
}

#[tokio::test]
#[ignore = "the child's side of the other tests"]
async fn start_until_the_parent_says_so() {
    let home = Home::at(Path::new(&std::env::var(DIRECTORY).unwrap()));
    let sandbox = sandbox::spawn(&home, spec(), Start::now(), Terms::default(), Arc::new(Quiet)).unwrap();
    let (begun, waits) = oneshot::channel();
    std::thread::spawn(move || begun.send(std::io::stdin().read_line(&mut String::new()).unwrap()));
    tokio::select! {
        ready = sandbox.ready() => panic!("{:?}", ready.map(drop)),
        waits = waits => assert_eq!(waits, Ok(1)),
    }
    let given_up = Instant::now();
    sandbox.stop(Stop::default());
    sandbox.gone().await.unwrap();
    let after = given_up.elapsed();
    assert!(after < AT_ONCE, "{after:?}");
}

/// The child is a process of its own because of its environment.
fn start(home: &Path, mirror: &str) -> Child {
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args(["--exact", "start_until_the_parent_says_so", "--ignored"]);
    child.env(DIRECTORY, home).env("MATCHLOCK_DEBIAN_MIRROR", mirror).env_remove("SUDO_USER");
    // The agent only has to exist.
    child.env("MATCHLOCK_GUEST_INIT", "/bin/sh");
    child.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

#[track_caller]
fn give_up(mut child: Child, home: &Path) {
    // The child may have ended by itself, which is reported below.
    let _ = child.stdin.take().unwrap().write_all(b"\n");
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    assert_eq!(fs::read_dir(home.join(".matchlock/vms")).unwrap().count(), 0);
}

/// Whether this host has a machine at all.
fn has_machine() -> bool {
    let choice = policy::machine::choose(policy::machine::WantedMachine::Auto, &sandbox::host::facts());
    choice.inspect_err(|refusal| skip::skip("machine", refusal)).is_ok()
}

#[test]
fn while_others_have_the_locks() {
    if !has_machine() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let cache = home.path().join(".cache/matchlock");
    for directory in ["images", "kernels", "uppers"] {
        fs::create_dir_all(cache.join(directory)).unwrap();
    }
    let held = ["images/builtin.lock", "kernels/lock", "uppers"].map(|name| {
        let path = cache.join(name);
        let lock = if path.is_dir() { File::open(path) } else { File::create(path) }.unwrap();
        lock.lock().unwrap();
        lock
    });
    let mut child = start(home.path(), "");
    while !held.iter().all(is_waited_for) && child.try_wait().unwrap().is_none() {
        std::thread::yield_now();
    }
    give_up(child, home.path());
}

#[test]
fn while_its_mirror_says_nothing() {
    if !has_machine() {
        return;
    }
    let home = tempfile::tempdir().unwrap();
    let (asked, wait) = channel();
    let silent = move |_: &_| {
        let _ = asked.send(());
        Answer { stall: Some(0), ..ok(b"nothing of this") }
    };
    let server = Server::start(silent).unwrap();
    let child = start(home.path(), &format!("http://{}/debian", server.address));
    wait.recv().unwrap();
    give_up(child, home.path());
}
