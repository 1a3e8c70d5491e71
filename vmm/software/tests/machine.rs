//! The software machine with real processes and a guest of a few instructions: how the machine ends, and that none of
//! its processes is ever left.
//!
//! The tests need QEMU. Without QEMU they print so and pass; `REQUIRE=qemu` makes them fail.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod guest;
mod processes;

use std::fs::File;
use std::io::{BufRead, BufReader, PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use guest::{Guest, MEETING, word};
use machine::software::{Programs, Software};
use machine::tsc::Calibration;
use machine::{
    BackEnd, Config, Disk, Elsewhere, Ending, Kernel, KernelFormat, Kind, Machine, MachineError, Network,
};
use nix::sched::{CloneFlags, unshare};
use process::{Channel, Spawn};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{Pid, PidfdFlags, Signal, geteuid, pidfd_open, pidfd_send_signal};
use tap::Tap;
use virtio::{ActivateError, Activation, Device, DeviceKind, Identity, Io};
use vm_memory::{FileOffset, MmapRegion, VolatileMemory};

/// The longest wait for any step; no step takes long unless it hangs.
const PATIENCE: Duration = Duration::from_secs(60);

/// Enough rounds to see a missed notification hundreds of times on a machine where it can happen.
const CROSSINGS: u32 = 100_000;

/// A machine's memory.
const MEMORY_MIB: u64 = 64;

fn programs() -> Option<Programs> {
    let Some(qemu) = process::find_program(Programs::QEMU) else {
        skip::skip("qemu", format!("no {} on PATH", Programs::QEMU));
        return None;
    };
    Some(Programs {
        qemu,
        launcher: env!("CARGO_BIN_EXE_matchlock-launcher").into(),
        devices: env!("CARGO_BIN_EXE_matchlock-devices").into(),
    })
}

fn memory_file(contents: &[u8]) -> OwnedFd {
    let mut file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
    file.write_all(contents).unwrap();
    file.into()
}

/// A machine's configuration, the other end of its console and of its port channel.
fn config(guest: Guest) -> (Config, BufReader<PipeReader>, Channel) {
    let (console, output) = std::io::pipe().unwrap();
    let (ports, device_end) = Channel::pair().unwrap();
    let disk = || disk::Segment::File { file: memory_file(&[0; 8192]), offset: 0, len: 8192 };
    let config = Config {
        vcpus: 1,
        memory_mib: u32::try_from(MEMORY_MIB).unwrap(),
        kernel: Kernel { file: memory_file(&guest.elf()), format: KernelFormat::Elf },
        initramfs: memory_file(b"no initramfs"),
        command_line: "quiet".to_owned(),
        disks: vec![
            Disk { segments: vec![disk()], readonly: false },
            Disk { segments: vec![disk(), disk::Segment::Zeroes(4096)], readonly: true },
        ],
        ports: device_end.into(),
        console: output.into(),
        log: Some(std::io::stderr().as_fd().try_clone_to_owned().unwrap()),
        network: None,
        elsewhere: Vec::new(),
    };
    (config, BufReader::new(console), ports)
}

/// A machine whose guest has written its first word.
fn running(programs: &Programs, guest: Guest) -> (Software, BufReader<PipeReader>, Channel) {
    let (config, mut console, ports) = config(guest);
    let machine = Software::boot_with(programs, config, Calibration::start()).unwrap();
    let mut line = String::new();
    console.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    (machine, console, ports)
}

/// Launcher, QEMU and device process of the one machine that this thread has.
fn processes() -> [u32; 3] {
    let ours = processes::children("thread-self");
    let comm = |pid: u32| std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    let named = |name| ours.iter().copied().find(|pid| comm(*pid).starts_with(name)).unwrap();
    let launcher = named("matchlock-launc");
    [launcher, processes::qemu(launcher), named("matchlock-devic")]
}

fn pidfds() -> [OwnedFd; 3] {
    processes().map(|pid| pidfd_open(Pid::from_raw(pid.cast_signed()).unwrap(), PidfdFlags::empty()).unwrap())
}

fn wait_readable(descriptor: impl AsFd) {
    let patience = Timespec { tv_sec: PATIENCE.as_secs().cast_signed(), tv_nsec: 0 };
    let ready = poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&patience)).unwrap();
    assert_eq!(ready, 1, "nothing happened in {PATIENCE:?}");
}

fn has_ended(descriptor: impl AsFd) -> bool {
    poll(&mut [PollFd::new(&descriptor, PollFlags::IN)], Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).unwrap()
        == 1
}

#[test]
fn a_guest_that_powers_off_or_resets_says_so() {
    let Some(programs) = programs() else { return };
    for (guest, expected) in [(Guest::PowerOff, Ending::PowerOff), (Guest::Reset, Ending::Reset)] {
        let (config, _console, _ports) = config(guest);
        let mut machine = Software::boot_with(&programs, config, Calibration::start()).unwrap();
        assert_eq!(machine.kind(), Kind::Software);
        let processes = pidfds();
        wait_readable(machine.ended());
        assert_eq!(machine.wait(), expected);
        assert!(processes.iter().all(has_ended), "a process is left");
        assert_eq!(machine.wait(), expected, "the second answer differs");
        assert!(matches!(machine.pause(), Err(MachineError::Refused(_))));
        machine.stop();
        assert_eq!(machine.wait(), expected);
    }
}

/// Asserts that every thread of a process belongs to this user and has no capability and no way to gain one.
fn assert_confined(pid: u32, user: u32) {
    for task in std::fs::read_dir(format!("/proc/{pid}/task")).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            value.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(field("Uid:"), vec![user.to_string(); 4], "{status}");
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapAmb:"] {
            assert_eq!(field(set), ["0000000000000000"], "{status}");
        }
        assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), (vec!["1".to_owned()], vec!["2".to_owned()]));
        if user >= FIRST_OWN_USER {
            assert_eq!((field("Gid:"), field("Groups:").len()), (vec![user.to_string(); 4], 0), "{status}");
        }
    }
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    assert!(limits.lines().any(|line| line.starts_with("Max core file size        1  ")), "{limits}");
}

/// The first user id that a launcher takes; smaller ids may belong to users of the host.
const FIRST_OWN_USER: u32 = 0x7800_0000;

#[test]
fn no_process_of_roots_machine_is_roots() {
    let Some(programs) = programs() else { return };
    if !geteuid().is_root() {
        return skip::skip("root", "this machine is not root's");
    }
    let (_machine, _console, _ports) = running(&programs, Guest::Halt);
    let [launcher, qemu, devices] = processes();
    assert_confined(launcher, FIRST_OWN_USER + launcher);
    // The launcher has QEMU's user, so it is able to end QEMU.
    assert_confined(qemu, FIRST_OWN_USER + launcher);
    assert_confined(devices, FIRST_OWN_USER + devices);
}

#[test]
fn a_machine_of_anybody_else_stays_his() {
    if programs().is_none() {
        return;
    }
    let mut supervisor = Command::new(std::env::current_exe().unwrap());
    supervisor.args(["--exact", "plain_supervisor", "--ignored", "--nocapture"]);
    if geteuid().is_root() {
        supervisor.uid(54321).gid(54321);
    }
    let output = match supervisor.output() {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            return skip::skip("root", "another user cannot execute this program where it lies");
        }
        output => output.unwrap(),
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
#[ignore = "the process that another test starts as another user"]
fn plain_supervisor() {
    let (_machine, _console, _ports) = running(&programs().unwrap(), Guest::Halt);
    processes().iter().for_each(|pid| assert_confined(*pid, geteuid().as_raw()));
}

#[test]
fn files_that_only_their_owner_reads_reach_qemu() {
    let Some(programs) = programs() else { return };
    let (mut config, mut console, _ports) = config(Guest::Halt);
    let private = || tempfile::NamedTempFile::new().unwrap();
    let (kernel, initramfs) = (private(), private());
    std::fs::write(&kernel, Guest::Halt.elf()).unwrap();
    std::fs::write(&initramfs, "no initramfs").unwrap();
    std::fs::set_permissions(&initramfs, std::fs::Permissions::from_mode(0o644)).unwrap();
    let mut reopened = File::open(&kernel).unwrap();
    // Another reader of the descriptor may have left its offset anywhere.
    reopened.read_to_end(&mut Vec::new()).unwrap();
    (config.kernel.file, config.initramfs) = (reopened.into(), File::open(&initramfs).unwrap().into());
    let _machine = Software::boot_with(&programs, config, Calibration::start()).unwrap();
    let mut line = String::new();
    console.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    // Only files that QEMU could not open are copied.
    let held = std::fs::read_dir(format!("/proc/{}/fd", processes()[1])).unwrap();
    let held: Vec<_> = held.map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap()).collect();
    assert!(held.iter().any(|file| file == initramfs.path()), "{held:?}");
    assert_eq!(held.iter().any(|file| file == kernel.path()), !geteuid().is_root(), "{held:?}");
}

#[test]
fn a_stopped_or_dropped_machine_leaves_nothing() {
    let Some(programs) = programs() else { return };
    let (mut machine, _console, _ports) = running(&programs, Guest::Halt);
    let processes = pidfds();
    assert!(!has_ended(machine.ended()));
    machine.stop();
    machine.stop();
    wait_readable(machine.ended());
    assert_eq!(machine.wait(), Ending::PowerOff);
    assert!(processes.iter().all(has_ended), "a process is left");

    let (machine, _console, _ports) = running(&programs, Guest::Halt);
    let processes = pidfds();
    drop(machine);
    assert!(processes.iter().all(has_ended), "a process is left");
}

#[test]
fn whichever_process_is_killed_the_others_end_and_the_machine_says_which() {
    let Some(programs) = programs() else { return };
    for (victim, words) in [(0, "QEMU"), (1, "QEMU ended"), (2, "device process ended")] {
        let (mut machine, _console, _ports) = running(&programs, Guest::Halt);
        let processes = pidfds();
        pidfd_send_signal(&processes[victim], Signal::KILL).unwrap();
        wait_readable(machine.ended());
        let ending = machine.wait();
        assert!(matches!(&ending, Ending::Failed(why) if why.contains(words)), "killed {victim}: {ending:?}");
        assert!(processes.iter().all(has_ended), "killed {victim}: a process is left");
    }
}

/// Waits for the end in a thread of its own, because the end might never come.
fn end_of(mut machine: Software) -> Ending {
    let (tell, told) = std::sync::mpsc::channel();
    std::thread::spawn(move || tell.send(machine.wait()));
    told.recv_timeout(PATIENCE).unwrap()
}

#[test]
fn a_launcher_that_does_not_answer_is_not_waited_for() {
    let Some(programs) = programs() else { return };
    for stop in [true, false] {
        let (mut machine, _console, _ports) = running(&programs, Guest::Halt);
        let processes = pidfds();
        pidfd_send_signal(&processes[0], Signal::STOP).unwrap();
        if stop {
            machine.stop();
            assert_eq!(end_of(machine), Ending::PowerOff);
        } else {
            pidfd_send_signal(&processes[1], Signal::KILL).unwrap();
            let ending = end_of(machine);
            assert!(matches!(&ending, Ending::Failed(why) if why.contains("launcher")), "{ending:?}");
        }
        assert!(processes.iter().all(has_ended), "a process is left");
    }

    let (machine, _console, _ports) = running(&programs, Guest::Halt);
    let processes = pidfds();
    pidfd_send_signal(&processes[0], Signal::STOP).unwrap();
    drop(machine);
    assert!(processes.iter().all(has_ended), "a process is left");
}

#[test]
fn nothing_outlives_a_supervisor_that_was_killed() {
    if programs().is_none() {
        return;
    }
    let mut spawn = Spawn::new(&std::env::current_exe().unwrap());
    spawn.args = ["--exact", "supervisor_to_be_killed", "--ignored", "--nocapture"].map(Into::into).into();
    spawn.stderr = Some(std::io::stderr().as_fd().try_clone_to_owned().unwrap());
    let (mut supervisor, channel) = process::spawn(spawn).unwrap();
    let (_, processes) = channel.recv::<()>().unwrap().unwrap();
    assert_eq!(processes.len(), 3);
    assert!(!processes.iter().any(has_ended));
    supervisor.kill().unwrap();
    supervisor.wait().unwrap();
    processes.iter().for_each(wait_readable);
}

#[test]
#[ignore = "the process that another test kills"]
fn supervisor_to_be_killed() {
    let channel = process::parent_channel().unwrap();
    let (mut machine, _console, _ports) = running(&programs().unwrap(), Guest::Halt);
    let processes = pidfds();
    channel.send(&(), &processes.each_ref().map(AsFd::as_fd)).unwrap();
    machine.wait();
}

#[test]
fn a_paused_guest_stands_still() {
    let Some(programs) = programs() else { return };
    let (mut machine, mut console, _ports) = running(&programs, Guest::Chatter);
    machine.pause().unwrap();
    // The output that was on its way is read until no more comes for a while.
    let quiet = Timespec { tv_sec: 0, tv_nsec: 200_000_000 };
    let begun = Instant::now();
    loop {
        let buffered = console.fill_buf().unwrap().len();
        console.consume(buffered);
        assert!(begun.elapsed() < PATIENCE, "the guest goes on");
        if poll(&mut [PollFd::new(console.get_ref(), PollFlags::IN)], Some(&quiet)).unwrap() == 0 {
            break;
        }
    }
    machine.resume().unwrap();
    wait_readable(console.get_ref());
    machine.stop();
    assert_eq!(machine.wait(), Ending::PowerOff);
}

/// The guest's RAM, which QEMU shares with the devices.
fn memory() -> MmapRegion {
    let [_, qemu, _] = processes();
    let mut files = std::fs::read_dir(format!("/proc/{qemu}/fd")).unwrap().map(|entry| entry.unwrap().path());
    let is_memory = |file: &PathBuf| {
        std::fs::read_link(file).is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:"))
            && std::fs::metadata(file).unwrap().len() == MEMORY_MIB << 20
    };
    let file = File::options().read(true).write(true).open(files.find(is_memory).unwrap()).unwrap();
    map(file)
}

fn map(ram: File) -> MmapRegion {
    MmapRegion::from_file(FileOffset::new(ram, 0), usize::try_from(MEMORY_MIB << 20).unwrap()).unwrap()
}

/// Virtio's notifications rely on this order: a driver stores its buffer, then looks whether the device wants a
/// notification; the device stores that it wants one, then looks for the driver's buffer. If both read the old values,
/// both wait for ever.
#[test]
fn of_a_lone_cpu_and_a_device_that_cross_at_least_one_sees_the_other() {
    let Some(programs) = programs() else { return };
    let (_machine, _console, _ports) = running(&programs, Guest::Crossing);
    assert_eq!(unseen_crossings(&memory()), 0, "of {CROSSINGS}");
}

/// The emulated host in which the KVM machine is tested depends on the same order, for its own disk.
#[test]
fn of_an_emulated_host_and_its_disk_that_cross_at_least_one_sees_the_other() {
    let Some(programs) = programs() else { return };
    let directory = tempfile::tempdir_in("/dev/shm").unwrap();
    let (kernel, ram) = (directory.path().join("kernel"), directory.path().join("ram"));
    std::fs::write(&kernel, Guest::Crossing.elf()).unwrap();
    let qemu = Command::new(&programs.qemu)
        .args(include_str!("../../../xtask/src/emulated.args").split_whitespace())
        .args(["-nodefaults", "-no-user-config", "-display", "none", "-serial", "stdio"])
        .args(["-m", &MEMORY_MIB.to_string(), "-machine", "memory-backend=ram", "-object"])
        .arg(format!("memory-backend-file,id=ram,size={MEMORY_MIB}M,share=on,mem-path={}", ram.display()))
        .arg("-kernel")
        .arg(kernel)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut qemu = Ended(qemu);
    let mut said = BufReader::new(qemu.0.stdout.take().unwrap());
    let up = std::iter::repeat_with(|| {
        let mut line = String::new();
        (said.read_line(&mut line).unwrap() > 0).then_some(line)
    });
    // The firmware may print lines before the guest does.
    assert!(up.map_while(|line| line).any(|line| line.ends_with("up\n")));
    let file = File::options().read(true).write(true).open(ram).unwrap();
    assert_eq!(unseen_crossings(&map(file)), 0, "of {CROSSINGS}");
}

/// A process that ends with the test, also with one that fails.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// How often a guest and this thread have both stored, looked, and not seen each other.
fn unseen_crossings(memory: &MmapRegion) -> u32 {
    let word = |distance: i8| {
        let place = usize::try_from(MEETING).unwrap().checked_add_signed(distance.into()).unwrap();
        memory.get_atomic_ref::<AtomicU32>(place).unwrap()
    };
    let [turn, guest, host] = [word::TURN, word::GUEST, word::HOST].map(word);
    let [seen, done] = [word::SEEN, word::DONE].map(word);
    let (mut unseen, mut delay) = (0, 0u32);
    for round in 1..=CROSSINGS {
        let begun = Instant::now();
        turn.store(round, Ordering::SeqCst);
        (0..delay).for_each(|step| _ = std::hint::black_box(step));
        host.store(round, Ordering::SeqCst);
        let guest_seen = guest.load(Ordering::SeqCst) == round;
        while done.load(Ordering::SeqCst) != round {
            assert!(begun.elapsed() < PATIENCE, "the guest stands still");
            std::thread::yield_now();
        }
        let host_seen = seen.load(Ordering::SeqCst) == round;
        unseen += u32::from(!guest_seen && !host_seen);
        // The side that came first waits longer in the next round, so that the two go on crossing.
        delay = if guest_seen { delay.saturating_sub(1) } else { delay + 1 };
    }
    unseen
}

/// A file system that no guest mounts.
struct FileSystem;

impl Device for FileSystem {
    fn identity(&self) -> Identity<'_> {
        Identity { kind: DeviceKind::FileSystem, features: 0, queue_sizes: &[1024; 3] }
    }
    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }
    fn activate(&mut self, _activation: &Activation<'_>) -> Result<(), ActivateError> {
        Ok(())
    }
    fn process(&mut self, _index: usize, _io: &mut Io<'_>) {}
    fn reset(&mut self) {}
}

#[test]
fn devices_that_are_served_elsewhere_are_as_good_as_its_own() {
    let Some(programs) = programs() else { return };
    let (mut config, mut console, _ports) = config(Guest::Halt);
    let fs = Elsewhere::FileSystem { tag: "a,readonly=on".to_owned(), request_queues: 2 };
    let devices: [(Elsewhere, Box<dyn Device>); 2] =
        [(fs, Box::new(FileSystem)), (Elsewhere::Entropy, Box::new(virtio::rng::Entropy::new()))];
    let mut served = Vec::new();
    for (device, back_end) in devices {
        assert_eq!(device.queue_sizes(), back_end.identity().queue_sizes);
        assert_eq!(device.kind(), back_end.identity().kind);
        let (listener, socket) = process::accept_pair().unwrap();
        served.push(vhost_backend::start("elsewhere", back_end, listener).unwrap());
        config.elsewhere.push(BackEnd { socket: socket.into(), device });
    }
    let mut machine = Software::boot_with(&programs, config, Calibration::start()).unwrap();
    let mut line = String::new();
    console.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    machine.stop();
    assert_eq!(machine.wait(), Ending::PowerOff);
    // Each of the connections notices that the machine is gone.
    served.into_iter().for_each(|served| served.wait().unwrap());

    let (mut config, _console, _ports) = self::config(Guest::Halt);
    let (gone, socket) = process::accept_pair().unwrap();
    drop(gone);
    config.elsewhere = vec![BackEnd { socket: socket.into(), device: Elsewhere::Entropy }];
    let ending = Software::boot_with(&programs, config, Calibration::start()).unwrap().wait();
    assert!(matches!(&ending, Ending::Failed(why) if why.contains("QEMU")), "{ending:?}");
}

#[test]
fn a_console_nobody_reads_does_not_stop_the_guest() {
    let Some(programs) = programs() else { return };
    // The guest writes more than any pipe holds, and then powers off.
    let (config, console, _ports) = config(Guest::ChatterThenPowerOff);
    let mut machine = Software::boot_with(&programs, config, Calibration::start()).unwrap();
    wait_readable(machine.ended());
    assert_eq!(machine.wait(), Ending::PowerOff);
    drop(console);
}

#[test]
fn what_cannot_be_booted_is_an_error_with_a_reason() {
    let Some(programs) = programs() else { return };
    // Without a valid kernel QEMU prints an error and ends.
    let (mut nonsense, _console, _ports) = config(Guest::Halt);
    nonsense.kernel.file = memory_file(b"this is no kernel, this is text");
    let mut machine = Software::boot_with(&programs, nonsense, Calibration::start()).unwrap();
    let ending = machine.wait();
    assert!(matches!(&ending, Ending::Failed(why) if why.contains("kernel")), "{ending:?}");

    // More memory than any host has.
    let (mut greedy, _console, _ports) = config(Guest::Halt);
    greedy.memory_mib = u32::MAX;
    let ending = Software::boot_with(&programs, greedy, Calibration::start()).unwrap().wait();
    assert!(matches!(&ending, Ending::Failed(why) if why.contains("memory")), "{ending:?}");

    // A disk whose file is shorter than the spec says.
    let (mut short, _console, _ports) = config(Guest::Halt);
    short.disks[0].segments =
        vec![disk::Segment::File { file: memory_file(&[0; 512]), offset: 0, len: 4096 }];
    let ending = Software::boot_with(&programs, short, Calibration::start()).unwrap().wait();
    assert!(matches!(&ending, Ending::Failed(why) if why.contains("disk0")), "{ending:?}");

    // A missing QEMU, and a program in the launcher's place that is no launcher.
    let (plain, _console, _ports) = config(Guest::Halt);
    let missing = Programs { qemu: "/nonexistent/qemu".into(), ..programs.clone() };
    let error = Software::boot_with(&missing, plain, Calibration::start()).unwrap_err();
    assert!(error.to_string().contains("/nonexistent/qemu"), "{error}");
    let (plain, _console, _ports) = config(Guest::Halt);
    let missing = Programs { launcher: "/nonexistent/launcher".into(), ..programs.clone() };
    assert!(matches!(
        Software::boot_with(&missing, plain, Calibration::start()),
        Err(MachineError::Process { what: "matchlock-launcher", .. })
    ));
    let (plain, _console, _ports) = config(Guest::Halt);
    let wrong = Programs { devices: "/bin/true".into(), ..programs };
    let ending = Software::boot_with(&wrong, plain, Calibration::start()).map(|mut machine| machine.wait());
    assert!(!matches!(ending, Ok(Ending::PowerOff | Ending::Reset)), "{ending:?}");
}

/// `RLIMIT_FSIZE` and `RLIMIT_AS` of a process, in MiB.
fn limits(pid: u32) -> [u64; 2] {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
    ["Max file size", "Max address space"].map(|name| {
        let line = limits.lines().find_map(|line| line.strip_prefix(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() >> 20
    })
}

#[test]
fn each_process_has_limits() {
    let Some(programs) = programs() else { return };
    let (_machine, _console, _ports) = running(&programs, Guest::Halt);
    let [launcher, qemu, devices] = processes();
    // The bound for files is the log's, as no disk is longer, and neither is the memory.
    assert_eq!(limits(qemu), [64, 4096 + MEMORY_MIB]);
    assert_eq!(limits(launcher), limits(qemu));
    // Two disks, vsock and entropy.
    assert_eq!(limits(devices), [64, 1024 + 4 * 2 * MEMORY_MIB]);
}

/// A TAP in a network namespace of its own.
fn tap() -> Option<OwnedFd> {
    if !geteuid().is_root() {
        skip::skip("root", "network namespaces of a thread take root");
        return None;
    }
    let made = std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        Tap::create("net0")
    });
    match made.join().unwrap() {
        Ok(tap) => Some(tap.into()),
        Err(error @ tap::Error::NoDevice) => {
            skip::skip("/dev/net/tun", error);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn of_a_machines_processes_only_qemu_has_the_tap() {
    let Some(programs) = programs() else { return };
    let Some(tap) = tap() else { return };
    let network = |tap| Some(Network { tap, station: [2, 0, 0, 0, 0, 2], mtu: 1500 });
    let (mut config, mut console, _ports) = config(Guest::Halt);
    config.network = network(tap);
    let mut machine = Software::boot_with(&programs, config, Calibration::start()).unwrap();
    let mut line = String::new();
    console.read_line(&mut line).unwrap();
    assert_eq!(line, "up\n");
    let has_tap = processes().map(|pid| {
        let held = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let mut held = held.map(|entry| std::fs::read_link(entry.unwrap().path()).unwrap());
        held.any(|file| file.ends_with("net/tun"))
    });
    assert_eq!(has_tap, [false, true, false]);
    machine.stop();
    assert_eq!(machine.wait(), Ending::PowerOff);

    let (mut config, _console, _ports) = self::config(Guest::Halt);
    config.network = network(File::open("/dev/null").unwrap().into());
    let ending = Software::boot_with(&programs, config, Calibration::start()).unwrap().wait();
    assert!(matches!(&ending, Ending::Failed(why) if why.contains("TUNGETIFF")), "{ending:?}");
}
