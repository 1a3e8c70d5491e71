//! The sandbox's own command: it is PID 1, with the working directory and the user from image and options.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

use blackbox::{Done, Home, done, end, machine, read_until, signal, spawn};
use rustix::process::Signal;

use crate::Test;

pub(crate) const TESTS: &[Test] = &[
    ("first::the_command_is_pid_1", the_command_is_pid_1),
    ("first::an_image_that_boots_an_init", an_image_that_boots_an_init),
    ("first::working_directories_and_users_of_images", working_directories_and_users_of_images),
];

fn the_command_is_pid_1() {
    let home = Home::new();
    // PID 1 ignores signals without a handler, and sees only processes that it started.
    let script = "echo $$; kill -TERM $$; kill -9 $$; echo alive; set -- /proc/[0-9]*; echo $#; exit 6";
    let first = done(&mut home.run(["--", "sh", "-c", script]));
    assert_eq!(first, Done { status: 6, stdout: "1\nalive\n1\n".into(), stderr: String::new() });
    let below = done(&mut home.run(["--init", "--", "sh", "-c", "echo $$; kill -9 $$; echo alive"]));
    assert_eq!(below, Done { status: 137, stdout: "2\n".into(), stderr: String::new() });
    home.assert_nothing_left();

    let id = home.detached(&["--", "sh", "-c", "echo main $$; sleep 1000"]);
    let exec = home.done(["exec", &id, "--", "sh", "-c", "kill -9 $$"]);
    assert_eq!(exec.status, 137, "other commands are not: {exec:?}");
    let config = |id: &str| {
        let inspected = home.done(["inspect", id]).stdout;
        serde_json::from_str::<serde_json::Value>(&inspected).unwrap()["vm"]["config"]["init"].clone()
    };
    assert_eq!(config(&id), false);
    let other = home.detached(&["--init"]);
    assert_eq!(config(&other), true);
    assert_eq!(home.done(["kill", "--all"]).status, 0);
    assert_eq!(home.done(["log", &id]).stdout.lines().filter(|line| *line == "main 1").count(), 1);
    assert_eq!(home.done(["rm", "--stopped"]).status, 0);
    home.assert_nothing_left();
}

/// A root file system with busybox in it.
fn root(at: &Path) {
    for directory in ["bin", "etc"] {
        fs::create_dir_all(at.join(directory)).unwrap();
    }
    fs::copy("/bin/busybox", at.join("bin/busybox")).unwrap();
    for applet in ["sh", "init", "id", "pwd", "stat", "sleep"] {
        symlink("busybox", at.join("bin").join(applet)).unwrap();
    }
}

fn import(home: &Home, tag: &str, root: &Path, options: &[&str]) {
    let done = done(home.matchlock(["image", "import"]).args(options).arg(tag).arg(root));
    assert_eq!(done.status, 0, "{done:?}");
}

/// `run` of an image, on the machine and kernel under test.
fn run(home: &Home, image: &str) -> std::process::Command {
    let mut command = home.matchlock(["run", "--machine", &machine(), "--memory", "256", "--no-network"]);
    command.args(["--image", image]);
    let kernel = std::env::var("MATCHLOCK_TEST_KERNEL").unwrap_or_default();
    if !kernel.is_empty() {
        command.args(["--kernel", &kernel]);
    }
    command
}

fn an_image_that_boots_an_init() {
    let home = Home::with_own_images();
    let directory = tempfile::tempdir().unwrap();
    root(directory.path());
    let inittab = "::sysinit:/bin/sh -c 'echo up below $PPID'\n::shutdown:/bin/sh -c 'echo down'\n";
    fs::write(directory.path().join("etc/inittab"), inittab).unwrap();
    import(&home, "booted", directory.path(), &["--entrypoint", "/bin/init"]);
    let mut child = spawn(&mut run(&home, "booted"));
    assert_eq!(read_until(&mut child, "below 1\n"), "up below 1\n");
    signal(&child, Signal::TERM);
    let ended = end(child);
    assert!(ended.status == 143 && ended.stdout.contains("down\n"), "{ended:?}");
    let below = done(run(&home, "booted").arg("--init"));
    assert!(below.status != 0 && below.stderr.contains("PID 1"), "{below:?}");
    home.assert_nothing_left();
}

fn working_directories_and_users_of_images() {
    let home = Home::with_own_images();
    let directory = tempfile::tempdir().unwrap();
    root(directory.path());
    fs::write(
        directory.path().join("etc/passwd"),
        "root:x:0:0::/root:/bin/sh\napp:x:54321:54322::/:/bin/sh\n",
    )
    .unwrap();
    fs::write(directory.path().join("etc/group"), "root:x:0:\napp:x:54322:\nmore:x:54323:app\n").unwrap();
    let closed = directory.path().join("closed");
    fs::create_dir(&closed).unwrap();
    fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    const SCRIPT: &str = "pwd; id -u; id -g; id -G";
    let cases: [(&[&str], &str, &str); 5] = [
        (&["-w", "/srv/app/data", "-u", "app"], SCRIPT, "/srv/app/data\n54321\n54322\n54322 54323\n"),
        (
            &["-w", "/srv/app/data", "-u", "app"],
            "stat -c '%a %u %g' /srv .. .",
            "755 0 0\n755 0 0\n755 0 0\n",
        ),
        (&["-w", "/closed", "-u", "app"], SCRIPT, "/closed\n54321\n54322\n54322 54323\n"),
        (&["-u", "app:"], SCRIPT, "/\n54321\n54322\n54322 54323\n"),
        (&["-u", ":1000"], SCRIPT, "/\n0\n1000\n1000\n"),
    ];
    for (options, script, expected) in cases {
        import(&home, "configured", directory.path(), options);
        let printed = done(run(&home, "configured").args(["--", "/bin/sh", "-c", script]));
        let expected = Done { status: 0, stdout: expected.into(), stderr: String::new() };
        assert_eq!(printed, expected, "{options:?}");
    }
    let option = done(run(&home, "configured").args(["-w", "/no/such", "--", "/bin/pwd"]));
    assert_eq!((option.status, option.stdout.as_str()), (0, "/no/such\n"), "{option:?}");
    let nobody = done(run(&home, "configured").args(["-u", "nobody-at-all:", "--", "/bin/pwd"]));
    assert_eq!((nobody.status, nobody.stderr.as_str()), (127, "matchlock: no such user: nobody-at-all\n"));
    home.assert_nothing_left();
}
