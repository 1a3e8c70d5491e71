//! ^C and its relatives at every moment: the documented status, no output, nothing left.

use std::time::{Duration, Instant};

use blackbox::{Home, done, end, read_until, signal, spawn};
use rustix::process::Signal;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("interrupted::at_any_moment_of_the_start", at_any_moment_of_the_start),
    ("interrupted::while_the_command_runs", while_the_command_runs),
    ("interrupted::by_a_time_limit", by_a_time_limit),
    ("interrupted::by_kill", by_kill),
    ("interrupted::killed_at_any_moment_of_the_start", killed_at_any_moment_of_the_start),
];

/// Milliseconds after the start; a signal that comes before it is caught ends the program like any other.
const MOMENTS_MS: [u64; 12] = [0, 1, 2, 4, 8, 15, 30, 60, 120, 250, 500, 1000];

fn at_any_moment_of_the_start() {
    let home = Home::new();
    for (index, moment) in MOMENTS_MS.into_iter().enumerate() {
        let (sent, status) = if index % 2 == 0 { (Signal::INT, 130) } else { (Signal::TERM, 143) };
        let child = spawn(&mut home.run(["--", "sleep", "1000"]));
        std::thread::sleep(Duration::from_millis(moment));
        signal(&child, sent);
        let sent_at = Instant::now();
        let done = end(child);
        assert_eq!(
            (done.status, done.stdout.as_str(), done.stderr.as_str()),
            (status, "", ""),
            "{moment} ms"
        );
        assert!(sent_at.elapsed() < Duration::from_secs(15), "{moment} ms: took {:?}", sent_at.elapsed());
        home.assert_nothing_left();
    }
}

fn while_the_command_runs() {
    let home = Home::new();
    let mut child = spawn(&mut home.run(["--", "sh", "-c", "trap '' INT TERM; echo up; sleep 1000"]));
    read_until(&mut child, "up\n");
    signal(&child, Signal::INT);
    let done = end(child);
    assert_eq!((done.status, done.stderr.as_str()), (130, ""), "{done:?}");
    home.assert_nothing_left();
}

fn by_a_time_limit() {
    let home = Home::new();
    let done = done(&mut home.run(["--timeout", "1", "--", "sleep", "1000"]));
    assert_eq!((done.status, done.stderr.as_str()), (1, "matchlock: timed out after 1 s\n"), "{done:?}");
    home.assert_nothing_left();
}

fn by_kill() {
    let home = Home::new();
    let mut child = spawn(&mut home.run(["--", "sh", "-c", "echo up; sleep 1000"]));
    read_until(&mut child, "up\n");
    let id = blackbox::names(&home.vms()).pop().unwrap();
    assert_eq!(home.done(["kill", &id]).stdout, format!("Killed {id}\n"));
    // `kill` returns when nothing is left, so the owner is about to end.
    assert_eq!(end(child).status, 143);
    home.assert_nothing_left();
}

/// SIGKILL cannot be caught: the next command cleans up.
fn killed_at_any_moment_of_the_start() {
    let home = Home::new();
    for moment in MOMENTS_MS {
        let child = spawn(&mut home.run(["--", "sleep", "1000"]));
        std::thread::sleep(Duration::from_millis(moment));
        signal(&child, Signal::KILL);
        assert_eq!(end(child).status, 137);
        home.assert_no_process();
        assert_eq!(home.done(["rm", "--stopped"]).status, 0, "{moment} ms");
        home.assert_nothing_left();
    }
}
