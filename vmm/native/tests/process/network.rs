//! A network device in the VMM process, before a TAP in a network namespace of the test's own.

use machine::native::protocol::NetworkSpec;
use nix::sched::{CloneFlags, unshare};
use tap::Tap;

use super::*;

const HOST: [u8; 4] = [192, 0, 2, 1];
const GUEST: [u8; 4] = [192, 0, 2, 2];
const STATION: [u8; 6] = [2, 0, 0, 0, 0, 2];

/// The TAP's index among the descriptors.
const TAP: Fd = Fd(5);
/// The network device's window: disk, entropy, console and balloon come before it.
const WINDOW: u32 = 0xd000_4000;

/// Makes a TAP in a new namespace of this thread's.
fn make() -> Result<Tap, tap::Error> {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    // Without IPv6, which a kernel may lack, the interface says nothing by itself.
    let _ = std::fs::write("/proc/sys/net/ipv6/conf/default/disable_ipv6", "1");
    let tap = Tap::create("net0")?;
    for arguments in ["address add 192.0.2.1/24 dev net0", "link set net0 up"] {
        let status = std::process::Command::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(status.success(), "ip {arguments}");
    }
    Ok(tap)
}

/// A TAP, at whose other end the kernel is [`HOST`].
fn tap() -> Option<OwnedFd> {
    if !rustix::process::geteuid().is_root() {
        skip::skip("root", "network namespaces of a thread take root");
        return None;
    }
    match std::thread::spawn(make).join().unwrap() {
        Ok(tap) => Some(tap.into()),
        Err(error @ tap::Error::NoDevice) => {
            skip::skip("/dev/net/tun", error);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn with_network(spec: &mut Spec) {
    spec.network = Some(NetworkSpec { tap: TAP, station: STATION, mtu: 1500 });
}

/// The number of threads that have this name.
fn threads(vmm: &Vmm, name: &str) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", vmm.child.pid())).unwrap();
    let comm = tasks.map(|task| std::fs::read_to_string(task.unwrap().path().join("comm")).unwrap());
    comm.filter(|comm| comm.trim_end() == name).count()
}

/// VIRTIO 1.3 §4.2.2: offsets of registers.
mod register {
    pub(super) const FEATURES: u32 = 0x20;
    pub(super) const FEATURES_SEL: u32 = 0x24;
    pub(super) const QUEUE_SEL: u32 = 0x30;
    pub(super) const QUEUE_SIZE: u32 = 0x38;
    pub(super) const QUEUE_READY: u32 = 0x44;
    pub(super) const NOTIFY: u32 = 0x50;
    pub(super) const STATUS: u32 = 0x70;
    pub(super) const TABLE: u32 = 0x80;
    pub(super) const DRIVER: u32 = 0x90;
    pub(super) const DEVICE: u32 = 0xa0;
}

/// Places in the guest's memory: those of queue `n` are `n` pages further on.
const TABLES: u32 = 0x40_0000;
const AVAILABLE: u32 = 0x400;
const USED: u32 = 0x800;
const BUFFERS: u32 = 0x50_0000;
const PAGE: u32 = 0x1000;

/// VIRTIO 1.3 §2.7.5: a buffer that the device writes.
const WRITE: u32 = 2;

/// Length of the header of each packet.
const HEADER: u32 = 12;

/// The guest's part in [`a_guest_asks_for_the_hosts_address`].
fn asking() -> Vec<u8> {
    let set = |guest: Guest, register: u32, value: u32| guest.write_word(WINDOW + register, value);
    let mut guest = Guest::new();
    // VIRTIO_F_VERSION_1, and checksums that the guest does not need, so that the TAP is told.
    for (register, value) in [
        (register::STATUS, 1),
        (register::STATUS, 3),
        (register::FEATURES_SEL, 1),
        (register::FEATURES, 1),
        (register::FEATURES_SEL, 0),
        (register::FEATURES, 1 << 1),
        (register::STATUS, 0xb),
    ] {
        guest = set(guest, register, value);
    }
    for (queue, flags, len) in [(0, WRITE, PAGE), (1, 0, HEADER + 42)] {
        let table = TABLES + queue * PAGE;
        // One buffer, and the ring that offers it.
        for (word, value) in [(0, BUFFERS + queue * PAGE), (4, 0), (8, len), (12, flags)] {
            guest = guest.write_word(table + word, value);
        }
        guest = guest.write_word(table + AVAILABLE, 1 << 16);
        for (register, value) in [
            (register::QUEUE_SEL, queue),
            (register::QUEUE_SIZE, 8),
            (register::TABLE, table),
            (register::DRIVER, table + AVAILABLE),
            (register::DEVICE, table + USED),
            (register::QUEUE_READY, 1),
        ] {
            guest = set(guest, register, value);
        }
    }
    // RFC 826: who has the host's address?
    let ends = [&STATION[..], &GUEST, &[0; 6], &HOST].concat();
    let question = [&[0xff; 6][..], &STATION, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1], &ends, &[0; 2]].concat();
    for (at, word) in (0..).step_by(4).zip(question.chunks_exact(4)) {
        let word = u32::from_le_bytes(word.try_into().unwrap());
        guest = guest.write_word(BUFFERS + PAGE + HEADER + at, word);
    }
    for (register, value) in [(register::STATUS, 0xf), (register::NOTIFY, 0), (register::NOTIFY, 1)] {
        guest = set(guest, register, value);
    }
    // The number of used buffers, which the queue's flags precede; then the address of the answer's sender.
    guest.wait_for_word(TABLES + USED + 2).print_word_at(BUFFERS + HEADER + 28).power_off()
}

/// Both queues, the TAP, and the request that changes it work in the confined process.
#[test]
fn a_guest_asks_for_the_hosts_address() {
    let Some(tap) = tap() else { return };
    let Some(mut vmm) = Vmm::start_with(&asking(), vec![tap], &with_network) else { return };
    assert!(matches!(vmm.report(), Report::Running(_)));
    let mut console = Vec::new();
    vmm.console.read_to_end(&mut console).unwrap();
    assert_eq!(console, HOST);
    assert_eq!(vmm.end().0, Some(End::PowerOff));
}

#[test]
fn a_network_device_has_a_thread_of_its_own() {
    let Some(tap) = tap() else { return };
    for network in [false, true] {
        let change = |spec: &mut Spec| {
            if network {
                with_network(spec)
            }
        };
        let further = vec![tap.try_clone().unwrap()];
        let Some(vmm) = Vmm::start_with(&Guest::new().spin(), further, &change) else { return };
        assert!(matches!(vmm.report(), Report::Running(_)));
        assert_eq!(threads(&vmm, "device"), usize::from(network));
    }
}

#[test]
fn what_is_no_network_is_refused_in_words() {
    let Some(tap) = tap() else { return };
    let change = |change: fn(&mut NetworkSpec)| {
        move |spec: &mut Spec| {
            with_network(spec);
            spec.network.iter_mut().for_each(change);
        }
    };
    let group = change(|network| network.station[0] = 1);
    let narrow = change(|network| network.mtu = 67);
    let other = change(|network| network.tap = Fd(6));
    let cases: [(Change<'_>, &str); 3] = [
        (&group, "network: [01"),
        (&narrow, "network: an MTU of 67"),
        (&other, "network: the descriptor is no TAP"),
    ];
    for (change, expected) in cases {
        let further = vec![tap.try_clone().unwrap(), file(b"")];
        let Some(vmm) = Vmm::start_with(&Guest::new().spin(), further, change) else { return };
        let Report::Refused(why) = vmm.report() else { panic!("{expected}: not refused") };
        assert!(why.contains(expected), "{why}");
    }
}
