//! The initial RAM file system: the agent as `/init`, and only the modules that this kernel needs.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufWriter, Read, Seek, SeekFrom};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use waiting::CancellationToken;

use crate::modules::{IF_THERE, NETWORK, SHARES, Tree, WANTED};
use crate::{Error, Kernel, Result, cpio, made_once};

/// Raised when the archive's layout changes, so that cached archives are made anew.
const LAYOUT: u32 = 2;

/// The content of an archive.
pub struct Archive<'a> {
    /// Modules to include, with their dependencies.
    pub modules: &'a [&'a str],
    /// Files; their directories are made. The kernel starts `init`.
    pub files: &'a [File<'a>],
}

/// A file of an archive.
pub struct File<'a> {
    /// The relative path.
    pub name: &'a str,
    /// Permission bits.
    pub mode: u32,
    /// Content.
    pub data: &'a [u8],
}

/// Devices that not every guest has, and whose drivers only a guest that has them loads.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Extras {
    /// Shared directories.
    pub shares: bool,
    /// A network device.
    pub network: bool,
}

impl Extras {
    /// The modules to load, in their order.
    fn modules(self) -> Vec<&'static str> {
        let extra = [(self.shares, SHARES), (self.network, NETWORK)];
        let extra = extra.into_iter().filter(|(is_there, _)| *is_there).map(|(_, modules)| modules);
        [WANTED].into_iter().chain(extra).flatten().copied().collect()
    }
}

/// The guest's archive for `kernel` with `agent` as `/init`, made once and kept: with the kernel if the kernel has
/// modules, else below the cache directory `cache`. Waiting for another process that makes it ends at once when it is
/// given up.
pub fn initramfs(
    cache: &Path,
    kernel: &Kernel,
    agent: &Path,
    extras: Extras,
    given_up: &CancellationToken,
) -> Result<PathBuf> {
    let modules = extras.modules();
    let directory = match (&kernel.lease, &kernel.modules) {
        (Some(lease), Some(_)) => lease.directory().join("initramfs"),
        _ => cache.join("kernels").join("initramfs"),
    };
    let path = directory.join(format!("{}.cpio", key(kernel, agent, &modules)?));
    let make = |staged: &Path| {
        let data = fs::read(agent).map_err(Error::io(agent))?;
        let files = [File { name: "init", mode: 0o755, data: &data }];
        Archive { modules: &modules, files: &files }.write(kernel, staged)
    };
    made_once::file(&path, is_whole, make, given_up)?;
    Ok(path)
}

/// Whether the archive exists with its end; one that was cut off is made anew.
fn is_whole(path: &Path) -> bool {
    let mut end = Vec::new();
    let read = |mut file: fs::File| {
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(length.saturating_sub(cpio::TRAILER_BYTES)))?;
        file.read_to_end(&mut end)
    };
    fs::File::open(path).and_then(read).is_ok() && cpio::ends(&end)
}

impl Archive<'_> {
    /// Writes the archive to `path`. Modules are `/lib/modules-min/NNN-name.ko`; `/modules` lists them, one path a
    /// line, in load order.
    pub fn write(&self, kernel: &Kernel, path: &Path) -> Result<()> {
        let modules = match &kernel.modules {
            Some(modules) => {
                let tree = Tree::read(modules)?;
                let wanted = self.modules.iter().filter(|name| !IF_THERE.contains(name) || tree.has(name));
                tree.load_order(&kernel.release, &wanted.copied().collect::<Vec<_>>())?
            }
            None => Vec::new(),
        };
        let file = fs::File::create(path).map_err(Error::io(path))?;
        let file = self.put(BufWriter::new(file), &modules).map_err(Error::io(path))?;
        let file = file.into_inner().map_err(|error| Error::io(path)(error.into_error()))?;
        file.sync_data().map_err(Error::io(path))
    }

    fn put<W: std::io::Write>(&self, out: W, modules: &[(String, Vec<u8>)]) -> std::io::Result<W> {
        let mut writer = cpio::Writer::new(out);
        let mut directories: BTreeSet<&Path> =
            ["dev", "proc", "sys", "lib/modules-min"].map(Path::new).into();
        directories.extend(self.files.iter().filter_map(|file| Path::new(file.name).parent()));
        let ancestors: BTreeSet<&Path> =
            directories.iter().flat_map(|directory| directory.ancestors()).collect();
        // Sorted, so that a directory comes before its entries.
        for directory in
            ancestors.iter().filter_map(|directory| directory.to_str()).filter(|name| !name.is_empty())
        {
            writer.directory(directory)?;
        }
        // The kernel opens the console as the init process's standard streams before anything is mounted.
        writer.device("dev/console", 5, 1)?;
        for file in self.files {
            writer.file(file.name, file.mode, file.data)?;
        }
        let mut list = String::new();
        for (index, (name, module)) in modules.iter().enumerate() {
            let path = format!("lib/modules-min/{index:03}-{name}.ko");
            writer.file(&path, 0o644, module)?;
            list.push_str(&format!("/{path}\n"));
        }
        if !list.is_empty() {
            writer.file("modules", 0o644, list.as_bytes())?;
        }
        writer.finish()
    }
}

/// A name made of the inputs. Files count by identity and time of change: hashing their content on every start would
/// cost more than the rest of the lookup.
fn key(kernel: &Kernel, agent: &Path, modules: &[&str]) -> Result<String> {
    let mut hasher = Sha256::new();
    hasher.update(LAYOUT.to_le_bytes());
    for path in [Some(agent), kernel.modules.as_deref()].into_iter().flatten() {
        let meta = fs::metadata(path).map_err(Error::io(path))?;
        let facts = [
            meta.dev(),
            meta.ino(),
            meta.size(),
            meta.mtime().cast_unsigned(),
            meta.mtime_nsec().cast_unsigned(),
        ];
        for fact in facts {
            hasher.update(fact.to_le_bytes());
        }
    }
    for name in modules {
        hasher.update(name.as_bytes());
    }
    Ok(hasher.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::KernelFormat;

    /// A kernel without modules, whose image is never read.
    fn kernel() -> Kernel {
        Kernel {
            release: "1".into(),
            path: "/k".into(),
            format: KernelFormat::Elf,
            modules: None,
            lease: None,
        }
    }

    fn made(cache: &Path, agent: &Path, extras: Extras) -> PathBuf {
        initramfs(cache, &kernel(), agent, extras, &CancellationToken::new()).unwrap()
    }

    #[test]
    fn made_once_per_agent() {
        let dir = tempfile::tempdir().unwrap();
        let agent = dir.path().join("agent");
        fs::write(&agent, "one").unwrap();
        let first = made(dir.path(), &agent, Extras::default());
        let inode = |path: &Path| fs::metadata(path).unwrap().ino();
        let one = inode(&first);
        assert_eq!(inode(&made(dir.path(), &agent, Extras::default())), one);
        let mut others: Vec<_> = [(false, true), (true, false), (true, true)]
            .map(|(shares, network)| made(dir.path(), &agent, Extras { shares, network }))
            .into();
        others.push(first.clone());
        others.sort();
        others.dedup();
        assert_eq!(others.len(), 4);
        fs::write(&agent, "another").unwrap();
        assert_ne!(made(dir.path(), &agent, Extras::default()), first);
        assert!(fs::read(&first).unwrap().windows(3).any(|window| window == b"one"));
    }

    #[test]
    fn only_a_guest_with_a_device_has_its_driver() {
        let without = Extras::default().modules();
        assert_eq!(without, WANTED);
        let with = Extras { shares: true, network: true }.modules();
        assert_eq!(with, [WANTED, &["virtiofs", "virtio_net"]].concat());
    }

    #[test]
    fn what_a_killed_process_left_goes() {
        let dir = tempfile::tempdir().unwrap();
        let archives = dir.path().join("kernels/initramfs");
        fs::create_dir_all(&archives).unwrap();
        // Leftovers of this version, and of the one before.
        for left in ["0123.tmp", "4711.tmp"] {
            fs::write(archives.join(left), "half").unwrap();
        }
        let agent = dir.path().join("agent");
        fs::write(&agent, "agent").unwrap();
        let path = made(dir.path(), &agent, Extras::default());
        let left = fs::read_dir(archives).unwrap().map(|entry| entry.unwrap().path());
        assert_eq!(left.collect::<Vec<_>>(), [path]);
    }
}
