//! Directories of the host in a guest: what either side sees of the other's files, and how it ends.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use blackbox::{Done, Home, end, kill_and_wait, machine, read_until};
use rustix::process::Pid;

use crate::Test;

pub(crate) const TESTS_WITHOUT_GUEST: &[Test] =
    &[("shares::what_cannot_be_shared_is_refused_at_once", what_cannot_be_shared_is_refused_at_once)];

pub(crate) const TESTS: &[Test] = &[
    ("shares::files_go_both_ways", files_go_both_ways),
    ("shares::the_sandbox_ends_with_the_process_that_serves_them", the_sandbox_ends_with_its_process),
];

fn refused(done: &Done, start: &str) {
    assert_eq!((done.status, done.stdout.as_str()), (1, ""), "{done:?}");
    assert!(done.stderr.starts_with(&format!("matchlock: {start}")), "{done:?} instead of {start}");
    assert_eq!(done.stderr.lines().filter(|line| !line.starts_with("hint: ")).count(), 1, "{done:?}");
}

/// Nothing is prepared for what is refused, so the image need not even exist.
fn what_cannot_be_shared_is_refused_at_once() {
    let home = Home::with_own_volumes();
    let (own, file) = (home.cache().display().to_string(), home.cache().join("file"));
    fs::write(&file, "").unwrap();
    let file = file.display();
    for (volume, why) in [
        ("/tmp:/a".to_owned(), "overlay is not built yet"),
        ("/tmp:a:ro".to_owned(), "expected HOST:GUEST:OPTIONS"),
        ("/tmp:/a:ro,uid=4294967295".to_owned(), "\"4294967295\" is no id"),
        ("/tmp:/proc/a:ro".to_owned(), "/proc is the kernel's own"),
        ("/no/such:/a:ro".to_owned(), "No such file or directory"),
        (format!("{own}:/a:ro"), "it is matchlock's own"),
        (format!("{file}:/a:ro"), "it is matchlock's own"),
        ("/etc/passwd:/a:ro".to_owned(), "Not a directory"),
        ("/:/a:ro".to_owned(), "the whole host is not shared"),
    ] {
        let machine = machine();
        let arguments =
            ["run", "--machine", &machine, "--image", "no/such:image", "-v", &volume, "--", "true"];
        refused(&home.done(arguments), &format!("invalid volume mount \"{volume}\": {why}"));
    }
    home.assert_nothing_left();
}

fn files_go_both_ways() {
    let home = Home::new();
    let (shared, kept) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let (shared, kept) = (shared.path(), kept.path());
    fs::write(shared.join("of the host"), "of the host\n").unwrap();
    fs::write(kept.join("kept"), "kept\n").unwrap();
    fs::write(kept.join("../secret"), "secret\n").unwrap();
    symlink("../secret", kept.join("out")).unwrap();
    let mut run = home.run(["-v", &format!("{}:/work/here:host_fs", shared.display())]);
    run.args(["-v", &format!("{}:/kept:ro,uid=7", kept.display())]);
    let script = "cd /work/here && cat 'of the host' && mkdir d && seq 200000 > d/numbers && chmod 755 d/numbers && \
                  chown 5:6 d/numbers && stat -c %u:%g:%s d/numbers && wc -l < d/numbers && mv d e; \
                  cat /kept/kept /kept/out; stat -c %u /kept/kept; echo x > /kept/kept; rm /kept/kept; \
                  mount -o remount,rw /kept; echo x > /kept/new; \
                  stat -c %d /work/here /kept / | sort -u | wc -l; grep -c virtiofs.*nosuid,nodev /proc/mounts";
    let done = blackbox::done(run.args(["--privileged", "--", "sh", "-c", script]));
    let (expected, size) =
        ("of the host\n", (1..=200_000).map(|n: u32| format!("{n}\n").len()).sum::<usize>());
    let expected = format!("{expected}5:6:{size}\n200000\nkept\n7\n3\n2\n");
    assert_eq!((done.status, done.stdout.as_str()), (0, expected.as_str()), "{done:?}");
    assert_eq!(done.stderr.matches("Read-only file system").count(), 3, "{done:?}");
    let numbers = fs::metadata(shared.join("e/numbers")).unwrap();
    assert_eq!((numbers.len(), numbers.permissions().mode() & 0o777), (size as u64, 0o755));
    assert_eq!(fs::read_to_string(kept.join("kept")).unwrap(), "kept\n");
    assert_eq!(fs::read_dir(kept).unwrap().count(), 2);
    home.assert_nothing_left();
}

fn the_sandbox_ends_with_its_process() {
    let home = Home::new();
    let shared = tempfile::tempdir().unwrap();
    let mut run = home.run(["-v", &format!("{}:/work:host_fs", shared.path().display())]);
    let mut child = blackbox::spawn(run.args(["--", "sh", "-c", "echo up; sleep 600"]));
    read_until(&mut child, "up\n");
    let processes = home.processes();
    let pid = processes.iter().find_map(|process| process.strip_suffix(" matchlock-share")).unwrap();
    kill_and_wait(Pid::from_raw(pid.parse().unwrap()).unwrap());
    let done = end(child);
    assert_ne!(done.status, 0);
    assert!(done.stderr.contains("the process of the shared folders ended: signal: 9"), "{done:?}");
    home.assert_nothing_left();
}
