//! The life of a sandbox: entrypoints, a second sandbox, time limits, and clients and machines that vanish.

use std::time::{Duration, Instant};

use blackbox::rpc::{Answer, Server, decode};
use blackbox::{Home, names, signal};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

use super::{CANCELLED, EXEC, FILE, VM};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("rpc::life::entrypoints", entrypoints),
    ("rpc::life::two_sandboxes", two_sandboxes),
    ("rpc::life::a_time_limit", a_time_limit),
    ("rpc::life::ended_by_others", ended_by_others),
    ("rpc::life::closed_while_it_is_made", closed_while_it_is_made),
    ("rpc::life::the_client_vanishes", the_client_vanishes),
];

fn status(home: &Home, id: &str) -> Option<String> {
    let list: Value = serde_json::from_str(&home.done(["list", "--json"]).stdout).unwrap();
    let vm = list.as_array().unwrap().iter().find(|vm| vm["id"] == id)?.clone();
    Some(vm["status"].as_str().unwrap().to_owned())
}

fn entrypoints() {
    let home = Home::new();
    let mut server = Server::start(&home);
    let launch = |entrypoint: Value| json!({"launch_entrypoint": true, "image_config": {"entrypoint": entrypoint, "cmd": []}});
    for (entrypoint, code) in
        [(json!(["sh", "-c", "exit 3"]), 3), (json!(["no-such-program"]), 127), (json!(["/etc"]), 126)]
    {
        let id = server.send_create(launch(entrypoint));
        let (found, message) = server.answer(id).unwrap_err();
        assert!(
            found == VM && message.starts_with(&format!("start image entrypoint: exit code {code}")),
            "{message}"
        );
        assert_eq!(server.call("exec", json!({"command": "true"})), Err((VM, "VM not created".to_owned())));
    }
    assert_eq!(home.done(["list", "--json"]).stdout.trim(), "[]", "nothing is kept of what failed");
    let id = server.send_create(json!({
        "launch_entrypoint": true, "image_config": {"entrypoint": ["sh", "-c"], "cmd": ["echo entry; sleep 1000"]},
    }));
    server.answer(id).unwrap();
    let list = server.call("process_list", Value::Null).unwrap();
    assert_eq!(
        (&list["processes"][0]["process_id"], &list["processes"][0]["running"]),
        (&json!(1), &json!(true))
    );
    while !String::from_utf8_lossy(&decode(&server.call("log", Value::Null).unwrap()["content"]))
        .contains("entry\n")
    {
        std::thread::sleep(Duration::from_millis(100));
    }
    assert_eq!(server.call("close", json!({})), Ok(json!({})));
    assert_eq!(server.end().0.code(), Some(0));
}

/// `create`, twice, then `close`, twice, and `create` again.
fn two_sandboxes() {
    let home = Home::new();
    let mut server = Server::start(&home);
    let first = server.create(json!({}));
    assert_eq!(server.exec("touch /root/first").0, 0);
    let log = server.send("log_stream", Value::Null);
    // A `create` that fails changes nothing.
    assert_eq!(
        server.call("create", json!({"image": "127.0.0.1:1/no-such-image:at-all"})).unwrap_err().0,
        VM
    );
    // A `create` that is cancelled changes nothing either.
    let cancelled = server.send_create(json!({}));
    assert_eq!(server.call("cancel", json!({"id": cancelled})), Ok(json!({"cancelled": true})));
    assert_eq!(server.answer(cancelled).unwrap_err().0, CANCELLED);
    assert_eq!(server.exec("ls /root").1, "first\n");
    let second = server.send_create(json!({}));
    // Requests meanwhile wait, and are about the new sandbox.
    let list = server.send("exec", json!({"command": "ls /root"}));
    let never = server.send("exec", json!({"command": "touch /root/never"}));
    assert_eq!(server.call("cancel", json!({"id": never})), Ok(json!({"cancelled": true})));
    assert_eq!(server.answer(never).unwrap_err().0, CANCELLED);
    let second = server.answer(second).unwrap()["id"].as_str().unwrap().to_owned();
    assert_ne!(first, second);
    assert_eq!(decode(&server.answer(list).unwrap()["stdout"]), b"");
    assert_eq!(server.answer(log).unwrap_err().0, CANCELLED);
    wait_for(|| status(&home, &first).as_deref() == Some("stopped"));
    assert_eq!(status(&home, &second).as_deref(), Some("running"));
    let hanging = server.send("exec", json!({"command": "sleep 1000"}));
    let start = Instant::now();
    assert_eq!(server.call("close", Value::Null), Ok(json!({})));
    assert!(start.elapsed() < Duration::from_millis(2500), "{:?}", start.elapsed());
    assert_eq!(server.answer(hanging).unwrap_err().0, CANCELLED);
    assert_eq!(server.call("close", json!({})), Ok(json!({})));
    assert_eq!(status(&home, &second).as_deref(), Some("stopped"));
    let log = decode(&server.call("log", Value::Null).unwrap()["content"]);
    assert!(!log.is_empty());
    assert_eq!(home.done(["rm", &second]).status, 0);
    assert_eq!(server.call("log", Value::Null).unwrap_err().0, FILE);
    assert_eq!(server.call("exec", json!({"command": "true"})), Err((VM, "VM not created".to_owned())));
    server.create(json!({}));
    assert_eq!(server.exec("echo third").1, "third\n");
    // With too little time `close` says so, and the end goes on.
    let (code, message) = server.call("close", json!({"timeout_seconds": 0.000_001})).unwrap_err();
    assert_eq!((code, message.as_str()), (CANCELLED, "close has not ended in 0.000001 s"));
    assert_eq!(server.call("exec", json!({"command": "true"})), Err((VM, "VM not created".to_owned())));
    assert_eq!(server.call("close", json!({})), Ok(json!({})));
    assert_eq!(server.end().0.code(), Some(0));
    home.assert_no_process();
}

fn a_time_limit() {
    let home = Home::new();
    let mut server = Server::start(&home);
    let id = server.create(json!({"resources": {"timeout_seconds": 1, "time_limit_seconds": 2}}));
    let why = "the sandbox reached its time limit of 2 s";
    let exec = server.send("exec", json!({"command": "sleep 1000"}));
    let pipe = server.send("exec_pipe", json!({"command": "trap '' TERM; sleep 1000; sleep 1000"}));
    let watch = server.send("watch", json!({"path": "/"}));
    let log = server.send("log_stream", Value::Null);
    for (id, code) in [(exec, EXEC), (pipe, EXEC), (watch, FILE), (log, CANCELLED)] {
        assert_eq!(server.answer(id), Err((code, why.to_owned())));
    }
    let (code, message) = server.call("exec", json!({"command": "true"})).unwrap_err();
    assert_eq!((code, message), (VM, format!("VM {id} is not running: {why}")));
    wait_for(|| status(&home, &id).as_deref() == Some("stopped"));
    assert_eq!(server.call("close", json!({})), Ok(json!({})));
    assert_eq!(server.end().0.code(), Some(0));
}

fn ended_by_others() {
    let home = Home::new();
    let mut server = Server::start(&home);
    let id = server.create(json!({}));
    // Another process may run a program in the sandbox, and end it.
    assert_eq!(home.done(["exec", &id, "echo", "hi"]).stdout, "hi\n");
    let exec = server.send("exec", json!({"command": "sleep 1000"}));
    assert_eq!(server.exec("true").0, 0);
    assert_eq!(home.done(["kill", &id]).status, 0);
    let (code, message) = server.answer(exec).unwrap_err();
    assert_eq!((code, message.as_str()), (EXEC, "the sandbox was ended by another matchlock command"));
    assert_eq!(server.call("exec", json!({"command": "true"})).unwrap_err().0, VM);

    // The guest ends itself.
    server.create(json!({"privileged": true}));
    let exec = server.send(
        "exec_stream",
        json!({"command": "echo last words; sleep 1; echo c > /proc/sysrq-trigger; sleep 1000"}),
    );
    let (code, message) = server.answer(exec).unwrap_err();
    assert!(code == EXEC && message.contains("guest"), "{message}");
    assert_eq!(server.data("exec_stream.stdout", exec).concat(), b"last words\n");
    let (code, message) = server.call("read_file", json!({"path": "/etc/passwd"})).unwrap_err();
    assert!(code == VM && message.contains("is not running: "), "{message}");

    // The sandbox's machine is killed.
    server.create(json!({}));
    let exec = server.send("exec", json!({"command": "sleep 1000"}));
    assert_eq!(server.exec("true").0, 0);
    let own = server.child.id().to_string();
    let killed: Vec<_> = home.processes().into_iter().filter(|process| !process.starts_with(&own)).collect();
    assert!(!killed.is_empty());
    for process in killed {
        let pid = process.split(' ').next().unwrap().parse().unwrap();
        let _ = kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL);
    }
    assert_eq!(server.answer(exec).unwrap_err().0, EXEC);
    assert_eq!(server.call("exec", json!({"command": "true"})).unwrap_err().0, VM);
    assert_eq!(server.call("close", json!({})), Ok(json!({})));
    assert_eq!(server.end().0.code(), Some(0));
    home.assert_no_process();
}

/// The sandbox may have come any way; on a fast machine it may have been made.
fn closed_while_it_is_made() {
    let home = Home::new();
    let mut aborted = 0;
    for delay_ms in [0, 20, 100, 300, 700, 1200] {
        let mut server = Server::start(&home);
        let create = server.send_create(json!({}));
        let exec = server.send("exec", json!({"command": "sleep 1000"}));
        std::thread::sleep(Duration::from_millis(delay_ms));
        let start = Instant::now();
        let closed = server.call("close", json!({"timeout_seconds": 3}));
        assert!(start.elapsed() < Duration::from_millis(3500), "{:?}", start.elapsed());
        assert_eq!(closed, Ok(json!({})), "after {delay_ms} ms");
        let created = server.answer(create);
        assert_eq!(server.answer(exec).unwrap_err().0, CANCELLED);
        assert_eq!(server.call("exec", json!({"command": "true"})).unwrap_err().0, VM);
        assert_eq!(server.end().0.code(), Some(0));
        aborted += assert_made_or_nothing_left(&home, &created);
    }
    assert!(aborted > 0);
}

/// A `create` that was cut short leaves nothing; one that was not leaves a sandbox that is closed.
fn assert_made_or_nothing_left(home: &Home, created: &Answer) -> usize {
    home.assert_no_process();
    match created {
        Ok(result) => {
            let id = result["id"].as_str().unwrap();
            assert_eq!(status(home, id).as_deref(), Some("stopped"));
            assert_eq!(home.done(["rm", id]).status, 0);
        }
        Err((code, _)) => assert_eq!(*code, CANCELLED),
    }
    home.assert_nothing_left();
    usize::from(created.is_err())
}

fn the_client_vanishes() {
    let home = Home::new();
    // The client's input ends while the sandbox is made.
    for delay_ms in [0, 100, 700] {
        let mut server = Server::start(&home);
        let create = server.send_create(json!({}));
        std::thread::sleep(Duration::from_millis(delay_ms));
        server.hang_up();
        let created = server.answer(create);
        assert_eq!(server.end().0.code(), Some(0));
        assert_made_or_nothing_left(&home, &created);
    }
    let running = |home: &Home| {
        let mut server = Server::start(home);
        let id = server.create(json!({}));
        server.send("exec", json!({"command": "trap '' TERM; sleep 1000; sleep 1000"}));
        server.send("exec_pipe", json!({"command": "cat"}));
        server.send("log_stream", Value::Null);
        assert_eq!(server.exec("true").0, 0);
        (server, id)
    };
    let (server, id) = running(&home);
    let start = Instant::now();
    let (ended, rest) = server.end();
    assert!(ended.code() == Some(0) && start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    assert_eq!(rest.iter().filter(|line| line["error"]["code"] == CANCELLED).count(), 3, "{rest:?}");
    assert_eq!(status(&home, &id).as_deref(), Some("stopped"));
    home.assert_no_process();

    // The client ends without `close`: by a signal, and killed.
    let (mut server, id) = running(&home);
    signal(&server.child, Signal::TERM);
    assert_eq!(server.child.wait().unwrap().code(), Some(143));
    assert_eq!(status(&home, &id).as_deref(), Some("stopped"));
    home.assert_no_process();
    let (mut server, id) = running(&home);
    signal(&server.child, Signal::KILL);
    server.child.wait().unwrap();
    home.assert_no_process();
    assert_eq!(status(&home, &id).as_deref(), Some("crashed"));
    let kept: &[&str] =
        if crate::network::missing().is_none() { &["audit.jsonl", "logs"] } else { &["logs"] };
    assert_eq!(names(&home.vms().join(&id)), kept);
    assert_eq!(home.done(["rm", &id]).status, 0);
}

fn wait_for(mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(10), "it does not come");
        std::thread::sleep(Duration::from_millis(50));
    }
}
