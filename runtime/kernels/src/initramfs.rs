//! The initial RAM file system: the agent as `/init` and just the modules this kernel needs.

use std::fs;
use std::io::BufWriter;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::modules::{Tree, WANTED};
use crate::{Error, Kernel, Result, cpio};

/// Raised when the archive's layout changes, so that cached ones are made anew.
const LAYOUT: u32 = 2;

/// The archive for `kernel` with `agent` as `/init`, made once and kept below the cache directory `cache`.
///
/// Modules lie in `/lib/modules-min/NNN-name.ko`; `/modules` lists them, one path a line, in load order.
pub fn initramfs(cache: &Path, kernel: &Kernel, agent: &Path) -> Result<PathBuf> {
    let directory = cache.join("kernels").join("initramfs");
    let path = directory.join(format!("{}.cpio", key(kernel, agent)?));
    if path.exists() {
        return Ok(path);
    }
    fs::create_dir_all(&directory).map_err(Error::io(&directory))?;
    let modules = match &kernel.modules {
        Some(modules) => Tree::read(modules)?.load_order(&kernel.release, WANTED)?,
        None => Vec::new(),
    };
    let agent = fs::read(agent).map_err(Error::io(agent))?;
    // A name of this process's own: others may be making the same archive, and the last rename wins with equal bytes.
    let staged = directory.join(format!("{}.tmp", std::process::id()));
    let file = fs::File::create(&staged).map_err(Error::io(&staged))?;
    let file = archive(BufWriter::new(file), &agent, &modules).map_err(Error::io(&staged))?;
    let file = file.into_inner().map_err(|error| Error::io(&staged)(error.into_error()))?;
    file.sync_data().map_err(Error::io(&staged))?;
    fs::rename(&staged, &path).map_err(Error::io(&path))?;
    Ok(path)
}

fn archive<W: std::io::Write>(out: W, agent: &[u8], modules: &[(String, Vec<u8>)]) -> std::io::Result<W> {
    let mut writer = cpio::Writer::new(out);
    for directory in ["dev", "proc", "sys", "lib", "lib/modules-min"] {
        writer.directory(directory)?;
    }
    // The kernel opens it as the init process's standard streams before anything is mounted.
    writer.device("dev/console", 5, 1)?;
    writer.file("init", 0o755, agent)?;
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

/// Names the inputs. Files by identity and time of change: hashing their content on every start would cost more than
/// the rest of the look-up.
fn key(kernel: &Kernel, agent: &Path) -> Result<String> {
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
    for name in WANTED {
        hasher.update(name.as_bytes());
    }
    Ok(hasher.finalize()[..16].iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use machine::KernelFormat;

    #[test]
    fn made_once_per_agent() {
        let dir = tempfile::tempdir().unwrap();
        let agent = dir.path().join("agent");
        fs::write(&agent, "one").unwrap();
        let kernel =
            Kernel { release: "1".into(), path: "/k".into(), format: KernelFormat::Elf, modules: None };
        let first = initramfs(dir.path(), &kernel, &agent).unwrap();
        let made = fs::metadata(&first).unwrap().ino();
        assert_eq!(fs::metadata(initramfs(dir.path(), &kernel, &agent).unwrap()).unwrap().ino(), made);
        fs::write(&agent, "another").unwrap();
        assert_ne!(initramfs(dir.path(), &kernel, &agent).unwrap(), first);
        assert!(fs::read(&first).unwrap().windows(3).any(|window| window == b"one"));
    }
}
