//! A supervisor that has become a user's, its broker that stays root's, and what is left when either is killed.
//!
//! The supervisor is this program, started again, as it has to have one thread. In the place of the programs of a machine
//! stand scripts. Not here: the programs themselves, and real sudo (black-box tests).

#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr, reason = "tests")]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, ExitCode, ExitStatus, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use broker::{Powers, Program, User};
use libtest_mimic::{Arguments, Trial};
use process::{Channel, Spawn};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, kill_process, pidfd_open};

/// A user without a name.
const USER: u32 = 54_321;

/// Names the supervisor's part.
const ROLE: &str = "MATCHLOCK_TEST_SUPERVISOR";

/// A FIFO that ends the process of shared folders, and the file that it writes at its end.
const GO: &str = "go";
const KEPT: &str = "kept";

/// Nothing here takes long, unless it hangs.
const PATIENCE: Duration = Duration::from_secs(20);

/// Held while a program's file is written, and while a process starts: a process that starts meanwhile has the file
/// open for writing until it executes its own, and the program cannot be executed for so long.
static STARTING: Mutex<()> = Mutex::new(());

/// A name and a test.
type Test = (&'static str, fn());

const TESTS: &[Test] = &[
    ("the_supervisor_is_the_users_for_good", the_supervisor_is_the_users_for_good),
    ("the_broker_keeps_few_of_roots_powers", the_broker_keeps_few_of_roots_powers),
    ("our_programs_are_not_taken_from_the_path", our_programs_are_not_taken_from_the_path),
    ("what_is_started_is_roots_and_told_nothing", what_is_started_is_roots_and_told_nothing),
    ("children_are_killed_and_reaped", children_are_killed_and_reaped),
    ("what_takes_privilege_is_done", what_takes_privilege_is_done),
    ("only_what_the_command_is_for_is_done", only_what_the_command_is_for_is_done),
    ("nothing_is_left_of_a_killed_supervisor", nothing_is_left_of_a_killed_supervisor),
    ("shared_folders_end_in_peace", shared_folders_end_in_peace),
    ("nothing_is_left_of_a_killed_broker", nothing_is_left_of_a_killed_broker),
    ("what_is_no_request_ends_the_broker", what_is_no_request_ends_the_broker),
    ("processes_have_a_limit", processes_have_a_limit),
];

fn main() -> ExitCode {
    if let Ok(role) = std::env::var(ROLE) {
        supervise(&role);
        return ExitCode::SUCCESS;
    }
    let root = geteuid().is_root();
    let trials = TESTS.iter().map(|(name, test)| {
        if !root {
            eprintln!("SKIP {name}: only root can become another user");
        }
        let trial = Trial::test(*name, move || {
            test();
            Ok(())
        });
        trial.with_ignored_flag(!root)
    });
    libtest_mimic::run(&Arguments::from_args(), trials.collect()).exit_code()
}

/// The supervisor's part. Each line that it says is for the test.
fn supervise(role: &str) {
    let user = User { uid: USER, gid: USER, groups: vec![USER, 4242] };
    let powers = match role {
        "take back" => Powers::TakeBack,
        "listen" => Powers::Listen,
        _ => Powers::Sandbox,
    };
    broker::become_user(&user, Some(powers)).unwrap();
    match role {
        "status" => status(),
        "start" => {
            [Program::Vmm, Program::Launcher, Program::Shares, Program::Arrival].into_iter().for_each(show);
        }
        "reap" => reap(),
        "acts" => acts(),
        "path" => println!("{}", broker::start(Program::Vmm, Spawn::new(Path::new("/"))).unwrap_err()),
        "take back" | "listen" => few_acts(),
        "many" => many(),
        "stay" => stay([Program::Vmm, Program::Devices]),
        "share" => stay([Program::Shares, Program::Devices]),
        _ => panic!("{role}"),
    }
}

fn status() {
    // Threads that start later are the user's, too.
    let (begun, begin) = std::sync::mpsc::channel();
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let thread = std::thread::spawn(move || {
        begun.send(()).unwrap();
        let _ = ended.recv();
    });
    begin.recv().unwrap();
    for task in fs::read_dir("/proc/self/task").unwrap() {
        println!("{}", fs::read_to_string(task.unwrap().path().join("status")).unwrap());
    }
    println!("setuid {:?}", rustix::thread::set_thread_uid(rustix::process::Uid::ROOT));
    println!("dumpable {:?}", rustix::process::dumpable_behavior().unwrap());
    drop(end);
    thread.join().unwrap();
}

/// Starts a program, and passes on what it says.
fn show(program: Program) {
    let (reader, writer) = std::io::pipe().unwrap();
    // Path and arguments that the broker does not heed.
    let spawn =
        Spawn { stderr: Some(writer.into()), args: vec!["0".into()], ..Spawn::new(Path::new("/bin/false")) };
    let (mut child, channel) = broker::start(program, spawn).unwrap();
    let mut line = String::new();
    BufReader::new(reader).read_line(&mut line).unwrap();
    print!("{line}");
    drop(channel);
    assert!(child.wait().unwrap().success());
}

fn reap() {
    let start = || broker::start(Program::Vmm, Spawn::new(Path::new("/"))).unwrap();
    let (mut child, channel) = start();
    assert_eq!(child.try_wait().unwrap(), None);
    assert!(!is_readable(&child, Duration::ZERO));
    child.kill().unwrap();
    assert!(is_readable(&child, PATIENCE));
    println!("{}", child.wait().unwrap());
    child.kill().unwrap();
    println!("{}", child.wait().unwrap());
    drop(channel);
    // A script that heeds no hang-up.
    let (child, _channel) = broker::start(Program::Devices, Spawn::new(Path::new("/"))).unwrap();
    println!("{}", child.pid());
    drop(child);
}

fn acts() {
    println!("kvm {:?}", broker::open_kvm().map(|_| ()).map_err(|error| error.kind()));
    println!("version {:?}", broker::kvm_api_version().map_err(|error| error.kind()));
    listen();
    let file = fs::File::open("/dev/null").unwrap();
    let spawn = Spawn { stderr: Some(file.into()), ..Spawn::new(Path::new("/")) };
    println!("log {}", broker::start(Program::Vmm, spawn).unwrap_err());
    println!("interface {:?}", broker::delete_interface(0xffff_fff0));
}

/// Listens on a free port that takes privilege, if it may.
fn listen() {
    for port in (600..1000).rev() {
        if let Ok(listener) = broker::listen(([127, 0, 0, 1], port).into()) {
            println!("listens on {}", listener.local_addr().unwrap());
            break;
        }
    }
}

fn few_acts() {
    let error = broker::start(Program::Vmm, Spawn::new(Path::new("/"))).unwrap_err();
    println!("start {error}");
    println!("kvm {:?}", broker::open_kvm().unwrap_err().kind());
    println!("version {:?}", broker::kvm_api_version().unwrap_err().kind());
    listen();
    println!("interface {:?}", broker::delete_interface(0xffff_fff0));
}

fn many() {
    let start = || broker::start(Program::Vmm, Spawn::new(Path::new("/")));
    let children: Vec<_> = (0..16).map(|_| start().unwrap()).collect();
    println!("{}", start().unwrap_err());
    // Nobody asks for these any more, as if their descriptors had been lost.
    for (child, channel) in children {
        drop(channel);
        assert!(is_readable(&child, PATIENCE));
        std::mem::forget(child);
    }
    let children: Vec<_> = (0..16).map(|_| start().unwrap()).collect();
    drop(children);
    assert!(start().is_ok());
}

/// Starts two programs, says their numbers, and stays.
fn stay(programs: [Program; 2]) {
    let [(mut heeds, _one), (does_not, _other)] =
        programs.map(|program| broker::start(program, Spawn::new(Path::new("/"))).unwrap());
    // The broker has closed what it sent with its last answer by the time it gives the next.
    assert_eq!(heeds.try_wait().unwrap(), None);
    println!("{} {}", heeds.pid(), does_not.pid());
    loop {
        std::thread::park();
    }
}

/// A supervisor in a role, with scripts in the place of programs. For the role "path" they are on `PATH`, and else beside
/// the broker.
fn supervisor(role: &str) -> (tempfile::TempDir, std::process::Child) {
    let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    let directory = tempfile::tempdir().unwrap();
    let on_path = directory.path().join("on_path");
    fs::create_dir(&on_path).unwrap();
    let scripts = if role == "path" { &on_path } else { directory.path() };
    let script = |name: &str, body: &str| {
        let path = scripts.join(name);
        fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        fs::set_permissions(path, PermissionsExt::from_mode(0o755)).unwrap();
    };
    let heeds = "echo \"$(basename \"$0\") $(id -u):$(id -g) $*\" >&2\nexec cat <&3 >/dev/null";
    for name in ["matchlock-vmm", "matchlock-launcher", "matchlock-shares", "matchlock-arrival", broker::QEMU]
    {
        script(name, heeds);
    }
    script("matchlock-devices", "exec sleep 1000");
    if role == "share" {
        // It goes on for a moment after the hang-up: until the test says so.
        rustix::fs::mkfifoat(rustix::fs::CWD, directory.path().join(GO), 0o600.into()).unwrap();
        let body = format!("cd \"${{0%/*}}\"\ncat <&3 >/dev/null\nread -r _ <{GO}\necho kept >{KEPT}");
        script("matchlock-shares", &body);
    }
    // The broker is looked for beside the supervisor only.
    fs::copy(env!("CARGO_BIN_EXE_matchlock-broker"), directory.path().join("matchlock-broker")).unwrap();
    let program = directory.path().join("supervisor");
    fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
    let path = format!("{}:/usr/sbin:/usr/bin:/sbin:/bin", on_path.display());
    let mut command = Command::new(program);
    command.env(ROLE, role).env("PATH", path).stdin(Stdio::null()).stdout(Stdio::piped());
    let child = command.spawn().unwrap();
    (directory, child)
}

/// All that a supervisor says in a role, to its end.
fn said(role: &str) -> String {
    let (_directory, child) = supervisor(role);
    let output = child.wait_with_output().unwrap();
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said}");
    said
}

fn is_readable(descriptor: impl AsFd, patience: Duration) -> bool {
    process::wait_readable(descriptor, Some(Instant::now() + patience)).unwrap()
}

fn pid(number: u32) -> Pid {
    Pid::from_raw(number.cast_signed()).unwrap()
}

/// The values of a field of status files.
fn fields<'a>(said: &'a str, name: &str) -> Vec<&'a str> {
    said.lines().filter_map(|line| line.strip_prefix(name)).map(str::trim).collect()
}

fn the_supervisor_is_the_users_for_good() {
    let said = said("status");
    let users = format!("{USER}\t{USER}\t{USER}\t{USER}");
    for ids in ["Uid:", "Gid:"] {
        let found = fields(&said, ids);
        assert!(found.len() >= 3 && found.iter().all(|ids| *ids == users), "{said}");
    }
    assert!(fields(&said, "Groups:").iter().all(|groups| *groups == format!("4242 {USER}")), "{said}");
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
        assert!(fields(&said, set).iter().all(|set| *set == "0000000000000000"), "{said}");
    }
    assert_eq!(
        fields(&said, "setuid "),
        ["Err(Os { code: 1, kind: PermissionDenied, message: \"Operation not permitted\" })"]
    );
    assert_eq!(fields(&said, "dumpable "), ["NotDumpable"]);
}

/// A supervisor that stays, with its broker and the two processes that it has.
struct Staying {
    directory: tempfile::TempDir,
    supervisor: std::process::Child,
    broker: u32,
    started: [u32; 2],
}

fn staying(role: &str) -> Staying {
    let (directory, mut supervisor) = supervisor(role);
    let mut line = String::new();
    BufReader::new(supervisor.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let started: Vec<u32> = line.split_whitespace().map(|pid| pid.parse().unwrap()).collect();
    let main = supervisor.id();
    let children = fs::read_to_string(format!("/proc/{main}/task/{main}/children")).unwrap();
    let broker = children.split_whitespace().map(|pid| pid.parse().unwrap()).collect::<Vec<_>>();
    let ([broker], [one, other]) = (&broker[..], &started[..]) else { panic!("{children}, {line}") };
    Staying { directory, supervisor, broker: *broker, started: [*one, *other] }
}

fn the_broker_keeps_few_of_roots_powers() {
    let mut staying = staying("stay");
    let status = fs::read_to_string(format!("/proc/{}/status", staying.broker)).unwrap();
    assert_eq!(fields(&status, "Uid:"), ["0\t0\t0\t0"]);
    assert_eq!(fields(&status, "NoNewPrivs:"), ["1"]);
    assert_eq!(fields(&status, "Threads:"), ["1"]);
    // dac_override, dac_read_search, kill, setgid, setuid, setpcap, net_bind_service, net_admin, net_raw, sys_admin
    let kept = [1, 2, 5, 6, 7, 8, 10, 12, 13, 21].iter().fold(0u64, |kept, bit| kept | 1 << bit);
    let had = fs::read_to_string("/proc/self/status").unwrap();
    let had = u64::from_str_radix(fields(&had, "CapPrm:")[0], 16).unwrap();
    for set in ["CapPrm:", "CapEff:", "CapBnd:"] {
        assert_eq!(fields(&status, set), [format!("{:016x}", kept & had)], "{set}");
    }
    assert_eq!(fields(&status, "CapInh:"), ["0000000000000000"]);
    // No descriptor but its own.
    let open = fs::read_dir(format!("/proc/{}/fd", staying.broker)).unwrap().flatten();
    let open: Vec<_> = open.map(|fd| fs::read_link(fd.path()).unwrap()).collect();
    let others = open.iter().filter(|file| **file != Path::new("/dev/null"));
    let sockets = others.clone().filter(|file| file.to_str().unwrap().starts_with("socket:")).count();
    assert_eq!((sockets, others.count()), (1, 3), "the channel, and a pidfd for each child: {open:?}");
    staying.supervisor.kill().unwrap();
    staying.supervisor.wait().unwrap();
}

fn what_is_started_is_roots_and_told_nothing() {
    let said = said("start");
    let lines: Vec<_> = said.lines().map(str::trim_end).collect();
    assert_eq!(lines[0], "matchlock-vmm 0:0");
    let (launcher, qemu) = lines[1].rsplit_once(' ').unwrap();
    assert_eq!(
        (launcher, Path::new(qemu).file_name().unwrap()),
        ("matchlock-launcher 0:0", broker::QEMU.as_ref())
    );
    assert_eq!(lines[2], format!("matchlock-shares 0:0 {USER} {USER} {USER} 4242"));
    assert_eq!(lines[3], "matchlock-arrival 0:0");
}

/// A directory on `PATH` may be the user's.
fn our_programs_are_not_taken_from_the_path() {
    assert_eq!(said("path"), "matchlock-vmm: matchlock-vmm not found\n");
}

fn children_are_killed_and_reaped() {
    let said = said("reap");
    let lines: Vec<_> = said.lines().collect();
    assert_eq!(lines[..2], ["signal: 9 (SIGKILL)"; 2]);
    assert!(!Path::new("/proc").join(lines[2]).exists(), "a child that is dropped is reaped");
}

fn what_takes_privilege_is_done() {
    let said = said("acts");
    let opened = fs::File::options().read(true).write(true).open("/dev/kvm").map(|_| ());
    assert_eq!(fields(&said, "kvm "), [format!("{:?}", opened.map_err(|error| error.kind()))]);
    assert_eq!(fields(&said, "version ")[0].starts_with("Ok("), Path::new("/dev/kvm").exists(), "{said}");
    let port: u16 = fields(&said, "listens on 127.0.0.1:")[0].parse().unwrap();
    assert!(port < 1024);
    assert_eq!(fields(&said, "log "), ["matchlock-vmm: Invalid argument (os error 22)"]);
    assert_eq!(fields(&said, "interface "), ["Ok(())"]);
}

fn only_what_the_command_is_for_is_done() {
    for (role, ports) in [("take back", 0), ("listen", 1)] {
        let said = said(role);
        assert_eq!(fields(&said, "start "), ["matchlock-vmm: Operation not permitted (os error 1)"]);
        assert_eq!(fields(&said, "kvm "), ["PermissionDenied"]);
        assert_eq!(fields(&said, "version "), ["PermissionDenied"]);
        assert_eq!(fields(&said, "listens on ").len(), ports, "{said}");
        assert_eq!(fields(&said, "interface "), ["Ok(())"]);
    }
}

fn processes_have_a_limit() {
    assert_eq!(said("many"), "matchlock-vmm: too many processes\n");
}

fn nothing_is_left_of_a_killed_supervisor() {
    let Staying { directory: _directory, mut supervisor, broker, started: [one, other] } = staying("stay");
    let left = [broker, one, other].map(|process| pidfd_open(pid(process), PidfdFlags::empty()).unwrap());
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    assert!(left.iter().all(|process| is_readable(process, PATIENCE)));
}

/// A list of what a guest changed is written when the supervisor is gone.
fn shared_folders_end_in_peace() {
    let Staying { directory, mut supervisor, broker, started: [shares, other] } = staying("share");
    let [broker, shares, other] =
        [broker, shares, other].map(|process| pidfd_open(pid(process), PidfdFlags::empty()).unwrap());
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    assert!(is_readable(&other, PATIENCE));
    assert!(!is_readable(&shares, Duration::from_millis(100)), "killed at once");
    // A FIFO that is open for both ends waits for nobody.
    let mut go = fs::File::options().read(true).write(true).open(directory.path().join(GO)).unwrap();
    go.write_all(b"\n").unwrap();
    assert!(is_readable(&shares, PATIENCE) && is_readable(&broker, PATIENCE));
    assert_eq!(fs::read_to_string(directory.path().join(KEPT)).unwrap(), "kept\n");
}

fn nothing_is_left_of_a_killed_broker() {
    let Staying { directory: _directory, mut supervisor, broker, started: [heeds, does_not] } =
        staying("stay");
    let heeds = pidfd_open(pid(heeds), PidfdFlags::empty()).unwrap();
    kill_process(pid(broker), Signal::KILL).unwrap();
    let status: ExitStatus = supervisor.wait().unwrap();
    assert_eq!(status.code(), Some(1));
    assert!(is_readable(heeds, PATIENCE));
    // A process that heeds no hang-up, unlike all of ours.
    kill_process(pid(does_not), Signal::KILL).unwrap();
}

fn what_is_no_request_ends_the_broker() {
    let program = Path::new(env!("CARGO_BIN_EXE_matchlock-broker"));
    let start = || {
        let _starting = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        process::spawn(Spawn::new(program)).unwrap()
    };
    let begun = |channel: &Channel| {
        channel.send(&(USER, USER, vec![USER], Powers::Sandbox), &[]).unwrap();
        channel.recv::<Result<(), (Option<i32>, String)>>().unwrap().unwrap().0.unwrap();
    };
    for words in [&[99u8][..], &[0, 9], &[0xff; 64], &[5, 7]] {
        let (mut broker, channel) = start();
        begun(&channel);
        let packet = [&[0; 4], words].concat();
        rustix::net::send(&channel, &packet, rustix::net::SendFlags::NOSIGNAL).unwrap();
        assert!(channel.recv::<u8>().unwrap().is_none(), "{words:?}");
        assert_eq!(broker.wait().unwrap().code(), Some(1));
    }
    // Nothing is done before it is said for whom.
    let (mut broker, channel) = start();
    channel.send(&(3u8,), &[]).unwrap();
    assert!(channel.recv::<u8>().unwrap().is_none());
    assert_eq!(broker.wait().unwrap().code(), Some(1));
}
