//! Names of a folder that the guest does not see, or does not change, whatever it tries.

use std::fs;
use std::path::Path;

use blackbox::{Done, Home, done, refused};

use crate::Test;

pub(crate) const TESTS_WITHOUT_GUEST: &[Test] =
    &[("masks::masks_that_are_none_are_refused_at_once", masks_that_are_none_are_refused_at_once)];

pub(crate) const TESTS: &[Test] = &[("masks::nothing_gets_around_them", nothing_gets_around_them)];

fn masks_that_are_none_are_refused_at_once() {
    let home = Home::with_own_volumes();
    for (options, why) in [
        (
            &["-v", "/tmp:/a:ro,mask=x/**"][..],
            "invalid volume mount \"/tmp:/a:ro,mask=x/**\": mask \"x/**\": ** is not",
        ),
        (&["-v", "/tmp:/a:ro", "--mask", "a/../b"], "mask \"a/../b\" matches nothing"),
        (&["-v", "/tmp:/a:ro", "--mask-readonly", "["], "mask \"[\": its [...] is empty"),
        (&["--protect"], "--mask, --mask-readonly and --protect need -v or --mount"),
    ] {
        refused(&home.run_without_image(options), why);
    }
    home.assert_nothing_left();
}

/// Each line of the script is one attempt, and prints its number if it succeeds.
const ATTEMPTS: &str = "
cd /work
try() { number=$1; shift; if \"$@\" 2>/dev/null; then echo \"$number succeeded\"; fi; }
write() { echo guest > \"$1\"; }
try 1 cat .env
try 2 cat sub/.env.local
try 3 write .env
try 4 mkdir sub/.env.d
try 5 write .git/hooks/pre-commit
try 6 write .git/hooks/new
try 7 rm .git/hooks/pre-commit
try 8 chmod 777 .git/hooks/pre-commit
try 9 touch .git/config
try 10 ln .git/config sub/alias
try 11 ln -s ../sub sub/.git
try 12 write sub/.git
try 13 write .git/commondir
mkdir -p evil/hooks && write evil/hooks/pre-commit
try 14 mv -T evil/hooks .git/hooks
try 15 rm -rf .git/hooks
try 16 mkdir -p .vscode
mv .git moved 2>/dev/null
mv evil sub/.git 2>/dev/null
cat .git/hooks/pre-commit .git/config
ls -A . sub
ls -A | grep -c env
";

fn nothing_gets_around_them() {
    let home = Home::new();
    let shared = tempfile::tempdir().unwrap();
    let at = |path: &str| shared.path().join(path);
    fs::create_dir_all(at(".git/hooks")).unwrap();
    fs::create_dir(at("sub")).unwrap();
    for (path, contents) in [
        (".env", "secret\n"),
        ("sub/.env.local", "secret\n"),
        (".git/hooks/pre-commit", "hook\n"),
        (".git/config", "config\n"),
        (".git/HEAD", "ref\n"),
    ] {
        fs::write(at(path), contents).unwrap();
    }
    let volume = format!("{}:/work:host_fs,protect", shared.path().display());
    let mut run = home.run(["-v", &volume, "--mask", ".env*"]);
    let Done { status, stdout, .. } = done(run.args(["--", "sh", "-c", ATTEMPTS]));
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(!stdout.contains("succeeded") && !stdout.contains("secret"), "{stdout}");
    assert_eq!(lines[..2], ["hook", "config"], "{stdout}");
    assert_eq!((status, lines.last()), (1, Some(&"0")), "grep finds nothing: {stdout}");
    let read = |path: &Path| fs::read_to_string(path).unwrap();
    assert_eq!(read(&at(".env")), "secret\n");
    assert_eq!(read(&at("sub/.env.local")), "secret\n");
    assert_eq!(read(&at(".git/hooks/pre-commit")), "hook\n");
    assert_eq!(fs::read_dir(at(".git/hooks")).unwrap().count(), 1);
    assert_eq!(read(&at(".git/config")), "config\n");
    assert!(!at(".vscode").exists() && !at("sub/alias").exists());
    // Wherever a copy went, git of the host obeys nothing in it.
    assert!(!at("sub/.git/hooks/pre-commit").exists() && !at("sub/.git/config").exists());
    home.assert_nothing_left();
}
