//! A sandbox's life in its records, and the memory of its owner.

use std::time::Duration;

use blackbox::{Done, Home, end, read_until, signal, spawn};
use rustix::process::Signal;

use crate::Test;

/// The number and length of QEMU's stops, and the time that it runs in between.
const STOPS: u32 = 40;
const STOPPED: Duration = Duration::from_millis(110);
const RUNNING: Duration = Duration::from_millis(20);

pub(crate) const TESTS: &[Test] = &[
    ("lifecycle::detached_listed_killed_removed", detached_listed_killed_removed),
    ("lifecycle::rm_false_waits_for_its_end", rm_false_waits_for_its_end),
    ("lifecycle::a_killed_owner_is_a_crash", a_killed_owner_is_a_crash),
    ("lifecycle::a_killed_machine_is_an_error", a_killed_machine_is_an_error),
    ("lifecycle::detached_errors_are_told", detached_errors_are_told),
];

/// Tests of emulated processors, the only ones that stand still with their host.
pub(crate) const TESTS_OF_EMULATION: &[Test] = &[(
    "lifecycle::a_guest_without_a_timer_is_started_once_more",
    a_guest_without_a_timer_is_started_once_more,
)];

fn status_of(home: &Home, id: &str) -> String {
    let list: serde_json::Value = serde_json::from_str(&home.done(["list", "--json"]).stdout).unwrap();
    let vm = list.as_array().unwrap().iter().find(|vm| vm["id"] == id).unwrap().clone();
    assert_eq!(vm["image"], blackbox::IMAGE);
    let pid = vm["pid"].as_u64().unwrap();
    let status = vm["status"].as_str().unwrap().to_owned();
    assert_eq!(pid != 0, status == "running", "{vm}");
    status
}

fn detached_listed_killed_removed() {
    let home = Home::new();
    let first = home.detached(&["--", "sh", "-c", "echo into the log"]);
    let second = home.detached(&[]);
    assert_eq!(
        (status_of(&home, &first).as_str(), status_of(&home, &second).as_str()),
        ("running", "running")
    );
    let table = home.done(["ls", "--running"]).stdout;
    let ids: Vec<_> = table.lines().skip(1).filter_map(|line| line.split_whitespace().next()).collect();
    assert_eq!(ids, [&second, &first], "newest first");
    assert_eq!(
        home.done(["rm", &first]).stderr.lines().next(),
        Some(format!("matchlock: VM is running {first}").as_str())
    );
    assert_memory_of_owners(&home);

    assert_eq!(home.done(["kill", &first]).stdout, format!("Killed {first}\n"));
    assert_eq!(status_of(&home, &first), "stopped");
    let log = std::fs::read_to_string(home.vms().join(&first).join("logs/vm.log")).unwrap();
    assert!(log.contains("into the log\n"), "{log}");
    assert_eq!(blackbox::names(&home.vms().join(&first)), ["logs"]);
    let exec = home.done(["exec", &first, "true"]);
    assert_eq!(exec.stderr, format!("matchlock: VM {first} is not running (status: stopped)\n"));
    assert_eq!(home.done(["kill", &first]).stderr, format!("matchlock: VM {first} is not running\n"));

    let all = home.done(["kill", "--all"]);
    assert_eq!(all, Done { status: 0, stdout: format!("Killed {second}\n"), stderr: String::new() });
    home.assert_no_process();
    let removed = home.done(["rm", "--stopped"]).stdout;
    assert_eq!(removed.lines().count(), 2, "{removed}");
    home.assert_nothing_left();
}

/// Checks the private dirty memory of every owner, once its guest is up.
fn assert_memory_of_owners(home: &Home) {
    const LIMIT_KB: u64 = 8 << 10;
    let list: serde_json::Value = serde_json::from_str(&home.done(["list", "--json"]).stdout).unwrap();
    for vm in list.as_array().unwrap() {
        let path = format!("/proc/{}/smaps_rollup", vm["pid"]);
        let rollup = std::fs::read_to_string(path).unwrap();
        let line = rollup.lines().find(|line| line.starts_with("Private_Dirty:")).unwrap();
        let kilobytes: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
        assert!(kilobytes < LIMIT_KB, "{kilobytes} kB");
    }
}

fn rm_false_waits_for_its_end() {
    let home = Home::new();
    let mut child = spawn(&mut home.run(["--rm=false", "--", "sh", "-c", "sync; echo done; exit 3"]));
    assert_eq!(read_until(&mut child, "\n"), "done\n");
    let list = home.done(["ls", "--running"]).stdout;
    let id = list.lines().nth(1).unwrap().split_whitespace().next().unwrap().to_owned();
    assert_eq!(home.done(["exec", &id, "echo", "hi"]).stdout, "hi\n");
    signal(&child, Signal::INT);
    let done = end(child);
    assert_eq!((done.status, done.stdout.as_str()), (0, ""), "{done:?}");
    assert_eq!(done.stderr.lines().next(), Some(format!("Sandbox {id} is running").as_str()), "{done:?}");
    assert_eq!(done.stderr.lines().count(), 3, "{done:?}");
    home.assert_no_process();
    assert_eq!(status_of(&home, &id), "stopped");
    assert_eq!(home.done(["rm", &id]).stdout, format!("Removed {id}\n"));
    home.assert_nothing_left();
}

fn a_killed_owner_is_a_crash() {
    let home = Home::new();
    let mut child = spawn(&mut home.run(["--", "sh", "-c", "echo up; sleep 1000"]));
    read_until(&mut child, "up\n");
    assert!(!home.processes().is_empty());
    signal(&child, Signal::KILL);
    assert_eq!(end(child).status, 137);
    home.assert_no_process();
    let id = blackbox::names(&home.vms()).pop().unwrap();
    assert_eq!(status_of(&home, &id), "crashed");
    assert_eq!(blackbox::names(&home.vms().join(&id)), ["logs"], "the next command cleans up");
    assert_eq!(
        home.done(["exec", &id, "true"]).stderr,
        format!("matchlock: VM {id} is not running (status: crashed)\n")
    );
    assert_eq!(home.done(["rm", &id]).stdout, format!("Removed {id}\n"));
    home.assert_nothing_left();
}

/// A kill of any process of the machine ends the machine and the command, and everything is cleaned up.
fn a_killed_machine_is_an_error() {
    let home = Home::new();
    let mut child = spawn(&mut home.run(["--", "sh", "-c", "echo up; sleep 1000"]));
    read_until(&mut child, "up\n");
    let owner = child.id().to_string();
    let processes = home.processes();
    let machine = processes.iter().find(|process| !process.starts_with(&format!("{owner} "))).unwrap();
    let pid: i32 = machine.split_whitespace().next().unwrap().parse().unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    let done = end(child);
    assert_eq!(done.status, 1, "{done:?}");
    assert!(done.stderr.starts_with("matchlock: the machine failed while the command ran: "), "{done:?}");
    home.assert_nothing_left();
}

fn detached_errors_are_told() {
    let home = Home::new();
    let done = blackbox::done(&mut home.run(["-d", "--kernel", "file:///etc/passwd"]));
    assert_eq!((done.status, done.stdout.as_str()), (1, ""));
    assert!(done.stderr.starts_with("matchlock: /etc/passwd is not a bootable kernel"), "{done:?}");
    assert_eq!(home.done(["rm", "--stopped"]).status, 0);
    home.assert_nothing_left();
}

/// A host that stops an emulated processor while its kernel measures the timer leaves the kernel without one. This
/// test stops it until that has happened: each guest comes up all the same, and one of them at its second start.
fn a_guest_without_a_timer_is_started_once_more() {
    for _ in 0..30 {
        let home = Home::new();
        let mut child = spawn(&mut home.run(["--rm=false", "--", "sh", "-c", "sleep 0.1; echo slept"]));
        stop_again_and_again(&home);
        read_until(&mut child, "slept\n");
        assert_eq!(home.done(["kill", "--all"]).status, 0);
        end(child);
        let id = blackbox::names(&home.vms()).pop().unwrap();
        let log = std::fs::read_to_string(home.vms().join(id).join("logs/vm.log")).unwrap();
        assert!(!log.contains("PCI: Fatal"), "an alarm without a cause: {log}");
        if log.contains("found no timer, and is started once more") {
            return;
        }
    }
    panic!("no guest was ever without a timer");
}

/// Stops the first QEMU of a home for longer than Linux measures, lets it run for a moment, and repeats this for as
/// long as a kernel may take to its timer.
fn stop_again_and_again(home: &Home) {
    let qemu = loop {
        let processes = home.processes();
        if let Some(qemu) = processes.iter().find(|process| process.contains(" qemu-system-")) {
            break qemu.split_whitespace().next().unwrap().parse().unwrap();
        }
    };
    let qemu = rustix::process::Pid::from_raw(qemu).unwrap();
    for _ in 0..STOPS {
        if rustix::process::kill_process(qemu, Signal::STOP).is_err() {
            return;
        }
        std::thread::sleep(STOPPED);
        let _ = rustix::process::kill_process(qemu, Signal::CONT);
        std::thread::sleep(RUNNING);
    }
}
