//! Directories of the host in a guest: what either side sees of the other's files, and how it ends.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use blackbox::{Home, end, kill_and_wait, read_until, refused};
use rustix::process::Pid;

use crate::Test;

pub(crate) const TESTS_WITHOUT_GUEST: &[Test] =
    &[("shares::what_cannot_be_shared_is_refused_at_once", what_cannot_be_shared_is_refused_at_once)];

pub(crate) const TESTS: &[Test] = &[
    ("shares::files_go_both_ways", files_go_both_ways),
    ("shares::the_workspace", the_workspace),
    ("shares::the_sandbox_ends_with_the_process_that_serves_them", the_sandbox_ends_with_its_process),
];

fn what_cannot_be_shared_is_refused_at_once() {
    let home = Home::with_own_volumes();
    let (own, file) = (home.cache().display().to_string(), home.cache().join("file"));
    fs::write(&file, "").unwrap();
    let file = file.display();
    for (volume, why) in [
        ("/tmp".to_owned(), "expected HOST:GUEST or HOST:GUEST:OPTIONS"),
        ("/tmp:../a:ro".to_owned(), "invalid guest mount path \"/workspace/../a\""),
        ("/tmp:/a:rw".to_owned(), "unknown option \"rw\""),
        ("/tmp:/a:memory".to_owned(), "a memory mount has no path of the host"),
        ("/tmp:/a:uid=1".to_owned(), "owner_uid/owner_gid are only supported for host_fs mounts"),
        ("/tmp:/a:cache=none".to_owned(), "cache= is only supported for host_fs mounts"),
        ("/tmp:/a:ro,cache=never".to_owned(), "unknown cache mode \"never\"; there are none, auto, always"),
        ("/tmp:/a:ro,uid=4294967295".to_owned(), "\"4294967295\" is no id"),
        ("/tmp:/proc/a:ro".to_owned(), "/proc is the kernel's own"),
        ("/no/such:/a:ro".to_owned(), "No such file or directory"),
        (format!("{own}:/a:ro"), "it is matchlock's own"),
        (format!("{file}:/a:ro"), "it is matchlock's own"),
        ("/dev/null:/a:ro".to_owned(), "it is neither a directory nor a file"),
        ("/:/a:ro".to_owned(), "the whole host is not shared"),
    ] {
        let done = home.run_without_image(["-v", &volume]);
        refused(&done, &format!("invalid volume mount \"{volume}\": {why}"));
    }
    for (options, message) in [
        (
            &["--mount", "type=nfs,target=/a"][..],
            "invalid volume mount \"type=nfs,target=/a\": unknown mount type \"nfs\"",
        ),
        (
            &["--mount", "type=host_fs,target=/a"],
            "invalid volume mount \"type=host_fs,target=/a\": no path of the host is named",
        ),
        (
            &["-v", "/tmp:/a:ro", "--mount", "type=memory,target=/a/"],
            "invalid volume mount \":/a:memory\": something else is mounted at /a",
        ),
        (
            &["-v", "/tmp:/a:ro", "--disk", "/no/such:/a/b"],
            "invalid volume mount \"/tmp:/a:ro\": the disk at /a/b would be in it",
        ),
        (&["--workspace", "w"], "invalid workspace: guest path must be absolute: \"w\""),
        (&["--workspace", "/proc/1"], "invalid workspace: /proc is the kernel's own"),
    ] {
        refused(&home.run_without_image(options), message);
    }
    home.assert_nothing_left();
}

/// Programs start in the workspace, which relative paths of the guest are in.
fn the_workspace() {
    let home = Home::new();
    let shared = tempfile::tempdir().unwrap();
    fs::write(shared.path().join("file"), "of the host\n").unwrap();
    let here = shared.path().display();
    let run = |options: &[&str], command: &str| {
        let mut run = home.run(options.iter().copied());
        let done = blackbox::done(run.args(["--", "sh", "-c", command]));
        assert_eq!((done.status, done.stderr.as_str()), (0, ""), "{done:?}");
        done.stdout
    };
    assert_eq!(run(&["--workspace", "/w/x/"], "pwd; touch here"), "/w/x\n");
    let volume = format!("{here}:src:ro");
    assert_eq!(run(&["-v", &volume], "pwd; cat src/file"), "/workspace\nof the host\n");
    let mount = format!("type=host_fs,source={here},target=src,uid=7");
    let script = "pwd; stat -c %u /w/src/file; echo of the guest > /w/src/file";
    assert_eq!(run(&["--mount", &mount, "--workspace", "/w", "-w", "/tmp"], script), "/tmp\n7\n");
    assert_eq!(fs::read_to_string(shared.path().join("file")).unwrap(), "of the guest\n");
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
    let shared = tempfile::tempdir().unwrap();
    ends_with_its_process(&[&format!("{}:/work:host_fs", shared.path().display())], "true");
}

/// Runs a script in a sandbox with these folders, and kills the process that serves them.
pub(crate) fn ends_with_its_process(volumes: &[&str], script: &str) {
    let home = Home::new();
    let mut run = home.run(volumes.iter().flat_map(|volume| ["-v", volume]));
    let script = format!("{script}; echo up; sleep 600");
    let mut child = blackbox::spawn(run.args(["--", "sh", "-c", &script]));
    read_until(&mut child, "up\n");
    let processes = home.processes();
    let pid = processes.iter().find_map(|process| process.strip_suffix(" matchlock-share")).unwrap();
    kill_and_wait(Pid::from_raw(pid.parse().unwrap()).unwrap());
    let done = end(child);
    assert_ne!(done.status, 0);
    assert!(done.stderr.contains("the process of the shared folders ended: signal: 9"), "{done:?}");
    home.assert_nothing_left();
}
