//! The kernel store: listing and removing.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::process::Stdio;

use blackbox::{Done, Home, done};
use serde_json::{Value, json};

use crate::Test;

pub(crate) const TESTS_WITHOUT_GUEST: &[Test] = &[("kernels::listed_and_removed", listed_and_removed)];

pub(crate) const TESTS: &[Test] = &[
    ("kernels::in_use_as_long_as_a_sandbox_lives", in_use),
    ("kernels::the_environment_names_one", the_environment_names_one),
];

pub(crate) const TESTS_THAT_FETCH: &[Test] =
    &[("kernels::a_removed_one_is_fetched_again", a_removed_one_is_fetched_again)];

/// A home whose kernels are its own.
fn home_with_own_kernels() -> (Home, PathBuf) {
    let home = Home::with_own_images();
    let kernels = home.cache().join("kernels");
    fs::remove_file(&kernels).unwrap();
    fs::create_dir(&kernels).unwrap();
    (home, kernels)
}

fn list(home: &Home) -> Vec<Value> {
    let done = home.done(["kernel", "ls", "--json"]);
    assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
    serde_json::from_str(&done.stdout).unwrap()
}

fn listed_and_removed() {
    let (home, kernels) = home_with_own_kernels();
    assert_eq!(home.done(["kernel", "ls"]).stdout, "IDENTIFIER   ARCH   SIZE   STATUS\n");
    assert_eq!(list(&home), [] as [Value; 0]);
    for release in ["1.0-a", "1.0-b", "1.0-c"] {
        let modules = kernels.join("debian-amd64").join(release).join("modules");
        fs::create_dir_all(&modules).unwrap();
        fs::write(modules.join("a.ko"), vec![0; 1 << 20]).unwrap();
        fs::write(modules.with_file_name("origin"), "here").unwrap();
    }
    symlink("1.0-b", kernels.join("debian-amd64/current")).unwrap();
    assert_eq!(
        home.done(["kernel", "ls"]).stdout,
        "IDENTIFIER   ARCH    SIZE     STATUS\n\
         1.0-a        amd64   1.0 MB\n\
         1.0-b        amd64   1.0 MB   default\n\
         1.0-c        amd64   1.0 MB\n"
    );
    let size = (1 << 20) + 4;
    let expected = json!({
        "identifier": "1.0-b", "arch": "amd64", "size": size, "origin": "here", "default": true, "in_use": false,
    });
    assert_eq!(list(&home)[1], expected);
    assert_eq!(home.done(["kernel", "rm", "1.0-b"]).stdout, "Removed 1.0-b\n");
    let all: Value = serde_json::from_str(&home.done(["kernel", "rm", "--all", "--json"]).stdout).unwrap();
    assert_eq!(all, json!({"removed": ["1.0-a", "1.0-c"], "freed": 2 * size}));
    for (args, message) in [
        (
            &["kernel", "rm", "1.0-a"][..],
            "matchlock: kernel not found: 1.0-a\nhint: see matchlock kernel ls\n",
        ),
        (
            &["kernel", "rm", "--ref", "r.io/x:1"],
            "matchlock: kernel not found: r.io/x:1\nhint: see matchlock kernel ls\n",
        ),
        (&["kernel", "rm", "../x"], "matchlock: kernel not found: ../x\nhint: see matchlock kernel ls\n"),
        (&["kernel", "rm"], "matchlock: kernel required (or use --all)\n"),
    ] {
        assert_eq!(home.done(args), Done { status: 1, stdout: String::new(), stderr: message.to_owned() });
    }
    home.assert_nothing_left();
}

/// The default kernel, if it is under test.
fn default_kernel(home: &Home) -> Option<Value> {
    let own = std::env::var("MATCHLOCK_TEST_KERNEL").is_ok_and(|kernel| !kernel.is_empty());
    list(home).into_iter().find(|kernel| !own && kernel["default"] == true)
}

fn in_use() {
    let home = Home::new();
    let id = home.detached(&["--", "sleep", "1000"]);
    // Other tests may use the kernel at the same time, so its state after this sandbox's end proves nothing.
    if let Some(kernel) = default_kernel(&home) {
        assert_eq!(kernel["in_use"], true);
        let name = kernel["identifier"].as_str().unwrap();
        let done = home.done(["kernel", "rm", name]);
        assert_eq!(done.status, 1, "{done:?}");
        assert!(done.stderr.starts_with(&format!("matchlock: kernel {name} is in use\nhint: ")), "{done:?}");
    }
    assert_eq!(home.done(["kill", &id]).status, 0);
    assert_eq!(home.done(["rm", &id]).status, 0);
    home.assert_nothing_left();
}

/// Both ways to start a sandbox; a kernel that the sandbox names itself takes precedence.
fn the_environment_names_one() {
    const MISSING: &str = "kernel /no/such/kernel: No such file or directory";
    let home = Home::new();
    let mut run =
        home.matchlock(["run", "--machine", &blackbox::machine(), "--image", blackbox::IMAGE, "true"]);
    let told = done(run.env("MATCHLOCK_KERNEL", "/no/such/kernel"));
    assert!(told.status == 1 && told.stderr.starts_with(&format!("matchlock: {MISSING}")), "{told:?}");
    let mut run = home.run(["--kernel", "file:///etc/passwd", "true"]);
    let told = done(run.env("MATCHLOCK_KERNEL", "/no/such/kernel"));
    assert!(told.stderr.starts_with("matchlock: /etc/passwd is not a bootable kernel"), "{told:?}");

    let mut rpc = home.matchlock(["rpc", "--machine", &blackbox::machine()]);
    rpc.env("MATCHLOCK_KERNEL", "/no/such/kernel").stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut server = rpc.spawn().unwrap();
    let mut stdin = server.stdin.take().unwrap();
    let mut answers = BufReader::new(server.stdout.take().unwrap()).lines();
    for (kernel, expected) in
        [(json!({}), MISSING), (json!({"ref": "file:///etc/passwd"}), "/etc/passwd is not a bootable kernel")]
    {
        let params = json!({"image": blackbox::IMAGE, "kernel": kernel});
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "create", "params": params});
        writeln!(stdin, "{request}").unwrap();
        let answer: Value = serde_json::from_str(&answers.next().unwrap().unwrap()).unwrap();
        let message = answer["error"]["message"].as_str().unwrap();
        assert!(message.starts_with(expected), "{answer}");
    }
    drop(stdin);
    assert_eq!(server.wait().unwrap().code(), Some(0));
    home.assert_nothing_left();
}

fn a_removed_one_is_fetched_again() {
    let (home, kernels) = home_with_own_kernels();
    for _ in 0..2 {
        assert_eq!(done(&mut home.run(["--kernel", "", "true"])).status, 0);
        let kernel = default_kernel(&home).or_else(|| list(&home).into_iter().next()).unwrap();
        assert_eq!((&kernel["default"], &kernel["in_use"]), (&true.into(), &false.into()));
        let done = home.done(["kernel", "rm", kernel["identifier"].as_str().unwrap()]);
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
        let left = blackbox::names(&kernels.join("debian-amd64"));
        assert_eq!(left, Vec::<String>::new());
    }
    home.assert_nothing_left();
}
