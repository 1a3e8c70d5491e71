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

use libc::c_long;
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
    let executable = libc::PROT_READ | libc::PROT_WRITE | libc::PROT_EXEC;
    let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
    assert!(call(libc::SYS_mmap, [0, 4096, executable.into(), anonymous.into(), -1, 0]));

    say("open", File::open(victims.join("file")).is_ok());
    say("connect by path", UnixStream::connect(victims.join("control.sock")).is_ok());
    say("datagram by path", datagram(&victims.join("log.sock")));
    say("bind by path", UnixListener::bind(victims.join("new.sock")).is_ok());
    say("udp", UdpSocket::bind("127.0.0.1:0").is_ok());
    say("tcp", TcpListener::bind("127.0.0.1:0").is_ok());
    for (what, number, arguments) in attempts(launcher) {
        say(what, call(number, arguments));
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

/// Calls that would succeed for another program, or do no harm if they did.
fn attempts(launcher: c_long) -> Vec<(&'static str, c_long, [c_long; 6])> {
    let socket = |family: i32, kind: i32| [family.into(), kind.into(), 0, 0, 0, 0];
    let this = c_long::from(std::process::id());
    vec![
        ("open to write", libc::SYS_openat, [-1, 0, libc::O_WRONLY.into(), 0, 0, 0]),
        ("create", libc::SYS_openat, [-1, 0, (libc::O_RDONLY | libc::O_CREAT).into(), 0, 0, 0]),
        ("unix socket", libc::SYS_socket, socket(libc::AF_UNIX, libc::SOCK_STREAM)),
        ("netlink", libc::SYS_socket, socket(libc::AF_NETLINK, libc::SOCK_RAW)),
        ("vsock", libc::SYS_socket, socket(libc::AF_VSOCK, libc::SOCK_STREAM)),
        ("kill", libc::SYS_kill, [launcher, 0, 0, 0, 0, 0]),
        ("kill everybody", libc::SYS_kill, [-1, 0, 0, 0, 0, 0]),
        ("tgkill", libc::SYS_tgkill, [launcher, launcher, 0, 0, 0, 0]),
        ("pidfd", libc::SYS_pidfd_open, [launcher, 0, 0, 0, 0, 0]),
        ("limits of another", libc::SYS_prlimit64, [launcher, 0, 0, 0, 0, 0]),
        ("owner of a descriptor", libc::SYS_fcntl, [3, libc::F_SETOWN.into(), this, 0, 0, 0]),
        ("survive the launcher", libc::SYS_prctl, [libc::PR_SET_PDEATHSIG.into(), 0, 0, 0, 0, 0]),
        ("be traced", libc::SYS_ptrace, [libc::PTRACE_TRACEME.into(), 0, 0, 0, 0, 0]),
        ("memory of another", libc::SYS_process_vm_readv, [launcher, 0, 0, 0, 0, 0]),
        ("process", libc::SYS_clone, [libc::SIGCHLD.into(), 0, 0, 0, 0, 0]),
        ("namespace", libc::SYS_unshare, [libc::CLONE_NEWUTS.into(), 0, 0, 0, 0, 0]),
        ("io_uring", libc::SYS_io_uring_setup, [1, 0, 0, 0, 0, 0]),
        ("permissions", libc::SYS_fchmod, [3, 0o666, 0, 0, 0, 0]),
        ("working directory", libc::SYS_fchdir, [3, 0, 0, 0, 0, 0]),
        ("key ring", libc::SYS_keyctl, [0, -3, 1, 0, 0, 0]),
        ("shared memory", libc::SYS_shmget, [0, 4096, 0o1600, 0, 0, 0]),
        ("priority of all", libc::SYS_getpriority, [libc::PRIO_USER.into(), 0, 0, 0, 0, 0]),
    ]
}

/// Whether a call is anything but absent.
#[allow(unsafe_code, reason = "calls that no safe wrapper would make")]
fn call(number: c_long, [a, b, c, d, e, f]: [c_long; 6]) -> bool {
    // SAFETY: every pointer in the table is null, and the mapping is a new one. A clone(2) that should not be is a
    // process that at once says so too.
    let result = unsafe { libc::syscall(number, a, b, c, d, e, f) };
    result >= 0 || std::io::Error::last_os_error().raw_os_error() != Some(libc::ENOSYS)
}

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
    let could: Vec<&String> = tried.iter().filter(|line| !line.starts_with("could not")).collect();
    assert!(could.is_empty(), "{could:?}");
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
