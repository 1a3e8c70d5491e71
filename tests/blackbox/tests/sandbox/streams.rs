//! Standard streams that others have set up: non-blocking, slow, with earlier input.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read, Write, pipe};
use std::process::{Child, Command};
use std::time::Duration;

use blackbox::{Done, Home, Terminal, done, end, spawn};
use rustix::fs::{OFlags, fcntl_getfl};
use rustix::io::ioctl_fionbio;

use crate::Test;
use crate::programs::with_sandbox;

pub(crate) const TESTS_WITHOUT_GUEST: &[Test] = &[
    ("streams::answers_into_a_full_pipe", answers_into_a_full_pipe),
    ("streams::an_archive_that_comes_late", an_archive_that_comes_late),
];

pub(crate) const TESTS: &[Test] = &[
    ("streams::input_that_comes_late", input_that_comes_late),
    ("streams::output_that_is_read_slowly", output_that_is_read_slowly),
    ("streams::input_typed_ahead", input_typed_ahead),
    ("streams::run_has_the_same", run_has_the_same),
];

/// Delay of the other end of a pipe.
const LATE: Duration = Duration::from_millis(500);

fn is_non_blocking(pipe: impl std::os::fd::AsFd) -> bool {
    fcntl_getfl(pipe).unwrap().contains(OFlags::NONBLOCK)
}

/// Starts a command whose standard input is a non-blocking pipe, and returns the pipe's other ends.
fn with_input(command: &mut Command) -> (Child, PipeWriter, PipeReader) {
    let (reader, writer) = pipe().unwrap();
    ioctl_fionbio(&reader, true).unwrap();
    let child = spawn(command.stdin(reader.try_clone().unwrap()));
    (child, writer, reader)
}

/// All output of a command that writes into a non-blocking pipe that is read slowly.
fn read_slowly(command: &mut Command, errors: bool) -> (i32, Vec<u8>) {
    let (mut reader, writer) = pipe().unwrap();
    ioctl_fionbio(&writer, true).unwrap();
    match errors {
        false => command.stdout(writer.try_clone().unwrap()),
        true => command.stderr(writer.try_clone().unwrap()),
    };
    let mut child = command.spawn().unwrap();
    // The command's ends close with it, and this process's own close now.
    *command = Command::new("true");
    std::thread::sleep(LATE);
    assert!(is_non_blocking(&writer), "the flags are others' too");
    drop(writer);
    let (mut seen, mut buffer) = (Vec::new(), vec![0; 100_000]);
    loop {
        match reader.read(&mut buffer).unwrap() {
            0 => break,
            length => seen.extend_from_slice(&buffer[..length]),
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    (child.wait().unwrap().code().unwrap(), seen)
}

fn answers_into_a_full_pipe() {
    let home = Home::new();
    let expected = home.done(["completion", "bash"]).stdout;
    assert!(expected.len() > 64 << 10, "{} bytes fit a pipe", expected.len());
    let (status, seen) = read_slowly(&mut home.matchlock(["completion", "bash"]), false);
    assert_eq!(status, 0);
    assert!(seen == expected.as_bytes(), "{} bytes", seen.len());
}

fn an_archive_that_comes_late() {
    let home = Home::with_own_images();
    let expected = blackbox::done_with_input(&mut home.matchlock(["image", "import", "a:1"]), &[7; 4096]);
    assert_eq!(expected.status, 1, "{expected:?}");
    let (child, mut writer, _reader) = with_input(&mut home.matchlock(["image", "import", "a:1"]));
    std::thread::sleep(LATE);
    writer.write_all(&[7; 4096]).unwrap();
    drop(writer);
    assert_eq!(end(child), expected);
}

fn input_that_comes_late() {
    let (child, mut writer, reader) =
        with_sandbox(|home, id| with_input(&mut home.matchlock(["exec", "-i", id, "--", "cat"])));
    for piece in ["late\n", "and later\n"] {
        std::thread::sleep(LATE);
        writer.write_all(piece.as_bytes()).unwrap();
    }
    drop(writer);
    let expected = Done { status: 0, stdout: "late\nand later\n".into(), stderr: String::new() };
    assert_eq!(end(child), expected);
    assert!(is_non_blocking(reader), "the flags are others' too");
    // Input that cannot be read at all is reported.
    let of_directory = with_sandbox(|home, id| {
        done(home.matchlock(["exec", "-i", id, "--", "cat"]).stdin(File::open("/").unwrap()))
    });
    assert_eq!((of_directory.status, of_directory.stdout.as_str()), (0, ""));
    assert!(of_directory.stderr.contains("standard input: Is a directory"), "{of_directory:?}");
}

fn output_that_is_read_slowly() {
    for (script, errors) in [("head -c 3000000 /dev/zero", false), ("head -c 3000000 /dev/zero >&2", true)] {
        let (status, seen) = with_sandbox(|home, id| {
            read_slowly(&mut home.matchlock(["exec", id, "--", "sh", "-c", script]), errors)
        });
        assert_eq!((status, seen.len()), (0, 3_000_000), "{script}");
    }
}

/// Input that is typed before the session begins belongs to the session.
fn input_typed_ahead() {
    let mut terminal = Terminal::new(24, 80);
    terminal.write("echo $((6 * 7)); exit 7\n");
    let mut child =
        with_sandbox(|home, id| terminal.spawn(&mut home.matchlock(["exec", "-it", id, "--", "sh"])));
    terminal.read_until("42");
    assert_eq!(child.wait().unwrap().code(), Some(7));
}

fn run_has_the_same() {
    let home = Home::new();
    let mut terminal = Terminal::new(24, 80);
    terminal.write("echo $((6 * 7)); exit 7\n");
    let mut child = terminal.spawn(&mut home.run(["-it", "--", "sh"]));
    terminal.read_until("42");
    assert_eq!(child.wait().unwrap().code(), Some(7));

    let (child, mut writer, _reader) = with_input(&mut home.run(["-i", "--", "cat"]));
    std::thread::sleep(LATE);
    writer.write_all(b"late").unwrap();
    drop(writer);
    assert_eq!(end(child), Done { status: 0, stdout: "late".into(), stderr: String::new() });
    home.assert_nothing_left();
}
