//! Attempts of a QEMU that its guest has taken over: none of them succeeds.
//!
//! The launcher starts this test program in QEMU's place. Not here: the powers that QEMU itself needs, which the tests
//! with a machine show.

#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs, reason = "tests")]

mod processes;

use std::fs::{self, File};
use std::io::{BufRead, BufReader, PipeReader, Read};
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use confinement::calls::{self, Call};
use confinement::testing::{attempts, pretend_absent_filter};
use machine::descriptors::Fd;
use machine::software::protocol::{Launch, LaunchReport, LaunchRequest};
use process::{Channel, Child, Confinement, Spawn};
use tempfile::TempDir;

/// A launcher that has started this program's test `taken_over`, with that test's output and the launcher's log.
struct Launched {
    _program: TempDir,
    _launcher: Child,
    channel: Channel,
    pid: u32,
    said: BufReader<PipeReader>,
    log: PipeReader,
}

/// Starts a launcher. `victims` is a directory with sockets in it; `absent` lists system calls that the kernel is to
/// lack.
fn launch(victims: &Path, absent: &[Call], unconfined: bool) -> Result<Launched, String> {
    let (log, stderr) = std::io::pipe().unwrap();
    let (said, stdout) = std::io::pipe().unwrap();
    let (directory, program) = for_everybody();
    let spawn = Spawn {
        args: vec![program.into()],
        stderr: Some(stderr.into()),
        confinement: Confinement { landlock: None, seccomp: Some(pretend_absent_filter(absent)) },
        ..Spawn::new(Path::new(env!("CARGO_BIN_EXE_matchlock-launcher")))
    };
    let (launcher, channel) = process::spawn(spawn).unwrap();
    let args = ["--exact", "taken_over", "--ignored", "--nocapture"].map(str::to_owned);
    let told = [victims.to_str().unwrap().to_owned(), launcher.pid().to_string()];
    let launch = Launch {
        memory: 1 << 30,
        unconfined,
        args: args.into_iter().chain(told).collect(),
        inherit: vec![(Fd(1), 3)],
        stdout: Fd(0),
        reopened: Vec::new(),
        has_tap: false,
    };
    let null = File::open("/dev/null").unwrap();
    channel.send(&LaunchRequest::Launch(launch), &[stdout.as_fd(), null.as_fd()]).unwrap();
    drop(stdout);
    let pid = match channel.recv().unwrap().unwrap().0 {
        LaunchReport::Started => processes::qemu(launcher.pid()),
        LaunchReport::Refused(why) => return Err(why),
        other => panic!("{other:?}"),
    };
    Ok(Launched { _program: directory, _launcher: launcher, channel, pid, said: BufReader::new(said), log })
}

/// A copy of this program at a place where the launcher's own user can reach it.
fn for_everybody() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let program = directory.path().join("taken-over");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    (directory, program)
}

/// Tries everything, and prints which attempts succeeded. The last two arguments, which the test harness takes for
/// filters that match no test, are the victims' directory and the launcher's process id.
#[test]
#[ignore = "the process that another test starts in QEMU's place"]
fn taken_over() {
    let told: Vec<String> = std::env::args().rev().take(2).collect();
    let (launcher, victims) = (told[0].parse().unwrap(), Path::new(&told[1]));
    // QEMU needs threads, and memory to run.
    std::thread::spawn(|| vec![1u8; 1 << 20]).join().unwrap();

    say(SEE, fs::symlink_metadata(victims.join("file")).is_ok());
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

/// The name of an attempt: to see a file that is none of QEMU's business.
const SEE: &str = "see a file";

/// Attempts that QEMU's work needs, so they succeed. Landlock and the mount namespace decide which files QEMU reads;
/// QEMU shortens no file, because it opens none to write.
const ALLOWED: [&str; 8] = [
    "open to read",
    "open, the old way",
    "stat",
    "shorten a file",
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
    // QEMU's attempts must fail for another reason than the files' owner.
    for name in [".", "file", "control.sock", "log.sock"] {
        fs::set_permissions(at(name), fs::Permissions::from_mode(0o777)).unwrap();
    }
    // Other processes do reach both sockets.
    drop(UnixStream::connect(at("control.sock")).unwrap());
    control.accept().unwrap();
    assert!(datagram(&at("log.sock")));
    log.recv(&mut [0; 100]).unwrap();

    for (absent, sees) in [
        (&[][..], false),
        // A file whose mode is everybody's is as open to QEMU as one of mode 0600 of QEMU's own user.
        (&[calls::LANDLOCK_CREATE_RULESET], false),
        (&[calls::UNSHARE], true),
    ] {
        let mut could = could(victims.path(), absent);
        if has_own_root(victims.path()) || sees {
            assert_eq!(could.iter().any(|what| what == SEE), sees, "{absent:?}");
        }
        could.retain(|what| what != SEE);
        assert_eq!(could, ALLOWED, "{absent:?}");
        control.set_nonblocking(true).unwrap();
        log.set_nonblocking(true).unwrap();
        assert!(control.accept().is_err() && log.recv(&mut [0; 100]).is_err());
    }
}

/// The attempts in which a QEMU that is taken over succeeds.
fn could(victims: &Path, absent: &[Call]) -> Vec<String> {
    let launched = launch(victims, absent, false).unwrap();
    let lines = launched.said.lines().map(Result::unwrap);
    let tried: Vec<String> =
        lines.take_while(|line| line != "done").filter(|line| line.starts_with("could")).collect();
    assert_eq!(tried.len(), 7 + attempts(0).len());
    let could = tried.iter().filter_map(|line| line.strip_prefix("could "));
    could.filter(|what| !what.starts_with("not ")).map(str::to_owned).collect()
}

/// Whether this host lets QEMU have a root directory of its own.
fn has_own_root(victims: &Path) -> bool {
    let mut launched = launch(victims, &[], false).unwrap();
    drop(launched.channel);
    let mut log = String::new();
    launched.log.read_to_string(&mut log).unwrap();
    if log.contains("no root directory") {
        skip::skip("namespaces", log.trim());
        return false;
    }
    true
}

#[test]
fn a_host_with_neither_namespaces_nor_landlock_runs_qemu_only_if_told_to() {
    let victims = tempfile::tempdir().unwrap();
    let absent = [calls::LANDLOCK_CREATE_RULESET, calls::UNSHARE];
    let refused = launch(victims.path(), &absent, false).map(|launched| launched.pid).unwrap_err();
    assert!(refused.contains("MATCHLOCK_UNCONFINED_QEMU=1"), "{refused}");
    assert!(launch(victims.path(), &absent, true).is_ok());
}

#[test]
fn qemu_has_namespaces_of_its_own() {
    let victims = tempfile::tempdir().unwrap();
    let mut launched = launch(victims.path(), &[], false).unwrap();
    let of = |process: &str, name: &str| fs::read_link(format!("/proc/{process}/ns/{name}")).unwrap();
    let pid = launched.pid.to_string();
    let shared: Vec<&str> =
        ["net", "ipc", "pid"].into_iter().filter(|name| of(&pid, name) == of("self", name)).collect();
    drop(launched.channel);
    let mut log = String::new();
    launched.log.read_to_string(&mut log).unwrap();
    if log.contains("no namespaces") {
        skip::skip("namespaces", log.trim());
        return;
    }
    assert!(shared.is_empty(), "{shared:?}");
}
