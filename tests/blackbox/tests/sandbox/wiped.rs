//! Nobody's home is wiped: a sandbox may be ended at any moment, by anything, and be cleaned up after by anything that may itself
//! be killed on the way, and the host's directories that it had are as they were.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::Path;
use std::process::Child;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use blackbox::rpc::Server;
use blackbox::{Home, end, kill_and_wait, names, signal, spawn};
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("wiped::nothing_of_the_host_at_any_moment", nothing_of_the_host_at_any_moment),
    ("wiped::nothing_of_the_host_by_what_ends_with_the_sandbox", nothing_of_the_host_by_what_ends),
];

/// Set for as many moments as `cargo xtask conformance shares` tries.
const LONG: &str = "LONG_PROOFS";
const MOMENTS: usize = 12;
const MOMENTS_IF_LONG: usize = 200;

/// A start of these numbers is tried instead of another one each time.
const SEED: &str = "MATCHLOCK_TEST_SEED";

/// The guest's acts. It only reads what is the host's.
const GUEST: &str = "find /home /home/over >/dev/null; cat /home/file >/dev/null; rm -rf /over/* /over/.hidden /home/over/*
echo new > /over/new; mkdir -p /home/over/d; echo new > /home/over/d/new; rm -rf /tmp/memory/*; ls /ro; echo up; sleep 600";

/// Numbers that look random, always the same from the same seed.
struct Numbers(u64);

impl Numbers {
    /// One below `end`.
    fn below(&mut self, end: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }

    fn wait(&mut self, end_ms: u64) {
        std::thread::sleep(Duration::from_millis(self.below(end_ms)));
    }
}

/// Seeded numbers, whose seed is printed.
fn numbers() -> Numbers {
    let given = std::env::var(SEED).ok().map(|seed| seed.parse().unwrap());
    let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let seed = given.unwrap_or_else(now);
    eprintln!("  {SEED}={seed}");
    Numbers(seed)
}

/// A directory of everything that a directory can have.
fn furnish(home: &Path) {
    for name in ["deep/er/and/deeper", "empty", "over/sub", ".hidden"] {
        fs::create_dir_all(home.join(name)).unwrap();
    }
    for name in ["file", "deep/er/file", "over/file", "over/sub/file", ".hidden/file", "new\nline"] {
        fs::write(home.join(name), format!("this is {name}\n")).unwrap();
    }
    for number in 0..50 {
        fs::write(home.join(format!("deep/er/and/{number}")), [b'x'; 5000]).unwrap();
    }
    fs::hard_link(home.join("file"), home.join("deep/linked")).unwrap();
    symlink("deep/er", home.join("link")).unwrap();
    symlink("/", home.join("link to everything")).unwrap();
}

/// A hash of all that is told of the files below a directory, and of their contents.
fn hash(directory: &Path) -> String {
    fn add(path: &Path, hash: &mut Sha256) {
        let found = fs::symlink_metadata(path).unwrap();
        let owner = (found.uid(), found.gid(), found.mode(), found.nlink());
        let times = (found.mtime(), found.mtime_nsec(), found.ctime(), found.ctime_nsec());
        hash.update(format!("{path:?} {:?} {owner:?} {times:?}", found.ino()));
        if found.is_file() {
            hash.update(fs::read(path).unwrap());
        } else if found.is_symlink() {
            hash.update(format!("{:?}", fs::read_link(path).unwrap()));
        } else {
            let names = fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names: Vec<_> = names.collect();
            names.sort();
            names.iter().for_each(|name| add(&path.join(name), hash));
        }
    }
    let mut hash = Sha256::new();
    add(directory, &mut hash);
    format!("{:x}", hash.finalize())
}

/// The mounts of a sandbox: the directory itself, read-only, as an overlay, and an overlay and a folder in memory within it.
fn mounts(home: &Path) -> Vec<(&'static str, &'static str, String)> {
    let path = |name: &str| home.join(name).display().to_string();
    vec![
        ("/home", "host_fs", path("")),
        ("/ro", "ro", path("deep")),
        ("/over", "overlay", path("")),
        ("/home/over", "overlay", path("over")),
        ("/tmp/memory", "memory", String::new()),
        ("/etc/file", "overlay", path("file")),
    ]
}

fn volumes(home: &Path) -> Vec<String> {
    let volume = |(guest, kind, path)| ["-v".to_owned(), format!("{path}:{guest}:{kind}")];
    mounts(home).into_iter().flat_map(volume).collect()
}

fn parameters(home: &Path) -> Value {
    let mount = |(guest, kind, path): (&str, &str, String)| {
        let mount = match kind {
            "ro" => json!({"type": "host_fs", "host_path": path, "readonly": true}),
            "memory" => json!({"type": "memory"}),
            kind => json!({"type": kind, "host_path": path}),
        };
        (guest.to_owned(), mount)
    };
    let mounts: serde_json::Map<_, _> = mounts(home).into_iter().map(mount).collect();
    json!({"network": {"no_network": true}, "vfs": {"mounts": mounts}})
}

/// Starts a sandbox in one of three ways, and ends it after a moment in one of several.
fn start_and_end(home: &Home, shared: &Path, numbers: &mut Numbers) {
    if numbers.below(3) == 0 {
        return create_and_end(home, shared, numbers);
    }
    let mut run = home.run(["--rm=false"]);
    run.args(volumes(shared));
    if numbers.below(2) == 0 {
        run.arg("-d");
    }
    let child = spawn(run.args(["--", "sh", "-c", GUEST]));
    numbers.wait(4000);
    match numbers.below(5) {
        0 => signal_unless_ended(child, Signal::INT),
        1 => signal_unless_ended(child, Signal::TERM),
        2 => signal_unless_ended(child, Signal::KILL),
        3 => {
            kill_one(home, "matchlock-share");
            signal_unless_ended(child, Signal::TERM);
        }
        _ => {
            kill_one(home, "matchlock");
            end(child);
        }
    }
}

fn signal_unless_ended(mut child: Child, sent: Signal) {
    if child.try_wait().unwrap().is_none() {
        signal(&child, sent);
    }
    end(child);
}

/// Kills the first process of this name, if there is one.
fn kill_one(home: &Home, name: &str) {
    let found = home.processes().into_iter().find_map(|process| {
        let (pid, its) = process.split_once(' ')?;
        (its == name).then(|| pid.parse().ok()).flatten().and_then(Pid::from_raw)
    });
    let Some(pid) = found else { return };
    // It may end by itself meanwhile.
    let _ = std::panic::catch_unwind(|| kill_and_wait(pid));
}

fn create_and_end(home: &Home, shared: &Path, numbers: &mut Numbers) {
    let mut server = Server::start(home);
    let create = server.send_create(parameters(shared));
    numbers.wait(4000);
    match numbers.below(4) {
        0 => {
            server.call("cancel", json!({"id": create})).unwrap();
            let _ = server.answer(create);
        }
        1 => drop(server.call("close", json!({}))),
        2 => server.child.kill().unwrap(),
        _ => kill_one(home, "matchlock-share"),
    }
    server.hang_up();
    server.child.wait().unwrap();
}

/// Cleans up in one of several ways; each may be killed on its way.
fn clean_up(home: &Home, numbers: &mut Numbers) {
    let id = names(&home.vms()).pop().unwrap_or_else(|| "vm-00000000".to_owned());
    let commands: [&[&str]; 7] = [
        &["gc"],
        &["gc", "--force-running"],
        &["rm", "--stopped"],
        &["prune"],
        &["discard", &id],
        &["kill", &id],
        &["diff", "--names", &id],
    ];
    for _ in 0..3 {
        let args = commands[usize::try_from(numbers.below(commands.len() as u64)).unwrap()];
        let child = spawn(&mut home.matchlock(args));
        if numbers.below(2) == 0 {
            numbers.wait(20);
            signal_unless_ended(child, Signal::KILL);
        } else {
            end(child);
        }
    }
}

fn nothing_of_the_host_at_any_moment() {
    let home = Home::new();
    let shared = tempfile::tempdir().unwrap();
    furnish(shared.path());
    let before = hash(shared.path());
    let mut numbers = numbers();
    let count = if std::env::var_os(LONG).is_some() { MOMENTS_IF_LONG } else { MOMENTS };
    for moment in 0..count {
        start_and_end(&home, shared.path(), &mut numbers);
        clean_up(&home, &mut numbers);
        assert_eq!(hash(shared.path()), before, "moment {moment}");
        let forced = home.done(["gc", "--force-running"]);
        assert_eq!(forced.status, 0, "moment {moment}: {forced:?}");
        let pruned = home.done(["prune"]);
        assert_eq!(pruned.status, 0, "moment {moment}: {pruned:?}");
        home.assert_nothing_left();
        assert_eq!(hash(shared.path()), before, "moment {moment}, and then gc and prune");
    }
    eprintln!("  {count} moments");
}

/// A sandbox that had its whole life: what it made of the overlays is thrown away, and with it goes nothing else.
fn nothing_of_the_host_by_what_ends() {
    let home = Home::new();
    let shared = tempfile::tempdir().unwrap();
    furnish(shared.path());
    let before = hash(shared.path());
    let volumes = volumes(shared.path());
    let mut args: Vec<&str> = volumes.iter().map(String::as_str).collect();
    args.extend(["--rm=false", "--", "sh", "-c", GUEST]);
    let id = home.detached(&args);
    let exec = |script: &str| blackbox::done(&mut home.matchlock(["exec", &id, "--", "sh", "-c", script]));
    let seen = exec("until [ -e /home/over/d/new ]; do sleep 0.1; done; ls -A /over /home/over");
    assert_eq!((seen.status, seen.stdout.as_str()), (0, "/home/over:\nd\n\n/over:\nnew\n"), "{seen:?}");
    for (args, told) in [
        (&["kill", &id][..], format!("Killed {id}\n")),
        (&["discard", &id, "/home/over"], "5 changes discarded\n".to_owned()),
    ] {
        let done = home.done(args);
        assert_eq!((done.status, done.stdout), (0, told), "{}", done.stderr);
        assert_eq!(hash(shared.path()), before, "{args:?}");
    }
    assert_eq!(home.done(["discard", &id]).status, 0);
    assert_eq!(home.done(["rm", &id]).status, 0);
    home.assert_nothing_left();
    assert_eq!(hash(shared.path()), before);
}
