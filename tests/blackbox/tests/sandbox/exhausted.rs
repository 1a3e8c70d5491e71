//! A guest whose programs take all they can get: other commands are served, and cancelling and ending work as ever.

use std::process::Child;
use std::time::{Duration, Instant};

use blackbox::{Done, Home, end, signal, spawn};
use rustix::process::Signal;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("exhausted::by_a_fork_bomb", by_a_fork_bomb),
    ("exhausted::by_a_users_fork_bomb", by_a_users_fork_bomb),
    ("exhausted::by_its_own_command", by_its_own_command),
    ("exhausted::memory", memory),
    ("exhausted::disk_and_inodes", disk_and_inodes),
];

/// How long another command may take meanwhile. A guest under test may be an emulated one on a busy host.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);

/// How long cancelled processes may take to be gone: an emulated processor takes some two seconds to end hundreds of
/// processes, and the commands of the test itself take time too. On a busy host they may take [`GONE_TIMES`] times as long
/// as a small command beside the bomb.
const GONE_LIMIT: Duration = Duration::from_secs(8);
const GONE_TIMES: u32 = 10;

/// How long the end may take, grace included.
const END_LIMIT: Duration = Duration::from_secs(10);

/// How long a bomb goes on before the guest gets another command.
const FUSE: Duration = Duration::from_secs(8);

/// Each process makes others until it may not, and then ends, so that another can be made.
const BOMB: &str = "b() { while :; do b & done; }; b 2>/dev/null & exec sleep 1000";

/// The processes of all programs.
const COUNT: &str = "cat /sys/fs/cgroup/programs/pids.current";

fn exec(home: &Home, id: &str, args: &[&str]) -> Done {
    blackbox::done(home.matchlock(["exec", id, "--"]).args(args))
}

fn start(home: &Home, id: &str, options: &[&str], script: &str) -> Child {
    spawn(home.matchlock(["exec"]).args(options).args([id, "--", "sh", "-c", script]))
}

/// Checks that another command is served in time. Returns how long the slowest of a few took.
fn assert_served(home: &Home, id: &str) -> Duration {
    let mut slowest = Duration::ZERO;
    for _ in 0..3 {
        let start = Instant::now();
        // A pipe and three processes, more than the program itself can get.
        let served = exec(home, id, &["sh", "-c", "echo hi | cat"]);
        assert_eq!((served.status, served.stdout.as_str()), (0, "hi\n"), "{served:?}");
        eprintln!("  served in {:?}", start.elapsed());
        assert!(start.elapsed() < ANSWER_LIMIT, "{:?}", start.elapsed());
        slowest = slowest.max(start.elapsed());
    }
    slowest
}

/// The number of processes, apart from those that count.
fn processes(home: &Home, id: &str) -> u32 {
    let counted = exec(home, id, &["sh", "-c", COUNT]);
    assert_eq!(counted.status, 0, "{counted:?}");
    counted.stdout.trim().parse::<u32>().unwrap()
}

fn assert_ends(home: &Home, id: &str) {
    let start = Instant::now();
    assert_eq!(home.done(["kill", id]).status, 0);
    eprintln!("  ended in {:?}", start.elapsed());
    assert!(start.elapsed() < END_LIMIT, "{:?}", start.elapsed());
    let inspected = home.done(["inspect", id]).stdout;
    let inspected: serde_json::Value = serde_json::from_str(&inspected).unwrap();
    let guest = &inspected["lifecycle"]["cleanup"]["guest"];
    assert_eq!(guest["status"], "ok", "it powered off by itself: {guest}");
    assert_eq!(home.done(["rm", id]).status, 0);
    home.assert_nothing_left();
}

fn bombed(options: &[&str]) {
    let home = Home::new();
    let id = home.detached(&[]);
    let before = processes(&home, &id);
    let bomb = start(&home, &id, options, BOMB);
    std::thread::sleep(FUSE);
    let meanwhile = processes(&home, &id);
    assert!(meanwhile > 100, "{meanwhile} are no bomb");
    let limit = GONE_LIMIT.max(assert_served(&home, &id) * GONE_TIMES);
    // After the cancellation every process is gone.
    let cancelled = Instant::now();
    signal(&bomb, Signal::INT);
    assert_eq!(end(bomb).status, 130);
    while processes(&home, &id) > before + 2 {
        assert!(cancelled.elapsed() < limit, "{:?}", cancelled.elapsed());
    }
    eprintln!("  gone in {:?} of {meanwhile} processes", cancelled.elapsed());
    // Another bomb goes on until the end.
    let mut bomb = start(&home, &id, options, BOMB);
    std::thread::sleep(FUSE);
    assert_ends(&home, &id);
    bomb.wait().unwrap();
}

fn by_a_fork_bomb() {
    bombed(&[]);
}

fn by_a_users_fork_bomb() {
    bombed(&["-u", "1000:1000"]);
}

fn by_its_own_command() {
    let home = Home::new();
    let id = home.detached(&["--", "sh", "-c", BOMB]);
    std::thread::sleep(FUSE);
    assert_served(&home, &id);
    assert_ends(&home, &id);
}

fn memory() {
    let home = Home::new();
    let id = home.detached(&[]);
    // A program that takes memory without end is killed; files in memory stay.
    assert_eq!(exec(&home, &id, &["tail", "/dev/zero"]).status, 137);
    let fill = "dd if=/dev/zero of=/dev/shm/fill bs=1M 2>/dev/null; df /dev/shm | tail -1";
    let filled = exec(&home, &id, &["sh", "-c", fill]);
    assert!(filled.stdout.contains("100%"), "{filled:?}");
    assert_served(&home, &id);
    let mut hungry: Vec<Child> =
        (0..3).map(|_| start(&home, &id, &[], "while :; do tail /dev/zero; done")).collect();
    std::thread::sleep(FUSE);
    assert_served(&home, &id);
    assert_ends(&home, &id);
    for child in &mut hungry {
        child.wait().unwrap();
    }
}

fn disk_and_inodes() {
    let home = Home::new();
    let id = home.detached(&["--disk-size", "64"]);
    let inodes = "mkdir /root/many; cd /root/many; i=0; while true > $i; do i=$((i+1)); done 2>/dev/null; df -i / | tail -1";
    let many = exec(&home, &id, &["sh", "-c", inodes]);
    assert!(many.stdout.contains("100%"), "{many:?}");
    let filled =
        exec(&home, &id, &["sh", "-c", "dd if=/dev/zero of=/root/many/0 bs=1M 2>/dev/null; df / | tail -1"]);
    assert!(filled.stdout.contains("100%"), "{filled:?}");
    assert_served(&home, &id);
    assert_ends(&home, &id);
}
