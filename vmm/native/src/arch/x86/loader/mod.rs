//! Puts kernel, initramfs and boot structures into guest RAM.
//!
//! The start of the boot vCPU depends only on the kernel's format ([`arch`]), so the hypervisor can make the machine
//! while [`load`] still reads. File contents go directly from the page cache into guest RAM. Not here: the ACPI tables,
//! which do not depend on the kernel.

mod bzimage;
mod elf;

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use guest_memory::GuestRam;
use hypervisor::Arch;
use hypervisor::x86::{BootState, Chip};
use machine::KernelFormat;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

use crate::layout;

/// The files to load. This module moves the offset of the kernel's file.
#[derive(Debug)]
pub struct Payload {
    /// The kernel's file.
    pub kernel: File,
    /// The format of the kernel's file.
    pub format: KernelFormat,
    /// The initial RAM file system; an empty file means none.
    pub initramfs: File,
    /// Kernel parameters.
    pub command_line: String,
}

/// Why a kernel cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// The file is not of the announced format.
    #[error("kernel is not {expected}: {reason}")]
    NotAKernel {
        /// The announced format.
        expected: &'static str,
        /// The file's fault.
        reason: &'static str,
    },
    /// The kernel has its announced format, but cannot be started on this machine.
    #[error("kernel cannot be started: {0}")]
    Unsupported(&'static str),
    /// Guest RAM is too small.
    #[error("{what} does not fit in {memory_mib} MiB of guest memory")]
    TooLarge {
        /// The file or structure that does not fit.
        what: &'static str,
        /// The guest's memory.
        memory_mib: u32,
    },
    /// The command line is too long, or contains a NUL.
    #[error("kernel command line of {0} bytes is too long (at most {max}), or has a NUL in it", max = layout::COMMAND_LINE_MAX - 1)]
    CommandLine(usize),
    /// A file cannot be read.
    #[error("{what}: {source}")]
    Read {
        /// The file.
        what: &'static str,
        /// The system's error.
        source: io::Error,
    },
    /// A boot structure fell outside guest RAM.
    #[error("boot structures: {0}")]
    Memory(#[from] vm_memory::GuestMemoryError),
}

/// The machine on which a kernel of this format is started, with the boot vCPU where that kernel's boot protocol
/// begins.
pub fn arch(format: KernelFormat) -> Result<Arch, LoadError> {
    // Hardware-reduced ACPI has no legacy timer; kernels take the time from the hypervisor's clock and the local APIC.
    Ok(Arch::X86(Chip { boot: Some(boot_state(format)?), legacy_timer: false }))
}

fn boot_state(format: KernelFormat) -> Result<BootState, LoadError> {
    match format {
        KernelFormat::Elf => Ok(elf::boot_state()),
        KernelFormat::BzImage => Ok(bzimage::boot_state()),
        KernelFormat::Image => Err(LoadError::Unsupported("an arm64 Image needs an arm64 host")),
    }
}

/// Loads kernel, initramfs and command line.
pub fn load(ram: &GuestRam, memory_mib: u32, payload: &mut Payload) -> Result<(), LoadError> {
    write_command_line(ram, &payload.command_line)?;
    match payload.format {
        KernelFormat::Elf => elf::load(ram, memory_mib, payload),
        KernelFormat::BzImage => bzimage::load(ram, memory_mib, payload),
        KernelFormat::Image => boot_state(payload.format).map(drop),
    }
}

fn write_command_line(ram: &GuestRam, text: &str) -> Result<(), LoadError> {
    if text.len() >= layout::COMMAND_LINE_MAX || text.contains('\0') {
        return Err(LoadError::CommandLine(text.len()));
    }
    // RAM is zeroed, so the terminating NUL is already in place.
    Ok(ram.write_slice(text.as_bytes(), layout::COMMAND_LINE)?)
}

/// The place of the initramfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Initramfs {
    start: u64,
    size: u64,
}

/// Loads the initramfs as high as possible below `limit`, above `floor`. An empty file means no initramfs.
fn load_initramfs(
    ram: &GuestRam,
    memory_mib: u32,
    file: &File,
    floor: u64,
    limit: u64,
) -> Result<Option<Initramfs>, LoadError> {
    let read = |source| LoadError::Read { what: "initramfs", source };
    let size = file.metadata().map_err(read)?.len();
    if size == 0 {
        return Ok(None);
    }
    let low_ram_end = layout::ram(memory_mib).first().map_or(0, |(start, size)| start.0 + size);
    let start = low_ram_end.min(limit).checked_sub(size).map(|start| start & !(layout::PAGE - 1));
    let too_large = LoadError::TooLarge { what: "initramfs", memory_mib };
    let (Some(start), Ok(length)) = (start.filter(|start| *start >= floor), usize::try_from(size)) else {
        return Err(too_large);
    };
    let place = ram.get_slice(GuestAddress(start), length)?;
    guest_memory::read_exact_at(file.as_fd(), &[place], 0).map_err(read)?;
    Ok(Some(Initramfs { start, size }))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use std::io::Write;

    /// A file with these contents that has no name.
    pub(super) fn file(bytes: &[u8]) -> File {
        let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
        let mut file = File::from(fd);
        file.write_all(bytes).unwrap();
        file
    }

    pub(super) fn ram(memory_mib: u32) -> GuestRam {
        let ranges: Vec<_> = layout::ram(memory_mib)
            .iter()
            .map(|(start, size)| (*start, usize::try_from(*size).unwrap()))
            .collect();
        guest_memory::allocate(&ranges, guest_memory::Backing::Anonymous).unwrap()
    }

    pub(super) fn payload(kernel: &[u8], format: KernelFormat) -> Payload {
        Payload {
            kernel: file(kernel),
            format,
            initramfs: file(b"initramfs"),
            command_line: "quiet panic=-1".to_owned(),
        }
    }

    #[test]
    fn what_is_no_kernel_is_refused() {
        let ram = ram(64);
        for bytes in [&b""[..], b"#!/bin/sh\n", &[0; 4096], &[0x7f; 65536], b"\x7fELF"] {
            for format in [KernelFormat::Elf, KernelFormat::BzImage] {
                let error = load(&ram, 64, &mut payload(bytes, format)).unwrap_err();
                assert!(matches!(error, LoadError::NotAKernel { .. }), "{error}");
            }
        }
    }

    #[test]
    fn the_command_line_is_bounded() {
        let ram = ram(64);
        write_command_line(&ram, &"x".repeat(layout::COMMAND_LINE_MAX - 1)).unwrap();
        let long = "x".repeat(layout::COMMAND_LINE_MAX);
        assert!(matches!(write_command_line(&ram, &long), Err(LoadError::CommandLine(_))));
        assert!(matches!(write_command_line(&ram, "a\0b"), Err(LoadError::CommandLine(3))));
    }

    #[test]
    fn the_initramfs_is_at_the_top_and_never_on_the_kernel() {
        let ram = ram(64);
        let contents = vec![7u8; 5000];
        let place = |floor, limit| load_initramfs(&ram, 64, &file(&contents), floor, limit);
        let top = place(0, u64::MAX).unwrap().unwrap();
        assert_eq!(top, Initramfs { start: (64 << 20) - 0x2000, size: 5000 });
        let mut seen = vec![0; 5000];
        ram.read_slice(&mut seen, GuestAddress(top.start)).unwrap();
        assert_eq!(seen, contents);
        assert_eq!(place(0, 0x10_0000).unwrap().unwrap().start, 0x10_0000 - 0x2000);
        assert!(matches!(place((64 << 20) - 0x1000, u64::MAX), Err(LoadError::TooLarge { .. })));
        assert!(matches!(place(0, 4000), Err(LoadError::TooLarge { .. })));
        assert_eq!(load_initramfs(&ram, 64, &file(b""), 0, u64::MAX).unwrap(), None);
    }
}
