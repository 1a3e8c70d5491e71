//! Files of a sandbox, and forwarded ports.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::time::Duration;

use blackbox::Home;
use blackbox::rpc::{Server, decode, encode};
use serde_json::{Value, json};

use super::{CANCELLED, FILE, INVALID_PARAMS, VM};
use crate::Test;

pub(crate) const TESTS: &[Test] = &[("rpc::files::files_and_ports", files_and_ports)];

/// One sandbox serves all of these tests.
fn files_and_ports() {
    let home = Home::new();
    let mut server = Server::start(&home);
    server.create(json!({"network": {"no_network": true}, "privileged": true}));
    written_and_read(&mut server);
    in_pieces(&mut server);
    directories(&mut server);
    watched(&mut server);
    ports(&mut server);
    assert_eq!(server.end().0.code(), Some(0));
    home.assert_no_process();
}

fn write(server: &mut Server, path: &str, content: &[u8]) {
    assert_eq!(server.call("write_file", json!({"path": path, "content": encode(content)})), Ok(json!({})));
}

fn read(server: &mut Server, path: &str) -> Vec<u8> {
    decode(&server.call("read_file", json!({"path": path})).unwrap()["content"])
}

fn written_and_read(server: &mut Server) {
    let all: Vec<u8> = (0..=255).collect();
    write(server, "/root/new/dir/file", &all);
    assert_eq!(read(server, "/root/new/dir/../dir/./file"), all);
    assert_eq!(read(server, "root/new/dir/file"), all, "relative paths start at /");
    assert_eq!(
        server.exec("stat -c '%a %s' /root/new/dir/file /root/new/dir").1.lines().next(),
        Some("644 256")
    );
    let script = json!({"path": "/root/run", "content": encode(b"#!/bin/sh\necho ran\n"), "mode": 0o755});
    server.call("write_file", script).unwrap();
    assert_eq!(server.exec("/root/run").1, "ran\n");
    write(server, "/root/new/dir/file", b"");
    assert_eq!(read(server, "/root/new/dir/file"), b"");
    for (method, params, code) in [
        ("write_file", json!({"path": "/a", "content": "no base64!"}), INVALID_PARAMS),
        ("write_file", json!({"path": "/a", "content": "aGk"}), INVALID_PARAMS),
        ("write_file", json!({"path": "/a", "mode": -1}), INVALID_PARAMS),
        ("write_file", json!({"path": "/a", "offset": 1, "append": true}), INVALID_PARAMS),
        ("write_file", json!({"content": ""}), INVALID_PARAMS),
        ("write_file", json!({"path": "/root", "content": ""}), FILE),
        ("write_file", json!({"path": "/root/a\0b", "content": ""}), FILE),
        ("write_file", json!({"path": "", "content": ""}), FILE),
        ("write_file", json!({"path": "/root/run/below", "content": ""}), FILE),
        ("write_file", json!({"path": format!("/{}", "x/".repeat(5000)), "content": ""}), FILE),
        ("read_file", json!({}), INVALID_PARAMS),
        ("read_file", json!({"path": ["/"]}), INVALID_PARAMS),
        ("read_file", json!({"path": "/a", "length": (16 << 20) + 1}), INVALID_PARAMS),
        ("read_file", json!({"path": "/no/such"}), FILE),
        ("read_file", json!({"path": "/../../../no/such"}), FILE),
        ("read_file", json!({"path": "/root/\0"}), FILE),
        ("list_files", json!({"path": "/root/run"}), FILE),
    ] {
        let (found, message) = server.call(method, params.clone()).unwrap_err();
        assert_eq!(found, code, "{params}: {message}");
    }
    for path in ["/root", "/dev/zero", "/dev/tty"] {
        let (code, message) = server.call("read_file", json!({"path": path})).unwrap_err();
        assert!(code == FILE && message.starts_with("read_file only supports regular files"), "{message}");
        let (code, message) = server.call("write_file", json!({"path": path})).unwrap_err();
        let why = format!("write_file only supports regular files: {path}");
        assert_eq!((code, message), (FILE, why));
    }
    assert_eq!(server.exec("truncate -s 16777217 /root/large && truncate -s 16777216 /root/full").0, 0);
    let (code, message) = server.call("read_file", json!({"path": "/root/large"})).unwrap_err();
    assert!(code == FILE && message.starts_with("read_file exceeds 16777216 bytes"), "{message}");
    assert_eq!(read(server, "/root/full").len(), 16 << 20);
}

fn in_pieces(server: &mut Server) {
    let path = "/root/pieces";
    for (offset, content) in [(0, "hello"), (10, "world"), (4, "O")] {
        let params = json!({"path": path, "content": encode(content.as_bytes()), "offset": offset});
        server.call("write_file", params).unwrap();
    }
    server.call("write_file", json!({"path": path, "content": encode(b"!"), "append": true})).unwrap();
    assert_eq!(read(server, path), b"hellO\0\0\0\0\0world!");
    for (offset, length, expected) in
        [(0, 5, "hellO"), (10, 100, "world!"), (16, 1, ""), (1_u64 << 40, 1, ""), (0, 0, "")]
    {
        let params = json!({"path": path, "offset": offset, "length": length});
        let result = server.call("read_file", params).unwrap();
        assert_eq!(decode(&result["content"]), expected.as_bytes(), "{offset} {length}");
    }
    let params = json!({"path": "/root/large", "offset": 16_777_210});
    assert_eq!(decode(&server.call("read_file", params).unwrap()["content"]), [0; 7]);
    // Far more than a line of the original program could hold.
    let content: Vec<u8> = (0..40_000_000u32).map(|n| n.to_le_bytes()[1]).collect();
    write(server, "/root/long", &content);
    assert_eq!(server.exec("wc -c < /root/long").1.trim(), "40000000");
    let params = json!({"path": "/root/long", "offset": 20_000_000, "length": 1000});
    let part = decode(&server.call("read_file", params).unwrap()["content"]);
    assert_eq!(part, content[20_000_000..20_001_000]);
}

fn directories(server: &mut Server) {
    let commands = "mkdir /root/list && cd /root/list && ln -s /no/where link && mkfifo fifo && mkdir -m 1777 sub && \
                    echo hi > file && chmod 4711 file && touch -d @0 \"$(printf 'bad\\377name')\" && chown 5:6 fifo";
    assert_eq!(server.exec(commands), (0, String::new(), String::new()));
    let list = server.call("list_files", json!({"path": "/root/list"})).unwrap();
    let files = list["files"].as_array().unwrap();
    let shown: Vec<_> = files
        .iter()
        .map(|f| (f["name"].as_str().unwrap(), f["mode"].as_u64().unwrap(), f["is_dir"] == true))
        .collect();
    assert_eq!(
        shown,
        [
            ("bad\u{fffd}name", 0o644, false),
            ("fifo", 0x0200_0000 | 0o644, false),
            ("file", 0x0080_0000 | 0o711, false),
            ("link", 0x0800_0000 | 0o777, false),
            ("sub", 0x8010_0000 | 0o777, true),
        ]
    );
    assert_eq!((&files[0]["mod_time"], &files[2]["size"]), (&json!("1970-01-01T00:00:00Z"), &json!(3)));
    assert_eq!(
        (&files[1]["uid"], &files[1]["gid"], &files[3]["target"]),
        (&json!(5), &json!(6), &json!("/no/where"))
    );
    assert_eq!(server.call("list_files", json!({"path": "/root/list/sub"})), Ok(json!({"files": []})));

    let link = json!({"path": "/root/list/link", "follow": false});
    assert_eq!(server.call("stat", link).unwrap()["target"], "/no/where");
    assert_eq!(server.call("stat", json!({"path": "/root/list/link"})).unwrap_err().0, FILE);
    assert_eq!(server.call("stat", json!({"path": "/"})).unwrap()["is_dir"], true);
    assert_eq!(
        server.call("mkdir", json!({"path": "/root/a/b", "parents": true, "mode": 0o700})),
        Ok(json!({}))
    );
    assert_eq!(server.call("mkdir", json!({"path": "/root/a/b"})).unwrap_err().0, FILE);
    assert_eq!(server.call("rename", json!({"from": "/root/a", "to": "/root/c"})), Ok(json!({})));
    assert_eq!(server.call("rename", json!({"from": "/root/a"})).unwrap_err().0, INVALID_PARAMS);
    assert_eq!(server.call("remove", json!({"path": "/root/c"})).unwrap_err().0, FILE);
    assert_eq!(server.call("remove", json!({"path": "/root/c", "recursive": true})), Ok(json!({})));
    assert_eq!(server.call("remove", json!({"path": "/root/c"})).unwrap_err().0, FILE);
}

fn watched(server: &mut Server) {
    let id = server.send("watch", json!({"path": "/root/list", "recursive": true}));
    server.notification("watch.ready", id);
    server.exec("cd /root/list && echo x > sub/new && mv sub/new moved && rm moved");
    let mut seen = Vec::new();
    while seen.last() != Some(&("removed".to_owned(), "/root/list/moved".to_owned())) {
        let change = server.notification("watch.change", id);
        seen.push((change["kind"].as_str().unwrap().to_owned(), change["path"].as_str().unwrap().to_owned()));
    }
    for expected in [
        ("created", "/root/list/sub/new"),
        ("removed", "/root/list/sub/new"),
        ("created", "/root/list/moved"),
    ] {
        assert!(seen.contains(&(expected.0.to_owned(), expected.1.to_owned())), "{seen:?}");
    }
    assert_eq!(server.call("cancel", json!({"id": id})), Ok(json!({"cancelled": true})));
    assert_eq!(server.answer(id).unwrap_err().0, CANCELLED);
    assert_eq!(server.call("watch", json!({"path": "/no/such"})).unwrap_err().0, FILE);
}

fn ports(server: &mut Server) {
    // Each connection is answered with its own data, once its end has come.
    let command = "while true; do nc -l -p 80 -e cat; done";
    server.call("exec", json!({"command": command, "detached": true})).unwrap();
    let forward = |local: i64| json!({"forwards": [{"local_port": local, "remote_port": 80}]});
    let bound = server.call("port_forward", forward(0)).unwrap();
    let binding = &bound["bindings"][0];
    assert_eq!((&binding["address"], &binding["remote_port"]), (&json!("127.0.0.1"), &json!(80)));
    let port = u16::try_from(binding["local_port"].as_u64().unwrap()).unwrap();
    assert_eq!(echo(port), b"through");
    for (params, code, start) in [
        (json!({}), INVALID_PARAMS, "forwards is required"),
        (Value::Null, INVALID_PARAMS, "forwards is required"),
        (json!({"forwards": [{"local_port": 1, "remote_port": 0}]}), INVALID_PARAMS, "remote_port 0"),
        (
            json!({"forwards": [{"local_port": 1, "remote_port": 65_536}]}),
            INVALID_PARAMS,
            "remote_port 65536",
        ),
        (forward(-1), VM, "bind local port-forward listener"),
        (forward(65_536), VM, "bind local port-forward listener"),
    ] {
        let (found, message) = server.call("port_forward", params).unwrap_err();
        assert!(found == code && message.starts_with(start), "{message}");
    }
    // The last call has closed the old listener although it failed.
    assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let (code, message) =
        server.call("port_forward", forward(taken.local_addr().unwrap().port().into())).unwrap_err();
    assert!(code == VM && message.starts_with("bind local port-forward listener"), "{message}");
    let both = json!({"forwards": [{"local_port": 0, "remote_port": 80}, {"local_port": 0, "remote_port": 81}],
                      "addresses": ["127.0.0.1", "127.0.0.2"]});
    let bound = server.call("port_forward", both).unwrap();
    let bindings = bound["bindings"].as_array().unwrap();
    assert_eq!(bindings.len(), 4);
    assert_eq!(server.call("close", json!({"timeout_seconds": 20})), Ok(json!({})));
    for binding in bindings {
        let address = binding["address"].as_str().unwrap();
        let port = u16::try_from(binding["local_port"].as_u64().unwrap()).unwrap();
        assert!(TcpStream::connect((address, port)).is_err(), "{binding}");
    }
}

fn echo(port: u16) -> Vec<u8> {
    // The listener in the guest may still be starting; a connection without a listener is closed.
    for _ in 0..100 {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        let _ = stream.write_all(b"through").and_then(|()| stream.shutdown(Shutdown::Write));
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        if !answer.is_empty() {
            return answer;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
    panic!("nobody answers in the guest");
}
