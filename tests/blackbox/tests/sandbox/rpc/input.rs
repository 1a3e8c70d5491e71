//! Input before there is a sandbox, including malformed lines of all kinds.

use std::os::unix::process::ExitStatusExt;

use blackbox::rpc::{Server, encode};
use blackbox::{Home, signal};
use rustix::process::Signal;
use serde_json::{Value, json};

use super::{INVALID_PARAMS, INVALID_REQUEST, METHOD_NOT_FOUND, PARSE, VM};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("rpc::input::lines_that_are_no_requests", lines_that_are_no_requests),
    ("rpc::input::ids_of_every_kind", ids_of_every_kind),
    ("rpc::input::a_line_that_is_too_long", a_line_that_is_too_long),
    ("rpc::input::without_a_sandbox", without_a_sandbox),
    ("rpc::input::sandboxes_that_cannot_be", sandboxes_that_cannot_be),
    ("rpc::input::the_client_goes", the_client_goes),
];

fn lines_that_are_no_requests() {
    let home = Home::new();
    let mut server = Server::start(&home);
    let lines: &[&[u8]] = &[
        b"nonsense",
        b"{",
        b"}",
        b"[]",
        b"null",
        b"7",
        b"\"text\"",
        b"\xff\xfe\x00",
        b"{\"method\":\"hello\",\"id\":1",
        b"[{\"jsonrpc\":\"2.0\",\"method\":\"hello\",\"id\":1}]",
        b"{\"method\":7,\"id\":1}",
        b"{\"method\":\"\xff\",\"id\":1}",
        b"{\"jsonrpc\":\"2.0\",\"method\":\"hello\",\"id\":1,\"id\":2}",
    ];
    for line in lines {
        server.raw(line);
        server.raw(b"\n\n \r\n");
        let answer = server.line().unwrap();
        let expected = json!({"jsonrpc": "2.0", "error": {"code": PARSE, "message": "Parse error"}});
        assert_eq!(answer, expected, "{}", String::from_utf8_lossy(line));
    }
    let nested = format!("{{\"method\":\"hello\",\"id\":1,\"params\":{}", "[".repeat(1 << 20));
    server.raw(format!("{nested}\n").as_bytes());
    assert_eq!(server.line().unwrap()["error"]["code"], PARSE);
    server.call("hello", Value::Null).unwrap();
    // The last line needs no end.
    server.raw(b"{\"method\":\"hello\",\"id\":99}");
    let (status, rest) = server.end();
    assert_eq!((status.code(), rest.len()), (Some(0), 1), "{rest:?}");
    home.assert_nothing_left();
}

fn ids_of_every_kind() {
    let home = Home::new();
    let mut server = Server::start(&home);
    let mut ask = |id: &str| {
        server.raw(format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"hello\"}}\n").as_bytes());
        server.line().unwrap()
    };
    for id in ["0", "1", "18446744073709551615"] {
        let answer = ask(id);
        assert_eq!((answer["id"].to_string().as_str(), &answer["result"]["protocol"]), (id, &json!(1)));
    }
    for id in ["-1", "1.5", "\"1\"", "true", "[]", "{}", "18446744073709551616", "1e3", "01"] {
        let answer = ask(id);
        assert_eq!((answer.get("id"), &answer["error"]["code"]), (None, &json!(PARSE)), "{id}");
    }
    // An answer to a request without an id has none.
    let answer = ask("null");
    assert_eq!((answer.get("id"), &answer["result"]["protocol"]), (None, &json!(1)));
    server
        .raw(b"{\"method\":\"exec_pipe\",\"params\":{\"command\":\"true\"}}\n{\"method\":\"log_stream\"}\n");
    for _ in 0..2 {
        assert_eq!(server.line().unwrap()["error"]["code"], INVALID_REQUEST);
    }
    assert_eq!(server.end().0.code(), Some(0));
}

fn a_line_that_is_too_long() {
    let home = Home::new();
    let mut server = Server::start(&home);
    let head =
        "{\"jsonrpc\":\"2.0\",\"method\":\"write_file\",\"id\":7,\"params\":{\"path\":\"/a\",\"content\":\"";
    server.raw(head.as_bytes());
    let block = vec![b'A'; 1 << 20];
    for _ in 0..300 {
        server.raw(&block);
    }
    server.raw(b"\"}}\n");
    let answer = server.line().unwrap();
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(7), &json!(INVALID_REQUEST)));
    // A line of exactly the limit is read.
    let fits = encode(&vec![7; (64 << 20) / 4 * 3 - 3 * 256]);
    let (code, message) = server.call("write_file", json!({"path": "/a", "content": fits})).unwrap_err();
    assert_eq!((code, message.as_str()), (VM, "VM not created"));
    server.call("hello", Value::Null).unwrap();
    let status = std::fs::read_to_string(format!("/proc/{}/status", server.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 300 << 10, "{peak} kB");
    assert_eq!(server.end().0.code(), Some(0));
}

fn without_a_sandbox() {
    let home = Home::new();
    let mut server = Server::start(&home);
    for method in ["", "Exec", "exec_pipe.stdout", "event", "nonsense"] {
        assert_eq!(server.call(method, json!({})), Err((METHOD_NOT_FOUND, "Method not found".to_owned())));
    }
    let methods = [
        "exec",
        "exec_stream",
        "exec_pipe",
        "exec_tty",
        "write_file",
        "read_file",
        "list_files",
        "port_forward",
        "allow_list_add",
        "allow_list_delete",
        "log",
        "log_stream",
        "process_list",
        "process_wait",
        "process_signal",
        "stat",
        "mkdir",
        "remove",
        "rename",
        "watch",
    ];
    for method in methods {
        // Wrong parameters too, as there is no sandbox to check them for.
        for params in [json!({"command": 7, "path": 7}), json!([]), Value::Null] {
            assert_eq!(server.call(method, params), Err((VM, "VM not created".to_owned())), "{method}");
        }
    }
    // Input for programs is never answered, valid or not.
    for method in
        ["exec_pipe.stdin", "exec_pipe.stdin_eof", "exec_tty.stdin", "exec_tty.stdin_eof", "exec_tty.resize"]
    {
        for params in [json!({"id": 1, "data": "!!!"}), json!({"id": "x"}), json!([]), Value::Null] {
            server.send(method, params);
        }
    }
    assert_eq!(server.call("cancel", Value::Null), Ok(json!({"cancelled": false})));
    assert_eq!(server.call("cancel", json!({"id": 1})), Ok(json!({"cancelled": false})));
    assert_eq!(server.call("cancel", json!({"id": "1"})).unwrap_err().0, INVALID_PARAMS);
    assert_eq!(server.call("close", json!({"timeout_seconds": "soon"})).unwrap_err().0, INVALID_PARAMS);
    for params in [Value::Null, json!({}), json!({"timeout_seconds": 1e300}), json!({"timeout_seconds": -1})]
    {
        assert_eq!(server.call("close", params), Ok(json!({})));
    }
    assert_eq!(server.end().0.code(), Some(0));
}

fn sandboxes_that_cannot_be() {
    let home = Home::new();
    let mut server = Server::start(&home);
    for (params, code, message) in [
        (Value::Null, INVALID_PARAMS, "image is required (e.g., alpine:latest)"),
        (json!({"image": 7}), INVALID_PARAMS, "invalid params: image: expected a string"),
        (json!([]), INVALID_PARAMS, "invalid params: expected an object"),
        (json!({"image": "a", "id": "vm-1"}), INVALID_PARAMS, "id is internal-only and cannot be set"),
        (
            json!({"image": "a", "network": {"no_network": true, "allowed_hosts": ["x"]}}),
            INVALID_PARAMS,
            "invalid configuration: network.no_network cannot be combined with network.allowed_hosts",
        ),
        (
            json!({"image": "a", "network": {"allowed_hosts": ["x"], "secrets": {"A": {"value": "b"}}}}),
            VM,
            "network.secrets: not built yet",
        ),
        (
            json!({"image": "a", "network": {"denied_hosts": ["http://x"]}}),
            INVALID_PARAMS,
            "invalid configuration: network.denied_hosts: invalid host pattern \"http://x\": is a URL; write the host alone, or HOST/PATH",
        ),
        (
            json!({"image": "a", "vfs": {"interception": {}}}),
            INVALID_PARAMS,
            "invalid configuration: vfs.interception requires at least one vfs.mounts entry",
        ),
        (
            json!({"image": "a", "vfs": {"mounts": {"/a": {}}, "interception": {"rules": [
                {"action": "block", "ops": ["wriet"]},
            ]}}}),
            INVALID_PARAMS,
            "invalid configuration: vfs.interception.rules[0]: unknown operation \"wriet\"",
        ),
        (
            json!({"image": "a", "vfs": {"mounts": {"/a": {"type": "tmpfs"}}}}),
            INVALID_PARAMS,
            "invalid configuration: /a: unknown mount type \"tmpfs\"; there are memory, host_fs, overlay",
        ),
        (
            json!({"image": "a", "vfs": {"mounts": {"/a": {"type": "host_fs", "host_path": "/no/such"}}}}),
            VM,
            "invalid volume mount \"/no/such:/a:host_fs\": No such file or directory (os error 2)",
        ),
    ] {
        assert_eq!(server.call("create", params), Err((code, message.to_owned())));
    }
    for params in [
        json!({"image": "127.0.0.1:1/no-such-image:at-all"}),
        json!({"image": "UPPER CASE"}),
        json!({"image": blackbox::IMAGE, "resources": {"cpus": 1e9}}),
        json!({"image": blackbox::IMAGE, "resources": {"memory_mb": 1}}),
        json!({"image": blackbox::IMAGE, "kernel": {"ref": "file:///no/such/kernel"}}),
    ] {
        let (code, message) = server.call("create", params).unwrap_err();
        assert!(code == VM && !message.is_empty(), "{message}");
    }
    assert_eq!(server.call("exec", json!({"command": "true"})), Err((VM, "VM not created".to_owned())));
    assert_eq!(server.end().0.code(), Some(0));
    home.assert_nothing_left();
}

fn the_client_goes() {
    let home = Home::new();
    assert_eq!(Server::start(&home).end().0.code(), Some(0));
    // The client stops reading, and sends something.
    let mut server = Server::unread(&home);
    server.stop_reading();
    server.send("hello", Value::Null);
    assert_eq!(server.child.wait().unwrap().code(), Some(0));
    for (number, expected) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut server = Server::start(&home);
        server.call("hello", Value::Null).unwrap();
        signal(&server.child, number);
        let status = server.child.wait().unwrap();
        assert_eq!((status.code(), status.signal()), (Some(expected), None));
    }
    home.assert_nothing_left();
}
