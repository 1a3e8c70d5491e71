//! ELF kernels with a PVH note: the Xen HVM direct boot ABI.
//!
//! The entry's address is in a note that is read together with the kernel, while the hypervisor already makes the vCPU.
//! So the vCPU starts at a stub of two instructions, which jumps to the entry.

use guest_memory::GuestRam;
use hypervisor::x86::BootState;
use linux_loader::configurator::pvh::PvhBootConfigurator;
use linux_loader::configurator::{BootConfigurator, BootParams};
use linux_loader::loader::elf::start_info::{
    XEN_HVM_START_MAGIC_VALUE, hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info,
};
use linux_loader::loader::elf::{Elf, Error as ElfError, PvhBootCapability};
use linux_loader::loader::{Error as LoaderError, KernelLoader};
use vm_memory::Bytes;

use super::{Initramfs, LoadError, Payload, load_initramfs};
use crate::layout;

#[allow(clippy::cast_possible_truncation, reason = "the layout's low addresses")]
pub(super) fn boot_state() -> BootState {
    BootState::Protected {
        eip: layout::ENTRY_STUB.0 as u32,
        ebx: layout::START_INFO.0 as u32,
        esp: layout::STACK_TOP.0 as u32,
    }
}

pub(super) fn load(ram: &GuestRam, memory_mib: u32, payload: &mut Payload) -> Result<(), LoadError> {
    let loaded = Elf::load(ram, None, &mut payload.kernel, Some(layout::HIGH_MEMORY)).map_err(refused)?;
    let PvhBootCapability::PvhEntryPresent(entry) = loaded.pvh_boot_cap else {
        return Err(LoadError::Unsupported("the ELF file has no PVH entry note (CONFIG_PVH)"));
    };
    let low_ram_end = layout::ram(memory_mib).first().map_or(0, |(_, size)| *size);
    if loaded.kernel_end > low_ram_end {
        return Err(LoadError::TooLarge { what: "kernel", memory_mib });
    }
    let initramfs =
        load_initramfs(ram, memory_mib, &payload.initramfs, loaded.kernel_end, layout::HOLE_START)?;
    let entry = u32::try_from(entry.0).map_err(|_| LoadError::Unsupported("its entry is above 4 GiB"))?;
    ram.write_slice(&stub(entry), layout::ENTRY_STUB)?;
    write_start_info(ram, memory_mib, initramfs)
}

/// `mov eax, entry; jmp eax`. PVH leaves eax undefined; every other register stays.
fn stub(entry: u32) -> [u8; 7] {
    let [a, b, c, d] = entry.to_le_bytes();
    [0xb8, a, b, c, d, 0xff, 0xe0]
}

fn refused(error: LoaderError) -> LoadError {
    let reason = match error {
        LoaderError::Elf(ElfError::ReadElfHeader | ElfError::InvalidElfMagicNumber) => "it is no ELF file",
        LoaderError::Elf(ElfError::ReadKernelImage) => {
            return LoadError::Unsupported("a segment is cut short, or lies outside guest memory");
        }
        LoaderError::Elf(ElfError::InvalidEntryAddress) => "its entry is below 1 MiB",
        LoaderError::Elf(ElfError::BigEndianElfOnLittle | ElfError::InvalidProgramHeaderSize) => {
            "it is for another kind of machine"
        }
        _ => "its headers are corrupt",
    };
    LoadError::NotAKernel { expected: "an ELF kernel", reason }
}

fn write_start_info(ram: &GuestRam, memory_mib: u32, initramfs: Option<Initramfs>) -> Result<(), LoadError> {
    let modules: Vec<_> = initramfs
        .iter()
        .map(|at| hvm_modlist_entry { paddr: at.start, size: at.size, ..Default::default() })
        .collect();
    let map: Vec<_> = layout::memory_map(memory_mib)
        .into_iter()
        .map(|(addr, size, usage)| hvm_memmap_table_entry { addr, size, type_: usage as u32, reserved: 0 })
        .collect();
    let info = hvm_start_info {
        magic: XEN_HVM_START_MAGIC_VALUE,
        // Version 1 is the first with a memory map.
        version: 1,
        nr_modules: u32::from(initramfs.is_some()),
        modlist_paddr: layout::MODULES.0,
        cmdline_paddr: layout::COMMAND_LINE.0,
        rsdp_paddr: layout::ACPI_TABLES.0,
        memmap_paddr: layout::MEMORY_MAP.0,
        memmap_entries: u32::try_from(map.len()).unwrap_or(0),
        ..Default::default()
    };
    let mut params = BootParams::new(&info, layout::START_INFO);
    params.set_modules(&modules, layout::MODULES);
    params.set_sections(&map, layout::MEMORY_MAP);
    PvhBootConfigurator::write_bootparams(&params, ram)
        .map_err(|_| LoadError::TooLarge { what: "boot information", memory_mib })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::super::tests::{payload, ram};
    use super::*;
    use machine::KernelFormat;
    use vm_memory::GuestAddress;

    const LOAD_AT: u64 = 0x100_0000;

    /// An ELF file with one loadable segment and one PVH note.
    fn kernel(segment: &[u8], memory_size: u64, note_type: u32) -> Vec<u8> {
        let header = |kind: u32, offset: u64, paddr: u64, filesz: u64, memsz: u64| {
            let mut bytes = Vec::new();
            bytes.extend(kind.to_le_bytes());
            bytes.extend(5u32.to_le_bytes());
            for field in [offset, paddr, paddr, filesz, memsz, 4] {
                bytes.extend(field.to_le_bytes());
            }
            bytes
        };
        let mut note = Vec::new();
        for word in [4u32, 4, note_type] {
            note.extend(word.to_le_bytes());
        }
        note.extend(b"Xen\0");
        note.extend(0x100_0200u32.to_le_bytes());
        let data = 64 + 2 * 56;
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
        file.extend(2u16.to_le_bytes());
        file.extend(62u16.to_le_bytes());
        file.extend(1u32.to_le_bytes());
        for field in [LOAD_AT, 64, 0] {
            file.extend(field.to_le_bytes());
        }
        file.extend(0u32.to_le_bytes());
        for field in [64u16, 56, 2, 0, 0, 0] {
            file.extend(field.to_le_bytes());
        }
        file.extend(header(1, data + note.len() as u64, LOAD_AT, segment.len() as u64, memory_size));
        file.extend(header(4, data, 0, note.len() as u64, note.len() as u64));
        file.extend(note);
        file.extend(segment);
        file
    }

    #[test]
    fn segments_stub_and_start_info_are_where_the_kernel_looks() {
        let ram = ram(64);
        let segment: Vec<u8> = (0..10_000u32).map(|i| u8::try_from(i % 251).unwrap()).collect();
        load(&ram, 64, &mut payload(&kernel(&segment, 20_000, 18), KernelFormat::Elf)).unwrap();
        let mut seen = vec![0; segment.len()];
        ram.read_slice(&mut seen, GuestAddress(LOAD_AT)).unwrap();
        assert_eq!(seen, segment);
        let stub: [u8; 7] = ram.read_obj(layout::ENTRY_STUB).unwrap();
        assert_eq!(stub, [0xb8, 0, 2, 0, 1, 0xff, 0xe0]);
        let info: hvm_start_info = ram.read_obj(layout::START_INFO).unwrap();
        assert_eq!((info.magic, info.version, info.nr_modules), (XEN_HVM_START_MAGIC_VALUE, 1, 1));
        assert_eq!((info.rsdp_paddr, info.memmap_entries), (layout::ACPI_TABLES.0, 3));
        let module: hvm_modlist_entry = ram.read_obj(layout::MODULES).unwrap();
        let mut initramfs = [0; 9];
        ram.read_slice(&mut initramfs, GuestAddress(module.paddr)).unwrap();
        assert_eq!((&initramfs, module.size), (b"initramfs", 9));
        let last: hvm_memmap_table_entry = ram.read_obj(GuestAddress(layout::MEMORY_MAP.0 + 48)).unwrap();
        assert_eq!((last.addr, last.size, last.type_), (1 << 20, 63 << 20, 1));
    }

    #[test]
    fn what_cannot_run_says_why() {
        let ram = ram(64);
        let load = |file: &[u8]| load(&ram, 64, &mut payload(file, KernelFormat::Elf)).unwrap_err();
        assert!(matches!(load(&kernel(b"x", 1, 17)), LoadError::Unsupported(_)));
        assert!(matches!(load(&kernel(b"x", 64 << 20, 18)), LoadError::TooLarge { .. }));
        let cut = kernel(&[1; 5000], 5000, 18);
        assert!(matches!(load(&cut[..cut.len() - 1]), LoadError::Unsupported(_)));
        let mut huge = cut.clone();
        huge[64 + 32..64 + 40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(matches!(load(&huge), LoadError::Unsupported(_)));
    }
}
