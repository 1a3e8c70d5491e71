//! bzImage kernels: the Linux x86 64-bit boot protocol (Documentation/arch/x86/boot.rst).

use guest_memory::GuestRam;
use hypervisor::x86::BootState;
use linux_loader::loader::bootparam::{boot_e820_entry, boot_params};
use linux_loader::loader::bzimage::{BzImage, Error as BzImageError};
use linux_loader::loader::{Error as LoaderError, KernelLoader};
use vm_memory::{Address, Bytes, GuestAddress};

use super::{LoadError, Payload, load_initramfs};
use crate::layout;

/// Address at which the protected-mode kernel is loaded.
const LOAD_AT: GuestAddress = layout::HIGH_MEMORY;
/// boot.rst, "64-bit Boot Protocol": "the 64-bit kernel entry point is at load address plus 0x200".
const ENTRY_OFFSET: u64 = 0x200;
/// First protocol version with `xloadflags`.
const OLDEST_PROTOCOL: u16 = 0x020c;
/// `XLF_KERNEL_64`: the kernel has a 64-bit entry at 0x200.
const XLF_KERNEL_64: u16 = 1;
/// boot.rst, `type_of_loader`: no assigned id.
const LOADER_OTHER: u8 = 0xff;
/// The GDT that the protocol asks for: flat 4 GiB segments, code at selector 0x10, data at 0x18.
const GDT: [u64; 4] = [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff];
/// Flags of a page table entry: present and writable.
const TABLE: u64 = 0b11;
/// Flags of a page table entry: present, writable, and a page of 2 MiB.
const HUGE_PAGE: u64 = 0x83;

pub(super) fn boot_state() -> BootState {
    BootState::Long {
        rip: LOAD_AT.0 + ENTRY_OFFSET,
        rsi: layout::ZERO_PAGE.0,
        rsp: layout::STACK_TOP.0,
        cr3: layout::PAGE_TABLES.0,
        gdt: layout::GDT.0,
    }
}

pub(super) fn load(ram: &GuestRam, memory_mib: u32, payload: &mut Payload) -> Result<(), LoadError> {
    let loaded = BzImage::load(ram, Some(LOAD_AT), &mut payload.kernel, None)
        .map_err(|error| refused(&error, memory_mib))?;
    let mut header = loaded.setup_header.ok_or(LoadError::Unsupported("it has no setup header"))?;
    let (version, flags) = (header.version, header.xloadflags);
    if version < OLDEST_PROTOCOL || flags & XLF_KERNEL_64 == 0 {
        return Err(LoadError::Unsupported("it has no 64-bit entry"));
    }
    // The kernel unpacks itself to its preferred address and needs `init_size` bytes there.
    let (preferred, needed) = (header.pref_address, header.init_size);
    let unpacked_end = preferred.saturating_add(needed.into()).max(loaded.kernel_end);
    if unpacked_end > layout::ram(memory_mib).first().map_or(0, |(_, size)| *size) {
        return Err(LoadError::TooLarge { what: "kernel", memory_mib });
    }
    let limit = u64::from(header.initrd_addr_max) + 1;
    let initramfs = load_initramfs(ram, memory_mib, &payload.initramfs, unpacked_end, limit)?;

    #[allow(clippy::cast_possible_truncation, reason = "low addresses, and an initramfs below 4 GiB")]
    {
        header.type_of_loader = LOADER_OTHER;
        header.cmd_line_ptr = layout::COMMAND_LINE.0 as u32;
        header.ramdisk_image = initramfs.map_or(0, |at| at.start as u32);
        header.ramdisk_size = initramfs.map_or(0, |at| at.size as u32);
    }
    let mut params = boot_params { hdr: header, acpi_rsdp_addr: layout::ACPI_TABLES.0, ..Default::default() };
    let map = layout::memory_map(memory_mib);
    params.e820_entries = u8::try_from(map.len()).unwrap_or(0);
    for (entry, (addr, size, usage)) in params.e820_table.iter_mut().zip(map) {
        *entry = boot_e820_entry { addr, size, r#type: usage as u32 };
    }
    ram.write_obj(params, layout::ZERO_PAGE)?;
    ram.write_obj(GDT, layout::GDT)?;
    Ok(write_page_tables(ram)?)
}

fn refused(error: &LoaderError, memory_mib: u32) -> LoadError {
    match error {
        LoaderError::Bzimage(BzImageError::ReadBzImageCompressedKernel) => {
            LoadError::TooLarge { what: "kernel", memory_mib }
        }
        _ => LoadError::NotAKernel { expected: "a bzImage", reason: "it has no Linux setup header" },
    }
}

/// Maps the first 4 GiB to themselves in pages of 2 MiB.
fn write_page_tables(ram: &GuestRam) -> Result<(), vm_memory::GuestMemoryError> {
    const ENTRIES: usize = 512;
    let pointers = layout::PAGE_TABLES.unchecked_add(layout::PAGE);
    let directories = pointers.unchecked_add(layout::PAGE);
    ram.write_obj(pointers.0 | TABLE, layout::PAGE_TABLES)?;
    for gigabyte in 0..4 {
        let directory = directories.unchecked_add(gigabyte * layout::PAGE);
        ram.write_obj(directory.0 | TABLE, pointers.unchecked_add(gigabyte * 8))?;
        let mut page = [0u8; ENTRIES * 8];
        for (bytes, index) in page.chunks_exact_mut(8).zip(0..) {
            bytes.copy_from_slice(&(gigabyte << 30 | index << 21 | HUGE_PAGE).to_le_bytes());
        }
        ram.write_slice(&page, directory)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::super::tests::{payload, ram};
    use super::*;
    use machine::KernelFormat;

    /// A bzImage with one setup sector beyond the first and this much code.
    fn kernel(version: u16, xloadflags: u16, init_size: u32, code: &[u8]) -> Vec<u8> {
        let mut file = vec![0u8; 1024];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x1fe, &[0x55, 0xaa]);
        put(0x202, b"HdrS");
        put(0x206, &version.to_le_bytes());
        put(0x211, &[1]);
        put(0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(0x236, &xloadflags.to_le_bytes());
        put(0x258, &0x100_0000u64.to_le_bytes());
        put(0x260, &init_size.to_le_bytes());
        file.extend(code);
        file
    }

    #[test]
    fn code_zero_page_and_tables_are_where_the_protocol_says() {
        let ram = ram(64);
        let code: Vec<u8> = (0..70_000u32).map(|i| u8::try_from(i % 241).unwrap()).collect();
        super::super::load(
            &ram,
            64,
            &mut payload(&kernel(0x20f, 1, 0x20_0000, &code), KernelFormat::BzImage),
        )
        .unwrap();
        let mut seen = vec![0; code.len()];
        ram.read_slice(&mut seen, LOAD_AT).unwrap();
        assert_eq!(seen, code);
        let params: boot_params = ram.read_obj(layout::ZERO_PAGE).unwrap();
        let (command_line, image, size) =
            (params.hdr.cmd_line_ptr, params.hdr.ramdisk_image, params.hdr.ramdisk_size);
        let mut text = [0; 15];
        ram.read_slice(&mut text, GuestAddress(command_line.into())).unwrap();
        assert_eq!(&text, b"quiet panic=-1\0");
        assert_eq!((image, size), ((64 << 20) - 0x1000, 9));
        let (rsdp, entries, loader) = (params.acpi_rsdp_addr, params.e820_entries, params.hdr.type_of_loader);
        assert_eq!((rsdp, entries, loader), (layout::ACPI_TABLES.0, 3, 0xff));
        // The test walks the tables for an address in the fourth gigabyte.
        let virt = 0xc123_4567u64;
        let entry = |table: u64, index: u64| ram.read_obj::<u64>(GuestAddress(table + index * 8)).unwrap();
        let pointers = entry(layout::PAGE_TABLES.0, 0) & !0xfff;
        let directory = entry(pointers, virt >> 30) & !0xfff;
        assert_eq!(entry(directory, virt >> 21 & 511), (virt & !0x1f_ffff) | HUGE_PAGE);
        assert!(directory + layout::PAGE <= layout::STACK_TOP.0 - 0x1000);
    }

    #[test]
    fn what_cannot_run_says_why() {
        let ram = ram(64);
        let load = |file: &[u8]| load(&ram, 64, &mut payload(file, KernelFormat::BzImage)).unwrap_err();
        assert!(matches!(load(&kernel(0x20b, 1, 0, b"x")), LoadError::Unsupported(_)));
        assert!(matches!(load(&kernel(0x20f, 0, 0, b"x")), LoadError::Unsupported(_)));
        assert!(matches!(load(&kernel(0x20f, 1, 48 << 20, b"x")), LoadError::TooLarge { .. }));
        assert!(matches!(load(&kernel(0x20f, 1, 0, &vec![0; 64 << 20])), LoadError::TooLarge { .. }));
    }
}
