//! What a QEMU that its guest has taken over could still do: nothing that is tried here.
//!
//! The launcher starts this test program in QEMU's place. Not here: what QEMU itself needs, which the tests with a
//! machine show.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "tests")]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeReader, Read};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use confinement::testing::attempts;
use machine::software::protocol::{Fd, Launch, LaunchReport};
use process::{Channel, Child, Spawn};
use tempfile::TempDir;

/// A launcher that has started this program's test `taken_over`, what that says, and what the launcher does.
struct Launched {
    _program: TempDir,
    _launcher: Child,
    channel: Channel,
    pid: u32,
    said: BufReader<PipeReader>,
    log: PipeReader,
}

/// `victims`: a directory with sockets in it.
fn launch(victims: &Path) -> Launched {
    let (log, stderr) = std::io::pipe().unwrap();
    let (said, stdout) = std::io::pipe().unwrap();
    let spawn = Spawn {
        stderr: Some(stderr.into()),
        ..Spawn::new(Path::new(env!("CARGO_BIN_EXE_matchlock-launcher")))
    };
    let (launcher, channel) = process::spawn(spawn).unwrap();
    let (directory, program) = for_everybody();
    let args = ["--exact", "taken_over", "--ignored", "--nocapture"].map(str::to_owned);
    let told = [victims.to_str().unwrap().to_owned(), launcher.pid().to_string()];
    let launch = Launch {
        program,
        args: args.into_iter().chain(told).collect(),
        inherit: vec![(Fd(1), 3)],
        stdout: Fd(0),
        reopened: Vec::new(),
    };
    let null = File::open("/dev/null").unwrap();
    channel.send(&launch, &[stdout.as_fd(), null.as_fd()]).unwrap();
    drop(stdout);
    let (LaunchReport::Started { pid }, _) = channel.recv().unwrap().unwrap() else { panic!("not started") };
    Launched { _program: directory, _launcher: launcher, channel, pid, said: BufReader::new(said), log }
}

/// A copy of this program where a user of the launcher's own finds it, too.
fn for_everybody() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("taken-over");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    (directory, program)
}

/// Tries everything, and says what it could. Its last arguments, filters to the test harness that match no test, are
/// the victims' directory and the launcher's process id.
#[test]
#[ignore = "the process that another test starts in QEMU's place"]
fn taken_over() {
    let told: Vec<String> = std::env::args().rev().take(2).collect();
    let (launcher, victims) = (told[0].parse().unwrap(), Path::new(&told[1]));
    // What it needs: threads, and memory to run.
    std::thread::spawn(|| vec![1u8; 1 << 20]).join().unwrap();

    say("open", File::open(victims.join("file")).is_ok());
    say("connect by path", UnixStream::connect(victims.join("control.sock")).is_ok());
    say("datagram by path", datagram(&victims.join("log.sock")));
    say("bind by path", UnixListener::bind(victims.join("new.sock")).is_ok());
    say("udp", UdpSocket::bind("127.0.0.1:0").is_ok());
    say("tcp", TcpListener::bind("127.0.0.1:0").is_ok());
    for attempt in attempts(launcher) {
        say(attempt.name, attempt.make());
    }
    println!("done");
    loop {
        std::thread::park();
    }
}

fn say(what: &str, could: bool) {
    println!("{} {what}", if could { "could" } else { "could not" });
}

fn datagram(path: &Path) -> bool {
    UnixDatagram::pair().is_ok_and(|(half, _)| half.send_to(b"matchlock", path).is_ok())
}

/// What QEMU's work takes, of what is tried. Which files it reads, Landlock and the mount namespace say.
const ALLOWED: [&str; 7] = [
    "open to read",
    "open, the old way",
    "stat",
    "execve",
    "executable memory",
    "memory made executable",
    "memfd",
];

#[test]
fn a_qemu_that_is_taken_over_reaches_nothing() {
    let victims = tempfile::tempdir().unwrap();
    let at = |name: &str| victims.path().join(name);
    File::create(at("file")).unwrap();
    let control = UnixListener::bind(at("control.sock")).unwrap();
    let log = UnixDatagram::bind(at("log.sock")).unwrap();
    // It is not for being another user that it cannot.
    for name in [".", "file", "control.sock", "log.sock"] {
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o777)).unwrap();
    }
    // Both are there for others.
    drop(UnixStream::connect(at("control.sock")).unwrap());
    control.accept().unwrap();
    assert!(datagram(&at("log.sock")));
    log.recv(&mut [0; 100]).unwrap();

    let launched = launch(victims.path());
    let lines = launched.said.lines().map(Result::unwrap);
    let tried: Vec<String> =
        lines.take_while(|line| line != "done").filter(|line| line.starts_with("could")).collect();
    let could: Vec<&str> = tried
        .iter()
        .filter_map(|line| line.strip_prefix("could "))
        .filter(|what| !what.starts_with("not "))
        .collect();
    assert_eq!(could, ALLOWED);
    assert_eq!(tried.len(), 6 + attempts(0).len());
    control.set_nonblocking(true).unwrap();
    log.set_nonblocking(true).unwrap();
    assert!(control.accept().is_err() && log.recv(&mut [0; 100]).is_err());
}

#[test]
fn qemu_has_namespaces_of_its_own() {
    let victims = tempfile::tempdir().unwrap();
    let mut launched = launch(victims.path());
    let of = |process: &str, name: &str| fs::read_link(format!("/proc/{process}/ns/{name}")).unwrap();
    let pid = launched.pid.to_string();
    let shared: Vec<&str> =
        ["net", "ipc", "pid"].into_iter().filter(|name| of(&pid, name) == of("self", name)).collect();
    drop(launched.channel);
    let mut log = String::new();
    launched.log.read_to_string(&mut log).unwrap();
    if log.contains("without namespaces") {
        skip::skip("namespaces", log.trim());
        return;
    }
    assert!(shared.is_empty(), "{shared:?}");
}
