//! Ports, MMIO and memory: the guest's accesses as the host sees them, and their results in the guest.

use hypervisor::x86::BootState;
use hypervisor::{Hypervisor, MemorySlot, Vm};
use vm_memory::{Bytes, GuestAddress};

use crate::rig::{Access, COUNTING_PORT, RAM_SIZE, Rig, Setup, allocate, pattern, write};
use crate::{Case, Needs, guests};

/// The address of the guests' MMIO.
const MMIO: u64 = 0xd000_0000;
/// The address of the guests' second slot.
const SLOT: u64 = 0x1000_0000;

pub(crate) fn cases<H: Hypervisor>() -> Vec<Case<H>> {
    vec![
        Case::new("port_writes_have_every_width", port_writes),
        Case::new("port_reads_change_only_the_register_named", port_reads),
        Case::new("string_instructions_reach_ports_one_element_at_a_time", string_instructions),
        Case::new("mmio_writes_have_every_width", mmio_writes),
        Case::new("mmio_reads_complete_with_every_width_and_extension", mmio_reads),
        Case::new("mmio_has_eight_byte_accesses", mmio_eight_bytes),
        Case::new("mmio_across_a_page_comes_in_pieces", mmio_across_pages),
        Case::new("mmio_operands_can_be_updated", mmio_updates),
        Case::new("memory_is_shared_with_the_host", memory),
        Case::new("readonly_memory_reads_and_exits_on_writes", readonly_memory).needs(Needs::ReadonlyMemory),
        Case::new("long_mode_has_wide_registers_and_mmio", long_mode),
        Case::new("cpuid_names_the_hypervisor_and_the_vcpu", cpuid),
    ]
}

fn out(port: u16, data: &[u8]) -> Access {
    Access::Out { port, data: data.to_vec() }
}

fn wrote(address: u64, data: &[u8]) -> Access {
    Access::Write { address, data: data.to_vec() }
}

/// The value of an MMIO read at offset `at`, as the guest gets it.
fn answer<const N: usize>(at: u64) -> [u8; N] {
    let mut at = at..;
    [(); N].map(|()| at.next().map_or(0, pattern))
}

fn port_writes<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::real(guests::PORT_OUT));
    let bytes = [0x11, 0x22, 0x33, 0x44];
    let expected =
        [out(0x80, &bytes[..1]), out(0x80, &bytes[..2]), out(0x80, &bytes), out(0x1234, &bytes[..1])];
    assert_eq!(rig.complete(), expected);
}

fn port_reads<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::real(guests::PORT_IN));
    let read = |port, len| Access::In { port, len };
    assert_eq!(rig.complete(), [read(0x80, 1), read(0x80, 2), read(0x1235, 4)]);
    let [low, high] = answer::<2>(0x80);
    assert_eq!(rig.read::<u32>(0x2000), u32::from_le_bytes([low, 0xff, 0xff, 0xff]));
    assert_eq!(rig.read::<u32>(0x2004), u32::from_le_bytes([low, high, 0xff, 0xff]));
    assert_eq!(rig.read::<u32>(0x2008), u32::from_le_bytes(answer(0x1235)));
}

fn string_instructions<H: Hypervisor>(hypervisor: &H) {
    const LENGTHS: [(usize, usize); 3] = [(5, 1), (3, 2), (2, 4)];
    let rig = Rig::new(hypervisor, &Setup::real(guests::REP_PORTS));
    let source: Vec<u8> = (100..119).collect();
    write(&rig.ram, 0x2000, &source);
    let mut expected = Vec::new();
    let mut rest = &source[..];
    for (count, width) in LENGTHS {
        let (now, later) = rest.split_at(count * width);
        expected.extend(now.chunks(width).map(|element| out(COUNTING_PORT, element)));
        rest = later;
    }
    for (count, len) in LENGTHS {
        expected.extend((0..count).map(|_| Access::In { port: COUNTING_PORT, len }));
    }
    assert_eq!(rig.complete(), expected);
    assert_eq!(rig.read::<u16>(0x3100), 0x3000 + 19, "the destination index");
    let mut target = [0; 20];
    rig.ram.read_slice(&mut target, GuestAddress(0x3000)).expect("in RAM");
    assert_eq!(target.to_vec(), (1..20).chain([0]).collect::<Vec<u8>>());
}

fn mmio_writes<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::MMIO_WRITE));
    let expected = [
        wrote(MMIO, &[0x11]),
        wrote(MMIO + 2, &[0x11, 0x22]),
        wrote(MMIO + 4, &[0x11, 0x22, 0x33, 0x44]),
        wrote(MMIO + 0x13, &[0x55]),
        wrote(MMIO + 0x21, &[0x55, 0x66]),
        wrote(MMIO + 0x31, &[0x55, 0x66, 0x77, 0x88]),
    ];
    assert_eq!(rig.complete(), expected);
}

fn mmio_reads<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::MMIO_READ));
    let read = |offset, len| Access::Read { address: MMIO + offset, len };
    let expected = [read(0, 1), read(0, 2), read(0, 4), read(1, 1), read(1, 1), read(2, 2), read(2, 2)];
    assert_eq!(rig.complete(), expected);
    let [b0, b1, b2, b3] = answer::<4>(MMIO);
    let registers = [
        [b0, 0xff, 0xff, 0xff],
        [b0, b1, 0xff, 0xff],
        [b0, b1, b2, b3],
        [b1, 0, 0, 0],
        [b1, 0xff, 0xff, 0xff],
        [b2, b3, 0, 0],
        [b2, b3, 0xff, 0xff],
    ];
    assert_eq!(rig.read::<[u8; 28]>(0x2000)[..], *registers.as_flattened());
}

fn mmio_eight_bytes<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::MMIO_EIGHT));
    let value = answer::<8>(MMIO);
    let expected = [Access::Read { address: MMIO, len: 8 }, wrote(MMIO + 8, &value)];
    assert_eq!(rig.complete(), expected);
    assert_eq!(rig.read::<[u8; 8]>(0x2000), value);
}

/// Backends may cut an access across a page in different ways; each piece has 1, 2 or 4 bytes, and they add up.
fn mmio_across_pages<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::MMIO_ACROSS));
    let end = RAM_SIZE as u64;
    let (mut read, mut written) = (Vec::new(), Vec::new());
    for access in rig.complete() {
        let len = match &access {
            Access::Read { address, len } => {
                read.extend((*address..).take(*len));
                *len
            }
            Access::Write { address, data } => {
                written.extend((*address..).zip(data.iter().copied()));
                data.len()
            }
            other => panic!("{other:?}"),
        };
        assert!([1, 2, 4].contains(&len), "{access:?}");
    }
    assert_eq!(
        read,
        [0xffd, 0xffe, 0xfff, 0x1000]
            .map(|at| MMIO + at)
            .into_iter()
            .chain([end, end + 1])
            .collect::<Vec<_>>()
    );
    let at = MMIO + 0x1fff;
    let expected = [(at, 0x11), (at + 1, 0x22), (at + 2, 0x33), (at + 3, 0x44), (end, 0x77), (end + 1, 0x88)];
    assert_eq!(written, expected);
    assert_eq!(rig.read::<[u8; 4]>(0x2000), answer(MMIO + 0xffd));
    let [high, higher] = answer(end);
    assert_eq!(rig.read::<[u8; 4]>(0x2004), [0, 0, high, higher]);
    assert_eq!(rig.read::<[u8; 2]>(end - 2), [0x55, 0x66]);
}

fn mmio_updates<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::MMIO_UPDATE));
    let sum = u32::from_le_bytes(answer(MMIO)) + 1;
    let expected = [
        Access::Read { address: MMIO, len: 4 },
        wrote(MMIO, &sum.to_le_bytes()),
        Access::Read { address: MMIO + 4, len: 4 },
        wrote(MMIO + 4, &[0x11, 0x22, 0x33, 0x44]),
    ];
    assert_eq!(rig.complete(), expected);
    assert_eq!(rig.read::<[u8; 4]>(0x2000), answer(MMIO + 4));
}

fn memory<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::MEMORY));
    let slot = allocate(SLOT, 0x2000);
    rig.vm.add_memory(MemorySlot { memory: slot.clone(), readonly: false }).expect("add_memory");
    write(&rig.ram, 0x2000, &41u32.to_le_bytes());
    write(&slot, SLOT + 0x1ffc, &99u32.to_le_bytes());
    rig.run(0);
    rig.expect_mark(100);
    assert_eq!(rig.read::<u32>(0x2004), 42);
    assert_eq!(slot.read_obj::<u32>(GuestAddress(SLOT)).expect("in the slot"), 100);
    rig.expect_quiet();
    write(&slot, SLOT + 8, &[1]);
    assert_eq!(rig.completed(), []);
}

fn readonly_memory<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::READ_ONLY));
    let slot = allocate(SLOT, 0x1000);
    write(&slot, SLOT, &[1, 2, 3, 4]);
    rig.vm.add_memory(MemorySlot { memory: slot.clone(), readonly: true }).expect("add_memory");
    assert_eq!(rig.complete(), [wrote(SLOT, &[0x11, 0x22, 0x33, 0x44])]);
    assert_eq!(rig.read::<[u8; 8]>(0x2000), [1, 2, 3, 4, 1, 2, 3, 4], "what the guest read");
    assert_eq!(slot.read_obj::<[u8; 4]>(GuestAddress(SLOT)).expect("in the slot"), [1, 2, 3, 4]);
}

fn long_mode<H: Hypervisor>(hypervisor: &H) {
    const TABLES: u64 = 0x1_0000;
    const GDT: u64 = 0x1_8000;
    let boot = BootState::Long { rip: 0x1000, rsi: 0x1234_5678_9abc, rsp: 0x8000, cr3: TABLES, gdt: GDT };
    let rig = Rig::new(hypervisor, &Setup { boot, ..Setup::protected(guests::LONG) });
    // 4 GiB, identity-mapped by 2 MiB pages: one level-4 entry, four of level 3, 4 × 512 of level 2.
    let (present, large) = (0b11, 1 << 7);
    let entry = |at: u64, value: u64| write(&rig.ram, at, &value.to_le_bytes());
    entry(TABLES, (TABLES + 0x1000) | present);
    for table in 0..4 {
        entry(TABLES + 0x1000 + 8 * table, (TABLES + 0x2000 + 0x1000 * table) | present);
    }
    for page in 0..4 * 512 {
        entry(TABLES + 0x2000 + 8 * page, (page << 21) | large | present);
    }
    // The standard Linux boot descriptors: code at 0x10, data at 0x18.
    entry(GDT + 0x10, 0x00af_9b00_0000_ffff);
    entry(GDT + 0x18, 0x00cf_9300_0000_ffff);
    let value = answer::<8>(MMIO);
    let read = |len| Access::Read { address: MMIO, len };
    assert_eq!(rig.complete(), [read(8), wrote(MMIO + 8, &value), read(4), read(1)]);
    let [b0, b1, b2, b3, ..] = value;
    assert_eq!(rig.read::<u64>(0x2000), 0x8877_6655_4433_2211);
    assert_eq!(rig.read::<[u8; 8]>(0x2008), value);
    assert_eq!(rig.read::<[u8; 8]>(0x2010), [b0, b1, b2, b3, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(rig.read::<[u8; 8]>(0x2018), [b0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]);
    assert_eq!(rig.read::<[u64; 2]>(0x2020), [0x1234_5678_9abc, 0x8000]);
}

fn cpuid<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::OWN_ID));
    assert_eq!(rig.complete(), []);
    // Intel SDM vol. 2A, CPUID leaf 1: EBX[31:24] is the initial APIC id, ECX[31] is set by hypervisors.
    assert_eq!(rig.read::<u32>(0x2000) >> 24, 0);
    assert_eq!(rig.read::<u32>(0x2004) >> 31, 1);
}
