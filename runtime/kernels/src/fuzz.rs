//! Fuzz bodies: a kernel's file, its modules, and its layer in a registry. Each takes any bytes, and panics only on a
//! defect.
//!
//! `cargo test` runs them a fixed number of times with fixed seeds; `fuzz/` has the targets for libFuzzer. Not here:
//! loading a kernel into a guest (`vmm`).

use std::io::{Cursor, Write};

use machine::KernelFormat;

use crate::modules::{Module, unsigned_len};
use crate::{Architecture, MAX_IMAGE_BYTES, image, module_tree, oci};

/// Reads a kernel's file, and the image packed in it.
pub fn image(data: &[u8]) {
    let found = image::detect(data);
    assert_eq!(
        found,
        image::detect(data.get(..image::HEAD_BYTES).unwrap_or(data)),
        "the head was not enough"
    );
    if found == Ok(KernelFormat::Elf) {
        elf(data);
    }
    if let Ok(kernel) = image::of_package(data.to_vec(), Architecture::Amd64) {
        assert!(kernel.len() as u64 <= MAX_IMAGE_BYTES, "{} bytes", kernel.len());
        assert_eq!((found, image::detect(&kernel)), (Ok(KernelFormat::BzImage), Ok(KernelFormat::Elf)));
    }
    if let Ok(kernel) = image::of_package(data.to_vec(), Architecture::Arm64) {
        assert!(found == Ok(KernelFormat::Image) && kernel == data);
    }
}

/// Reads an ELF file; one that is whole stays whole with more bytes after it.
fn elf(data: &[u8]) {
    let check = |more: &[u8]| {
        let mut file = tempfile::tempfile().ok()?;
        file.write_all(data).and_then(|()| file.write_all(more)).ok()?;
        Some(image::check_elf(file).is_ok())
    };
    assert!(check(b"") != Some(true) || check(b"more") == Some(true));
}

/// Reads a kernel's module.
pub fn module(data: &[u8]) {
    let len = unsigned_len(data);
    assert!(len <= data.len(), "{len} of {}", data.len());
    let Ok(module) = Module::parse(data.to_vec()) else { return };
    for name in module.dependencies() {
        assert!(!name.is_empty() && !name.contains(','), "{name:?}");
    }
    module_tree::index(&module);
}

/// Unpacks the layer that holds a registry's kernel.
pub fn layer(data: &[u8]) {
    for architecture in [Architecture::Amd64, Architecture::Arm64] {
        let mut out = Counted(0);
        let unpacked = oci::unpack(&mut Cursor::new(data), &mut out, architecture);
        assert!(out.0 <= MAX_IMAGE_BYTES, "{} bytes", out.0);
        assert!(!matches!(unpacked, Err(oci::Unpack::Io(_))), "a layer's fault is taken for the disk's");
    }
}

/// A writer that only counts.
struct Counted(u64);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use flate2::Compression;
    use flate2::read::GzEncoder;

    use super::*;
    use crate::image::tests::kernel_elf;

    fn bzimage(payload: &[u8], with_size: bool) -> Vec<u8> {
        let size = u32::try_from(kernel_elf().len()).unwrap().to_le_bytes();
        let payload = [payload, if with_size { &size } else { b"" }].concat();
        let mut image = vec![0u8; 1024];
        image[0x1f1] = 1;
        image[0x1fe..0x200].copy_from_slice(&[0x55, 0xaa]);
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        image.extend_from_slice(&payload);
        image
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packed = Vec::new();
        GzEncoder::new(bytes, Compression::fast()).read_to_end(&mut packed).unwrap();
        packed
    }

    fn images() -> Vec<Vec<u8>> {
        let elf = kernel_elf();
        let block = lz4_flex::block::compress(&elf);
        let len = u32::try_from(block.len()).unwrap().to_le_bytes();
        let lz4 = [&[0x02, 0x21, 0x4c, 0x18], &len[..], &block].concat();
        let mut xz = Vec::new();
        liblzma::read::XzEncoder::new(&elf[..], 1).read_to_end(&mut xz).unwrap();
        let mut arm64 = vec![0u8; 64];
        arm64[56..60].copy_from_slice(b"ARM\x64");
        vec![
            bzimage(&lz4, true),
            bzimage(&xz, true),
            bzimage(&zstd::encode_all(&elf[..], 1).unwrap(), true),
            bzimage(&gzip(&elf), false),
            bzimage(&[0x02, 0x21, 0x4c, 0x18, 0], false),
            arm64,
            elf,
        ]
    }

    #[test]
    fn image() {
        let words = ["\x02\x21\x4c\x18", "\x1f\u{8b}", "HdrS", "Xen\0", "\x01\0\0\0", "\x08\0\0\0"];
        fuzzed::run("kernels_image", 2000, &images(), &words, super::image);
    }

    /// An ELF file of two sections: `.modinfo`, and the sections' names.
    fn elf_module() -> Vec<u8> {
        let (names, info) = (b"\0.modinfo\0.names\0", b"license=GPL\0depends=virtio,virtio-ring\0");
        let mut file = vec![0u8; 64];
        file[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        file[16..24].copy_from_slice(&[1, 0, 62, 0, 1, 0, 0, 0]);
        file[40] = 128;
        file[52..64].copy_from_slice(&[64, 0, 0, 0, 0, 0, 64, 0, 3, 0, 2, 0]);
        file.extend_from_slice(names);
        file.resize(128 + 64, 0);
        for (name, kind, at, len) in [(1u32, 1u32, 320u64, info.len()), (10, 3, 64, names.len())] {
            let start = file.len();
            file.extend([name.to_le_bytes(), kind.to_le_bytes()].concat());
            file.extend([0, 0, at, len as u64].map(u64::to_le_bytes).concat());
            file.resize(start + 64, 0);
        }
        file.extend_from_slice(info);
        file
    }

    #[test]
    fn module() {
        let end = b"~Module signature appended~\n";
        let signed = [&elf_module()[..], &[9; 100], &[0; 8], &[0, 0, 0, 100], end].concat();
        assert_eq!(Module::parse(elf_module()).unwrap().dependencies(), ["virtio", "virtio-ring"]);
        let words =
            ["depends=", "alias=", "softdep=", ",", "\0", "[", ".modinfo", "~Module signature appended~\n"];
        fuzzed::run("kernels_module", 4000, &[elf_module(), signed], &words, super::module);
    }

    #[test]
    fn layer() {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, data) in [("kernel-arm64", &b"arm"[..]), ("./kernel", b"intel")] {
            let mut header = tar::Header::new_gnu();
            header.set_size(data.len() as u64);
            tar.append_data(&mut header, name, data).unwrap();
        }
        let tar = tar.into_inner().unwrap();
        let examples = [gzip(&tar), zstd::encode_all(&tar[..], 1).unwrap(), tar, b"plain".to_vec()];
        fuzzed::run("kernels_layer", 2000, &examples, &["ustar", "kernel", "./", "L", "x"], super::layer);
    }
}
