//! Guest-physical layout of the x86-64 machine, all in one place.
//!
//! ```text
//! 0x0000_0000  low RAM: boot structures below 640 KiB, ACPI tables at 0xe_0000, kernel from 1 MiB, initramfs at the top
//! 0xc000_0000  hole: virtio-mmio windows, I/O APIC, local APICs
//! 0x1_0000_0000  the rest of RAM
//! ```
//!
//! Not here: the contents of the boot structures (`loader`) and of the ACPI tables (`acpi`).

use hypervisor::IrqLine;
use vm_memory::GuestAddress;

/// Bytes in a page of the guest.
pub const PAGE: u64 = 0x1000;
/// A mebibyte.
pub const MIB: u64 = 1 << 20;

/// A stub that jumps to a PVH kernel's entry, whose address is unknown until the kernel has been read.
pub const ENTRY_STUB: GuestAddress = GuestAddress(0x1000);
/// Global descriptor table of the 64-bit boot protocol.
pub const GDT: GuestAddress = GuestAddress(0x2000);
/// `hvm_start_info` (PVH). The module list and the memory map follow.
pub const START_INFO: GuestAddress = GuestAddress(0x6000);
/// The PVH module list.
pub const MODULES: GuestAddress = GuestAddress(0x6100);
/// The PVH memory map.
pub const MEMORY_MAP: GuestAddress = GuestAddress(0x6200);
/// `boot_params` (bzImage).
pub const ZERO_PAGE: GuestAddress = GuestAddress(0x7000);
/// Top-level page table of the 64-bit boot protocol; the other tables follow it.
pub const PAGE_TABLES: GuestAddress = GuestAddress(0x9000);
/// Top of the stack that both boot protocols start with.
pub const STACK_TOP: GuestAddress = GuestAddress(0x1_8ff0);
/// The kernel command line.
pub const COMMAND_LINE: GuestAddress = GuestAddress(0x2_0000);
/// Longest command line with its terminating NUL: `COMMAND_LINE_SIZE` of Linux on x86.
pub const COMMAND_LINE_MAX: usize = 2048;
/// End of conventional memory. On a PC the addresses from here to the ACPI tables belong to firmware.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// The ACPI tables, the RSDP first, in an area that kernels search for the RSDP on their own.
pub const ACPI_TABLES: GuestAddress = GuestAddress(0xe_0000);
/// Most bytes of ACPI tables.
pub const ACPI_TABLES_MAX: u64 = HIGH_MEMORY.0 - ACPI_TABLES.0;
/// Lowest address at which a kernel may be loaded.
pub const HIGH_MEMORY: GuestAddress = GuestAddress(MIB);

/// End of low RAM, start of the hole for devices.
pub const HOLE_START: u64 = 3 << 30;
/// First byte of RAM above the hole.
pub const HOLE_END: u64 = 4 << 30;
/// Register window of the first virtio device.
pub const VIRTIO_WINDOWS: u64 = 0xd000_0000;
/// Size of one register window.
pub const VIRTIO_WINDOW: u64 = PAGE;
/// Most virtio devices: one for each line of the I/O APIC's 24 that nobody else has. A sandbox has at most 17: the root's two disks
/// and eight of the user's, sockets, entropy, console, balloon, two of shared folders, and a network.
pub const VIRTIO_DEVICES_MAX: usize = 18;
/// The I/O APIC, at its usual address on a PC.
pub const IO_APIC: u32 = 0xfec0_0000;
/// The local APICs.
pub const LOCAL_APIC: u32 = 0xfee0_0000;

/// First port of the serial line.
pub const SERIAL_PORT: u16 = 0x3f8;
/// Interrupt of the serial line.
pub const SERIAL_IRQ: IrqLine = IrqLine(4);

/// Smallest memory of a machine: the kernel's own needs start above this.
pub const MEMORY_MIN_MIB: u32 = 32;
/// Largest memory of a machine.
pub const MEMORY_MAX_MIB: u32 = 1 << 20;

/// The place of a virtio device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    /// First byte of the device's register window.
    pub window: u64,
    /// The device's interrupt, edge-triggered.
    pub irq: IrqLine,
}

/// The places of the virtio devices, in guest order.
pub fn slots() -> impl Iterator<Item = Slot> {
    // GSIs 5 to 23; 8 is left to the real-time clock, where kernels expect that clock without being told.
    let lines = (5..).filter(|line| *line != 8).map(IrqLine);
    let windows = (0..).map(|index| VIRTIO_WINDOWS + index * VIRTIO_WINDOW);
    windows.zip(lines).map(|(window, irq)| Slot { window, irq }).take(VIRTIO_DEVICES_MAX)
}

/// The ranges of RAM of a machine with `memory_mib`.
#[must_use]
pub fn ram(memory_mib: u32) -> Vec<(GuestAddress, u64)> {
    let size = u64::from(memory_mib) * MIB;
    let low = size.min(HOLE_START);
    let mut ranges = vec![(GuestAddress(0), low)];
    if size > low {
        ranges.push((GuestAddress(HOLE_END), size - low));
    }
    ranges
}

/// The use of a part of the address space, as firmware tells a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Usage {
    /// Usable RAM.
    Ram = 1,
    /// ACPI tables: usable once they have been read.
    Acpi = 3,
}

/// The memory map that a kernel is given: start, size, usage.
#[must_use]
pub fn memory_map(memory_mib: u32) -> Vec<(u64, u64, Usage)> {
    let mut map = vec![(0, LOW_MEMORY_END, Usage::Ram), (ACPI_TABLES.0, ACPI_TABLES_MAX, Usage::Acpi)];
    for (start, size) in ram(memory_mib) {
        let skipped = HIGH_MEMORY.0.saturating_sub(start.0);
        map.push((start.0 + skipped, size - skipped, Usage::Ram));
    }
    map
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ram_leaves_the_hole_free() {
        assert_eq!(ram(256), [(GuestAddress(0), 256 * MIB)]);
        assert_eq!(ram(3072), [(GuestAddress(0), HOLE_START)]);
        assert_eq!(ram(4096), [(GuestAddress(0), HOLE_START), (GuestAddress(HOLE_END), 1 << 30)]);
    }

    #[test]
    fn the_memory_map_is_ram_in_order_without_overlap() {
        for memory_mib in [MEMORY_MIN_MIB, 256, 3072, 3073, MEMORY_MAX_MIB] {
            let map = memory_map(memory_mib);
            assert!(map.windows(2).all(|pair| pair[0].0 + pair[0].1 <= pair[1].0), "{map:x?}");
            for (start, size, _) in map {
                let inside = ram(memory_mib).iter().any(|r| r.0.0 <= start && start + size <= r.0.0 + r.1);
                assert!(inside, "{start:#x}");
            }
        }
    }

    #[test]
    fn every_device_has_its_own_window_in_the_hole_and_its_own_line() {
        let slots: Vec<_> = slots().collect();
        assert_eq!(slots.len(), VIRTIO_DEVICES_MAX);
        for pair in slots.windows(2) {
            assert_eq!(pair[0].window + VIRTIO_WINDOW, pair[1].window);
            assert!(pair[0].irq < pair[1].irq);
        }
        for slot in slots {
            assert!((HOLE_START..u64::from(IO_APIC)).contains(&slot.window));
            assert!((5..24).contains(&slot.irq.0) && slot.irq.0 != 8 && slot.irq != SERIAL_IRQ);
        }
    }
}
