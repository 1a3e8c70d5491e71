//! Kernel image files: their formats, and the ELF image inside a bzImage.

use std::fs::File;
use std::io::{self, Read};

use machine::KernelFormat;
use object::elf::{FileHeader64, PT_LOAD};
use object::read::ReadCache;
use object::read::elf::{FileHeader, ProgramHeader};

use crate::{Architecture, MAX_IMAGE_BYTES};

/// Bytes at the start of a file that [`detect`] needs.
pub(crate) const HEAD_BYTES: usize = 0x250;

/// The format of the kernel whose first bytes are `head`.
pub(crate) fn detect(head: &[u8]) -> Result<KernelFormat, &'static str> {
    if head.starts_with(b"\x7fELF") {
        // System V ABI: e_ident[EI_CLASS] = ELFCLASS64; x86-64 psABI: e_machine = EM_X86_64 (62)
        let machine = head.get(18..20);
        return match (head.get(4), machine) {
            (Some(2), Some([62, 0])) => Ok(KernelFormat::Elf),
            _ => Err("an ELF file, but not for x86-64"),
        };
    }
    // Documentation/arch/x86/boot.rst: offset 0x1fe "0xAA55 magic number", offset 0x202 "HdrS"
    if head.get(0x1fe..0x200) == Some(&[0x55, 0xaa]) && head.get(0x202..0x206) == Some(b"HdrS") {
        return Ok(KernelFormat::BzImage);
    }
    // Documentation/arch/arm64/booting.rst: offset 56 "Magic number, little endian, "ARM\x64""
    if head.get(56..60) == Some(b"ARM\x64") {
        return Ok(KernelFormat::Image);
    }
    Err("neither ELF nor bzImage")
}

/// Whether an ELF file is a whole kernel with the entry point that machines here use.
pub(crate) fn check_elf(file: File) -> Result<(), &'static str> {
    /// xen/include/public/elfnote.h: "Physical entry point into the kernel. 32bit entry point into the kernel."
    const XEN_ELFNOTE_PHYS32_ENTRY: u32 = 18;
    const BROKEN: &str = "an ELF file with broken headers";

    let data = ReadCache::new(file);
    let length = object::ReadRef::len(&data).map_err(|()| "not readable")?;
    let header = FileHeader64::<object::LittleEndian>::parse(&data).map_err(|_| BROKEN)?;
    let endian = header.endian().map_err(|_| BROKEN)?;
    let segments = header.program_headers(endian, &data).map_err(|_| BROKEN)?;
    let mut entry = false;
    for segment in segments {
        let (start, size) = segment.file_range(endian);
        if start.checked_add(size).is_none_or(|end| end > length) {
            return Err("an ELF file that is cut off");
        }
        if segment.p_type(endian) == PT_LOAD {
            continue;
        }
        if let Some(mut notes) = segment.notes(endian, &data).map_err(|_| BROKEN)? {
            while let Some(note) = notes.next().map_err(|_| BROKEN)? {
                entry |= note.name() == b"Xen" && note.n_type(endian) == XEN_ELFNOTE_PHYS32_ENTRY;
            }
        }
    }
    if entry { Ok(()) } else { Err("an ELF file without a PVH entry point (CONFIG_PVH)") }
}

/// The image that machines boot, from the kernel file of a Debian package.
pub(crate) fn of_package(file: Vec<u8>, architecture: Architecture) -> Result<Vec<u8>, &'static str> {
    match (architecture, detect(&file)?) {
        (Architecture::Amd64, KernelFormat::BzImage) => unpack(&file),
        // Debian does not compress it.
        (Architecture::Arm64, KernelFormat::Image) => Ok(file),
        _ => Err("a kernel for another architecture"),
    }
}

/// The ELF image packed into `bzimage`.
fn unpack(bzimage: &[u8]) -> Result<Vec<u8>, &'static str> {
    if detect(bzimage)? != KernelFormat::BzImage {
        return Err("not a bzImage");
    }
    let setup_sectors = match bzimage.get(0x1f1).copied().unwrap_or(0) {
        // boot.rst, setup_sects: "if the setup_sects field contains 0, the real value is 4"
        0 => 4,
        n => usize::from(n),
    };
    let field = |at: usize| {
        let bytes = bzimage.get(at..at + 4)?;
        Some(u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]) as usize)
    };
    // boot.rst, payload_offset (2.08+): "the offset from the beginning of the protected-mode code to the payload"
    let (Some(offset), Some(length)) = (field(0x248), field(0x24c)) else {
        return Err("boot header is cut off");
    };
    let start = ((setup_sectors + 1) * 512).checked_add(offset).ok_or("payload is out of bounds")?;
    let end = start.checked_add(length).ok_or("payload is out of bounds")?;
    let payload = bzimage.get(start..end).ok_or("payload is out of bounds")?;
    let image = decompress(payload)?;
    match detect(&image) {
        Ok(KernelFormat::Elf) => Ok(image),
        _ => Err("payload is not an ELF kernel"),
    }
}

fn decompress(payload: &[u8]) -> Result<Vec<u8>, &'static str> {
    // The kernel build appends the unpacked size, little-endian u32, to every payload but gzip's, which ends in it.
    let (body, size) = payload.split_last_chunk::<4>().ok_or("payload is empty")?;
    let size = u32::from_le_bytes(*size);
    if u64::from(size) > MAX_IMAGE_BYTES {
        return Err("unpacked image is over the size limit");
    }
    let size = size as usize;
    let unpacked = match payload {
        [0x1f, 0x8b, ..] => read(flate2::read::GzDecoder::new(payload), size),
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => read(liblzma::read::XzDecoder::new(body), size),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => {
            read(zstd::Decoder::new(body).map_err(|_| "payload is broken")?, size)
        }
        [0x02, 0x21, 0x4c, 0x18, ..] => {
            return lz4_legacy(body.get(4..).ok_or("payload is broken")?, size);
        }
        _ => return Err("payload has an unknown compression"),
    };
    match unpacked {
        Ok(image) if image.len() == size => Ok(image),
        _ => Err("payload is broken"),
    }
}

fn read(reader: impl Read, size: usize) -> io::Result<Vec<u8>> {
    let mut image = Vec::with_capacity(size);
    reader.take(size as u64).read_to_end(&mut image)?;
    Ok(image)
}

/// lz4's legacy format: blocks of at most 8 MiB unpacked, each behind its packed length.
fn lz4_legacy(mut body: &[u8], size: usize) -> Result<Vec<u8>, &'static str> {
    const BLOCK: usize = 8 << 20;
    let mut image = vec![0; size];
    let mut filled = 0;
    while let Some((length, rest)) = body.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        let block = rest.get(..length).ok_or("payload is broken")?;
        let end = size.min(filled + BLOCK);
        let room = &mut image[filled..end];
        filled += lz4_flex::block::decompress_into(block, room).map_err(|_| "payload is broken")?;
        body = &rest[length..];
    }
    if filled == size { Ok(image) } else { Err("payload is broken") }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    fn elf() -> Vec<u8> {
        let mut elf = vec![0u8; 9 << 20];
        elf[..5].copy_from_slice(b"\x7fELF\x02");
        elf[18] = 62;
        for (i, byte) in elf.iter_mut().enumerate().skip(64) {
            *byte = u8::try_from(i / 7 % 251).unwrap();
        }
        elf
    }

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0u8; 1024];
        image[0x1f1] = 1;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x248..0x24c].copy_from_slice(&0u32.to_le_bytes());
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    fn lz4(elf: &[u8]) -> Vec<u8> {
        let mut payload = vec![0x02, 0x21, 0x4c, 0x18];
        for block in elf.chunks(8 << 20) {
            let packed = lz4_flex::block::compress(block);
            payload.extend_from_slice(&u32::try_from(packed.len()).unwrap().to_le_bytes());
            payload.extend_from_slice(&packed);
        }
        payload.extend_from_slice(&u32::try_from(elf.len()).unwrap().to_le_bytes());
        payload
    }

    #[test]
    fn lz4_and_zstd_payloads_unpack() {
        let elf = elf();
        assert!(unpack(&bzimage(&lz4(&elf))).unwrap() == elf);
        let mut payload = zstd::encode_all(&elf[..], 1).unwrap();
        payload.extend_from_slice(&u32::try_from(elf.len()).unwrap().to_le_bytes());
        assert!(unpack(&bzimage(&payload)).unwrap() == elf);
    }

    #[test]
    fn packages_have_kernels_for_their_architecture() {
        use Architecture::{Amd64, Arm64};
        let elf = elf();
        let packed = bzimage(&lz4(&elf));
        let mut image = vec![0u8; 1024];
        image[56..60].copy_from_slice(b"ARM\x64");
        assert!(of_package(packed.clone(), Amd64).unwrap() == elf);
        assert_eq!(of_package(image.clone(), Arm64), Ok(image.clone()));
        for (file, architecture) in [(packed, Arm64), (image, Amd64), (elf, Amd64)] {
            assert_eq!(of_package(file, architecture), Err("a kernel for another architecture"));
        }
        assert!(of_package(Vec::new(), Amd64).is_err());
    }

    #[test]
    fn broken_images_are_errors() {
        let elf = elf();
        let good = bzimage(&lz4(&elf));
        assert_eq!(unpack(&good[..good.len() - 9]), Err("payload is out of bounds"));
        let mut lying = good.clone();
        let end = lying.len();
        lying[end - 4..].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(unpack(&lying), Err("unpacked image is over the size limit"));
        let mut broken = good.clone();
        broken[1028..1032].copy_from_slice(&u32::MAX.to_le_bytes());
        assert_eq!(unpack(&broken), Err("payload is broken"));
        assert!(detect(b"#!/bin/sh").is_err());
        assert!(detect(b"").is_err());
        assert!(unpack(&bzimage(b"")).is_err());
        // The magic number and the size share bytes.
        assert_eq!(unpack(&bzimage(&[0x02, 0x21, 0x4c, 0x18, 0])), Err("payload is broken"));
    }

    fn checked(elf: &[u8]) -> Result<(), &'static str> {
        let mut file = tempfile::tempfile().unwrap();
        io::Write::write_all(&mut file, elf).unwrap();
        check_elf(file)
    }

    /// An ELF kernel: headers, one segment of notes with the entry point, one to load.
    pub(crate) fn kernel_elf() -> Vec<u8> {
        let mut elf = vec![0u8; 0x400];
        let mut put = |at: usize, bytes: &[u8]| elf[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"\x7fELF\x02\x01\x01");
        put(16, &[2, 0, 62, 0, 1, 0, 0, 0]);
        put(32, &64u64.to_le_bytes());
        put(52, &[64, 0, 56, 0, 2, 0, 64, 0]);
        for (at, kind, offset, size) in [(64, 4u32, 0x100u64, 20u64), (120, 1, 0x200, 0x200)] {
            put(at, &kind.to_le_bytes());
            put(at + 8, &offset.to_le_bytes());
            put(at + 32, &size.to_le_bytes());
            put(at + 48, &4u64.to_le_bytes());
        }
        put(0x100, &[4, 0, 0, 0, 4, 0, 0, 0, 18, 0, 0, 0]);
        put(0x10c, b"Xen\0\0\0\x10\0");
        elf
    }

    #[test]
    fn elf_kernels_are_whole_and_have_an_entry_point() {
        let elf = kernel_elf();
        assert_eq!(checked(&elf), Ok(()));
        assert_eq!(checked(&elf[..0x3ff]), Err("an ELF file that is cut off"));
        assert_eq!(checked(&elf[..60]), Err("an ELF file with broken headers"));
        let mut other = elf;
        other[0x108] = 1;
        assert_eq!(checked(&other), Err("an ELF file without a PVH entry point (CONFIG_PVH)"));
    }

    #[test]
    fn hostile_elf_files_do_not_panic() {
        let elf = kernel_elf();
        for at in 0..0x120 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut changed = elf.clone();
                changed[at] = value;
                let _ = checked(&changed);
            }
        }
    }

    /// Every truncation and many single-byte changes: an error or an image, never a panic.
    #[test]
    fn hostile_images_do_not_panic() {
        let small = bzimage(&lz4(&elf()[..4096]));
        for end in 0..small.len() {
            let _ = unpack(&small[..end]);
        }
        for at in 0..small.len() {
            let mut changed = small.clone();
            changed[at] ^= 0x55;
            let _ = unpack(&changed);
        }
    }
}
