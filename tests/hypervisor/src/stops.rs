//! The stops of vCPUs: kicks, resets, power-off; and the state after them.

use hypervisor::{Arch, Error, Hypervisor, VcpuStop, Vm, VmConfig, x86};

use crate::rig::{Access, Event, GATE_PORT, LATE_STOP_PORT, Rig, STOP_ADDRESS, Setup, allocate, write};
use crate::{Case, guests};

pub(crate) fn cases<H: Hypervisor>() -> Vec<Case<H>> {
    vec![
        Case::new("kick_stops_a_spinning_vcpu", kick_spinning),
        Case::new("kick_before_run_is_kept", kick_before_run),
        Case::new("kick_stops_a_halted_vcpu", kick_halted),
        Case::new("kick_stops_a_vcpu_that_was_never_started", kick_unstarted),
        Case::new("kick_during_an_access_lets_it_complete", kick_during_access),
        Case::new("kicks_are_never_lost_and_lose_no_access", kick_storm),
        Case::new("kick_after_the_vcpu_is_gone_is_harmless", kick_after_drop),
        Case::new("a_stopping_write_leaves_no_access_pending", stop_twice),
        Case::new("a_stopping_write_across_a_page_is_finished", stop_across),
        Case::new("kick_during_a_stopping_write_is_kept", kick_during_stop),
        Case::new("triple_fault_resets", triple_fault),
        Case::new("code_outside_memory_crashes_with_words", crash),
        Case::new("machines_are_independent", independent),
        Case::new("impossible_machines_are_refused", impossible),
    ]
}

fn kick_spinning<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::SPIN));
    rig.run(0);
    rig.expect_mark(0);
    rig.kick(0);
    assert_eq!(rig.until_stop(), (vec![], VcpuStop::Kicked));
    // The vCPU goes on where it was.
    rig.run(0);
    rig.expect_quiet();
    write(&rig.ram, 0x2000, &[1]);
    assert_eq!(rig.completed(), []);
}

fn kick_before_run<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::SPIN));
    write(&rig.ram, 0x2000, &[1]);
    // Two kicks count once: a kick asks for a stop.
    rig.kick(0);
    rig.kick(0);
    rig.run(0);
    assert_eq!(rig.until_stop(), (vec![], VcpuStop::Kicked));
    assert_eq!(rig.complete(), [Access::Out { port: 0x80, data: vec![0] }]);
}

fn kick_halted<H: Hypervisor>(hypervisor: &H) {
    if hypervisor.capabilities().halt_exits {
        return;
    }
    let rig = Rig::new(hypervisor, &Setup::protected(guests::HALT));
    rig.run(0);
    rig.expect_mark(0);
    rig.expect_quiet();
    for _ in 0..2 {
        rig.kick(0);
        assert_eq!(rig.until_stop(), (vec![], VcpuStop::Kicked));
        rig.run(0);
        rig.expect_quiet();
    }
}

fn kick_unstarted<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::HALT).vcpus(2));
    rig.run(1);
    rig.expect_quiet();
    rig.kick(1);
    assert_eq!(rig.next_of_all(), (1, Event::Stop(VcpuStop::Kicked)));
}

fn kick_during_access<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::GATED_READ));
    rig.run(0);
    assert_eq!(rig.next(), Event::Access(Access::In { port: GATE_PORT, len: 4 }));
    rig.kick(0);
    rig.open_gate();
    assert_eq!(rig.until_stop(), (vec![], VcpuStop::Kicked));
    // The read is not repeated, and its answer has arrived.
    assert_eq!(rig.complete(), [Access::Out { port: 0x80, data: vec![0x5a] }]);
    assert_eq!(rig.read::<u32>(0x2000), 0x5a5a_5a5a);
}

fn kick_storm<H: Hypervisor>(hypervisor: &H) {
    const KICKS: usize = 2000;
    let rig = Rig::new(hypervisor, &Setup::protected(guests::COUNT));
    let mut count = 0u32;
    for round in 0..KICKS {
        rig.run(0);
        // Kicks land before, at and after the entry, and in accesses.
        for _ in 0..(round % 7) * 100 {
            std::hint::spin_loop();
        }
        rig.kick(0);
        let (accesses, stop) = rig.until_stop();
        assert_eq!(stop, VcpuStop::Kicked, "round {round}");
        for access in accesses {
            count += 1;
            assert_eq!(access, Access::Out { port: 0x80, data: count.to_le_bytes().to_vec() });
        }
    }
}

fn kick_after_drop<H: Hypervisor>(hypervisor: &H) {
    let config = VmConfig { vcpus: 1, arch: Arch::X86(x86::Chip::default()) };
    let (vm, seeds) = hypervisor.create_vm(&config, &allocate(0, 0x1000)).expect("create_vm");
    vm.kick(0).expect("kick of a seed");
    drop(seeds);
    vm.kick(0).expect("kick of nothing");
}

fn stop_twice<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::STOP_TWICE));
    rig.run(0);
    assert_eq!(rig.until_stop().1, VcpuStop::Reset);
    let wrote = |address, value: u32| Access::Write { address, data: value.to_le_bytes().to_vec() };
    assert_eq!(rig.complete(), [wrote(0xd000_0000, 0x4433_2211), wrote(0xd000_0004, 0x4433_2212)]);
}

fn stop_across<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::STOP_ACROSS));
    rig.run(0);
    let wrote = |address, data: [u8; 2]| Access::Write { address, data: data.to_vec() };
    let both = vec![wrote(STOP_ADDRESS, [0x11, 0x22]), wrote(STOP_ADDRESS + 2, [0x33, 0x44])];
    assert_eq!(rig.until_stop(), (both, VcpuStop::Reset));
    assert_eq!(rig.complete(), []);
}

fn kick_during_stop<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::STOP_LATE));
    rig.run(0);
    assert_eq!(rig.next(), Event::Access(Access::Out { port: LATE_STOP_PORT, data: vec![0] }));
    rig.kick(0);
    rig.open_gate();
    assert_eq!(rig.until_stop(), (vec![], VcpuStop::Reset));
    rig.run(0);
    assert_eq!(rig.until_stop(), (vec![], VcpuStop::Kicked));
    assert_eq!(rig.complete(), []);
}

fn triple_fault<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::TRIPLE_FAULT));
    rig.run(0);
    assert_eq!(rig.until_stop(), (vec![], VcpuStop::Reset));
}

fn crash<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::JUMP_TO_MMIO));
    rig.run(0);
    let (accesses, stop) = rig.until_stop();
    let VcpuStop::Crashed(words) = stop else { panic!("{stop:?} after {accesses:?}") };
    assert!(words.contains("0xd0000000"), "where: {words}");
}

fn independent<H: Hypervisor>(hypervisor: &H) {
    let spin = || Rig::new(hypervisor, &Setup::protected(guests::SPIN));
    let (first, second) = (spin(), spin());
    for rig in [&first, &second] {
        rig.run(0);
        rig.expect_mark(0);
    }
    first.kick(0);
    assert_eq!(first.until_stop().1, VcpuStop::Kicked);
    second.expect_quiet();
    write(&second.ram, 0x2000, &[1]);
    assert_eq!(second.completed(), []);
    assert_eq!(first.read::<u8>(0x2000), 0);
}

fn impossible<H: Hypervisor>(hypervisor: &H) {
    let memory = allocate(0, 0x1000);
    let make = |vcpus| {
        let config = VmConfig { vcpus, arch: Arch::X86(x86::Chip::default()) };
        hypervisor.create_vm(&config, &memory).map(|(vm, _)| vm)
    };
    assert!(matches!(make(0), Err(Error::Invalid(_))), "no vCPU");
    if let Some(more) = hypervisor.capabilities().max_vcpus.checked_add(1) {
        assert!(matches!(make(more), Err(Error::Invalid(_))), "{more} vCPUs");
    }
    let vm = make(1).expect("one vCPU");
    assert!(matches!(vm.kick(1), Err(Error::Invalid(_))), "kick of a vCPU that is not there");
}
