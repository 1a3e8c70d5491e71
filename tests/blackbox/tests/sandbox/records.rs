//! Records of sandboxes, also of ended and interrupted ones: `get`, `inspect`, `gc`, `prune` and the history.

use std::io::{Read, Write};
use std::process::{Child, Stdio};

use blackbox::{Done, Home, done, end, read_until, signal, spawn};
use rustix::process::Signal;
use serde_json::Value;

use crate::Test;

pub(crate) const TESTS_WITHOUT_GUEST: &[Test] =
    &[("records::known_and_unknown_sandboxes", known_and_unknown_sandboxes)];

pub(crate) const TESTS: &[Test] = &[
    ("records::get_and_inspect", get_and_inspect),
    ("records::prune_and_gc", prune_and_gc),
    ("records::sandboxes_of_rpc_are_like_any_other", sandboxes_of_rpc_are_like_any_other),
    ("records::a_hung_owner_is_ended_by_force", a_hung_owner_is_ended_by_force),
    ("records::killed_in_every_phase", killed_in_every_phase),
];

fn failed(stderr: &str) -> Done {
    Done { status: 1, stdout: String::new(), stderr: stderr.to_owned() }
}

fn json(done: &Done) -> Value {
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    serde_json::from_str(&done.stdout).unwrap()
}

fn phases(home: &Home, id: &str) -> Vec<String> {
    let inspection = json(&home.done(["inspect", id]));
    let history = inspection["history"].as_array().unwrap();
    assert_eq!(Some(&inspection["lifecycle"]), history.last());
    history.iter().map(|version| version["phase"].as_str().unwrap().to_owned()).collect()
}

fn known_and_unknown_sandboxes() {
    let home = Home::new();
    for command in ["get", "inspect", "stat", "kill", "rm", "log", "gc"] {
        let expected = failed("matchlock: VM vm-00000000 not found\n");
        assert_eq!(home.done([command, "vm-00000000"]), expected, "{command}");
    }
    for id in ["vm-00000000", "../../etc"] {
        let expected = failed(&format!("matchlock: VM not found {id}: VM {id} not found\n"));
        assert_eq!(home.done(["exec", id, "true"]), expected);
        assert_eq!(home.done(["port-forward", id, "80"]), expected);
    }
    let nothing = |stdout: &str| Done { status: 0, stdout: stdout.to_owned(), stderr: String::new() };
    assert_eq!(home.done(["prune"]), nothing("Pruned 0 VMs\n"));
    assert_eq!(home.done(["gc"]), nothing("Reconciled 0 VMs\n"));
    assert_eq!(home.done(["list", "--json"]), nothing("[]\n"));
}

fn get_and_inspect() {
    let home = Home::new();
    let id = home.detached(&[
        "-e",
        "API_KEY=s3cr3t",
        "--cpus",
        "0.5",
        "--hostname",
        "box",
        "--add-host",
        "db:10.0.0.1",
    ]);
    let vm = json(&home.done(["get", &id]));
    assert_eq!((vm["id"].as_str(), vm["status"].as_str()), (Some(id.as_str()), Some("running")));
    assert_eq!((&vm["image"], &vm["config"]["image"]), (&blackbox::IMAGE.into(), &blackbox::IMAGE.into()));
    assert_eq!(vm["config"]["resources"]["cpus"], 0.5);
    assert_eq!(vm["config"]["network"]["hostname"], "box");
    assert_eq!(vm["config"]["network"]["add_hosts"][0]["ip"], "10.0.0.1");
    assert_eq!(vm["config"]["env_names"], Value::from(vec!["API_KEY"]));
    assert_eq!(vm["config"]["env"], serde_json::json!({"API_KEY": "***"}));
    assert_eq!(phases(&home, &id), ["creating", "created", "starting", "running"]);
    let listed = json(&home.done(["list", "--json", &id]));
    assert_eq!((listed[0]["id"].as_str(), &listed[0]["created_at"]), (Some(id.as_str()), &vm["created_at"]));
    let inspection = json(&home.done(["stat", &id]));
    assert_eq!(inspection["vm"], vm);
    assert_eq!(inspection["lifecycle"]["backend"], blackbox::machine());
    for (time, length) in [
        (&vm["created_at"], "2026-01-02T03:04:05Z".len()),
        (&inspection["lifecycle"]["updated_at"], "2026-01-02T03:04:05.678Z".len()),
    ] {
        // RFC 3339, as Go's decoder expects.
        let time = time.as_str().unwrap();
        assert!(time.len() == length && &time[10..11] == "T" && time.ends_with('Z'), "{time}");
    }
    assert_eq!(inspection["lifecycle"]["resources"]["state_dir"], home.vms().join(&id).to_str().unwrap());
    assert_eq!(inspection["lifecycle"]["cleanup"], Value::Object(serde_json::Map::default()));

    // No value is in the arguments that other users can read, neither the owner's nor an exec's.
    let script = "echo $API_KEY; read x";
    let mut exec = home.matchlock(["exec", "-i", &id, "--env=API_KEY=an0ther", "--", "sh", "-c", script]);
    let mut exec = spawn(exec.stdin(Stdio::piped()));
    read_until(&mut exec, "an0ther\n");
    let processes = home.processes();
    assert!(processes.len() > 2, "{processes:?}");
    let mut masked = 0;
    for process in processes {
        let pid = process.split(' ').next().unwrap();
        let shown = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        let shown = String::from_utf8_lossy(&shown).replace('\0', " ");
        assert!(!shown.contains("s3cr3t") && !shown.contains("an0ther"), "{process}: {shown}");
        masked += usize::from(shown.contains("API_KEY=***"));
    }
    assert_eq!(masked, 2);
    drop(exec.stdin.take());
    end(exec);

    assert_eq!(home.done(["kill", &id]).status, 0);
    let inspection = json(&home.done(["inspect", &id]));
    assert_eq!((&inspection["vm"]["status"], &inspection["vm"]["pid"]), (&"stopped".into(), &0.into()));
    assert_eq!(
        phases(&home, &id),
        ["creating", "created", "starting", "running", "stopping", "stopped", "cleaning", "cleaned"]
    );
    for step in ["guest", "machine", "files"] {
        assert_eq!(inspection["lifecycle"]["cleanup"][step]["status"], "ok", "{step}: {inspection}");
    }
    // No value is shown or stored anywhere.
    for file in std::fs::read_dir(home.vms().parent().unwrap()).unwrap().flatten() {
        let content = std::fs::read(file.path()).unwrap_or_default();
        assert!(!content.windows(6).any(|window| window == b"s3cr3t"), "{}", file.path().display());
    }
    assert_eq!(home.done(["rm", &id]).stdout, format!("Removed {id}\n"));
    home.assert_nothing_left();
}

fn prune_and_gc() {
    let home = Home::new();
    let [running, stopped, crashed] = [home.detached(&[]), home.detached(&[]), home.detached(&[])];
    let both = home.done(["kill", &stopped, "vm-00000000"]);
    assert_eq!(
        (both.status, both.stdout),
        (1, format!("Killed {stopped}\n")),
        "the other one does not matter"
    );
    kill_owner(&home, &crashed);
    home.assert_processes_of(1);

    let skipped = format!("{running}: skipped (VM is running)\n");
    let one = home.done(["gc", &running]);
    assert_eq!((one.status, one.stdout), (1, format!("{skipped}Reconciled 0 VMs\n")));
    let all = home.done(["gc"]);
    assert_eq!((all.status, all.stderr.as_str()), (0, ""), "{all:?}");
    for line in [
        format!("{running}: skipped (VM is running)"),
        format!("{stopped}: no resources to clean"),
        format!("{crashed}: cleaned control.sock, lock"),
        "Reconciled 2 VMs".to_owned(),
    ] {
        assert!(all.stdout.lines().any(|found| found == line), "{line}: {all:?}");
    }
    assert_eq!(blackbox::names(&home.vms().join(&crashed)), ["logs"]);
    let history = phases(&home, &crashed);
    assert_eq!(history, ["creating", "created", "starting", "running", "cleaning", "cleaned"]);
    let inspection = json(&home.done(["inspect", &crashed]));
    let why = inspection["lifecycle"]["last_error"].as_str().unwrap();
    assert!(why.starts_with("its owner (process ") && why.ends_with(") died"), "{why}");

    let pruned = home.done(["prune"]);
    assert_eq!((pruned.status, pruned.stderr.as_str()), (0, ""));
    let mut lines: Vec<_> = pruned.stdout.lines().collect();
    lines.sort_unstable();
    let mut expected =
        vec![format!("Pruned {stopped}"), format!("Pruned {crashed}"), "Pruned 2 VMs".to_owned()];
    expected.sort_unstable();
    assert_eq!(lines, expected);
    assert_eq!(home.done(["exec", &running, "echo", "hi"]).stdout, "hi\n", "it was left alone");

    let forced = home.done(["gc", "--force-running", &running]);
    assert_eq!((forced.status, forced.stdout.lines().last()), (0, Some("Reconciled 1 VMs")), "{forced:?}");
    home.assert_no_process();
    assert_eq!(home.done(["rm", &running]).status, 0);
    home.assert_nothing_left();
}

fn sandboxes_of_rpc_are_like_any_other() {
    let home = Home::new();
    let shared = tempfile::tempdir().unwrap();
    std::fs::write(shared.path().join("file"), "shared\n").unwrap();
    let mut rpc = spawn(home.matchlock(["rpc", "--machine", &blackbox::machine()]).stdin(Stdio::piped()));
    let kernel = std::env::var("MATCHLOCK_TEST_KERNEL").unwrap_or_default();
    let params = serde_json::json!({
        "image": blackbox::IMAGE,
        "kernel": {"ref": kernel},
        "resources": {"memory_mb": 256, "timeout_seconds": 300, "time_limit_seconds": 600.5},
        "env": {"API_KEY": "s3cr3t"},
        "network": {"no_network": true},
        "vfs": {"workspace": "/work", "mounts": {"/work/here": {"type": "host_fs", "host_path": shared.path(), "readonly": true, "cache": "none"}}},
    });
    let call = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": "create", "params": params});
    writeln!(rpc.stdin.as_mut().unwrap(), "{call}").unwrap();
    let answer: Value = serde_json::from_str(&read_until(&mut rpc, "\n")).unwrap();
    let id = answer["result"]["id"].as_str().unwrap_or_else(|| panic!("{answer}")).to_owned();

    assert!(home.done(["ls", "--running"]).stdout.contains(&id));
    let vm = json(&home.done(["get", &id]));
    let (yes, no) = (Value::from(true), Value::from(false));
    assert_eq!(vm["config"]["resources"]["timeout_seconds"], 300.0);
    assert_eq!(vm["config"]["resources"]["time_limit_seconds"], 600.5);
    let mount =
        serde_json::json!({"type": "host_fs", "host_path": shared.path(), "readonly": true, "cache": "none"});
    let vfs = serde_json::json!({"workspace": "/work", "mounts": {"/work/here": mount}});
    assert_eq!(vm["config"]["vfs"], vfs);
    assert_eq!(json(&home.done(["inspect", &id]))["vm"]["config"]["vfs"], vfs);
    assert_eq!(json(&home.done(["list", "--json", &id]))[0]["vfs"], vfs);
    assert_eq!(home.done(["exec", &id, "--", "sh", "-c", "pwd; cat here/file"]).stdout, "/work\nshared\n");
    assert_eq!((&vm["config"]["launch_entrypoint"], &vm["config"]["network"]["no_network"]), (&no, &yes));
    assert_eq!(vm["config"]["env_names"], Value::from(vec!["API_KEY"]));
    assert_eq!(home.done(["exec", &id, "echo", "hi"]).stdout, "hi\n");
    assert_eq!(home.done(["exec", &id, "--", "sh", "-c", "echo $API_KEY"]).stdout, "s3cr3t\n");
    assert_eq!(phases(&home, &id), ["creating", "created", "starting", "running"]);
    assert_eq!(home.done(["log", &id]).status, 0);

    let killed = home.done(["kill", &id]);
    assert_eq!((killed.status, killed.stdout), (0, format!("Killed {id}\n")), "{}", killed.stderr);
    assert_eq!(json(&home.done(["get", &id]))["status"], "stopped");
    assert_eq!(phases(&home, &id).last().unwrap(), "cleaned");
    drop(rpc.stdin.take());
    end(rpc);
    home.assert_no_process();
    assert_eq!(home.done(["prune"]).stdout, format!("Pruned {id}\nPruned 1 VMs\n"));
    home.assert_nothing_left();
}

/// A stopped process answers nobody; `kill` reports that in bounded time, and force helps.
fn a_hung_owner_is_ended_by_force() {
    let home = Home::new();
    let id = home.detached(&[]);
    let owner = owner(&home, &id);
    rustix::process::kill_process(owner, Signal::STOP).unwrap();
    let start = std::time::Instant::now();
    let killed = home.done(["kill", &id]);
    assert_eq!(killed.status, 1, "{killed:?}");
    assert!(killed.stderr.contains("matchlock gc --force-running"), "{killed:?}");
    assert!(start.elapsed().as_secs() < 60, "{:?}", start.elapsed());
    let forced = home.done(["gc", "--force-running", &id]);
    assert_eq!((forced.status, forced.stdout.lines().last()), (0, Some("Reconciled 1 VMs")), "{forced:?}");
    home.assert_no_process();
    assert_eq!(home.done(["prune"]).stdout.lines().last(), Some("Pruned 1 VMs"));
    home.assert_nothing_left();
}

fn owner(home: &Home, id: &str) -> rustix::process::Pid {
    let pid = json(&home.done(["get", id]))["pid"].as_i64().unwrap();
    rustix::process::Pid::from_raw(i32::try_from(pid).unwrap()).unwrap()
}

fn kill_owner(home: &Home, id: &str) {
    blackbox::kill_and_wait(owner(home, id));
}

/// The owner is killed as soon as it logs that it has come to a phase; the next command cleans up.
fn killed_in_every_phase() {
    for phase in ["creating", "created", "starting", "running", "stopping", "stopped", "cleaning"] {
        let home = Home::new();
        let mut child = spawn(&mut home.run(["--log-level", "debug", "--rm=false", "--", "echo", "up"]));
        match phase {
            // The log does not name this phase, so the line before it is waited for.
            "creating" => wait_for_words(&mut child, "machine "),
            "stopping" | "stopped" | "cleaning" => {
                read_until(&mut child, "up\n");
                signal(&child, Signal::INT);
                wait_for_words(&mut child, &format!(": {phase}\n"));
            }
            phase => wait_for_words(&mut child, &format!(": {phase}\n")),
        }
        signal(&child, Signal::KILL);
        assert_eq!(end(child).status, 137, "{phase}");
        home.assert_no_process();
        let list = json(&home.done(["list", "--json"]));
        for vm in list.as_array().unwrap() {
            let id = vm["id"].as_str().unwrap();
            assert!(["crashed", "stopped"].contains(&vm["status"].as_str().unwrap()), "{phase}: {vm}");
            assert_eq!(blackbox::names(&home.vms().join(id)), ["logs"], "{phase}");
            assert_eq!(phases(&home, id).last().unwrap(), "cleaned", "{phase}");
        }
        assert_eq!(list.as_array().unwrap().len(), blackbox::names(&home.vms()).len(), "{phase}");
        assert_eq!(done(&mut home.matchlock(["prune"])).status, 0, "{phase}");
        home.assert_nothing_left();
    }
}

/// Waits until a command has printed this to its standard error.
fn wait_for_words(child: &mut Child, words: &str) {
    let stderr = child.stderr.as_mut().unwrap();
    let mut seen = String::new();
    let mut byte = [0];
    while !seen.contains(words) {
        assert_eq!(stderr.read(&mut byte).unwrap(), 1, "ended after {seen:?}");
        seen.push(char::from(byte[0]));
    }
}
