//! The KVM device: what the host offers, and making machines.

use std::arch::x86_64::__cpuid;
use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::path::Path;

use guest_memory::GuestRam;
use hypervisor::{Capabilities, Error, Hypervisor, Result, VmConfig};
use kvm_bindings::{CpuId, KVM_API_VERSION, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::Cap;

use crate::{KvmSeed, KvmVm, cpuid, host, kick};

/// Local APIC ids have 8 bits here and 255 is the broadcast address.
const MAX_VCPUS: usize = 254;

/// What every machine needs, with the name to complain about.
const NEEDED: [(Cap, &str); 6] = [
    (Cap::Irqchip, "KVM_CAP_IRQCHIP"),
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
    (Cap::SetTssAddr, "KVM_CAP_SET_TSS_ADDR"),
    (Cap::Irqfd, "KVM_CAP_IRQFD"),
    (Cap::Ioeventfd, "KVM_CAP_IOEVENTFD"),
    (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
];

/// The host's KVM.
#[derive(Debug)]
pub struct Kvm {
    device: kvm_ioctls::Kvm,
    capabilities: Capabilities,
}

impl Kvm {
    /// Takes an open `/dev/kvm`, checks that it is one and has what machines need.
    pub fn from_fd(device: OwnedFd) -> Result<Self> {
        // SAFETY: the descriptor is open and ours; that it is KVM is checked by the first ioctl.
        let device = unsafe { kvm_ioctls::Kvm::from_raw_fd(device.into_raw_fd()) };
        match device.get_api_version() {
            version if version.cast_unsigned() == KVM_API_VERSION => {}
            -1 => return Err(Error::Unavailable("the descriptor is not /dev/kvm".into())),
            version => return Err(Error::Unavailable(format!("KVM API version {version} is not 12"))),
        }
        if let Some(&(_, name)) = NEEDED.iter().find(|(cap, _)| !device.check_extension(*cap)) {
            return Err(Error::Missing(name));
        }
        kick::install_handler().map_err(|source| Error::Host { operation: "sigaction", source })?;
        let capabilities = Capabilities {
            max_vcpus: u8::try_from(device.get_max_vcpus().min(MAX_VCPUS)).unwrap_or(u8::MAX),
            hardware: hardware(),
            halt_exits: false,
            readonly_memory: device.check_extension(Cap::ReadonlyMem),
        };
        Ok(Self { device, capabilities })
    }

    /// Opens the KVM device at `path`, for programs that may open things.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        let device = std::fs::File::options()
            .read(true)
            .write(true)
            .open(path)
            .map_err(|source| Error::Unavailable(format!("{}: {source}", path.display())))?;
        Self::from_fd(device.into())
    }

    fn supported_cpuid(&self) -> Result<CpuId> {
        self.device.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).map_err(host("KVM_GET_SUPPORTED_CPUID"))
    }
}

/// Whether this host's processor runs guests itself. Asks the processor, not /proc: there is none to open in a sandbox.
///
/// A KVM without either extension (PVM) emulates guest kernels instruction by instruction.
fn hardware() -> bool {
    // Intel SDM vol. 2A, CPUID: leaf 1 ECX bit 5 is VMX. AMD APM vol. 3 §E.4.2: leaf 8000_0001h ECX bit 2 is SVM.
    let vmx = __cpuid(1).ecx & (1 << 5) != 0;
    let svm = __cpuid(0x8000_0000).eax > 0x8000_0000 && __cpuid(0x8000_0001).ecx & (1 << 2) != 0;
    vmx || svm
}

impl Hypervisor for Kvm {
    type Vm = KvmVm;
    type Seed = KvmSeed;

    fn capabilities(&self) -> Capabilities {
        self.capabilities
    }

    fn create_vm(&self, config: &VmConfig, memory: &GuestRam) -> Result<(KvmVm, Vec<KvmSeed>)> {
        if config.vcpus == 0 || config.vcpus > self.capabilities.max_vcpus {
            return Err(Error::Invalid("number of vCPUs"));
        }
        let fd = self.device.create_vm().map_err(host("KVM_CREATE_VM"))?;
        let mut vm = KvmVm::new(fd, self.capabilities, config.legacy_timer, memory)?;
        let supported = self.supported_cpuid()?;
        let deadline = self.device.check_extension(Cap::TscDeadlineTimer);
        let seeds = (0..config.vcpus).map(|index| {
            let cpuid = cpuid::for_vcpu(supported.as_slice(), index, config.vcpus, deadline);
            vm.create_vcpu(index, &cpuid, config.boot.filter(|_| index == 0))
        });
        let seeds = seeds.collect::<Result<_>>()?;
        Ok((vm, seeds))
    }
}
