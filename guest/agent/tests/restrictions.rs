//! Acts that a program without privilege is refused, tried with real system calls in every numbering that the CPU
//! knows.

#![allow(clippy::unwrap_used, missing_docs, reason = "tests")]
#![allow(unsafe_code, reason = "each test enters a mount namespace")]
#![cfg(target_arch = "x86_64")]

#[allow(unreachable_pub, dead_code, reason = "shared by tests that use parts of it")]
mod support;

use std::sync::Arc;

use guest_agent::service::Agent;
use guest_protocol::{ExecRequest, Exit, Stdio};
use support::{Client, guest, request, run, shell};

const EPERM: u8 = 1;

/// A way for a program to enter the kernel.
#[derive(Debug, Clone, Copy)]
enum Entry {
    Syscall,
    Int80,
}

/// A static program that makes one system call, all arguments zero, and exits with its errno.
fn program(entry: Entry, number: u32) -> Vec<u8> {
    let mut code = Vec::new();
    code.extend([0x31, 0xff, 0x31, 0xf6, 0x31, 0xd2, 0x4d, 0x31, 0xd2, 0x31, 0xdb, 0x31, 0xc9]); // edi esi edx r10 ebx ecx = 0
    code.push(0xb8); // mov eax, number
    code.extend(number.to_le_bytes());
    code.extend(match entry {
        Entry::Syscall => [0x0f, 0x05],
        Entry::Int80 => [0xcd, 0x80],
    });
    code.extend([0xf7, 0xd8, 0x89, 0xc7]); // neg eax; mov edi, eax
    code.extend([0xb8, 60, 0, 0, 0, 0x0f, 0x05]); // exit
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2, 0, 62, 0, 1, 0, 0, 0]); // executable, x86-64
    for word in [BASE + HEADERS, 64, 0] {
        elf.extend(word.to_le_bytes()); // entry, program headers, section headers
    }
    elf.extend([0, 0, 0, 0, 64, 0, 56, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
    elf.extend([1, 0, 0, 0, 5, 0, 0, 0]); // load, readable and executable
    let length = HEADERS + code.len() as u64;
    for word in [0, BASE, BASE, length, length, 4096] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

fn status(agent: &Arc<Agent>, entry: Entry, number: u32, privileged: bool) -> Exit {
    // Written by a program of the guest, as a file that this process has open for writing cannot be executed.
    let mut store = Client::exec(
        agent,
        ExecRequest { stdio: Stdio::Pipe, ..shell("cat >/tmp/call; chmod 755 /tmp/call") },
    );
    store.stdin(&program(entry, number));
    store.stdin(b"");
    assert_eq!(store.finish().status(), 0);
    run(agent, ExecRequest { privileged, ..request(&["/tmp/call"]) }).exit.unwrap().0
}

#[test]
fn refused_calls() {
    let Some(agent) = guest() else { return };
    let status = |entry, number, privileged| status(&agent, entry, number, privileged);
    const GETPID: u32 = 39;
    assert_ne!(status(Entry::Syscall, GETPID, false), Exit::Code(EPERM), "others are let through");
    // ptrace, process_vm_readv, process_vm_writev, kexec_load, kexec_file_load
    for number in [101, 310, 311, 246, 320] {
        assert_eq!(status(Entry::Syscall, number, false), Exit::Code(EPERM), "call {number}");
    }
    assert_eq!(status(Entry::Syscall, 101, true), Exit::Code(0), "PTRACE_TRACEME works with privilege");
    // The same five, and a harmless one, as x32 calls.
    for number in [521, 539, 540, 528, 320, GETPID] {
        assert_eq!(
            status(Entry::Syscall, 0x4000_0000 | number, false),
            Exit::Code(EPERM),
            "x32 call {number}"
        );
    }
    const GETPID_32: u32 = 20;
    if let Exit::Signal(_) = status(Entry::Int80, GETPID_32, true) {
        skip::skip("i386", "this kernel has no 32-bit system calls");
        return;
    }
    assert_ne!(status(Entry::Int80, GETPID_32, false), Exit::Code(EPERM), "32-bit programs run");
    for number in [26, 347, 348, 283] {
        assert_eq!(status(Entry::Int80, number, false), Exit::Code(EPERM), "32-bit call {number}");
    }
    assert_eq!(status(Entry::Int80, 26, true), Exit::Code(0), "PTRACE_TRACEME works with privilege");
}

const SETS: &str = "grep -E '^(Cap|NoNewPrivs|Seccomp:)' /proc/self/status | tr -d '\\t\\n'";

/// CHOWN, DAC_OVERRIDE, FOWNER, FSETID, KILL, SETGID, SETUID, SETPCAP, NET_BIND_SERVICE, NET_RAW, SYS_CHROOT, MKNOD,
/// AUDIT_WRITE, SETFCAP: a container's capabilities.
const KEPT: u64 = 0xa804_25fb;

#[test]
fn capabilities() {
    let Some(agent) = guest() else { return };
    let status = |user: &str, privileged| {
        let request = ExecRequest { user: user.to_owned(), privileged, ..shell(SETS) };
        run(&agent, request).text().to_owned()
    };
    let set = |status: &str, name: &str| {
        let at = status.find(name).unwrap() + name.len() + 1;
        u64::from_str_radix(&status[at..at + 16], 16).unwrap()
    };
    let root = status("", false);
    assert!(root.ends_with("NoNewPrivs:1Seccomp:2"), "{root}");
    let sets =
        |status: &str| ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"].map(|name| set(status, name));
    assert_eq!(sets(&root), [KEPT, KEPT, KEPT, 0, 0]);
    let app = status("app", false);
    assert_eq!(sets(&app), [KEPT, 0, 0, 0, 0]);
    let privileged = status("", true);
    assert!(privileged.ends_with("NoNewPrivs:0Seccomp:0"), "{privileged}");
    let own = std::fs::read_to_string("/proc/self/status").unwrap().replace('\t', "");
    assert_eq!(set(&privileged, "CapEff"), set(&own, "CapEff"));
}

#[test]
fn what_that_means() {
    let Some(agent) = guest() else { return };
    for text in [
        "mount -t tmpfs none /home",
        "umount /proc",
        "head -c 1 /proc/1/mem",
        "ls /proc/1/root/",
        "kill -9 1; false",
    ] {
        assert_ne!(run(&agent, shell(text)).status(), 0, "{text}");
    }
    assert_eq!(
        run(&agent, shell("chown 7 /home/app && kill -0 1 && hostname")).status(),
        0,
        "root otherwise"
    );
    let privileged = ExecRequest { privileged: true, ..shell("mount -t tmpfs none /home") };
    assert_eq!(run(&agent, privileged).status(), 0);
}

/// A memory file system stands in for the cgroups.
#[test]
fn cgroups_are_for_the_privileged() {
    let Some(agent) = guest() else { return };
    let lift = || shell("echo max > /sys/fs/cgroup/cpu.max");
    assert_ne!(run(&agent, lift()).status(), 0);
    assert_eq!(run(&agent, shell("cat /sys/fs/cgroup/cpu.max")).text(), "50000 100000");
    assert_eq!(run(&agent, ExecRequest { privileged: true, ..lift() }).status(), 0);
    assert_ne!(run(&agent, lift()).status(), 0, "only that program's mount was writable");
    assert_eq!(run(&agent, shell("cat /sys/fs/cgroup/cpu.max")).text(), "max\n");
}

/// Each attempt reports if it worked. The values written are the current ones, as the kernel is this host's.
#[test]
fn the_kernel_is_not_to_be_written() {
    let Some(agent) = guest() else { return };
    let attempts = "try() { sh -c \"$1\" 2>/dev/null && echo \"$1\"; }
        p=$(cat /proc/sys/kernel/core_pattern)
        try \"echo '$p' >/proc/sys/kernel/core_pattern\"
        try ': >>/proc/sys/kernel/core_pattern'
        try ': >>/proc/sysrq-trigger'
        try ': >>/proc/irq/default_smp_affinity'
        try 'test -s /proc/timer_list'
        try 'test -s /proc/keys'
        try 'head -c 1 /proc/kcore | grep .'
        try 'ls /proc/scsi | grep .'
        try 'echo 1 >/sys/setting'
        try 'test -e /sys/firmware/secret'
        try 'test -e /dev/raw'
        try 'mknod /dev/mine c 1 3 && : >>/dev/mine'
        try 'mknod /dev/shm/mine c 1 3 && : >>/dev/shm/mine'
        try 'mknod /home/mine c 1 3 && : >>/home/mine'
        try 'umount /proc/sys'
        try 'umount /dev'
        true";
    assert_eq!(run(&agent, shell(attempts)).text(), "");
    let seen = run(&agent, shell("cat /proc/sys/kernel/ostype; ls /dev; ls /sys; ls /home; cat /dev/null"));
    let expected = "Linux\nfd\nfull\nmine\nnull\nptmx\npts\nrandom\nshm\nstderr\nstdin\nstdout\ntty\nurandom\nzero\nfirmware\nfs\nsetting\napp\nmine\n";
    assert_eq!(seen.text(), expected);
    let with_privilege = "test -e /dev/raw && : >>/dev/raw && : >>/proc/sys/kernel/core_pattern && test -e /sys/firmware/secret &&
        rm /home/mine && mknod /home/mine c 1 3 && : >>/home/mine && echo 1 >/sys/setting && echo privileged";
    let privileged = ExecRequest { privileged: true, ..shell(with_privilege) };
    assert_eq!(run(&agent, privileged).text(), "privileged\n");
}

/// Only the file systems of the devices themselves, and of terminals, lack `nodev`.
#[test]
fn no_file_system_has_devices() {
    let Some(agent) = guest() else { return };
    let mounts = run(&agent, request(&["cat", "/proc/self/mounts"]));
    let mut with_devices: Vec<_> = mounts
        .text()
        .lines()
        .filter_map(|line| {
            let fields: Vec<_> = line.split(' ').collect();
            (!fields[3].split(',').any(|option| option == "nodev")).then(|| fields[1].to_owned())
        })
        .collect();
    with_devices.sort_unstable();
    with_devices.dedup();
    // Covered mounts are listed too: the old /dev, and those in it.
    let known = [
        "/dev",
        "/dev/full",
        "/dev/null",
        "/dev/pts",
        "/dev/random",
        "/dev/shm",
        "/dev/tty",
        "/dev/urandom",
        "/dev/zero",
        "/proc",
        "/sys",
        "/sys/fs/cgroup",
    ];
    assert!(
        with_devices.iter().all(|place| known.contains(&place.as_str()) || place.starts_with("/proc/")),
        "{with_devices:?}"
    );
}

#[test]
fn limits() {
    let Some(agent) = guest() else { return };
    assert_eq!(run(&agent, shell("ulimit -n; umask")).text(), "1024\n0022\n");
    // Signals that this test itself was started to ignore stay ignored; SIGPIPE, which the agent ignores, does not.
    let signals = run(&agent, shell("grep -E '^Sig(Ign|Blk)' /proc/self/status | cut -f2"));
    let masks: Vec<_> = signals.text().lines().map(|mask| u64::from_str_radix(mask, 16).unwrap()).collect();
    assert_eq!((masks[0], masks[1] & 1 << (13 - 1)), (0, 0), "{}", signals.text());
    let open = run(&agent, request(&["ls", "/proc/self/fd"]));
    assert_eq!(open.text(), "0\n1\n2\n3\n", "the streams, and ls's own");
}
