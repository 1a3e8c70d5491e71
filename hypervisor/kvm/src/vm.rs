//! A KVM machine: memory slots, interrupt lines, doorbells, and the seeds of its vCPUs.

use std::mem::ManuallyDrop;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd};
use std::sync::{Arc, Mutex, PoisonError};

use guest_memory::GuestRam;
use hypervisor::{Capabilities, Doorbell, Error, IrqLine, MemorySlot, Result, Vm, VmConfig};
use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
use kvm_ioctls::{IoEventAddress, VmFd};
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::arch::Chip;
use crate::kick::Kick;
use crate::{KvmSeed, host};

/// The memory that a machine's slots map. The machine and each of its vCPUs keep it alive, because the kernel's machine
/// lives until the last of their descriptors is closed.
pub(crate) type Slots = Arc<Mutex<Vec<GuestRam>>>;

/// A KVM machine.
#[derive(Debug)]
pub struct KvmVm {
    fd: VmFd,
    kicks: Vec<Arc<Kick>>,
    readonly: bool,
    slots: Slots,
}

impl KvmVm {
    /// Makes a machine that has this memory and nothing else. Interrupt controllers come later: they register I/O
    /// devices, and on Linux 6.18 the next change of memory slots then waits some milliseconds for their SRCU grace
    /// period.
    pub(crate) fn new(fd: VmFd, host_has: Capabilities, memory: &GuestRam) -> Result<Self> {
        let readonly = host_has.readonly_memory;
        let vm = Self { fd, kicks: Vec::new(), readonly, slots: Slots::default() };
        vm.map(memory, 0)?;
        Ok(vm)
    }

    pub(crate) fn create_chip(&self, kvm: &kvm_ioctls::Kvm, config: &VmConfig) -> Result<Chip> {
        Chip::new(kvm, &self.fd, config)
    }

    pub(crate) fn create_vcpu(&mut self, index: u8, chip: &Chip) -> Result<KvmSeed> {
        let fd = self.fd.create_vcpu(index.into()).map_err(host("KVM_CREATE_VCPU"))?;
        chip.start(&fd, index)?;
        let kick = Arc::new(Kick::new(&fd)?);
        self.kicks.push(Arc::clone(&kick));
        Ok(KvmSeed::new(fd, kick, Arc::clone(&self.slots)))
    }

    /// Adds one slot for each region. A slot's number is the number of slots before it.
    fn map(&self, memory: &GuestRam, flags: u32) -> Result<()> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        let first: usize = slots.iter().map(|ram| ram.iter().count()).sum();
        // The memory is kept even if a region is refused below: the regions before that one are mapped.
        slots.push(memory.clone());
        for (slot, region) in (first..).zip(memory.iter()) {
            let userspace = region
                .get_host_address(MemoryRegionAddress(0))
                .map_err(|_| Error::Invalid("memory region without a mapping"))?;
            let slot = kvm_userspace_memory_region {
                slot: u32::try_from(slot).map_err(|_| Error::Invalid("number of memory slots"))?,
                flags,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: userspace.addr() as u64,
            };
            // SAFETY: the region is mapped for its whole length, and `slots` keeps it so for as long as the machine.
            unsafe { self.fd.set_user_memory_region(slot) }.map_err(host("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }
}

impl Vm for KvmVm {
    fn add_memory(&self, slot: MemorySlot) -> Result<()> {
        if slot.readonly && !self.readonly {
            return Err(Error::Missing("KVM_CAP_READONLY_MEM"));
        }
        self.map(&slot.memory, if slot.readonly { KVM_MEM_READONLY } else { 0 })
    }

    fn set_irq(&self, line: IrqLine, level: bool) -> Result<()> {
        self.fd.set_irq_line(line.0, level).map_err(host("KVM_IRQ_LINE"))
    }

    fn kick(&self, index: u8) -> Result<()> {
        let kick = self.kicks.get(usize::from(index)).ok_or(Error::Invalid("vCPU index"))?;
        kick.kick().map_err(|source| Error::Host { operation: "tgkill", source })
    }

    fn doorbell(&self) -> Option<&dyn Doorbell> {
        Some(self)
    }
}

impl Doorbell for KvmVm {
    fn on_write(&self, address: u64, value: u32, event: BorrowedFd<'_>) -> Result<()> {
        let address = IoEventAddress::Mmio(address);
        self.fd.register_ioevent(&borrow(event), &address, value).map_err(host("KVM_IOEVENTFD"))
    }

    fn irq_on(&self, event: BorrowedFd<'_>, line: IrqLine) -> Result<()> {
        self.fd.register_irqfd(&borrow(event), line.0).map_err(host("KVM_IRQFD"))
    }
}

/// The event as the type that kvm-ioctls wants. KVM takes a reference of its own; the descriptor stays the caller's.
fn borrow(event: BorrowedFd<'_>) -> ManuallyDrop<EventFd> {
    // SAFETY: the descriptor is open while `event` is borrowed, and is never closed by this value.
    ManuallyDrop::new(unsafe { EventFd::from_raw_fd(event.as_raw_fd()) })
}
