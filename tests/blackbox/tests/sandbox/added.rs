//! Mounts that are added to a sandbox that runs, and taken away.

use std::fs;
use std::os::unix::fs::symlink;

use blackbox::rpc::Server;
use blackbox::{Done, Home, end, kill_and_wait, names, read_until, refused};
use rustix::process::Pid;
use serde_json::json;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("added::every_kind_comes_and_goes", every_kind_comes_and_goes),
    ("added::one_in_use_stays_unless_forced", one_in_use_stays_unless_forced),
    ("added::the_end_of_a_process_is_an_error_in_the_guest", the_end_of_a_process),
    ("added::what_cannot_be_added_is_refused", what_cannot_be_added_is_refused),
    ("added::by_rpc_with_rules_and_events", by_rpc_with_rules_and_events),
];

/// A sandbox that runs.
struct Running<'a> {
    home: &'a Home,
    id: String,
}

impl<'a> Running<'a> {
    fn start(home: &'a Home, options: &[&str]) -> Self {
        let id = home.detached(&[options, &["--", "sleep", "600"]].concat());
        Self { home, id }
    }

    fn mount(&self, act: &str, args: &[&str]) -> Done {
        self.home.done([&["mount", act, &self.id], args].concat())
    }

    fn add(&self, volume: &str) {
        let done = self.mount("add", &[volume]);
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{volume}: {done:?}");
        assert!(done.stdout.starts_with("Mounted /"), "{done:?}");
    }

    fn remove(&self, args: &[&str]) {
        let done = self.mount("rm", args);
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{args:?}: {done:?}");
    }

    fn sh(&self, script: &str) -> Done {
        self.home.done(["exec", &self.id, "--", "sh", "-c", script])
    }

    /// Output of a script that succeeds.
    fn says(&self, script: &str) -> String {
        let done = self.sh(script);
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{script}: {done:?}");
        done.stdout
    }

    fn processes(&self) -> Vec<Pid> {
        let processes = self.home.processes();
        let pids = processes.iter().filter_map(|process| process.strip_suffix(" matchlock-share"));
        pids.map(|pid| Pid::from_raw(pid.parse().unwrap()).unwrap()).collect()
    }

    fn end(self) {
        assert_eq!(self.home.done(["kill", &self.id]).status, 0);
        assert_eq!(self.home.done(["rm", &self.id]).status, 0);
        self.home.assert_nothing_left();
    }
}

fn every_kind_comes_and_goes() {
    let home = Home::new();
    let host = tempfile::tempdir().unwrap();
    let at = |name: &str| host.path().join(name);
    let volume = |name: &str, rest: &str| format!("{}:{rest}", at(name).display());
    for name in ["src", "kept", "over", "conf"] {
        fs::create_dir(at(name)).unwrap();
    }
    for (name, text) in
        [("src/hello", "of the host"), ("src/.env", "secret"), ("kept/kept", "kept"), ("over/below", "below")]
    {
        fs::write(at(name), format!("{text}\n")).unwrap();
    }
    fs::write(at("conf/app.conf"), "setting = 1\n").unwrap();
    let sandbox = Running::start(&home, &["--privileged"]);

    sandbox.add(&volume("src", "src:host_fs,uid=7,mask=.env*"));
    sandbox.add(&volume("kept", "/kept:ro"));
    sandbox.add(&volume("over", "/over"));
    sandbox.add(&volume("conf/app.conf", "/etc/app.conf:ro"));
    sandbox.add(":/mem:memory");
    let script = "cd /workspace/src && cat hello && stat -c %u hello && ls -A && echo guest > new &&
seq 200000 > numbers && wc -l < numbers && mv numbers moved && cat /etc/app.conf && cat /kept/kept &&
cd /over && echo changed > below && cat below && echo kept > /mem/x && cat /mem/x && stat -c %a /mem";
    let expected = "of the host\n7\nhello\n200000\nsetting = 1\nkept\nchanged\nkept\n1777\n";
    assert_eq!(sandbox.says(script), expected);
    assert_eq!(fs::read_to_string(at("src/new")).unwrap(), "guest\n");
    assert_eq!(names(&at("src")), [".env", "hello", "moved", "new"]);
    assert_eq!(fs::read_to_string(at("over/below")).unwrap(), "below\n");
    // Also what the guest's root may do in a sandbox with privilege.
    let readonly =
        sandbox.sh("mount -o remount,rw /kept; echo x > /kept/kept; rm /kept/kept; touch /kept/new");
    assert_eq!(readonly.stderr.matches("Read-only file system").count(), 3, "{readonly:?}");
    assert_eq!(names(&at("kept")), ["kept"]);

    let list = sandbox.mount("list", &[]).stdout;
    let lines: Vec<_> = list.lines().map(|line| line.split_whitespace().collect::<Vec<_>>()).collect();
    let kept = at("kept").display().to_string();
    assert_eq!(lines[0], ["PLACE", "TYPE", "HOST", "ACCESS", "ADDED", "STATE"]);
    assert_eq!(lines[2], ["/kept", "host_fs", kept.as_str(), "read-only", "yes", "served"]);
    let list = sandbox.mount("list", &["--json"]).stdout;
    let memory = r#"{"guest_path":"/mem","type":"memory","readonly":false,"added":true}"#;
    assert!(list.starts_with('[') && list.contains(memory), "{list}");
    let record = home.done(["get", &sandbox.id]).stdout.replace(char::is_whitespace, "");
    assert!(record.contains(r#""/mem":{"type":"memory","readonly":false,"added":true}"#), "{record}");
    assert_eq!(sandbox.processes().len(), 5);

    for place in ["/workspace/src", "/kept/", "/over", "/etc/app.conf", "/mem"] {
        sandbox.remove(&[place]);
    }
    let script = "ls -A /workspace/src && ls -A /kept && ls -A /mem; grep -c ' fuse ' /proc/mounts; true";
    assert_eq!(sandbox.says(script), "0\n");
    assert_eq!(sandbox.mount("list", &["--json"]).stdout.trim(), "[]");
    let record = home.done(["get", &sandbox.id]).stdout;
    assert!(!record.contains("/mem"), "{record}");
    assert_eq!(sandbox.processes(), []);
    // A mount that is there at the end goes with the sandbox.
    sandbox.add(&volume("src", "/work:host_fs"));
    sandbox.says("echo last > /work/last");
    sandbox.end();
    assert_eq!(fs::read_to_string(at("src/last")).unwrap(), "last\n");
}

fn one_in_use_stays_unless_forced() {
    let home = Home::new();
    let host = tempfile::tempdir().unwrap();
    fs::create_dir(host.path().join("inner")).unwrap();
    let here = host.path().display().to_string();
    // A sandbox that has a share from the start, too.
    let sandbox = Running::start(&home, &["-v", &format!("{here}:/first:host_fs")]);
    // This program runs when the mount comes.
    let script = "echo up; until [ -d /work/inner ]; do sleep 0.1; done; cd /work; exec 3> open; echo in; \
                  until ! echo x >&3 2>/dev/null; do sleep 0.1; done; echo out; sleep 600";
    let mut exec = home.matchlock(["exec", &sandbox.id, "--", "sh", "-c", script]);
    let mut program = blackbox::spawn(&mut exec);
    read_until(&mut program, "up\n");
    sandbox.add(&format!("{here}:/work:host_fs"));
    read_until(&mut program, "in\n");

    let busy = sandbox.mount("rm", &["/work"]);
    refused(&busy, "what is mounted at /work is in use");
    assert!(busy.stderr.contains("hint: end the programs that use it, or add --force"), "{busy:?}");
    // One within another, in a place that is there.
    sandbox.add(":/work/inner:memory");
    refused(&sandbox.mount("rm", &["/work", "--force"]), "/work/inner is mounted in /work");
    let missing = sandbox.mount("add", &[":/first/missing/place:memory"]);
    refused(&missing, "mount /first/missing/place: /first/missing: no such file or directory");
    sandbox.remove(&["/work/inner"]);
    sandbox.remove(&["/work", "--force"]);
    read_until(&mut program, "out\n");
    assert_eq!(sandbox.says("ls /work"), "");
    let from_start = sandbox.mount("rm", &["/first"]);
    refused(&from_start, "what is mounted at /first is there from the sandbox's start, and stays");
    refused(&sandbox.mount("rm", &["/work"]), "nothing is mounted at /work");
    assert_eq!(names(host.path()), ["inner", "open"]);
    let place = sandbox.mount("list", &["--json"]).stdout;
    assert!(place.contains(r#""guest_path":"/first""#) && !place.contains("/work"), "{place}");
    sandbox.end();
    assert_ne!(end(program).status, 0);
}

fn the_end_of_a_process() {
    let home = Home::new();
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("file"), "file\n").unwrap();
    let sandbox = Running::start(&home, &[]);
    sandbox.add(&format!("{}:/work:host_fs", host.path().display()));
    assert_eq!(sandbox.says("cat /work/file"), "file\n");
    let processes = sandbox.processes();
    assert_eq!(processes.len(), 1);
    kill_and_wait(processes[0]);
    let script = "until ! cat /work/file 2>/dev/null; do sleep 0.1; done; cat /work/file";
    let done = sandbox.sh(script);
    assert!(done.status != 0 && done.stderr.contains("not connected"), "{done:?}");
    // The sandbox lives, and says what happened.
    let gone = "the process of the shared folders ended: signal: 9";
    let list = sandbox.mount("list", &[]).stdout;
    assert!(list.contains(&format!("gone: {gone}")), "{list}");
    let log = home.done(["log", &sandbox.id]).stdout;
    assert!(log.contains(&format!("matchlock: the files at /work are gone: {gone}")), "{log}");
    sandbox.remove(&["/work"]);
    sandbox.add(&format!("{}:/work:ro", host.path().display()));
    assert_eq!(sandbox.says("cat /work/file"), "file\n");
    sandbox.end();
}

fn what_cannot_be_added_is_refused() {
    let home = Home::with_own_volumes();
    let host = tempfile::tempdir().unwrap();
    fs::create_dir(host.path().join("d")).unwrap();
    symlink("/etc", host.path().join("link")).unwrap();
    let (here, own) = (host.path().display().to_string(), home.cache().display().to_string());
    let sandbox = Running::start(&home, &["-v", &format!("{here}:/a/b:host_fs")]);
    for (volume, why) in [
        ("/tmp".to_owned(), "invalid volume mount \"/tmp\": expected HOST:GUEST"),
        ("/tmp:/x:rw".to_owned(), "invalid volume mount \"/tmp:/x:rw\": unknown option \"rw\""),
        ("/no/such:/x:ro".to_owned(), "invalid volume mount \"/no/such:/x:ro\": No such file"),
        (format!("{own}:/x:ro"), "it is matchlock's own"),
        ("/:/x:ro".to_owned(), "the whole host is not shared"),
        (":/proc/x:memory".to_owned(), "/proc is the kernel's own"),
        (":/a/b:memory".to_owned(), "something else is mounted at /a/b"),
        (":/a:memory".to_owned(), "what is mounted at /a/b would be hidden"),
        (":/a/b/link/x:memory".to_owned(), "/a/b/link is a symbolic link"),
        (":/a/b/new:memory".to_owned(), "/a/b/new: no such file or directory"),
    ] {
        let done = sandbox.mount("add", &[&volume]);
        refused(&done, "");
        assert!(done.stderr.contains(why), "{volume}: {done:?} instead of {why}");
    }
    for number in 0..8 {
        sandbox.add(&format!(":/m/{number}:memory"));
    }
    let done = sandbox.mount("add", &[":/m/8:memory"]);
    assert!(done.stderr.contains("at most 8 mounts are added to a sandbox"), "{done:?}");
    assert_eq!(sandbox.says("for m in /m/*; do echo $m > $m/x; cat $m/x; done").lines().count(), 8);
    assert_eq!(names(host.path()), ["d", "link"]);
    refused(&home.done(["mount", "add", "vm-00000000", ":/x:memory"]), "VM not found vm-00000000");
    refused(&home.done(["mount", "list", "vm-00000000"]), "VM not found vm-00000000");
    sandbox.end();
}

/// Rules of the sandbox hold in what is added, whoever adds it.
fn by_rpc_with_rules_and_events() {
    let home = Home::new();
    let host = tempfile::tempdir().unwrap();
    fs::write(host.path().join("file"), "file\n").unwrap();
    let mut server = Server::start(&home);
    let rules = json!([{"action": "block", "ops": ["remove"], "path": "/work/*"}]);
    let vfs = json!({"mounts": {"/first": {}}, "interception": {"rules": rules}});
    server.create(json!({"network": {"no_network": true}, "vfs": vfs}));
    let mount = json!({"type": "host_fs", "host_path": host.path(), "mask": [".env"]});
    let asked = json!({"guest_path": "/work/", "mount": mount});
    assert_eq!(server.call("mount_add", asked.clone()), Ok(json!({})));
    let script =
        "cat /work/file; rm /work/file 2>/dev/null || echo blocked; echo x > /work/.env || echo masked";
    let (status, out, _) = server.exec(script);
    assert_eq!((status, out.as_str()), (0, "file\nblocked\nmasked\n"));
    let taken = server.call("mount_add", asked).unwrap_err();
    assert!(taken.1.contains("something else is mounted at /work"), "{taken:?}");
    let list = server.call("mount_list", json!({})).unwrap();
    let expected = json!([
        {"guest_path": "/first", "type": "memory", "readonly": false, "added": false},
        {"guest_path": "/work", "type": "host_fs", "host_path": host.path(), "readonly": false, "added": true},
    ]);
    assert_eq!(list["mounts"], expected);
    let wrong = json!({"guest_path": "/x", "mount": {"type": "nfs"}});
    assert_eq!(server.call("mount_add", wrong).unwrap_err().0, -32602);
    assert_eq!(server.call("mount_add", json!({})).unwrap_err().0, -32602);
    assert_eq!(server.call("mount_remove", json!({"guest_path": "/none"})).unwrap_err().0, -32000);
    assert_eq!(server.call("mount_remove", json!({"guest_path": "/work"})), Ok(json!({})));
    assert_eq!(server.exec("ls -A /work").1, "");
    assert_eq!(server.call("close", json!({"timeout_seconds": 20})), Ok(json!({})));
    assert_eq!(server.end().0.code(), Some(0));
    home.assert_no_process();
}
