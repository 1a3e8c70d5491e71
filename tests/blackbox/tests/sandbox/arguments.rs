//! Commands that need no guest: arguments, records of nothing, reports.

use std::os::unix::fs::PermissionsExt;

use blackbox::{Done, Home, done, end, spawn};

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("arguments::bad_ones_are_one_line", bad_ones_are_one_line),
    ("arguments::options_of_later_parts_are_refused", options_of_later_parts_are_refused),
    ("arguments::impossible_resources_are_refused", impossible_resources_are_refused),
    ("arguments::help_and_version", help_and_version),
    ("arguments::empty_lists", empty_lists),
    ("arguments::unknown_sandboxes", unknown_sandboxes),
    ("arguments::diagnose_agrees_with_auto", diagnose_agrees_with_auto),
    ("arguments::failures_at_once_do_not_meet", failures_at_once_do_not_meet),
    ("arguments::a_long_home_is_no_obstacle", a_long_home_is_no_obstacle),
    ("arguments::services_have_hardly_an_environment", services_have_hardly_an_environment),
    (
        "arguments::programs_of_the_working_directory_are_not_run",
        programs_of_the_working_directory_are_not_run,
    ),
    ("arguments::limits_on_files_are_told", limits_on_files_are_told),
];

/// Checks a refusal: one line that says what, at most one with advice, status 1, and no state.
#[track_caller]
fn refused(home: &Home, args: &[&str], message: &str) {
    let Done { status, stdout, stderr } = home.done(args);
    let lines: Vec<_> = stderr.lines().collect();
    assert_eq!((status, stdout.as_str()), (1, ""), "{args:?}: {stderr}");
    assert_eq!(lines.first().copied(), Some(format!("matchlock: {message}").as_str()), "{args:?}");
    assert!(lines.len() == 1 || lines.len() == 2 && lines[1].starts_with("hint: "), "{args:?}: {stderr}");
}

fn bad_ones_are_one_line() {
    let home = Home::new();
    refused(&home, &["frob"], "unknown command \"frob\"");
    refused(&home, &["run", "--image", "x", "--frob", "true"], "unknown flag: --frob");
    refused(&home, &["run", "true"], "missing --image <REF>");
    refused(&home, &["run", "--image", "x", "-it", "sh"], "-it requires a TTY");
    refused(
        &home,
        &["run", "--image", "x", "-d", "-i", "sh"],
        "--detach cannot be combined with -t/--tty or -i/--interactive",
    );
    refused(
        &home,
        &["run", "--image", "x", "-e", "NO_SUCH_NAME", "true"],
        "invalid environment variable \"NO_SUCH_NAME\": not set here",
    );
    refused(
        &home,
        &["run", "--image", "x", "--add-host", "db", "true"],
        "invalid add-host mapping \"db\": expected host:ip",
    );
    refused(
        &home,
        &["run", "--image", "no-such-file", "--env-file", "/no/such/file", "true"],
        "environment file /no/such/file: No such file or directory (os error 2)",
    );
    for (options, message) in [
        (&["--no-network", "--allow-host", "a"][..], "--allow-host needs a network, and none is wanted"),
        (&["--network", "none", "--deny-host", "a"], "--deny-host needs a network, and none is wanted"),
        (&["--no-network", "--network", "tap"], "--network needs a network, and none is wanted"),
        (
            &["--allow-host", "http://a"],
            "invalid host pattern \"http://a\": is a URL; write the host alone, or HOST/PATH",
        ),
        (
            &["--deny-host", "10.0.*"],
            "invalid host pattern \"10.0.*\": a network is written as ADDRESS/LENGTH, such as 10.0.0.0/8",
        ),
        (&["--mtu", "0"], "--mtu: must be in 68..65521"),
        (&["--mtu", "-1"], "--mtu: must be in 68..65521"),
        (&["--dns-servers", "1.1.1.1,dns.example"], "--dns-servers: \"dns.example\" is no IP address"),
    ] {
        let args = [&["run", "--image", "x"], options, &["true"]].concat();
        refused(&home, &args, message);
    }
    refused(
        &home,
        &["run", "--image", "x", "--network", "slirp", "true"],
        "invalid value 'slirp' for '--network <WAY>': \"slirp\" is none of auto, tap, nat, none",
    );
    home.assert_nothing_left();
}

fn options_of_later_parts_are_refused() {
    let home = Home::new();
    for (option, part) in [("--secret=A@b", "secrets"), ("--network-intercept", "interception")] {
        let name = option.split('=').next().unwrap();
        refused(
            &home,
            &["run", "--image", "x", option, "true"],
            &format!("{name} is not built yet ({part})"),
        );
    }
    refused(&home, &["run", "--image", "x", "--network", "nat", "true"], "--network nat is not built yet");
    for (option, value) in [("--build-cpus", "2"), ("--build-memory", "2"), ("--mtu", "1400")] {
        let args = ["build", "-t", "a:1", option, value, "."];
        refused(&home, &args, &format!("{option} is not built yet (builds in a sandbox)"));
    }
    let done = home.done(["setup", "linux", "--user", "me"]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""));
    assert!(done.stdout.starts_with("Nothing has to be set up."), "{done:?}");
    home.assert_nothing_left();
}

fn impossible_resources_are_refused() {
    let home = Home::new();
    for (option, value, message) in [
        ("--cpus", "0", "0 is no number of CPUs"),
        ("--cpus", "-1", "-1 is no number of CPUs"),
        ("--cpus", "NaN", "NaN is no number of CPUs"),
        ("--cpus", "100000", "100000 CPUs asked for"),
        ("--memory", "1", "1 MB of memory is less than"),
        ("--memory", "999999999", "999999999 MB of memory asked for, but the host has"),
        ("--disk-size", "1", "a disk of 1 MB is outside"),
        ("--hostname", "a_b", "invalid hostname \"a_b\""),
    ] {
        let done = home.done(["run", "--image", "x", option, value, "true"]);
        assert_eq!(done.status, 1, "{done:?}");
        assert!(done.stderr.starts_with(&format!("matchlock: {message}")), "{done:?}");
    }
    home.assert_nothing_left();
}

fn help_and_version() {
    let home = Home::new();
    let groups = [&[][..], &["image"], &["volume"], &["kernel"]];
    for args in
        [&["--help"][..], &["run", "--help"], &["exec", "-h"], &["image", "--help"]].into_iter().chain(groups)
    {
        let done = home.done(args);
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{args:?}");
        assert!(done.stdout.contains("Usage: matchlock"), "{args:?}: {}", done.stdout);
    }
    let long = home.done(["version"]).stdout;
    let short = home.done(["--version"]).stdout;
    assert_eq!(home.done(["-v"]).stdout, short);
    let version = short.strip_prefix("matchlock version ").unwrap().trim();
    assert!(long.starts_with(&format!("matchlock {version} (commit: ")), "{long}");
}

fn empty_lists() {
    let home = Home::with_own_images();
    assert_eq!(home.done(["list"]).stdout, "ID   STATUS   IMAGE   CREATED   PID\n");
    assert_eq!(home.done(["list", "--json"]).stdout, "[]\n");
    assert_eq!(
        home.done(["kill", "--all"]),
        Done { status: 0, stdout: String::new(), stderr: String::new() }
    );
    assert_eq!(
        home.done(["rm", "--stopped"]),
        Done { status: 0, stdout: String::new(), stderr: String::new() }
    );
    home.assert_nothing_left();
}

fn unknown_sandboxes() {
    let home = Home::new();
    for id in ["vm-00000000", "vm-x", "../../etc"] {
        refused(&home, &["exec", id, "true"], &format!("VM not found {id}: VM {id} not found"));
        refused(&home, &["kill", id], &format!("VM {id} not found"));
        refused(&home, &["rm", id], &format!("VM {id} not found"));
    }
    for command in ["kill", "rm", "get", "inspect", "list"] {
        let done = home.done([command, "vm-00000001", "vm-00000002"]);
        let expected = "matchlock: VM vm-00000001 not found\nmatchlock: VM vm-00000002 not found\n";
        assert_eq!((done.status, done.stderr.as_str()), (1, expected), "{command}");
    }
    refused(&home, &["kill"], "VM ID required (or use --all)");
    refused(&home, &["rm"], "VM ID required (or use --stopped)");
    home.assert_nothing_left();
}

/// `auto` takes the machine that `diagnose` names, and a machine that is not usable is refused by name.
fn diagnose_agrees_with_auto() {
    let home = Home::new();
    let diagnosis = home.done(["diagnose", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&diagnosis.stdout).unwrap();
    let checks = json["checks"].as_array().unwrap();
    let status =
        |name: &str| checks.iter().find(|check| check["name"] == name).map(|check| check["status"].clone());
    let failed = checks.iter().any(|check| check["status"] == "fail");
    assert_eq!((json["ok"] == true, diagnosis.status), (!failed, i32::from(failed)), "{diagnosis:?}");

    let usable =
        status("kvm-access") == Some("pass".into()) && status("cpu-virtualization") != Some("warn".into());
    let machine = checks.iter().find(|check| check["name"] == "machine").unwrap();
    let expected = if usable { "auto takes kvm: " } else { "auto takes software: no usable KVM: " };
    assert!(machine["message"].as_str().unwrap().starts_with(expected), "{machine}");
    let kvm = home.done(["run", "--machine", "kvm", "--image", "127.0.0.1:1/no-such-image:at-all", "true"]);
    assert_eq!(kvm.stderr.starts_with("matchlock: machine kvm: "), !usable, "{kvm:?}");
    home.assert_nothing_left();
}

/// Sandboxes come and go while others look for orphans.
fn failures_at_once_do_not_meet() {
    let home = Home::new();
    let run =
        ["run", "--machine", &blackbox::machine(), "--image", "127.0.0.1:1/no-such-image:at-all", "true"];
    let start = |_| (spawn(&mut home.matchlock(run)), spawn(&mut home.matchlock(["list"])));
    let children: Vec<_> = (0..20).map(start).collect();
    for (run, list) in children {
        let (run, list) = (end(run), end(list));
        assert_eq!(run.status, 1);
        assert!(run.stderr.starts_with("matchlock: image 127.0.0.1:1/no-such-image:at-all: "), "{run:?}");
        assert_eq!((list.status, list.stderr.as_str()), (0, ""));
        assert!(!list.stdout.contains("crashed"), "{list:?}");
    }
    home.assert_nothing_left();
}

/// Socket addresses hold 107 bytes of path.
fn a_long_home_is_no_obstacle() {
    let home = Home::new();
    let deep = tempfile::tempdir().unwrap();
    let path = deep.path().join("d".repeat(120));
    std::fs::create_dir_all(path.join(".cache")).unwrap();
    std::os::unix::fs::symlink(home.cache(), path.join(".cache/matchlock")).unwrap();
    let mut command = home.matchlock([
        "run",
        "--machine",
        &blackbox::machine(),
        "--image",
        "127.0.0.1:1/no-such-image:at-all",
        "true",
    ]);
    let done = done(command.env("HOME", &path));
    assert!(done.stderr.starts_with("matchlock: image 127.0.0.1:1/no-such-image:at-all: "), "{done:?}");
    assert_eq!(blackbox::names(&path.join(".matchlock/vms")), Vec::<String>::new());
}

/// An environment with neither `PATH` nor `HOME`.
fn services_have_hardly_an_environment() {
    let home = Home::new();
    let qemu = |command: &mut std::process::Command| {
        let report = done(command);
        let json: serde_json::Value =
            serde_json::from_str(&report.stdout).unwrap_or_else(|_| panic!("{report:?}"));
        let checks = json["checks"].as_array().unwrap();
        checks.iter().find(|check| check["name"] == "qemu").unwrap()["message"].clone()
    };
    let mut diagnose = home.matchlock(["diagnose", "--json"]);
    let found = qemu(&mut diagnose);
    let home_only = std::env::temp_dir();
    assert_eq!(qemu(diagnose.env_clear().env("HOME", &home_only)), found);
    assert_eq!(qemu(diagnose.env("PATH", "bin")), found);
    // The home of the user database, in which the command only reads.
    assert_eq!(qemu(diagnose.env_remove("HOME")), found);
    let done = done(home.matchlock(["list"]).env("HOME", "not/absolute"));
    assert_eq!(
        (done.status, done.stderr.lines().next()),
        (1, Some("matchlock: HOME is not set to an absolute path"))
    );
}

fn programs_of_the_working_directory_are_not_run() {
    let home = Home::new();
    let directory = tempfile::tempdir().unwrap();
    std::fs::write(directory.path().join("Dockerfile"), "FROM scratch\n").unwrap();
    for program in ["buildah", "podman", "docker"] {
        let program = directory.path().join(program);
        std::fs::write(&program, "#!/bin/sh\ntouch ran\nexit 1\n").unwrap();
        std::fs::set_permissions(program, PermissionsExt::from_mode(0o755)).unwrap();
    }
    for path in [".", ".:/nowhere", "/nowhere:", "./.:/nowhere"] {
        let mut build = home.matchlock(["build", "-t", "a:1", "--unconfined-build", "."]);
        done(build.env("PATH", path).current_dir(directory.path()));
        assert!(!directory.path().join("ran").exists(), "PATH={path}");
    }
}

/// `ulimit -f`.
fn limits_on_files_are_told() {
    let home = Home::with_own_images();
    let limited = |arguments: &str| {
        let script = format!("ulimit -f 4000; exec \"$0\" {arguments}");
        let shell = home.matchlock(["-c", &script]);
        let program = shell.get_program().to_owned();
        let mut limited = std::process::Command::new("sh");
        limited.args(["-c", &script]).arg(program);
        shell.get_envs().for_each(|(name, value)| match value {
            Some(value) => drop(limited.env(name, value)),
            None => drop(limited.env_remove(name)),
        });
        limited
    };
    let run = format!("run --machine {} --image busybox true", blackbox::machine());
    let refused = done(&mut limited(&run));
    let expected = "matchlock: a disk of 5120 MB asked for, but no file may be longer than ";
    assert!(refused.status == 1 && refused.stderr.starts_with(expected), "{refused:?}");
    let import = blackbox::done_with_input(&mut limited("image import a:1"), &vec![1; 8 << 20]);
    assert!(import.status == 1 && import.stderr.contains("File too large"), "{import:?}");
}
