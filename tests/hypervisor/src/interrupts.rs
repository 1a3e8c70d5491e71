//! Interrupt lines, doorbells, the legacy timer, and vCPUs that start each other.

use std::os::fd::{AsFd, OwnedFd};

use hypervisor::{Hypervisor, IrqLine, Vm};
use rustix::event::{EventfdFlags, eventfd};

use crate::rig::{Access, Event, Rig, Setup, write};
use crate::{Case, guests};

/// The line that [`guests::INTERRUPTS`] listens to.
const LINE: IrqLine = IrqLine(5);
/// The address of the handler.
const HANDLER: u64 = 0x1100;
/// The address of the second vCPU's code: SIPI vector 8.
const SECOND: u64 = 0x8000;
/// The doorbell that [`guests::DOORBELL`] rings, and its value.
const BELL: (u64, u32) = (0xd000_0050, 7);

pub(crate) fn cases<H: Hypervisor>() -> Vec<Case<H>> {
    vec![
        Case::new("halt_ends_with_an_interrupt", irq_line),
        Case::new("an_event_raises_an_interrupt", irq_event),
        Case::new("a_doorbell_signals_without_an_exit", doorbell),
        Case::new("the_legacy_timer_ticks", legacy_timer),
        Case::new("without_a_legacy_timer_its_ports_exit", no_legacy_timer),
        Case::new("vcpus_start_each_other", second_vcpu),
    ]
}

fn event() -> OwnedFd {
    eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC).expect("eventfd")
}

fn signal(event: &OwnedFd) {
    assert_eq!(rustix::io::write(event, &1u64.to_ne_bytes()), Ok(8));
}

/// How often `event` was signalled since the last call.
fn signals(event: &OwnedFd) -> u64 {
    let mut count = [0; 8];
    match rustix::io::read(event, &mut count) {
        Ok(8) => u64::from_ne_bytes(count),
        Err(rustix::io::Errno::AGAIN) => 0,
        other => panic!("{other:?}"),
    }
}

/// Runs the guest that wants three interrupts, raising each by `raise` when the one before was handled.
fn count_interrupts<V: Vm>(rig: &Rig<V>, raise: impl Fn()) {
    write(&rig.ram, HANDLER, guests::COUNT_INTERRUPT);
    rig.run(0);
    // The hypervisor has the PIC, so its ports do not show up here.
    rig.expect_mark(0);
    rig.expect_quiet();
    for count in 1..=3 {
        raise();
        rig.expect_mark(count);
    }
    assert_eq!(rig.completed(), []);
}

fn irq_line<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::real(guests::INTERRUPTS));
    count_interrupts(&rig, || {
        rig.vm.set_irq(LINE, true).expect("raise");
        rig.vm.set_irq(LINE, false).expect("lower");
    });
}

fn irq_event<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::real(guests::INTERRUPTS));
    let Some(bell) = rig.vm.doorbell() else { return };
    let event = event();
    bell.irq_on(event.as_fd(), LINE).expect("irq_on");
    count_interrupts(&rig, || signal(&event));
    assert_eq!(signals(&event), 0, "the hypervisor takes the signals");
}

fn doorbell<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::DOORBELL));
    let Some(bell) = rig.vm.doorbell() else { return };
    let (address, value) = BELL;
    let event = event();
    bell.on_write(address, value, event.as_fd()).expect("on_write");
    // Another value, another width, another address: all exits.
    let wrote = |address, data: &[u8]| Access::Write { address, data: data.to_vec() };
    let expected =
        [wrote(address, &[8, 0, 0, 0]), wrote(address, &[7, 0]), wrote(address + 4, &[7, 0, 0, 0])];
    assert_eq!(rig.complete(), expected);
    assert_eq!(signals(&event), 2);
}

fn legacy_timer<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::real(guests::TIMER).legacy_timer());
    write(&rig.ram, HANDLER, guests::COUNT_INTERRUPT);
    rig.run(0);
    // The next tick may come before the guest checks: it counts three or a few more.
    let accesses = rig.completed();
    assert!(accesses.len() >= 3, "{accesses:?}");
    for (count, access) in (1..).zip(accesses) {
        assert_eq!(access, Access::Out { port: 0x80, data: vec![count] });
    }
}

fn no_legacy_timer<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::real(guests::PROBE_TIMER));
    assert_eq!(rig.complete(), [Access::In { port: 0x40, len: 1 }]);
}

fn second_vcpu<H: Hypervisor>(hypervisor: &H) {
    let rig = Rig::new(hypervisor, &Setup::protected(guests::START_SECOND).vcpus(2));
    write(&rig.ram, SECOND, guests::SECOND);
    rig.run(1);
    rig.expect_quiet();
    rig.run(0);
    let mark = Event::Access(Access::Out { port: 0x80, data: vec![0x55] });
    assert_eq!(rig.next_of_all(), (1, mark));
    assert_eq!(rig.completed(), []);
    assert_eq!(rig.read::<u32>(0x2004), 1, "its APIC id");
}
