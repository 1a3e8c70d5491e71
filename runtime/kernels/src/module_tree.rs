//! All modules of a kernel as a read-only file system, for guests whose programs may load more than the guest needs.
//!
//! ```text
//! kernel/<name>.ko                      unpacked: not every modprobe can unpack
//! modules.dep, .alias, .softdep, …      the indexes of depmod(8); `.bin` for kmod, text for busybox
//! ```
//!
//! The guest mounts it at `/lib/modules/<release>`, where modprobe(8) looks. Not here: the modules that a guest
//! loads by itself (`modules`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use erofs::{Attributes, DirId, Writer};
use waiting::CancellationToken;

use crate::module_index::Index;
use crate::modules::{Module, Tree};
use crate::{Error, Kernel, Result, made_once};

/// Raised when the file system's layout changes, so that stored ones are made anew.
const LAYOUT: u32 = 1;

/// Largest file system: Debian's cloud kernel takes 90 MB, its general one 500 MB.
const MAX_BYTES: u64 = 4 << 30;

/// The file system with all modules of `kernel`, made once and kept with the kernel; `None` = the kernel has none.
/// Waiting for another process that makes it ends at once when it is given up.
pub fn module_tree(
    kernel: &Kernel,
    given_up: &CancellationToken,
    progress: &dyn Fn(&str),
) -> Result<Option<PathBuf>> {
    let (Some(lease), Some(modules)) = (&kernel.lease, &kernel.modules) else { return Ok(None) };
    let path = lease.directory().join("tree").join(format!("{LAYOUT}.erofs"));
    let make = |staged: &Path| {
        progress("unpacking the kernel's modules");
        write(modules, staged, given_up)
    };
    made_once::file(&path, is_whole, make, given_up)?;
    Ok(Some(path))
}

fn is_whole(path: &Path) -> bool {
    let open = || {
        let file = fs::File::open(path).ok()?;
        let len = file.metadata().ok()?.len();
        erofs::Image::open(file, len).ok()
    };
    open().is_some()
}

fn write(modules: &Path, path: &Path, given_up: &CancellationToken) -> Result<()> {
    let tree = Tree::read(modules)?;
    let file = fs::File::create(path).map_err(Error::io(path))?;
    let options = erofs::Options { uuid: [0; 16], max_len: MAX_BYTES };
    let mut image = Image { writer: Writer::new(file, options), path };
    let root = image.writer.tree().root();
    *image.writer.tree_mut().attributes_mut(root) = attributes(0o755);
    let made = image.writer.tree_mut().make_dir(root, b"kernel", attributes(0o755));
    let directory = made.map_err(image.failed())?;
    let mut indexes = Indexes::default();
    for (name, module) in tree.modules() {
        waiting::check(given_up)?;
        let module = module?;
        image.put(directory, &format!("{name}.ko"), module.bytes())?;
        indexes.add(name, &module);
    }
    for name in tree.builtin() {
        indexes.builtin.add(name, "");
    }
    for (name, bytes) in indexes.files() {
        image.put(root, name, &bytes)?;
    }
    let failed = image.failed();
    let (file, _) = image.writer.finish().map_err(failed)?;
    file.sync_data().map_err(Error::io(path))
}

fn attributes(mode: u16) -> Attributes {
    Attributes { mode, ..Attributes::default() }
}

struct Image<'a> {
    writer: Writer<fs::File>,
    path: &'a Path,
}

impl Image<'_> {
    fn put(&mut self, directory: DirId, name: &str, bytes: &[u8]) -> Result<()> {
        let failed = self.failed();
        let mut put = || {
            let file = self.writer.file(&attributes(0o644), bytes.len() as u64, &mut { bytes })?;
            self.writer.tree_mut().link(directory, name.as_bytes(), file)
        };
        put().map_err(failed)
    }

    fn failed(&self) -> impl FnOnce(erofs::Error) -> Error + use<> {
        let path = self.path.to_owned();
        move |error| match error {
            erofs::Error::Write(source) => Error::io(path)(source),
            other => Error::io(path)(std::io::Error::other(other)),
        }
    }
}

/// The indexes of modules that depmod(8) makes.
#[derive(Debug, Default)]
struct Indexes {
    needs: BTreeMap<String, Vec<String>>,
    aliases: Index,
    alias_lines: String,
    soft_lines: String,
    builtin: Index,
}

impl Indexes {
    fn add(&mut self, name: &str, module: &Module) {
        self.needs.insert(name.to_owned(), module.dependencies());
        for alias in module.fields("alias") {
            let alias = normalized(&alias);
            self.aliases.add(&alias, name);
            self.alias_lines.push_str(&format!("alias {alias} {name}\n"));
        }
        for soft in module.fields("softdep") {
            self.soft_lines.push_str(&format!("softdep {name} {soft}\n"));
        }
    }

    fn files(self) -> Vec<(&'static str, Vec<u8>)> {
        let (mut dependencies, mut lines) = (Index::default(), String::new());
        for name in self.needs.keys() {
            let line = self.dependency_line(name);
            dependencies.add(name, &line);
            lines.push_str(&line);
            lines.push('\n');
        }
        let mut files = vec![
            ("modules.dep", lines.into_bytes()),
            ("modules.alias", self.alias_lines.into_bytes()),
            ("modules.softdep", self.soft_lines.into_bytes()),
        ];
        let indexes = [
            ("modules.dep.bin", dependencies),
            ("modules.alias.bin", self.aliases),
            ("modules.builtin.bin", self.builtin),
        ];
        files.extend(indexes.into_iter().filter_map(|(name, index)| Some((name, index.encode()?))));
        files
    }

    /// A module and all that it needs; modprobe loads the last of the line first.
    fn dependency_line(&self, name: &str) -> String {
        let (mut order, mut seen) = (Vec::new(), BTreeSet::new());
        self.visit(name, &mut seen, &mut order);
        let path = |name: &&str| format!("kernel/{name}.ko");
        let needed: String = order.iter().rev().skip(1).map(|name| format!(" {}", path(name))).collect();
        format!("{}:{needed}", path(&name))
    }

    /// Adds a module that exists to `order`, after all that it needs.
    fn visit<'a>(&'a self, name: &str, seen: &mut BTreeSet<&'a str>, order: &mut Vec<&'a str>) {
        // Names differ between file and dependency lists in `-` and `_` only.
        let Some((name, needs)) = self.needs.get_key_value(&name.replace('-', "_")) else { return };
        if seen.insert(name) {
            needs.iter().for_each(|name| self.visit(name, seen, order));
            order.push(name);
        }
    }
}

/// The indexes of one module alone.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn index(module: &Module) {
    let mut indexes = Indexes::default();
    indexes.add("name", module);
    drop(indexes.files());
}

/// An alias as modprobe(8) looks it up: `-` is `_` there, but not in a set of characters such as `[0-9]`.
fn normalized(alias: &str) -> String {
    let mut in_set = false;
    let one = |letter| {
        in_set = match letter {
            '[' => true,
            ']' => false,
            _ => in_set,
        };
        if letter == '-' && !in_set { '_' } else { letter }
    };
    alias.chars().map(one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::modules::testing::module;

    #[test]
    fn aliases_are_normalized() {
        assert_eq!(normalized("fs-fuse"), "fs_fuse");
        assert_eq!(normalized("usb:v[0-9a-f]*d-1"), "usb:v[0-9a-f]*d_1");
    }

    /// The file system of three modules, of which one needs the other two.
    fn written() -> (tempfile::TempDir, BTreeMap<Vec<u8>, erofs::reader::Inode>) {
        let dir = tempfile::tempdir().unwrap();
        let modules = dir.path().join("modules");
        fs::create_dir(&modules).unwrap();
        fs::write(modules.join("a.ko"), module("b,c-d", &["alias=fs-a", "softdep=pre: b"])).unwrap();
        fs::write(modules.join("b.ko"), module("c_d,in_kernel", &[])).unwrap();
        fs::write(modules.join("c-d.ko"), module("", &["alias=devname:c"])).unwrap();
        fs::write(modules.join("modules.builtin"), "kernel/lib/in-kernel.ko\n").unwrap();
        let path = dir.path().join("tree.erofs");
        write(&modules, &path, &CancellationToken::new()).unwrap();
        assert!(is_whole(&path));
        let inodes = erofs::reader::read(&fs::read(&path).unwrap());
        (dir, inodes)
    }

    #[test]
    fn a_tree_has_the_modules_and_the_indexes() {
        let (_dir, inodes) = written();
        let content = |name: &str| String::from_utf8(inodes[name.as_bytes()].data.clone()).unwrap();
        assert_eq!(
            content("modules.dep"),
            "kernel/a.ko: kernel/b.ko kernel/c_d.ko\nkernel/b.ko: kernel/c_d.ko\nkernel/c_d.ko:\n"
        );
        assert_eq!(content("modules.alias"), "alias fs_a a\nalias devname:c c_d\n");
        assert_eq!(content("modules.softdep"), "softdep a pre: b\n");
        assert_eq!(inodes[&b"kernel/c_d.ko"[..]].data, module("", &["alias=devname:c"]));
        for name in ["modules.dep.bin", "modules.alias.bin", "modules.builtin.bin"] {
            assert!(inodes.contains_key(name.as_bytes()), "{name}");
        }
    }

    #[test]
    fn one_that_is_cut_off_is_not_whole() {
        let (dir, _) = written();
        let path = dir.path().join("tree.erofs");
        let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.set_len(4096).unwrap();
        assert!(!is_whole(&path));
        assert!(!is_whole(&dir.path().join("missing")));
    }

    /// kmod's own modprobe finds the modules.
    #[test]
    fn modprobe_reads_the_indexes() {
        let modprobe =
            ["/usr/sbin/modprobe", "/sbin/modprobe"].into_iter().find(|path| Path::new(path).exists());
        let Some(modprobe) = modprobe else {
            skip::skip("kmod", "modprobe is not installed");
            return;
        };
        let (dir, inodes) = written();
        let release = dir.path().join("lib/modules/1.2.3");
        fs::create_dir_all(release.join("kernel")).unwrap();
        for (name, inode) in &inodes {
            let path = release.join(std::str::from_utf8(name).unwrap());
            if !path.exists() {
                fs::write(path, &inode.data).unwrap();
            }
        }
        let shown = |name: &str| {
            let arguments = ["--show-depends", "-S", "1.2.3", "-d"];
            let done =
                std::process::Command::new(modprobe).args(arguments).arg(dir.path()).arg(name).output();
            let done = done.unwrap();
            let out = String::from_utf8(done.stdout).unwrap();
            out.lines().map(|line| line.trim().rsplit('/').next().unwrap().to_owned()).collect::<Vec<_>>()
        };
        for name in ["a", "fs-a"] {
            // The soft dependency comes first.
            assert_eq!(shown(name), ["c_d.ko", "b.ko", "c_d.ko", "b.ko", "a.ko"], "{name}");
        }
        assert_eq!(shown("devname:c"), ["c_d.ko"]);
        assert_eq!(shown("in-kernel"), ["builtin in_kernel"]);
        assert_eq!(shown("unknown"), Vec::<String>::new());
    }
}
