//! The state of a vCPU before its first instruction: the state that firmware would have set up.

use hypervisor::x86::BootState;
use hypervisor::{Error, Result};
use kvm_bindings::{Msrs, kvm_lapic_state, kvm_msr_entry, kvm_regs, kvm_segment, kvm_sregs};
use kvm_ioctls::VcpuFd;

use crate::host;

// Intel SDM vol. 3A §2.5, control registers.
const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always set.
const RFLAGS: u64 = 2;

const CODE: u16 = 0x10;
const DATA: u16 = 0x18;
/// Limit of the GDT, which has four entries: two unused, code, data.
const GDT_LIMIT: u16 = 4 * 8 - 1;

/// MSRs that firmware sets and Linux relies on.
const MSRS: [(u32, u64); 2] = [
    // IA32_MISC_ENABLE: fast strings on; branch trace and PEBS unavailable, as KVM has it after reset.
    (0x1a0, 1 | 1 << 11 | 1 << 12),
    // IA32_MTRR_DEF_TYPE: MTRRs on, everything write-back.
    (0x2ff, 1 << 11 | 6),
];

// Intel SDM vol. 3A §11.5.1, local vector table: offsets, and delivery modes (bits 8 to 10), unmasked.
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const EXT_INT: u32 = 0b111 << 8;
const NMI: u32 = 0b100 << 8;

pub(super) fn set_msrs(vcpu: &VcpuFd) -> Result<()> {
    let entries = MSRS.map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() });
    let msrs = Msrs::from_entries(&entries).map_err(|_| Error::Invalid("number of MSRs"))?;
    // KVM stops at the first MSR that it does not have. A host without an MSR offers its guests none of the features
    // that the MSR controls.
    vcpu.set_msrs(&msrs).map(drop).map_err(host("KVM_SET_MSRS"))
}

/// Connects the boot processor to the PIC: MultiProcessor Specification 1.4 §3.6.2.2, virtual wire mode.
pub(super) fn set_lapic(vcpu: &VcpuFd) -> Result<()> {
    let mut lapic = vcpu.get_lapic().map_err(host("KVM_GET_LAPIC"))?;
    set_lvt(&mut lapic, LVT_LINT0, EXT_INT);
    set_lvt(&mut lapic, LVT_LINT1, NMI);
    vcpu.set_lapic(&lapic).map_err(host("KVM_SET_LAPIC"))
}

fn set_lvt(lapic: &mut kvm_lapic_state, offset: usize, value: u32) {
    for (register, byte) in lapic.regs[offset..offset + 4].iter_mut().zip(value.to_le_bytes()) {
        *register = byte.cast_signed();
    }
}

pub(super) fn set_registers(vcpu: &VcpuFd, state: BootState) -> Result<()> {
    let reset = vcpu.get_sregs().map_err(host("KVM_GET_SREGS"))?;
    let (sregs, regs) = registers(reset, state);
    vcpu.set_sregs(&sregs).map_err(host("KVM_SET_SREGS"))?;
    vcpu.set_regs(&regs).map_err(host("KVM_SET_REGS"))
}

/// The registers of a boot state, given the registers after reset. The FPU stays as KVM makes it, which is its state
/// after `fninit`.
fn registers(reset: kvm_sregs, state: BootState) -> (kvm_sregs, kvm_regs) {
    let mut sregs = reset;
    let mut regs = kvm_regs { rflags: RFLAGS, ..Default::default() };
    match state {
        BootState::Real { cs, ip } => {
            sregs.cs.selector = cs;
            sregs.cs.base = u64::from(cs) << 4;
            regs.rip = ip.into();
        }
        BootState::Protected { eip, ebx, esp } => {
            // Xen's PVH boot ABI: "cr0: bit 0 (PE) must be set. All the other writeable bits are cleared."
            sregs.cr0 = CR0_PE | CR0_ET;
            sregs.cr4 = 0;
            flat_segments(&mut sregs, false);
            (regs.rip, regs.rbx, regs.rsp) = (eip.into(), ebx.into(), esp.into());
        }
        BootState::Long { rip, rsi, rsp, cr3, gdt } => {
            sregs.cr0 = CR0_PE | CR0_ET | CR0_PG;
            sregs.cr3 = cr3;
            sregs.cr4 = CR4_PAE;
            sregs.efer = EFER_LME | EFER_LMA;
            (sregs.gdt.base, sregs.gdt.limit) = (gdt, GDT_LIMIT);
            flat_segments(&mut sregs, true);
            (regs.rip, regs.rsi, regs.rsp) = (rip, rsi, rsp);
        }
    }
    (sregs, regs)
}

fn flat_segments(sregs: &mut kvm_sregs, long: bool) {
    // Execute/read or read/write, accessed; privilege level 0; 32-bit unless a 64-bit code segment.
    let flat = |selector, type_, l: bool| kvm_segment {
        selector,
        base: 0,
        limit: u32::MAX,
        type_,
        present: 1,
        s: 1,
        g: 1,
        db: u8::from(!l),
        l: u8::from(l),
        ..Default::default()
    };
    sregs.cs = flat(CODE, 0xb, long);
    let data = flat(DATA, 3, false);
    (sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss) = (data, data, data, data, data);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reset() -> kvm_sregs {
        let mut sregs = kvm_sregs { cr0: 0x6000_0010, ..Default::default() };
        (sregs.cs.selector, sregs.cs.base, sregs.cs.limit) = (0xf000, 0xffff_0000, 0xffff);
        sregs
    }

    #[test]
    fn real_mode_moves_only_the_code_segment() {
        let (sregs, regs) = registers(reset(), BootState::Real { cs: 0x1234, ip: 0x56 });
        let mut expected = reset();
        (expected.cs.selector, expected.cs.base) = (0x1234, 0x12340);
        assert_eq!(sregs, expected);
        assert_eq!(regs, kvm_regs { rip: 0x56, rflags: 2, ..Default::default() });
    }

    #[test]
    fn protected_mode_is_flat_and_unpaged() {
        let (sregs, regs) = registers(reset(), BootState::Protected { eip: 1, ebx: 2, esp: 3 });
        assert_eq!((sregs.cr0, sregs.cr4, sregs.efer), (0x11, 0, 0));
        assert_eq!((sregs.cs.base, sregs.cs.limit, sregs.cs.db, sregs.cs.l), (0, u32::MAX, 1, 0));
        assert_eq!((sregs.ss.base, sregs.ss.limit, sregs.ss.db), (0, u32::MAX, 1));
        assert_eq!((regs.rip, regs.rbx, regs.rsp), (1, 2, 3));
    }

    #[test]
    fn long_mode_uses_the_callers_tables() {
        let state = BootState::Long { rip: 1, rsi: 2, rsp: 3, cr3: 0x4000, gdt: 0x5000 };
        let (sregs, regs) = registers(reset(), state);
        assert_eq!((sregs.cr0, sregs.cr3, sregs.cr4, sregs.efer), (0x8000_0011, 0x4000, 0x20, 0x500));
        assert_eq!((sregs.cs.l, sregs.cs.db, sregs.cs.selector, sregs.ds.selector), (1, 0, 0x10, 0x18));
        assert_eq!((sregs.gdt.base, sregs.gdt.limit), (0x5000, 31));
        assert_eq!((regs.rip, regs.rsi, regs.rsp), (1, 2, 3));
    }

    #[test]
    fn lint_pins_are_external_interrupt_and_nmi() {
        let mut lapic = kvm_lapic_state::default();
        set_lvt(&mut lapic, LVT_LINT0, EXT_INT);
        set_lvt(&mut lapic, LVT_LINT1, NMI);
        assert_eq!(lapic.regs[0x350..0x354], [0, 7, 0, 0]);
        assert_eq!(lapic.regs[0x360..0x364], [0, 4, 0, 0]);
    }
}
