//! The end of a command: its signals, and its time to end by itself.

use std::process::Child;
use std::time::{Duration, Instant};

use blackbox::rpc::{Server, decode};
use blackbox::{Done, Home, end, names, read_until, signal, spawn};
use rustix::process::Signal;
use serde_json::{Value, json};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("ends::a_handler_runs", a_handler_runs),
    ("ends::a_handler_of_a_program_below_runs", a_handler_of_a_program_below_runs),
    ("ends::who_cannot_hear_is_not_waited_for", who_cannot_hear_is_not_waited_for),
    ("ends::who_does_not_end_is_killed", who_does_not_end_is_killed),
    ("ends::at_once", at_once),
    ("ends::a_disk_has_what_a_handler_wrote", a_disk_has_what_a_handler_wrote),
    ("ends::an_entrypoint_hears_of_close", an_entrypoint_hears_of_close),
];

/// Much less than the grace of tests that must not wait for it.
const NO_WAIT: Duration = Duration::from_secs(20);

const HANDLER: &str = "trap 'echo bye; exit 9' TERM; echo up; while :; do sleep 0.1; done";

/// A sandbox whose command has printed that it is up.
fn up(home: &Home, args: &[&str], script: &str) -> Child {
    let mut child = spawn(home.run(args).args(["--", "sh", "-c", script]));
    read_until(&mut child, "up\n");
    child
}

fn took(end: impl FnOnce() -> Done) -> (Done, Duration) {
    let start = Instant::now();
    (end(), start.elapsed())
}

fn a_handler_runs() {
    let home = Home::new();
    for (sent, status) in [(Some(Signal::INT), 130), (Some(Signal::TERM), 143), (None, 143)] {
        // A prompt handler costs no wait.
        for grace in [&[][..], &["--graceful-shutdown", "60s"]] {
            let child = up(&home, grace, HANDLER);
            let (done, took) = took(|| {
                match sent {
                    Some(sent) => signal(&child, sent),
                    None => {
                        let id = names(&home.vms()).pop().unwrap();
                        assert_eq!(home.done(["kill", &id]).status, 0);
                    }
                }
                end(child)
            });
            // The shell also prints the end of its `sleep`.
            assert_eq!((done.status, done.stdout.as_str()), (status, "bye\n"), "{done:?}");
            assert!(took < NO_WAIT, "{took:?}");
        }
    }
    let child = up(&home, &["--init"], HANDLER);
    signal(&child, Signal::TERM);
    assert_eq!(end(child).stdout, "bye\n");
    home.assert_nothing_left();
}

/// A shell that is PID 1 gets no signal, but the program that it runs does.
fn a_handler_of_a_program_below_runs() {
    let home = Home::new();
    let script = format!("sh -c \"{HANDLER}\"; echo after $?");
    let child = up(&home, &["--graceful-shutdown", "60s"], &script);
    let (done, took) = took(|| {
        signal(&child, Signal::TERM);
        end(child)
    });
    assert_eq!((done.status, done.stdout.as_str()), (143, "bye\nafter 9\n"), "{done:?}");
    assert!(took < NO_WAIT, "{took:?}");
    home.assert_nothing_left();
}

fn who_cannot_hear_is_not_waited_for() {
    let home = Home::new();
    for script in ["echo up; exec sleep 1000", "trap '' TERM; echo up; exec sleep 1000"] {
        let child = up(&home, &["--graceful-shutdown", "60s"], script);
        let (done, took) = took(|| {
            signal(&child, Signal::TERM);
            end(child)
        });
        assert_eq!((done.status, done.stdout.as_str()), (143, ""), "{done:?}");
        assert!(took < NO_WAIT, "{script}: {took:?}");
    }
    home.assert_nothing_left();
}

fn who_does_not_end_is_killed() {
    let home = Home::new();
    let child = up(
        &home,
        &["--graceful-shutdown", "1500ms"],
        "trap 'echo no' TERM; echo up; while :; do sleep 0.1; done",
    );
    let (done, took) = took(|| {
        signal(&child, Signal::TERM);
        end(child)
    });
    assert_eq!((done.status, done.stdout.as_str()), (143, "no\n"), "{done:?}");
    assert!(took > Duration::from_millis(1500) && took < NO_WAIT, "{took:?}");
    home.assert_nothing_left();
}

fn at_once() {
    let home = Home::new();
    let child = up(&home, &["--graceful-shutdown", "0"], HANDLER);
    signal(&child, Signal::TERM);
    let done = end(child);
    assert_eq!((done.status, done.stdout.as_str(), done.stderr.as_str()), (143, "", ""));
    home.assert_nothing_left();
}

fn a_disk_has_what_a_handler_wrote() {
    let home = Home::with_own_volumes();
    assert_eq!(home.done(["volume", "create", "data", "--size", "16"]).status, 0);
    let script = "trap 'sleep 0.3; echo saved > /data/file; exit' TERM; echo up; while :; do sleep 0.1; done";
    let child = up(&home, &["--disk", "@data:/data"], script);
    signal(&child, Signal::INT);
    assert_eq!(end(child).status, 130);
    let read = blackbox::done(&mut home.run(["--disk", "@data:/data:ro", "--", "cat", "/data/file"]));
    assert_eq!((read.status, read.stdout.as_str()), (0, "saved\n"), "{read:?}");
    home.assert_nothing_left();
}

fn an_entrypoint_hears_of_close() {
    let home = Home::new();
    let mut server = Server::start(&home);
    let launch =
        json!({"launch_entrypoint": true, "image_config": {"entrypoint": ["sh", "-c"], "cmd": [HANDLER]}});
    let id = server.send_create(launch);
    server.answer(id).unwrap();
    let log = |server: &mut Server| {
        String::from_utf8(decode(&server.call("log", Value::Null).unwrap()["content"])).unwrap()
    };
    while !log(&mut server).contains("up\n") {
        std::thread::sleep(Duration::from_millis(50));
    }
    let start = Instant::now();
    assert_eq!(server.call("close", json!({"timeout_seconds": 60})), Ok(json!({})));
    assert!(start.elapsed() < NO_WAIT, "{:?}", start.elapsed());
    assert!(log(&mut server).contains("bye\n"), "{}", log(&mut server));
    assert_eq!(server.end().0.code(), Some(0));
    home.assert_no_process();
}
