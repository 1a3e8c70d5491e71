//! x86-64: interrupt controllers, the legacy timer, CPUID, and the state that firmware would have set up.

mod boot;
mod cpuid;
pub(crate) mod ports;

use std::arch::x86_64::__cpuid;
use std::ops::Range;

use hypervisor::{Arch, Error, Result, VmConfig, x86};
use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, KVM_PIT_SPEAKER_DUMMY, kvm_pit_config};
use kvm_ioctls::{Cap, VcpuFd, VmFd};

use crate::host;

/// Most vCPUs of a machine: local APIC ids have 8 bits, and 255 is the broadcast address.
pub(crate) const MAX_VCPUS: usize = 254;

/// Capabilities of KVM that machines of this architecture need besides the common ones.
pub(crate) const NEEDED: [(Cap, &str); 2] =
    [(Cap::Irqchip, "KVM_CAP_IRQCHIP"), (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR")];

/// Guest-physical addresses that KVM takes for itself: an identity map and a TSS, which VMX without unrestricted guest
/// needs, just below the end of the 4 GiB where firmware would be.
pub const RESERVED: Range<u64> = 0xfffb_c000..0xfffc_0000;
/// Address of the TSS, whose three pages follow the page of the identity map.
const TSS: usize = 0xfffb_d000;

/// Requests of every ioctl made after `create_vm`: `KVM_RUN`, `KVM_GET_REGS`, `KVM_IRQ_LINE`, `KVM_IRQFD`,
/// `KVM_IOEVENTFD`, `KVM_SET_USER_MEMORY_REGION`.
pub const IOCTLS_AFTER_CREATE: [u32; 6] =
    [0xae80, 0x8090_ae81, 0x4008_ae61, 0x4020_ae76, 0x4040_ae79, 0x4020_ae46];

/// Whether this host's processor runs guests itself. The answer comes from the processor, not from /proc, which a
/// sandboxed process cannot open.
///
/// A KVM without VMX or SVM (PVM) emulates guest kernels instruction by instruction.
pub(crate) fn hardware() -> bool {
    // Intel SDM vol. 2A, CPUID: leaf 1 ECX bit 5 is VMX. AMD APM vol. 3 §E.4.2: leaf 8000_0001h ECX bit 2 is SVM.
    let vmx = __cpuid(1).ecx & (1 << 5) != 0;
    let svm = __cpuid(0x8000_0000).eax > 0x8000_0000 && __cpuid(0x8000_0001).ecx & (1 << 2) != 0;
    vmx || svm
}

/// The address of the vCPU's next instruction, for messages.
pub(crate) fn place(vcpu: &VcpuFd) -> Option<String> {
    vcpu.get_regs().ok().map(|regs| format!("rip {:#x}", regs.rip))
}

/// A machine's interrupt controllers and timer, and the state in which its vCPUs start.
pub(crate) struct Chip {
    config: x86::Chip,
    vcpus: u8,
    cpuid: CpuId,
    tsc_deadline: bool,
}

impl Chip {
    /// Makes the chips of a machine whose memory is mapped and which has no vCPU yet.
    pub(crate) fn new(kvm: &kvm_ioctls::Kvm, vm: &VmFd, config: &VmConfig) -> Result<Self> {
        let Arch::X86(chip) = &config.arch;
        vm.set_identity_map_address(RESERVED.start).map_err(host("KVM_SET_IDENTITY_MAP_ADDR"))?;
        vm.set_tss_address(TSS).map_err(host("KVM_SET_TSS_ADDR"))?;
        vm.create_irq_chip().map_err(host("KVM_CREATE_IRQCHIP"))?;
        if chip.legacy_timer {
            // Port 0x61 comes with the PIT: kernels that calibrate a clock against the PIT read the port in a loop.
            let pit = kvm_pit_config { flags: KVM_PIT_SPEAKER_DUMMY, ..Default::default() };
            vm.create_pit2(pit).map_err(host("KVM_CREATE_PIT2"))?;
        }
        let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        Ok(Self {
            config: chip.clone(),
            vcpus: config.vcpus,
            cpuid: cpuid.map_err(host("KVM_GET_SUPPORTED_CPUID"))?,
            tsc_deadline: kvm.check_extension(Cap::TscDeadlineTimer),
        })
    }

    /// Gives vCPU `index` its first state.
    pub(crate) fn start(&self, vcpu: &VcpuFd, index: u8) -> Result<()> {
        let cpuid = cpuid::for_vcpu(self.cpuid.as_slice(), index, self.vcpus, self.tsc_deadline);
        let cpuid = CpuId::from_entries(&cpuid).map_err(|_| Error::Invalid("number of CPUID entries"))?;
        // CPUID comes before any other state: it decides which register values KVM accepts.
        vcpu.set_cpuid2(&cpuid).map_err(host("KVM_SET_CPUID2"))?;
        boot::set_msrs(vcpu)?;
        if index != 0 {
            return Ok(());
        }
        boot::set_lapic(vcpu)?;
        self.config.boot.map_or(Ok(()), |state| boot::set_registers(vcpu, state))
    }
}
