//! The VMM process as its supervisor sees it: boots, ends, obeys, refuses, and is confined.
//!
//! The tests need a KVM of any kind: the guests are a few instructions each. Without a KVM the tests print so and pass;
//! `REQUIRE=kvm` makes them fail. Not here: Linux guests.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]

mod guest;
mod network;

use std::fs::File;
use std::io::{PipeReader, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::ExitStatus;

use guest::Guest;
use machine::KernelFormat;
use machine::descriptors::Fd;
use machine::devices::{DeviceSpec, DiskSpec, Elsewhere, SegmentSpec};
use machine::native::protocol::{End, Report, Request, Spec, exit};
use process::{Channel, Child, Spawn};

/// A VMM process and the descriptors that it was given.
struct Vmm {
    child: Child,
    channel: Channel,
    console: PipeReader,
}

/// A test's change to the usual machine.
type Change<'a> = &'a dyn Fn(&mut Spec);

impl Vmm {
    /// Starts the process and sends it a machine that runs `kernel`.
    fn start(kernel: &[u8], change: Change<'_>) -> Option<Self> {
        Self::start_with(kernel, Vec::new(), change)
    }

    /// Does the same as [`Self::start`], with further descriptors, the first of which is the fifth.
    fn start_with(kernel: &[u8], further: Vec<OwnedFd>, change: Change<'_>) -> Option<Self> {
        let Ok(kvm) = File::options().read(true).write(true).open("/dev/kvm") else {
            skip::skip("kvm", "no usable /dev/kvm");
            return None;
        };
        let (console, write) = std::io::pipe().unwrap();
        let mut descriptors: Vec<OwnedFd> =
            vec![kvm.into(), file(kernel), file(b""), write.into(), file(&[7; 4096])];
        descriptors.extend(further);
        let mut spec = Spec {
            vcpus: 1,
            memory_mib: 32,
            shared_memory: false,
            hypervisor: Fd(0),
            kernel: Fd(1),
            kernel_format: KernelFormat::Elf,
            initramfs: Fd(2),
            command_line: "quiet".to_owned(),
            devices: vec![disk(SegmentSpec::File { file: Fd(4), offset: 0, len: 4096 }), DeviceSpec::Entropy],
            console: Fd(3),
            virtio_console: true,
            balloon: true,
            network: None,
            elsewhere: Vec::new(),
        };
        change(&mut spec);
        let (child, channel) =
            process::spawn(Spawn::new(Path::new(env!("CARGO_BIN_EXE_matchlock-vmm")))).unwrap();
        let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
        channel.send(&Request::Boot(Box::new(spec)), &borrowed).unwrap();
        Some(Self { child, channel, console })
    }

    /// Starts the process and waits until the guest runs.
    fn boot(kernel: &[u8]) -> Option<Self> {
        let vmm = Self::start(kernel, &|_| {})?;
        let Report::Running(timeline) = vmm.report() else { panic!("not running") };
        let steps = [
            timeline.process_ns,
            timeline.received_ns,
            timeline.created_ns,
            timeline.devices_ns,
            timeline.loaded_ns,
            timeline.running_ns,
        ];
        assert!(steps[0] > 0 && steps.is_sorted(), "{timeline:?}");
        Some(vmm)
    }

    fn report(&self) -> Report {
        self.channel.recv().unwrap().expect("the process hung up").0
    }

    fn ask(&self, request: &Request) -> Report {
        self.channel.send(request, &[]).unwrap();
        self.report()
    }

    /// Waits for the end, and returns the last report, everything on the console, and the exit status.
    fn end(mut self) -> (Option<End>, String, ExitStatus) {
        let mut end = None;
        while let Some((report, _)) = self.channel.recv::<Report>().unwrap() {
            let Report::Ended(how) = report else { panic!("{report:?}") };
            end = Some(how);
        }
        let mut text = String::new();
        self.console.read_to_string(&mut text).unwrap();
        (end, text, self.child.wait().unwrap())
    }

    /// Reads a file of the process in /proc.
    fn proc(&self, name: &str) -> String {
        std::fs::read_to_string(format!("/proc/{}/{name}", self.child.pid())).unwrap()
    }
}

fn disk(segment: SegmentSpec) -> DeviceSpec {
    let disk = DiskSpec { segments: vec![segment], readonly: true };
    DeviceSpec::Block { id: "disk0".to_owned(), disk }
}

fn file(contents: &[u8]) -> OwnedFd {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(fd);
    file.write_all(contents).unwrap();
    file.into()
}

#[test]
fn a_guest_prints_and_powers_off() {
    let Some(vmm) = Vmm::boot(&Guest::new().print("hello").power_off()) else { return };
    let (end, console, status) = vmm.end();
    assert_eq!((end, console.as_str()), (Some(End::PowerOff), "hello"));
    assert_eq!(status.code(), Some(i32::from(exit::POWER_OFF)));
}

#[test]
fn a_reset_ends_the_machine() {
    for kernel in [Guest::new().reset(), Guest::new().out(0x64, 0xfe).spin(), Guest::new().triple_fault()] {
        let Some(vmm) = Vmm::boot(&kernel) else { return };
        let (end, _, status) = vmm.end();
        assert_eq!((end, status.code()), (Some(End::Reset), Some(i32::from(exit::RESET))));
    }
}

#[test]
fn every_device_is_in_its_window() {
    // Magic and device id of disk, entropy, console, balloon; then a window without a device.
    let window = |index: u32, register: u32| 0xd000_0000 + index * 0x1000 + register;
    let mut guest = Guest::new();
    for index in 0..4 {
        guest = guest.print_word_at(window(index, 0)).print_word_at(window(index, 8));
    }
    let Some(mut vmm) = Vmm::boot(&guest.print_word_at(window(4, 0)).power_off()) else { return };
    let mut console = Vec::new();
    vmm.console.read_to_end(&mut console).unwrap();
    let expected = [2u32, 4, 3, 5].iter().flat_map(|id| [*b"virt", id.to_le_bytes()]).flatten();
    assert_eq!(console, expected.chain([0xff; 4]).collect::<Vec<u8>>());
    assert_eq!(vmm.end().0, Some(End::PowerOff));
}

#[test]
fn a_device_that_is_served_elsewhere_is_behind_all_others() {
    let window = |index: u32, register: u32| 0xd000_0000 + index * 0x1000 + register;
    let guest = Guest::new().print_word_at(window(4, 0)).print_word_at(window(4, 8));
    let (listener, front_end) = process::accept_pair().unwrap();
    let served = vhost_backend::start("entropy", Box::new(virtio::rng::Entropy::new()), listener).unwrap();
    let change = |spec: &mut Spec| {
        spec.elsewhere = vec![(Elsewhere::Entropy, Fd(5))];
        spec.shared_memory = true;
    };
    let Some(mut vmm) = Vmm::start_with(&guest.power_off(), vec![front_end.into()], &change) else { return };
    assert!(matches!(vmm.report(), Report::Running(_)));
    let mut console = Vec::new();
    vmm.console.read_to_end(&mut console).unwrap();
    assert_eq!(console, [*b"virt", 4u32.to_le_bytes()].concat());
    assert_eq!(vmm.end().0, Some(End::PowerOff));
    served.wait().unwrap();

    let (gone, front_end) = process::accept_pair().unwrap();
    drop(gone);
    let vmm = Vmm::start_with(&Guest::new().spin(), vec![front_end.into()], &change).unwrap();
    let Report::Refused(why) = vmm.report() else { panic!("a back end that is gone is not missed") };
    assert!(why.contains("vhost-user"), "{why}");
}

#[test]
fn a_paused_guest_does_nothing_until_it_is_resumed() {
    // The second vCPU waits in the hypervisor to be started.
    let Some(mut vmm) = Vmm::start(&Guest::new().chatter(), &|spec| spec.vcpus = 2) else { return };
    assert!(matches!(vmm.report(), Report::Running(_)));
    let mut chunk = [0; 4096];
    for _ in 0..20 {
        assert!(vmm.console.read(&mut chunk).unwrap() > 0);
        assert_eq!(vmm.ask(&Request::Pause), Report::Paused);
        rustix::io::ioctl_fionbio(&vmm.console, true).unwrap();
        while vmm.console.read(&mut chunk).is_ok_and(|count| count > 0) {}
        let later = std::time::Duration::from_millis(5);
        std::thread::sleep(later);
        let silent = vmm.console.read(&mut chunk).unwrap_err();
        assert_eq!(silent.kind(), std::io::ErrorKind::WouldBlock);
        rustix::io::ioctl_fionbio(&vmm.console, false).unwrap();
        assert_eq!(vmm.ask(&Request::Resume), Report::Resumed);
    }
}

#[test]
fn a_supervisor_that_hangs_up_ends_it() {
    for paused in [false, true] {
        let Some(mut vmm) = Vmm::boot(&Guest::new().spin()) else { return };
        if paused {
            assert_eq!(vmm.ask(&Request::Pause), Report::Paused);
        }
        drop(vmm.channel);
        assert_eq!(vmm.child.wait().unwrap().code(), Some(i32::from(exit::POWER_OFF)));
    }
}

/// Holds the event thread, as a disk that does not answer would.
#[allow(unsafe_code, reason = "ptrace(2) has no safe wrapper here")]
fn hold(thread: u32) {
    let nothing = std::ptr::null_mut::<libc::c_void>();
    let mut status = 0;
    for request in [libc::PTRACE_SEIZE, libc::PTRACE_INTERRUPT] {
        // SAFETY: neither request touches memory of this process.
        let result = unsafe { libc::ptrace(request, thread, nothing, nothing) };
        assert_eq!(result, 0, "{}", std::io::Error::last_os_error());
    }
    // SAFETY: `status` outlives the call that writes it.
    unsafe { libc::waitpid(thread.cast_signed(), &raw mut status, libc::__WALL) };
    assert!(libc::WIFSTOPPED(status));
}

#[test]
fn a_supervisor_that_hangs_up_ends_it_whatever_it_waits_for() {
    let Some(mut vmm) = Vmm::boot(&Guest::new().spin()) else { return };
    hold(vmm.child.pid());
    drop(vmm.channel);
    assert_eq!(vmm.child.wait().unwrap().code(), Some(i32::from(exit::POWER_OFF)));
}

#[test]
fn what_cannot_be_made_is_refused_in_words() {
    let kernel = Guest::new().spin();
    let cases: [(&[u8], Change<'_>, &str); 8] = [
        (b"#!/bin/sh", &|_| {}, "kernel is not an ELF kernel: it is no ELF file"),
        (&kernel, &|spec| spec.kernel_format = KernelFormat::BzImage, "kernel is not a bzImage"),
        (&kernel, &|spec| spec.kernel_format = KernelFormat::Image, "arm64"),
        (&kernel, &|spec| spec.vcpus = 0, "a machine needs a vCPU"),
        (&kernel, &|spec| spec.memory_mib = 1, "memory must be from 32 MiB"),
        (&kernel, &|spec| spec.kernel = Fd(9), "descriptor 9 did not come"),
        (&kernel, &|spec| spec.hypervisor = Fd(4), "not /dev/kvm"),
        (
            &kernel,
            &|spec| spec.devices.extend((0..17).map(|_| disk(SegmentSpec::Zeroes(512)))),
            "at most 18 virtio devices",
        ),
    ];
    for (kernel, change, expected) in cases {
        let Some(mut vmm) = Vmm::start(kernel, change) else { return };
        let Report::Refused(why) = vmm.report() else { panic!("{expected}: not refused") };
        assert!(why.contains(expected), "{why}");
        assert_eq!(vmm.child.wait().unwrap().code(), Some(i32::from(exit::FAILED)));
    }
}

#[test]
fn it_is_confined_before_the_guest_runs() {
    let Some(vmm) = Vmm::start(&Guest::new().spin(), &|spec| spec.vcpus = 2) else { return };
    assert!(matches!(vmm.report(), Report::Running(_)));
    let root = rustix::process::geteuid().is_root();
    let mut threads = 0;
    for task in std::fs::read_dir(format!("/proc/{}/task", vmm.child.pid())).unwrap() {
        let status = std::fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let field = |name: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
            value.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), (vec!["1".to_owned()], vec!["2".to_owned()]));
        for set in ["CapEff:", "CapPrm:", "CapInh:", "CapAmb:"] {
            assert_eq!(field(set), ["0000000000000000"]);
        }
        if root {
            let id = (0x7800_0000 + vmm.child.pid()).to_string();
            assert_eq!((field("Uid:"), field("Gid:")), (vec![id.clone(); 4], vec![id; 4]));
            assert_eq!((field("Groups:").len(), field("CapBnd:")), (0, vec!["0000000000000000".to_owned()]));
        }
        threads += 1;
    }
    assert!(threads >= 3, "one of events, two of vCPUs, and what KVM adds");
    let limits = vmm.proc("limits");
    assert!(limits.lines().any(|line| line.starts_with("Max core file size        1  ")), "{limits}");
    // The process holds the descriptors that it was given and made, and no file that has a name.
    for descriptor in std::fs::read_dir(format!("/proc/{}/fd", vmm.child.pid())).unwrap() {
        let target = std::fs::read_link(descriptor.unwrap().path()).unwrap();
        let target = target.to_string_lossy();
        assert!(
            !target.starts_with('/')
                || ["/dev/null", "/dev/kvm", "/memfd:"].iter().any(|ours| target.starts_with(ours)),
            "{target}"
        );
    }
}

#[test]
fn it_needs_little_memory_besides_the_guests() {
    // Dirty pages of a program that was linked just now count as the process's own until they are on the disk.
    File::open(env!("CARGO_BIN_EXE_matchlock-vmm")).unwrap().sync_all().unwrap();
    let Some(vmm) = Vmm::boot(&Guest::new().spin()) else { return };
    let (mut total_kib, mut mapping_kib) = (0, 0);
    for line in vmm.proc("smaps").lines() {
        let mut fields = line.split_whitespace();
        match fields.next() {
            Some("Private_Dirty:") => mapping_kib = fields.next().unwrap().parse::<u64>().unwrap(),
            // Guest RAM is the memory that stays out of core dumps.
            Some("VmFlags:") if !fields.any(|flag| flag == "dd") => total_kib += mapping_kib,
            _ => {}
        }
    }
    assert!((1..1024).contains(&total_kib), "{total_kib} KiB: {}", vmm.proc("smaps"));
}
