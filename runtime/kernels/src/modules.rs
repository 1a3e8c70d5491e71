//! The kernel modules that a guest needs, in an order in which they load.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};

use object::{Object, ObjectSection};

use crate::{Error, MAX_IMAGE_BYTES, Result};

/// Modules that are needed before the root can be assembled, in the order of first need: the control stream opens
/// earliest.
pub(crate) const WANTED: &[&str] = &[
    "virtio_mmio",
    "vmw_vsock_virtio_transport",
    "virtio_blk",
    "erofs",
    "overlay",
    "virtio_console",
    "virtio_rng",
    "virtio_balloon",
    "fuse",
];

/// Those of them that a guest does without on a kernel that lacks them: nothing can be mounted later then.
pub(crate) const IF_THERE: &[&str] = &["fuse"];

/// Modules that only guests with shared directories need.
pub(crate) const SHARES: &[&str] = &["virtiofs"];

/// Modules that only guests with a network need. Those on which this one depends come with it.
pub(crate) const NETWORK: &[&str] = &["virtio_net"];

/// The modules of one kernel, by name.
#[derive(Debug, Default)]
pub(crate) struct Tree {
    files: BTreeMap<String, PathBuf>,
    builtin: BTreeSet<String>,
}

impl Tree {
    /// Reads a flat directory of `*.ko` files and, beside them, the kernel's `modules.builtin`.
    pub(crate) fn read(directory: &Path) -> Result<Self> {
        let mut tree = Self::default();
        for entry in fs::read_dir(directory).map_err(Error::io(directory))? {
            let path = entry.map_err(Error::io(directory))?.path();
            match path.file_name().and_then(|name| name.to_str()) {
                Some("modules.builtin") => {
                    let text = fs::read_to_string(&path).map_err(Error::io(&path))?;
                    tree.builtin = text.lines().filter_map(|line| name_of(Path::new(line))).collect();
                }
                Some(_) => {
                    if let Some(name) = name_of(&path) {
                        tree.files.insert(name, path);
                    }
                }
                None => {}
            }
        }
        Ok(tree)
    }

    /// The files to load for `wanted`, dependencies first.
    pub(crate) fn load_order(&self, release: &str, wanted: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut order = Vec::new();
        let mut seen = BTreeSet::new();
        for name in wanted {
            self.visit(release, name, &mut seen, &mut order)?;
        }
        Ok(order)
    }

    fn visit(
        &self,
        release: &str,
        name: &str,
        seen: &mut BTreeSet<String>,
        order: &mut Vec<(String, Vec<u8>)>,
    ) -> Result<()> {
        // File names and dependency lists differ in `-` and `_` only.
        let name = name.replace('-', "_");
        if self.builtin.contains(&name) || !seen.insert(name.clone()) {
            return Ok(());
        }
        let Some(path) = self.files.get(&name) else {
            return Err(Error::Module { release: release.to_owned(), module: name });
        };
        let module = Module::read(path)?;
        for dependency in module.dependencies() {
            self.visit(release, &dependency, seen, order)?;
        }
        order.push((name, module.bytes));
        Ok(())
    }

    /// Whether there is such a module, in a file of its own.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.contains_key(name)
    }

    /// All modules, by name.
    pub(crate) fn modules(&self) -> impl Iterator<Item = (&str, Result<Module>)> {
        self.files.iter().map(|(name, path)| (name.as_str(), Module::read(path)))
    }

    /// The names of built-in modules.
    pub(crate) fn builtin(&self) -> impl Iterator<Item = &str> {
        self.builtin.iter().map(String::as_str)
    }
}

/// The module's name: `virtio_rng` for `virtio-rng.ko` or `virtio-rng.ko.xz`.
fn name_of(path: &Path) -> Option<String> {
    let file = path.file_name()?.to_str()?;
    let (stem, suffix) = file.split_once(".ko")?;
    matches!(suffix, "" | ".xz" | ".zst" | ".gz").then(|| stem.replace('-', "_"))
}

/// A kernel module, unpacked, without its signature: a guest has no decompressor.
pub(crate) struct Module {
    bytes: Vec<u8>,
    /// The range of its `.modinfo` section.
    info: Range<usize>,
}

impl Module {
    fn read(path: &Path) -> Result<Self> {
        let file = fs::File::open(path).map_err(Error::io(path))?;
        let reader: Box<dyn Read> = match path.extension().and_then(|extension| extension.to_str()) {
            Some("xz") => Box::new(liblzma::read::XzDecoder::new(file)),
            Some("gz") => Box::new(flate2::read::GzDecoder::new(file)),
            Some("zst") => Box::new(zstd::Decoder::new(file).map_err(Error::io(path))?),
            _ => Box::new(file),
        };
        let mut bytes = Vec::new();
        reader.take(MAX_IMAGE_BYTES).read_to_end(&mut bytes).map_err(Error::io(path))?;
        Self::parse(bytes).map_err(|why| Error::NotAKernel { path: path.to_owned(), why })
    }

    /// Parses a module's bytes; the error is the reason why they are none.
    pub(crate) fn parse(mut bytes: Vec<u8>) -> Result<Self, &'static str> {
        bytes.truncate(unsigned_len(&bytes));
        let elf = object::File::parse(&*bytes).map_err(|_| "module is not ELF")?;
        let section = elf.section_by_name(".modinfo").ok_or("module has no .modinfo")?;
        let (start, len) = section.file_range().ok_or("module's .modinfo is empty")?;
        let out_of_bounds = "module's .modinfo is out of bounds";
        let end = start.checked_add(len).ok_or(out_of_bounds)?;
        let info = usize::try_from(start).and_then(|start| Ok(start..usize::try_from(end)?));
        let info = info.map_err(|_| out_of_bounds)?;
        bytes.get(info.clone()).ok_or(out_of_bounds)?;
        Ok(Self { bytes, info })
    }

    /// The file's content.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The module's own fields called `key`, such as `alias`.
    pub(crate) fn fields<'a>(&'a self, key: &'a str) -> impl Iterator<Item = Cow<'a, str>> {
        let info = self.bytes.get(self.info.clone()).unwrap_or_default();
        let value = move |field: &'a [u8]| field.strip_prefix(key.as_bytes())?.strip_prefix(b"=");
        info.split(|byte| *byte == 0).filter_map(value).map(String::from_utf8_lossy)
    }

    /// The modules that must be loaded before this one.
    pub(crate) fn dependencies(&self) -> Vec<String> {
        let list = self.fields("depends").next().unwrap_or_default();
        list.split(',').filter(|name| !name.is_empty()).map(str::to_owned).collect()
    }
}

/// The length of a module without its appended signature.
///
/// The host has verified the module's package. On a slow machine, checking an RSA signature again for each module
/// takes longer than loading them, and stock kernels take unsigned modules.
pub(crate) fn unsigned_len(module: &[u8]) -> usize {
    const MARKER: &[u8] = b"~Module signature appended~\n";
    // Linux struct module_signature: 8 bytes, then sig_len, big-endian u32, right before the marker
    let signed = || {
        let rest = module.strip_suffix(MARKER)?;
        let (rest, length) = rest.split_last_chunk::<4>()?;
        rest.len().checked_sub(8)?.checked_sub(u32::from_be_bytes(*length) as usize)
    };
    signed().unwrap_or(module.len())
}

/// Modules for tests.
#[cfg(test)]
pub(crate) mod testing {
    /// A relocatable ELF file with nothing but `.modinfo`.
    pub(crate) fn module(depends: &str, more: &[&str]) -> Vec<u8> {
        let names = b"\0.modinfo\0.shstrtab\0";
        let more: String = more.iter().map(|field| format!("{field}\0")).collect();
        let info = format!("license=GPL\0depends={depends}\0name=x\0{more}");
        let mut elf = vec![0u8; 64];
        elf[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
        elf[16] = 1;
        elf[18] = 62;
        elf[20] = 1;
        elf[52] = 64;
        elf[58] = 64;
        elf[60] = 3;
        elf[62] = 2;
        let info_at = elf.len() as u64;
        elf.extend_from_slice(info.as_bytes());
        let names_at = elf.len() as u64;
        elf.extend_from_slice(names);
        elf.resize(elf.len().next_multiple_of(8), 0);
        let table = elf.len() as u64;
        elf[40..48].copy_from_slice(&table.to_le_bytes());
        elf.extend_from_slice(&[0; 64]);
        for (name, kind, at, len) in [(1u32, 1u32, info_at, info.len()), (10, 3, names_at, names.len())] {
            let mut section = [0u8; 64];
            section[..4].copy_from_slice(&name.to_le_bytes());
            section[4..8].copy_from_slice(&kind.to_le_bytes());
            section[24..32].copy_from_slice(&at.to_le_bytes());
            section[32..40].copy_from_slice(&(len as u64).to_le_bytes());
            elf.extend_from_slice(&section);
        }
        elf
    }
}

#[cfg(test)]
mod tests {
    use super::testing::module;
    use super::*;

    #[test]
    fn names() {
        assert_eq!(name_of(Path::new("kernel/drivers/char/hw_random/virtio-rng.ko")).unwrap(), "virtio_rng");
        assert_eq!(name_of(Path::new("a/x.ko.xz")).unwrap(), "x");
        assert_eq!(name_of(Path::new("a/x.kofoo")), None);
        assert_eq!(name_of(Path::new("modules.order")), None);
    }

    #[test]
    fn signatures_are_cut_off() {
        let signed = |len: u32| {
            [&b"module"[..], b"sig", &[0; 8], &len.to_be_bytes(), b"~Module signature appended~\n"].concat()
        };
        assert_eq!(unsigned_len(&signed(3)), 6);
        // A length that reaches before the file's start is left to the kernel.
        assert_eq!(unsigned_len(&signed(100)), signed(100).len());
        assert_eq!(unsigned_len(b"plain"), 5);
    }

    #[test]
    fn dependencies_come_first_and_once() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.ko"), module("b,c-d", &[])).unwrap();
        fs::write(dir.path().join("b.ko"), module("c_d,in_kernel", &[])).unwrap();
        fs::write(dir.path().join("c-d.ko"), module("", &[])).unwrap();
        fs::write(dir.path().join("modules.builtin"), "kernel/lib/in-kernel.ko\n").unwrap();
        let tree = Tree::read(dir.path()).unwrap();
        let order: Vec<_> =
            tree.load_order("1", &["a", "b"]).unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(order, ["c_d", "b", "a"]);
        assert!(matches!(tree.load_order("1", &["zzz"]), Err(Error::Module { .. })));
    }

    #[test]
    fn a_cycle_ends() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.ko"), module("b", &[])).unwrap();
        fs::write(dir.path().join("b.ko"), module("a", &[])).unwrap();
        assert_eq!(Tree::read(dir.path()).unwrap().load_order("1", &["a"]).unwrap().len(), 2);
    }

    #[test]
    fn not_a_module_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("a.ko"), "text").unwrap();
        assert!(matches!(
            Tree::read(dir.path()).unwrap().load_order("1", &["a"]),
            Err(Error::NotAKernel { .. })
        ));
    }
}
