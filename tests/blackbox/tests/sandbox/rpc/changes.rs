//! Changes by the host in a shared folder, as programs of the guest hear of them that watch (inotify).

use std::fs;
use std::path::Path;

use blackbox::Home;
use blackbox::rpc::Server;
use serde_json::json;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[("rpc::changes::the_host_is_heard", the_host_is_heard)];

/// Changes of the watch with this id, up to one.
fn heard(server: &mut Server, id: u64, last: &str) -> Vec<String> {
    let mut seen = Vec::new();
    while seen.last().is_none_or(|seen| seen != last) {
        let change = server.notification("watch.change", id);
        seen.push(format!("{} {}", change["kind"].as_str().unwrap(), change["path"].as_str().unwrap()));
    }
    seen
}

/// Changes that begin like this.
fn of<'a>(seen: &'a [String], beginning: &str) -> Vec<&'a str> {
    seen.iter().map(String::as_str).filter(|seen| seen.starts_with(beginning)).collect()
}

/// The guest's agent watches as any program may, by inotify.
fn the_host_is_heard() {
    let home = Home::new();
    let shared = tempfile::tempdir().unwrap();
    let host = shared.path();
    fs::create_dir_all(host.join("src/deep")).unwrap();
    fs::create_dir(host.join("inner")).unwrap();
    fs::write(host.join("src/old"), "old").unwrap();
    fs::write(host.join("src/kept"), "kept").unwrap();
    let inner = tempfile::tempdir().unwrap();
    let folder = |path: &Path, more: serde_json::Value| {
        let mut folder = json!({"type": "host_fs", "host_path": path});
        folder.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        folder
    };
    let mut server = Server::start(&home);
    let mounts = json!({
        "/work": folder(host, json!({"mask": [".env*"]})),
        "/work/inner": folder(inner.path(), json!({"readonly": true})),
    });
    server.create(json!({"network": {"no_network": true}, "privileged": true,
                         "vfs": {"workspace": "/work", "mounts": mounts}}));
    let id = server.send("watch", json!({"path": "/work", "recursive": true}));
    server.notification("watch.ready", id);

    // Files are made, written, saved as editors do, moved and removed, in a folder and in one within it that is read-only.
    fs::write(host.join(".env.local"), "key").unwrap();
    fs::write(host.join("src/new"), "new").unwrap();
    fs::write(host.join("src/deep/.save"), "saved").unwrap();
    fs::rename(host.join("src/deep/.save"), host.join("src/kept")).unwrap();
    fs::rename(host.join("src/new"), host.join("src/deep/moved")).unwrap();
    fs::remove_file(host.join("src/old")).unwrap();
    fs::write(inner.path().join("inside"), "inside").unwrap();
    let first = heard(&mut server, id, "created /work/inner/inside");
    assert!(of(&first, "created /work/src/kept").len() <= 1, "{first:?}");
    for expected in ["created /work/src/deep/moved", "removed /work/src/old"] {
        assert_eq!(of(&first, expected).len(), 1, "{first:?}");
    }
    assert!(!of(&first, "created /work/src/kept").is_empty(), "{first:?}");
    assert!(!first.iter().any(|seen| seen.contains(".env")), "{first:?}");
    let (status, out, _) = server.exec("cd /work && cat src/kept src/deep/moved inner/inside && ls src");
    assert_eq!((status, out.as_str()), (0, "savednewinsidedeep\nkept\n"));

    // A file that is appended to, at once and not after a second, and what the guest does itself, once.
    fs::write(host.join("log"), "1\n").unwrap();
    heard(&mut server, id, "created /work/log");
    server.exec("cat /work/log && echo x > /work/own && mv /work/own /work/owned");
    fs::write(host.join("log"), "1\n2\n").unwrap();
    fs::write(host.join("end"), "").unwrap();
    let second = heard(&mut server, id, "created /work/end");
    assert_eq!(server.exec("cat /work/log").1, "1\n2\n");
    for expected in ["created /work/own", "removed /work/own", "created /work/owned"] {
        assert_eq!(of(&second, expected).iter().filter(|seen| **seen == expected).count(), 1, "{second:?}");
    }
    assert!(second.contains(&"modified /work/log".to_owned()), "{second:?}");
    assert_eq!(fs::read_to_string(host.join("owned")).unwrap(), "x\n");
    assert_eq!(fs::read_to_string(host.join("log")).unwrap(), "1\n2\n");

    // New directories are watched as soon as the guest has looked into them.
    fs::create_dir(host.join("more")).unwrap();
    heard(&mut server, id, "created /work/more");
    server.exec("ls -l /work/more");
    fs::write(host.join("more/file"), "").unwrap();
    heard(&mut server, id, "created /work/more/file");
    assert_eq!(server.call("close", json!({"timeout_seconds": 20})), Ok(json!({})));
    assert_eq!(server.end().0.code(), Some(0));
    home.assert_no_process();
}
