//! A sandbox's log: while it grows, after the end, and when it is long.

use std::io::Read;

use blackbox::{Home, Terminal, end, read_until, signal, spawn};
use rustix::process::Signal;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("log::followed_until_interrupted", followed_until_interrupted),
    ("log::long_ones_are_cut_and_still_followed", long_ones_are_cut_and_still_followed),
];

fn followed_until_interrupted() {
    let home = Home::new();
    let id = home.detached(&[
        "--",
        "sh",
        "-c",
        "printf 'a\\033[31mb\\n'; echo first; until test -e /go; do sleep 0.1; done; echo second",
    ]);
    let mut follower = spawn(&mut home.matchlock(["log", "-f", &id]));
    read_until(&mut follower, "first\n");
    let now = home.done(["log", &id]);
    assert!(now.stdout.contains("first\n") && !now.stdout.contains("second"), "{now:?}");
    assert!(now.stdout.contains("a\x1b[31mb\n"), "a file gets what the guest wrote: {now:?}");
    for (option, shown) in [("--follow", "a^[[31mb"), ("--follow=false", "a^[[31mb"), ("--raw", "a\x1b[31mb")]
    {
        let mut terminal = Terminal::new(24, 80);
        let mut log = terminal.spawn(&mut home.matchlock(["log", option, &id]));
        let seen = terminal.read_until("first");
        assert!(seen.contains(shown), "{option}: {seen:?}");
        signal(&log, Signal::INT);
        log.wait().unwrap();
    }
    assert_eq!(home.done(["exec", &id, "touch", "/go"]).status, 0);
    read_until(&mut follower, "second\n");

    // The end of the sandbox does not end the log.
    assert_eq!(home.done(["kill", &id]).status, 0);
    let after = home.done(["log", &id]);
    assert_eq!((after.status, after.stderr.as_str()), (0, ""));
    assert!(after.stdout.contains("first\nsecond\n"), "{after:?}");
    signal(&follower, Signal::INT);
    let followed = end(follower);
    assert_eq!((followed.status, followed.stderr.as_str()), (0, ""), "{followed:?}");

    // The removal of the sandbox does.
    let mut follower = spawn(&mut home.matchlock(["log", "--follow", &id]));
    read_until(&mut follower, "second\n");
    assert_eq!(home.done(["rm", &id]).status, 0);
    let followed = end(follower);
    assert_eq!((followed.status, followed.stderr.as_str()), (0, ""), "{followed:?}");
    assert_eq!(home.done(["log", &id]).stderr, format!("matchlock: VM {id} not found\n"));
    home.assert_nothing_left();
}

fn long_ones_are_cut_and_still_followed() {
    const LIMIT: u64 = 17 << 20;
    let home = Home::new();
    let script = "until test -e /go; do sleep 0.1; done; yes | head -c 20000000; echo the end; sleep 1000";
    let id = home.detached(&["--", "sh", "-c", script]);
    let mut follower = spawn(&mut home.matchlock(["log", "-f", &id]));
    let mut stdout = follower.stdout.take().unwrap();
    let reader = std::thread::spawn(move || {
        let mut tail = Vec::new();
        let mut chunk = [0; 64 << 10];
        let mut total = 0;
        while !tail.windows(8).any(|window| window == b"the end\n") {
            let length = stdout.read(&mut chunk).unwrap();
            assert_ne!(length, 0, "ended after {total} bytes");
            total += length;
            tail.drain(..tail.len().saturating_sub(8));
            tail.extend_from_slice(&chunk[..length]);
        }
        total
    });
    assert_eq!(home.done(["exec", &id, "touch", "/go"]).status, 0);
    assert!(reader.join().unwrap() >= 20_000_000, "the follower missed something");
    let logs = home.vms().join(&id).join("logs");
    let size = |name: &str| std::fs::metadata(logs.join(name)).unwrap().len();
    assert!(size("vm.log") + size("vm.log.1") < LIMIT, "{} {}", size("vm.log"), size("vm.log.1"));
    assert_eq!(blackbox::names(&logs).len(), 2);
    let log = home.done(["log", &id]).stdout;
    assert!(log.ends_with("the end\n") && log.len() > (8 << 20), "{}", log.len());
    signal(&follower, Signal::INT);
    assert_eq!(end(follower).status, 0);
    assert_eq!(home.done(["kill", &id]).status, 0);
    assert_eq!(home.done(["prune"]).status, 0);
    home.assert_nothing_left();
}
