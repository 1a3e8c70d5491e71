//! The KVM device: the capabilities of the host, and the creation of machines.

use std::os::fd::{FromRawFd, IntoRawFd, OwnedFd};
use std::path::Path;

use guest_memory::GuestRam;
use hypervisor::{Capabilities, Error, Hypervisor, Result, VmConfig};
use kvm_bindings::KVM_API_VERSION;
use kvm_ioctls::Cap;

use crate::{KvmSeed, KvmVm, arch, host, kick};

/// Capabilities that every machine needs, with their names for error messages.
const NEEDED: [(Cap, &str); 4] = [
    (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
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
    /// Takes an open `/dev/kvm`, and checks that the descriptor is KVM's and has the capabilities that machines need.
    pub fn from_fd(device: OwnedFd) -> Result<Self> {
        // SAFETY: this function owns the open descriptor; the first ioctl checks that it is KVM's.
        let device = unsafe { kvm_ioctls::Kvm::from_raw_fd(device.into_raw_fd()) };
        match device.get_api_version() {
            version if version.cast_unsigned() == KVM_API_VERSION => {}
            -1 => return Err(Error::Unavailable("the descriptor is not /dev/kvm".into())),
            version => return Err(Error::Unavailable(format!("KVM API version {version} is not 12"))),
        }
        let mut needed = NEEDED.iter().chain(&arch::NEEDED);
        if let Some(&(_, name)) = needed.find(|(cap, _)| !device.check_extension(*cap)) {
            return Err(Error::Missing(name));
        }
        kick::install_handler().map_err(|source| Error::Host { operation: "sigaction", source })?;
        let capabilities = Capabilities {
            max_vcpus: u8::try_from(device.get_max_vcpus().min(arch::MAX_VCPUS)).unwrap_or(u8::MAX),
            hardware: arch::hardware(),
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
        let mut vm = KvmVm::new(fd, self.capabilities, memory)?;
        let chip = vm.create_chip(&self.device, config)?;
        let seeds = (0..config.vcpus).map(|index| vm.create_vcpu(index, &chip));
        let seeds = seeds.collect::<Result<_>>()?;
        Ok((vm, seeds))
    }
}
