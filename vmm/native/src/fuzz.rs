//! The fuzz body of loading a kernel: any file, of either format, is a kernel in guest memory or an error.
//!
//! `cargo test` runs the body a fixed number of times with fixed seeds; `fuzz/` has the target for libFuzzer. Not here:
//! compressed kernel files (`kernels`).

use std::fs::File;
use std::io::Write;

use guest_memory::GuestRam;
use machine::KernelFormat;
use rustix::fs::{MemfdFlags, memfd_create};
use vm_memory::{Bytes, GuestAddress};

use crate::layout;
use crate::loader::{self, Payload};

/// The guest's memory.
const MEMORY_MIB: u32 = 32;

/// The command line, which shows that no other structure overwrites it.
const COMMAND_LINE: &str = "quiet panic=-1";

/// Loads a kernel's file; the first byte picks the announced format.
pub fn kernel(data: &[u8]) {
    let Some((format, bytes)) = data.split_first() else { return };
    let format = if format % 2 == 0 { KernelFormat::Elf } else { KernelFormat::BzImage };
    let (Some(kernel), Some(initramfs)) = (file(bytes), file(b"initramfs")) else { return };
    let ranges: Vec<_> = layout::ram(MEMORY_MIB)
        .into_iter()
        .filter_map(|(start, size)| Some((start, usize::try_from(size).ok()?)))
        .collect();
    let Ok(ram) = GuestRam::from_ranges(&ranges) else { return };
    let mut payload = Payload { kernel, format, initramfs, command_line: COMMAND_LINE.to_owned() };
    if let Err(error) = loader::load(&ram, MEMORY_MIB, &mut payload) {
        assert!(!error.to_string().is_empty());
        return;
    }
    // The initramfs must be at the top of memory.
    let top = GuestAddress((u64::from(MEMORY_MIB) << 20) - layout::PAGE);
    let mut seen = [0; 9];
    assert!(ram.read_slice(&mut seen, top).is_ok());
    assert_eq!(&seen, b"initramfs");
}

fn file(bytes: &[u8]) -> Option<File> {
    let mut file = memfd_create("fuzz", MemfdFlags::CLOEXEC).map(File::from).ok()?;
    file.write_all(bytes).ok()?;
    Some(file)
}

#[cfg(test)]
mod tests {
    const LOAD_AT: u64 = 0x100_0000;

    /// An ELF file with a note of its entry and a segment to load.
    fn elf() -> Vec<u8> {
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3e\0\x01\0\0\0".to_vec();
        file.extend([LOAD_AT, 64, 0].map(u64::to_le_bytes).concat());
        file.extend(b"\0\0\0\0\x40\0\x38\0\x02\0\0\0\0\0\0\0");
        for (kind, offset, paddr, filesz, memsz) in
            [(1u32, 196u64, LOAD_AT, 64u64, 128u64), (4, 176, 0, 20, 20)]
        {
            file.extend([kind.to_le_bytes(), 5u32.to_le_bytes()].concat());
            file.extend([offset, paddr, paddr, filesz, memsz, 4].map(u64::to_le_bytes).concat());
        }
        file.extend([4u32, 4, 18].map(u32::to_le_bytes).concat());
        file.extend(b"Xen\0\0\x02\0\x01");
        file.extend([0x90; 64]);
        file
    }

    fn bzimage() -> Vec<u8> {
        let mut file = vec![0u8; 1024];
        let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(0x1f1, &[1]);
        put(0x1fe, &[0x55, 0xaa]);
        put(0x202, b"HdrS\x0f\x02");
        put(0x211, &[1]);
        put(0x22c, &0x7fff_ffffu32.to_le_bytes());
        put(0x236, &[1]);
        put(0x258, &0x100_0000u64.to_le_bytes());
        put(0x260, &0x10_0000u32.to_le_bytes());
        file.extend([0x90; 100]);
        file
    }

    #[test]
    fn kernel() {
        let examples = [[&[0], &elf()[..]].concat(), [&[1], &bzimage()[..]].concat()];
        fuzzed::run(
            "vmm_kernel",
            1500,
            &examples,
            &["\x04\0\0\0", "\x10\0\0\0", "Xen\0", "HdrS"],
            super::kernel,
        );
    }
}
