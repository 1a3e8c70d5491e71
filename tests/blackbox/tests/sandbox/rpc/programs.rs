//! Programs in a sandbox: all the ways to run them, many at once, cancelled, and with clients that misbehave.

use std::time::{Duration, Instant};

use blackbox::Home;
use blackbox::rpc::{Server, decode, encode};
use serde_json::{Value, json};

use super::{CANCELLED, EXEC, INVALID_PARAMS, INVALID_REQUEST, VM};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("rpc::programs::every_way_to_run_one", every_way_to_run_one),
    ("rpc::programs::a_client_that_does_not_read", a_client_that_does_not_read),
];

type Part = (&'static str, fn(&mut Server));

const PARTS: &[Part] = &[
    ("buffered", buffered),
    ("streamed", streamed),
    ("piped", piped),
    ("terminal", terminal),
    ("not_started", not_started),
    ("cancelled", cancelled),
    ("input_ahead_of_its_program", input_ahead_of_its_program),
    ("input_nobody_takes", input_nobody_takes),
    ("many_at_once", many_at_once),
    ("left_running", left_running),
    ("long_output", long_output),
    ("logs", logs),
];

/// One sandbox serves all of these tests.
fn every_way_to_run_one() {
    let home = Home::new();
    let mut server = Server::start(&home);
    server.create(json!({
        "env": {"FROM": "create", "BOTH": "create"},
        "network": {"block_private_ips": true, "hostname": "box", "add_hosts": [{"host": "db", "ip": "10.1.2.3"}]},
        "vfs": {"workspace": "/work/space"},
        "image_config": {"env": {"IMAGE": "overridden"}},
    }));
    for (name, part) in PARTS {
        let start = Instant::now();
        part(&mut server);
        eprintln!("  {name}: {:.1} s", start.elapsed().as_secs_f32());
    }
    assert_eq!(server.call("close", json!({"timeout_seconds": 20})), Ok(json!({})));
    assert_eq!(server.end().0.code(), Some(0));
    home.assert_no_process();
}

fn buffered(server: &mut Server) {
    assert_eq!(server.exec("echo out; echo err >&2; exit 7"), (7, "out\n".into(), "err\n".into()));
    assert_eq!(
        server.exec("pwd; hostname; echo $FROM $BOTH $IMAGE").1,
        "/work/space\nbox\ncreate create overridden\n"
    );
    assert_eq!(
        server.exec("grep db /etc/hosts").1.split_whitespace().collect::<Vec<_>>(),
        ["10.1.2.3", "db"]
    );
    assert_eq!(server.exec("kill -9 $$").0, 137);
    assert_eq!(server.exec("cat").1, "", "standard input is empty");
    assert_eq!(server.exec(""), (0, String::new(), String::new()));
    let params = json!({
        "argv": ["sh", "-c", "echo \"$0 $BOTH $(id -u) $(pwd)\"", "a  b"], "env": {"BOTH": "exec"}, "user": "1000:1000",
        "working_dir": "/tmp",
    });
    assert_eq!(decode(&server.call("exec", params).unwrap()["stdout"]), b"a  b exec 1000 /tmp\n");
    let bytes =
        decode(&server.call("exec", json!({"command": "printf '\\377\\000\\303'"})).unwrap()["stdout"]);
    assert_eq!(bytes, [0xff, 0, 0xc3]);
}

fn streamed(server: &mut Server) {
    let command =
        "echo one; echo two >&2; printf '\\303'; sleep 0.3; printf '\\274\\360\\237'; sleep 0.3; exit 3";
    let id = server.send("exec_stream", json!({"command": command}));
    let result = server.answer(id).unwrap();
    assert_eq!((&result["exit_code"], result["duration_ms"].is_u64()), (&json!(3), true));
    let pieces = server.data("exec_stream.stdout", id);
    // No character is split, and bytes that never become one come at the end.
    assert_eq!(pieces.concat(), [b"one\n", "ü".as_bytes(), b"\xf0\x9f"].concat());
    assert!(pieces.contains(&"ü".as_bytes().to_vec()), "{pieces:?}");
    assert_eq!(server.data("exec_stream.stderr", id).concat(), b"two\n");
}

fn piped(server: &mut Server) {
    let id = server.send("exec_pipe", json!({"command": "cat; echo end >&2; exit 5", "user": "0"}));
    server.notification("exec_pipe.ready", id);
    server.send("exec_pipe.stdin", json!({"id": id, "data": encode(b"hello ")}));
    server.send("exec_pipe.stdin", json!({"id": id, "data": "no base64!"}));
    // Another client sends them like this, without an id.
    let data = encode("wörld".as_bytes());
    server.raw(
        format!("{{\"method\":\"exec_pipe.stdin\",\"params\":{{\"id\":{id},\"data\":\"{data}\"}}}}\n")
            .as_bytes(),
    );
    server.raw(format!("{{\"method\":\"exec_pipe.stdin_eof\",\"params\":{{\"id\":{id}}}}}\n").as_bytes());
    server.send("exec_pipe.stdin", json!({"id": id, "data": encode(b"too late")}));
    assert_eq!(server.answer(id).unwrap()["exit_code"], 5);
    assert_eq!(server.data("exec_pipe.stdout", id).concat(), "hello wörld".as_bytes());
    assert_eq!(server.data("exec_pipe.stderr", id).concat(), b"end\n");
    server.send("exec_pipe.stdin", json!({"id": id, "data": encode(b"it has ended")}));
    assert_eq!(server.exec("echo alive").1, "alive\n");
}

fn terminal(server: &mut Server) {
    let command = "stty size; read line; echo got $line; while sleep 0.2; do stty size; done";
    let id = server.send("exec_tty", json!({"command": command, "rows": 30, "cols": 100}));
    server.notification("exec_tty.ready", id);
    let mut seen = String::new();
    let mut until = |server: &mut Server, text: &str| {
        while !seen.contains(text) {
            let data = server.notification("exec_tty.stdout", id);
            seen.push_str(&String::from_utf8(decode(&data["data"])).unwrap());
        }
    };
    until(server, "30 100\r\n");
    server.send("exec_tty.stdin", json!({"id": id, "data": encode(b"hey\n")}));
    until(server, "got hey\r\n");
    for size in
        [json!({"rows": -1, "cols": 1}), json!({"rows": 1, "cols": 65_536}), json!({"rows": 40, "cols": 90})]
    {
        let mut params = size;
        params["id"] = json!(id);
        server.send("exec_tty.resize", params);
    }
    until(server, "40 90\r\n");
    // The end of the client's input is not the end of the terminal's.
    server.send("exec_tty.stdin_eof", json!({"id": id}));
    server.send("exec_tty.resize", json!({"id": id, "rows": 41, "cols": 91}));
    until(server, "41 91\r\n");
    assert_eq!(server.call("cancel", json!({"id": id})), Ok(json!({"cancelled": true})));
    assert_eq!(server.answer(id).unwrap_err().0, CANCELLED);
    for params in [json!({"command": "true", "rows": -1}), json!({"command": "true", "cols": 65_536})] {
        assert_eq!(server.call("exec_tty", params).unwrap_err().0, INVALID_PARAMS);
    }
    let id = server.send("exec_tty", json!({"command": "stty size; exit 4"}));
    assert_eq!(server.answer(id).unwrap()["exit_code"], 4);
    assert_eq!(server.data("exec_tty.stdout", id).concat(), b"24 80\r\n");
}

fn not_started(server: &mut Server) {
    let nowhere = json!({"command": "true", "working_dir": "/etc/passwd"});
    for method in ["exec", "exec_stream"] {
        assert_eq!(server.call(method, nowhere.clone()).unwrap_err().0, EXEC);
        assert_eq!(server.call(method, json!({"argv": ["no-such-program"]})).unwrap_err().0, EXEC);
    }
    let id = server.send("exec_pipe", nowhere.clone());
    assert_eq!(server.answer(id).unwrap()["exit_code"], 1);
    assert!(!server.data("exec_pipe.stderr", id).concat().is_empty());
    assert_eq!(server.call("exec_tty", nowhere).unwrap()["exit_code"], 1);
    for method in ["exec", "exec_stream", "exec_pipe", "exec_tty"] {
        let unknown = json!({"command": "true", "user": "nobody-of-that-name"});
        assert_eq!(server.call(method, unknown).unwrap()["exit_code"], 127, "{method}");
        for params in [
            json!({}),
            json!({"command": 7}),
            json!({"argv": []}),
            json!({"command": "a", "argv": ["a"]}),
            json!({"command": "true", "env": {"A=B": "c"}}),
            json!([]),
            Value::Null,
        ] {
            assert_eq!(server.call(method, params).unwrap_err().0, INVALID_PARAMS, "{method}");
        }
        for params in [json!({"argv": ["echo", "a\0b"]}), json!({"command": "x".repeat(2 << 20)})] {
            let failed = server.call(method, params);
            assert!(
                failed.as_ref().map_or_else(|(code, _)| *code == EXEC, |r| r["exit_code"] != 0),
                "{failed:?}"
            );
        }
    }
    assert_eq!(
        server.call("exec_pipe", json!({"command": "a", "detached": true})).unwrap_err().0,
        INVALID_PARAMS
    );
}

fn cancelled(server: &mut Server) {
    for method in ["exec", "exec_stream", "exec_pipe", "exec_tty"] {
        let command = format!("trap '' TERM; while true; do echo >> /tmp/{method}; sleep 0.1; done");
        let id = server.send(method, json!({"command": command}));
        assert_eq!(server.exec(&format!("until [ -s /tmp/{method} ]; do sleep 0.1; done")).0, 0);
        let twice = format!("{{\"method\":\"exec\",\"id\":{id},\"params\":{{\"command\":\"true\"}}}}\n");
        server.raw(twice.as_bytes());
        assert_eq!(server.answer(id).unwrap_err().0, INVALID_REQUEST, "its id is in use");
        let start = Instant::now();
        assert_eq!(server.call("cancel", json!({"id": id})), Ok(json!({"cancelled": true})));
        assert_eq!(server.answer(id), Err((CANCELLED, "cancelled".to_owned())));
        assert!(start.elapsed() < Duration::from_secs(1));
        assert_eq!(server.call("cancel", json!({"id": id})), Ok(json!({"cancelled": false})));
    }
    // Cancelled programs are gone, although they ignore signals.
    for method in ["exec", "exec_stream", "exec_pipe", "exec_tty"] {
        assert_silent(server, &format!("/tmp/{method}"));
    }
}

/// Checks that no process writes to this file any more.
fn assert_silent(server: &mut Server, path: &str) {
    let command = format!(
        "for i in 1 2 3 4 5 6 7 8; do a=$(wc -c < {path}); sleep 1; [ $a = $(wc -c < {path}) ] && exit 0; done; exit 1"
    );
    assert_eq!(server.exec(&command).0, 0, "{path} still grows");
}

/// All input arrives, even if it comes faster than a program takes it.
fn input_ahead_of_its_program(server: &mut Server) {
    let id = server.send("exec_pipe", json!({"command": "sleep 1; wc -c"}));
    server.notification("exec_pipe.ready", id);
    let piece = encode(&vec![7; 3 << 20]);
    for _ in 0..24 {
        server.send("exec_pipe.stdin", json!({"id": id, "data": piece}));
    }
    server.send("exec_pipe.stdin_eof", json!({"id": id}));
    let counted = server.notification("exec_pipe.stdout", id);
    assert_eq!(decode(&counted["data"]), format!("{}\n", 72 << 20).as_bytes());
    assert_eq!(server.answer(id).unwrap()["exit_code"], 0);
}

/// A program that does not read must not keep others waiting for ever, however much input it is sent.
fn input_nobody_takes(server: &mut Server) {
    let id = server.send("exec_pipe", json!({"command": "sleep 1000"}));
    server.notification("exec_pipe.ready", id);
    let piece = encode(&vec![7; 3 << 20]);
    for number in 0..30 {
        server.send("exec_pipe.stdin", json!({"id": id, "data": piece}));
        if number == 10 {
            assert_eq!(server.exec("echo heard").1, "heard\n");
        }
    }
    let (code, message) = server.answer(id).unwrap_err();
    assert!(code == EXEC && message.contains("took none of its input"), "{message}");
    assert_eq!(server.exec("echo heard").1, "heard\n");
}

fn many_at_once(server: &mut Server) {
    let ids: Vec<u64> =
        (0..100).map(|n| server.send("exec", json!({"command": format!("echo {n}")}))).collect();
    for (number, id) in ids.into_iter().enumerate() {
        let result = server.answer(id).unwrap();
        assert_eq!(String::from_utf8(decode(&result["stdout"])).unwrap(), format!("{number}\n"));
    }
}

fn left_running(server: &mut Server) {
    let started = server
        .call("exec", json!({"command": "echo out; echo err >&2; sleep 1000", "detached": true}))
        .unwrap();
    let process = json!({"process_id": started["process_id"]});
    let of_it = |list: Value| {
        let list = list["processes"].as_array().unwrap().clone();
        list.into_iter().find(|entry| entry["process_id"] == started["process_id"]).unwrap()
    };
    let entry = of_it(server.call("process_list", Value::Null).unwrap());
    assert_eq!((&entry["running"], entry.get("exit_code")), (&json!(true), None));
    let waiting = server.send("process_wait", process.clone());
    assert_eq!(server.exec("echo meanwhile").1, "meanwhile\n");
    server.call("process_signal", process.clone()).unwrap();
    assert_eq!(server.answer(waiting).unwrap(), json!({"exit_code": 143}));
    let entry = of_it(server.call("process_list", Value::Null).unwrap());
    assert_eq!((&entry["running"], &entry["exit_code"]), (&json!(false), &json!(143)));
    let output = decode(&server.call("process_output", process.clone()).unwrap()["output"]);
    assert_eq!(String::from_utf8(output).unwrap(), "out\nerr\n");
    assert_eq!(server.call("process_signal", process.clone()).unwrap_err().0, EXEC, "it has ended");
    server.call("process_kill", process).unwrap();
    for (method, params, code) in [
        ("process_wait", json!({"process_id": 999}), EXEC),
        ("process_wait", json!({}), INVALID_PARAMS),
        ("process_signal", json!({"process_id": 1, "signal": 0}), INVALID_PARAMS),
        ("process_signal", json!({"process_id": 1, "signal": 4_294_967_305_i64}), INVALID_PARAMS),
    ] {
        assert_eq!(server.call(method, params).unwrap_err().0, code);
    }
    // The program's descendants go on after its end, until they are killed.
    let daemon = json!({"command": "(while sleep 0.1; do echo >> /tmp/daemon; done) &", "detached": true});
    let process = json!({"process_id": server.call("exec", daemon).unwrap()["process_id"]});
    assert_eq!(server.call("process_wait", process.clone()), Ok(json!({"exit_code": 0})));
    assert_eq!(server.exec("rm -f /tmp/daemon; until [ -s /tmp/daemon ]; do sleep 0.1; done").0, 0);
    server.call("process_kill", process).unwrap();
    assert_silent(server, "/tmp/daemon");
}

fn long_output(server: &mut Server) {
    let id = server.send("exec_stream", json!({"command": "head -c 50000000 /dev/zero; echo end"}));
    assert_eq!(server.answer(id).unwrap()["exit_code"], 0);
    let output = server.data("exec_stream.stdout", id).concat();
    assert_eq!((output.len(), output.ends_with(b"\0end\n")), (50_000_004, true));
    let result = server.call("exec", json!({"command": "head -c 10000000 /dev/zero | tr '\\0' x"})).unwrap();
    assert_eq!(decode(&result["stdout"]), vec![b'x'; 10_000_000]);
}

fn logs(server: &mut Server) {
    let id = server.send("log_stream", Value::Null);
    let mut seen = Vec::new();
    server.call("exec", json!({"command": "echo into the log", "detached": true})).unwrap();
    while !String::from_utf8_lossy(&seen).contains("into the log\n") {
        seen.extend(decode(&server.notification("log_stream.data", id)["data"]));
    }
    assert_eq!(server.call("cancel", json!({"id": id})), Ok(json!({"cancelled": true})));
    assert_eq!(server.answer(id).unwrap_err().0, CANCELLED);
    let log = decode(&server.call("log", json!({})).unwrap()["content"]);
    assert!(String::from_utf8_lossy(&log).contains("into the log\n"));
}

/// A client that does not read holds up its own programs, and nothing else.
fn a_client_that_does_not_read() {
    let home = Home::new();
    let mut server = Server::unread(&home);
    let created = server.send_create(json!({}));
    let endless = server.send("exec_stream", json!({"command": "cat /dev/zero"}));
    // Nothing is read until all of this has been sent. Another command waits for the sandbox to be ready.
    let id = loop {
        let list: Value = serde_json::from_str(&home.done(["list", "--json"]).stdout).unwrap();
        if let Some(id) = list[0]["id"].as_str() {
            break id.to_owned();
        }
    };
    assert_eq!(home.done(["exec", &id, "true"]).status, 0);
    std::thread::sleep(Duration::from_secs(1));
    let cancel = server.send("cancel", json!({"id": endless}));
    let exec = server.send("exec", json!({"command": "echo heard"}));
    for _ in 0..10_000 {
        server.send("cancel", json!({"id": 1}));
    }
    server.read();
    server.answer(created).unwrap();
    assert_eq!(server.answer(endless).unwrap_err().0, CANCELLED);
    assert_eq!(server.answer(cancel), Ok(json!({"cancelled": true})));
    assert_eq!(decode(&server.answer(exec).unwrap()["stdout"]), b"heard\n");
    // The client does not read, and then ends.
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 64 << 10, "{peak} kB");
    assert_eq!(server.call("close", json!({"timeout_seconds": 20})), Ok(json!({})));
    assert_eq!(server.call("exec", json!({"command": "true"})).unwrap_err().0, VM);
    assert_eq!(server.end().0.code(), Some(0));
    home.assert_no_process();
}
