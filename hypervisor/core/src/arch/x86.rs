//! x86-64: the legacy timer, and the state in which the boot vCPU starts.

/// Choices that are fixed when an x86-64 machine is made.
#[derive(Debug, Clone, Default)]
pub struct Chip {
    /// How the boot vCPU starts; `None` leaves it in its reset state. All other vCPUs wait for a startup IPI (SIPI).
    pub boot: Option<BootState>,
    /// Whether there is a legacy timer (PIT). Kernels without ACPI want one.
    pub legacy_timer: bool,
}

/// State of the boot vCPU at its first instruction.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootState {
    /// Real mode: `cs:ip`, and every other register as after reset.
    Real {
        /// Code segment selector; the segment's base is `cs << 4`.
        cs: u16,
        /// Offset of the first instruction in the code segment.
        ip: u16,
    },
    /// 32-bit protected mode, paging off, flat 4 GiB segments: the PVH entry, and the entry of most conformance guests.
    Protected {
        /// Address of the first instruction.
        eip: u32,
        /// PVH: the physical address of `hvm_start_info`.
        ebx: u32,
        /// Stack pointer.
        esp: u32,
    },
    /// 64-bit long mode with identity-mapped page tables that the caller wrote: the Linux 64-bit entry.
    Long {
        /// Address of the first instruction.
        rip: u64,
        /// Linux: the physical address of the zero page.
        rsi: u64,
        /// Stack pointer.
        rsp: u64,
        /// Physical address of the top-level page table.
        cr3: u64,
        /// Physical address of a GDT with the standard Linux boot entries (0x10 code, 0x18 data).
        gdt: u64,
    },
}
