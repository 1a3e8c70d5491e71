//! Broken images, kernels and guests: one line tells the fault, and nothing is left.

use std::fs;
use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use blackbox::{Done, Home, done, done_with_input, end, read_until, spawn};

use crate::Test;
use crate::archive::{docker_archive, tar};

pub(crate) const TESTS: &[Test] = &[
    ("broken::no_such_image", no_such_image),
    ("broken::an_archive_that_is_none", an_archive_that_is_none),
    ("broken::a_truncated_layer", a_truncated_layer),
    ("broken::no_kernel", no_kernel),
    ("broken::a_kernel_that_panics", a_kernel_that_panics),
    ("broken::a_guest_that_is_never_ready", a_guest_that_is_never_ready),
    ("broken::a_guest_that_crashes", a_guest_that_crashes),
    ("broken::no_command", no_command),
    ("broken::few_open_files", few_open_files),
];

/// Tests that make the built-in image anew.
pub(crate) const TESTS_THAT_FETCH: &[Test] = &[("broken::a_damaged_layer", a_damaged_layer)];

#[track_caller]
fn assert_told(done: &Done, start: &str) {
    assert_eq!(done.status, 1, "{done:?}");
    assert!(done.stderr.starts_with(&format!("matchlock: {start}")), "{done:?}");
    let lines = done.stderr.lines().count();
    assert!(lines == 1 || lines == 2 && done.stderr.contains("\nhint: "), "{done:?}");
}

fn no_such_image() {
    let home = Home::new();
    assert_told(
        &home.done(["run", "--image", "127.0.0.1:1/no-such-image:at-all", "true"]),
        "image 127.0.0.1:1/no-such-image:at-all: ",
    );
    home.assert_nothing_left();
}

fn an_archive_that_is_none() {
    let home = Home::with_own_images();
    for input in [&b""[..], b"not a tar", &[0; 4096], &[b'x'; 10_000]] {
        let done = done_with_input(&mut home.matchlock(["image", "import", "x"]), input);
        assert_told(&done, "");
    }
    assert_told(&home.done(["image", "import", "x", "/no/such/file"]), "/no/such/file");
    assert_eq!(home.done(["image", "rm", "x"]).status, 1);
    home.assert_nothing_left();
}

fn a_damaged_layer() {
    let home = Home::with_own_images();
    assert_eq!(done(&mut home.run(["true"])).status, 0);
    let layer = &layer(&home);
    let length = usize::try_from(fs::metadata(layer).unwrap().len()).unwrap();
    fs::write(layer, vec![b'x'; length]).unwrap();
    assert_told(&done(&mut home.run(["true"])), "the guest cannot start: mount ");

    // The built-in image is made anew if its files are obviously wrong.
    fs::File::options().write(true).open(layer).unwrap().set_len(4096).unwrap();
    assert_eq!(done(&mut home.run(["true"])).status, 0);
    home.assert_nothing_left();
}

/// An imported image cannot be made anew.
fn a_truncated_layer() {
    let home = Home::with_own_images();
    let imported = done_with_input(
        &mut home.matchlock(["image", "import", "mine:1"]),
        &docker_archive(&[tar(&[("hello", &[b'#'; 100_000])])]),
    );
    assert_eq!((imported.status, imported.stderr.as_str()), (0, ""), "{imported:?}");
    assert_eq!(imported.stdout.lines().take(2).collect::<Vec<_>>(), ["Imported: mine:1", "Layers: 1"]);
    let listed = home.done(["image", "ls"]).stdout;
    assert!(listed.lines().any(|line| line.starts_with("mine:1 ")), "{listed}");

    let layer = layer(&home);
    fs::File::options().write(true).open(&layer).unwrap().set_len(4096).unwrap();
    let told =
        done(&mut home.matchlock(["run", "--machine", &blackbox::machine(), "--image", "mine:1", "/hello"]));
    assert_told(&told, "");
    assert!(told.stderr.contains("mine:1"), "{told:?}");
    assert_eq!(home.done(["image", "rm", "mine:1"]).stdout, "Removed mine:1\n");
    assert_eq!(home.done(["image", "rm", "mine:1"]).status, 1);
    assert!(!layer.exists());
    home.assert_nothing_left();
}

/// The only layer in an image store of the test's own.
fn layer(home: &Home) -> PathBuf {
    let blobs: Vec<_> = fs::read_dir(home.cache().join("images/blobs"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "erofs"))
        .collect();
    let [layer] = &blobs[..] else { panic!("{blobs:?}") };
    layer.clone()
}

fn no_kernel() {
    let home = Home::new();
    let run = |kernel: &str| done(&mut home.run(["--kernel", kernel, "true"]));
    assert_told(&run("file:///etc/passwd"), "/etc/passwd is not a bootable kernel");
    assert_told(&run("file:///no/such/kernel"), "kernel /no/such/kernel: No such file or directory");
    assert_told(&run("/no/such/kernel"), "kernel /no/such/kernel: No such file or directory");
    assert_told(&run("./relative"), "kernel reference \"./relative\" is neither an absolute path, ");
    // Nothing listens on this port.
    assert_told(&run("127.0.0.1:1/some/kernel:1"), "kernel 127.0.0.1:1/some/kernel:1: 127.0.0.1:1: ");
    assert_told(&run("file:///etc"), "/etc is not a bootable kernel: not a regular file");
    assert_told(
        &run("file:///bin/true"),
        "/bin/true is not a bootable kernel: an ELF file without a PVH entry",
    );
    home.assert_nothing_left();
}

/// An agent that is no program: the kernel finds no init.
fn a_kernel_that_panics() {
    let home = Home::new();
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), "no program").unwrap();
    let done = done(home.run(["true"]).env("MATCHLOCK_GUEST_INIT", file.path()));
    assert_told(
        &done,
        "the guest kernel panicked before the sandbox was ready; its console said: Kernel panic",
    );
    home.assert_nothing_left();
}

/// An agent that only sleeps.
fn a_guest_that_is_never_ready() {
    let home = Home::new();
    let sleeper = sleeper();
    let done = done(home.run(["--timeout", "15", "true"]).env("MATCHLOCK_GUEST_INIT", sleeper.path()));
    assert_eq!((done.status, done.stderr.as_str()), (1, "matchlock: timed out after 15 s\n"));
    home.assert_nothing_left();
}

/// A static program that pauses for ever when it is started as `/init`.
fn sleeper() -> tempfile::NamedTempFile {
    let mut elf = vec![0; 0x80];
    let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
    // System V ABI: a 64-bit little-endian executable for x86-64 with one segment, entered at 0x400078.
    put(0x00, b"\x7fELF\x02\x01\x01");
    put(0x10, &[2, 0, 62, 0, 1, 0, 0, 0]);
    put(0x18, &0x40_0078u64.to_le_bytes());
    put(0x20, &0x40u64.to_le_bytes());
    put(0x34, &[64, 0, 56, 0, 1, 0]);
    put(0x40, &[1, 0, 0, 0, 5, 0, 0, 0]);
    put(0x50, &0x40_0000u64.to_le_bytes());
    put(0x58, &0x40_0000u64.to_le_bytes());
    put(0x60, &0x80u64.to_le_bytes());
    put(0x68, &0x80u64.to_le_bytes());
    put(0x70, &0x1000u64.to_le_bytes());
    // pause(): mov eax, 34; syscall; jmp back
    put(0x78, &[0x6a, 34, 0x58, 0x0f, 0x05, 0xeb, 0xf9]);
    let file = tempfile::NamedTempFile::new().unwrap();
    fs::write(file.path(), elf).unwrap();
    file
}

/// The crash comes once the host has seen the output: output that a guest still holds is lost with it.
fn a_guest_that_crashes() {
    let home = Home::new();
    let script = "echo up; read go; echo c > /proc/sysrq-trigger; sleep 1000";
    let mut child = spawn(home.run(["-i", "--privileged", "--", "sh", "-c", script]).stdin(Stdio::piped()));
    assert_eq!(read_until(&mut child, "\n"), "up\n");
    child.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
    let done = end(child);
    assert_eq!(done.status, 1, "{done:?}");
    let expected =
        "matchlock: the guest kernel panicked while the command ran; its console said: Kernel panic";
    assert!(done.stderr.starts_with(expected), "{done:?}");
    home.assert_nothing_left();
}

/// An image without a command, and none given: the built-in one has a shell, so its entrypoint is cleared by hand.
fn no_command() {
    let home = Home::new();
    let done = done(&mut home.run(["--entrypoint", ""]));
    // The built-in image's own command is a shell that finds no input.
    assert_eq!((done.status, done.stdout.as_str(), done.stderr.as_str()), (0, "", ""), "{done:?}");
    home.assert_nothing_left();
}

/// A soft limit that is too low for a sandbox is raised; a hard one is reported.
fn few_open_files() {
    let home = Home::new();
    let under = |limit: &str, command: &Command| {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit {limit} && exec \"$0\" \"$@\"")]).stdin(Stdio::null());
        shell.arg(command.get_program()).args(command.get_args());
        for (name, value) in command.get_envs() {
            match value {
                Some(value) => shell.env(name, value),
                None => shell.env_remove(name),
            };
        }
        done(&mut shell)
    };
    assert_eq!(under("-Sn 40", &home.run(["true"])).status, 0);
    for few in ["-n 6", "-n 100"] {
        for command in [home.run(["true"]), home.matchlock(["rpc"])] {
            assert_told(&under(few, &command), "no more than ");
        }
    }
    home.assert_nothing_left();
}
