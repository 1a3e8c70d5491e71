//! The package file format (deb(5)): an ar archive with a compressed tar inside.

use std::fs::File;
use std::io::{self, BufReader, Read};
use std::path::{Path, PathBuf};

use waiting::{CancellationToken, Wanted};

use crate::{Error, MAX_FILE_BYTES, Package, Result};

/// ar(5): the magic number of an archive, and the length of a member's header.
const MAGIC: &[u8; 8] = b"!<arch>\n";
const HEADER_LEN: u64 = 60;

/// One file of a package.
pub struct Entry<'a> {
    /// The relative path, without `.` or `..`.
    pub path: PathBuf,
    /// Permission bits.
    pub mode: u32,
    /// The type of the file.
    pub kind: EntryKind,
    /// The size in bytes, at most [`MAX_FILE_BYTES`].
    pub len: u64,
    /// The content.
    pub data: &'a mut dyn Read,
}

/// The type of a file in a package.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link to this target.
    Symlink(PathBuf),
}

/// Gives every file of `package` to `visit`, in archive order, until the work is given up. Files of types other than
/// [`EntryKind`] are skipped.
pub fn unpack(
    package: &Package,
    given_up: &CancellationToken,
    mut visit: impl FnMut(Entry<'_>) -> io::Result<()>,
) -> Result<()> {
    let file = File::open(&package.path).map_err(Error::io(&package.path))?;
    members(Wanted::new(BufReader::new(file), given_up), &package.path, &mut visit)
}

/// Gives the files of an open package to `visit`; `path` is for errors.
pub(crate) fn members(
    mut file: impl Read,
    path: &Path,
    visit: &mut impl FnMut(Entry<'_>) -> io::Result<()>,
) -> Result<()> {
    let mut magic = [0; MAGIC.len()];
    file.read_exact(&mut magic).map_err(Error::io(path))?;
    if magic != *MAGIC {
        return Err(Error::Format("not an ar archive"));
    }
    while let Some((name, size)) = next_member(&mut file).map_err(Error::io(path))? {
        let Some(suffix) = name.strip_prefix(b"data.tar") else {
            // ar(5): members begin at even offsets.
            let mut member = Read::by_ref(&mut file).take(size.next_multiple_of(2));
            io::copy(&mut member, &mut io::sink()).map_err(Error::io(path))?;
            continue;
        };
        let member = file.take(size);
        let tar: Box<dyn Read + '_> = match suffix {
            b"" => Box::new(member),
            b".xz" => Box::new(liblzma::read::XzDecoder::new(member)),
            b".gz" => Box::new(flate2::read::GzDecoder::new(member)),
            b".zst" => Box::new(zstd::Decoder::new(member).map_err(Error::io(path))?),
            _ => return Err(Error::Format("data.tar has an unknown compression")),
        };
        return walk(tar, visit).map_err(Error::io(path));
    }
    Err(Error::Format("no data.tar"))
}

/// The name and size of the next member; `None` at the end. deb(5): "Only the common ar archive format is supported, with
/// no long file name extensions, but with file names containing an optional trailing slash".
fn next_member(file: &mut impl Read) -> io::Result<Option<(Vec<u8>, u64)>> {
    let mut header = Vec::new();
    file.take(HEADER_LEN).read_to_end(&mut header)?;
    if header.is_empty() {
        return Ok(None);
    }
    let (name, size, end) = (header.get(..16), header.get(48..58), header.get(58..60));
    let size = size.and_then(|size| std::str::from_utf8(size).ok()?.trim_end().parse().ok());
    match (name.map(<[u8]>::trim_ascii_end), size, end) {
        (Some(name), Some(size), Some(b"`\n")) => {
            Ok(Some((name.strip_suffix(b"/").unwrap_or(name).to_vec(), size)))
        }
        _ => Err(io::Error::other("a header of the ar archive is broken")),
    }
}

fn walk(tar: impl Read, visit: &mut impl FnMut(Entry<'_>) -> io::Result<()>) -> io::Result<()> {
    for entry in tar::Archive::new(tar).entries()? {
        let mut entry = entry?;
        let header = entry.header();
        let mode = header.mode()? & 0o7777;
        let kind = match header.entry_type() {
            tar::EntryType::Regular | tar::EntryType::Continuous => EntryKind::File,
            tar::EntryType::Directory => EntryKind::Directory,
            tar::EntryType::Symlink => {
                let target =
                    entry.link_name()?.ok_or_else(|| io::Error::other("symlink without a target"))?;
                EntryKind::Symlink(target.into_owned())
            }
            _ => continue,
        };
        let len = entry.size();
        if len > MAX_FILE_BYTES {
            return Err(io::Error::other("a file is over the size limit"));
        }
        let path = relative(&entry.path()?)?;
        visit(Entry { path, mode, kind, len, data: &mut entry })?;
    }
    Ok(())
}

/// The path inside the package; a path that could leave it is an error.
fn relative(path: &Path) -> io::Result<PathBuf> {
    use std::path::Component;
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::Normal(name) => clean.push(name),
            Component::CurDir | Component::RootDir => {}
            _ => return Err(io::Error::other("a path leaves the package")),
        }
    }
    Ok(clean)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_stay_inside() {
        assert_eq!(relative(Path::new("./usr/bin/x")).unwrap(), Path::new("usr/bin/x"));
        assert_eq!(relative(Path::new("/usr/bin/x")).unwrap(), Path::new("usr/bin/x"));
        assert!(relative(Path::new("usr/../../x")).is_err());
    }

    fn package(dir: &Path, name: &str, member: &[u8]) -> Package {
        let path = dir.join("p.deb");
        let mut builder = ar::Builder::new(File::create(&path).unwrap());
        builder.append(&ar::Header::new(name.as_bytes().to_vec(), member.len() as u64), member).unwrap();
        Package { name: "p".into(), version: "1".into(), sha256: String::new(), path }
    }

    #[test]
    fn files_arrive_with_mode_and_content() {
        let dir = tempfile::tempdir().unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        let mut header = tar::Header::new_gnu();
        header.set_size(2);
        header.set_mode(0o755);
        header.set_cksum();
        tar.append_data(&mut header, "./bin/x", &b"hi"[..]).unwrap();
        let package = package(dir.path(), "data.tar", &tar.into_inner().unwrap());
        let mut seen = Vec::new();
        unpack(&package, &CancellationToken::new(), |entry| {
            let mut text = String::new();
            entry.data.read_to_string(&mut text)?;
            seen.push((entry.path, entry.mode, text));
            Ok(())
        })
        .unwrap();
        assert_eq!(seen, [(PathBuf::from("bin/x"), 0o755, "hi".to_owned())]);
    }

    #[test]
    fn strange_packages_are_errors() {
        let dir = tempfile::tempdir().unwrap();
        let unpack = |package: &Package| unpack(package, &CancellationToken::new(), |_| Ok(()));
        let unknown = package(dir.path(), "data.tar.rar", b"x");
        assert!(matches!(unpack(&unknown), Err(Error::Format(_))));
        let none = package(dir.path(), "debian-binary", b"2.0\n");
        assert!(matches!(unpack(&none), Err(Error::Format("no data.tar"))));
        // Names of other variants of the format, whose headers announce more bytes than there are: read as they
        // stand.
        for name in ["/6000", "#1/999999999999"] {
            let other = package(dir.path(), "x", b"");
            let mut bytes = std::fs::read(&other.path).unwrap();
            bytes[8..24].copy_from_slice(format!("{name:16}").as_bytes());
            bytes[56..66].copy_from_slice(b"9999999999");
            std::fs::write(&other.path, bytes).unwrap();
            assert!(matches!(unpack(&other), Err(Error::Format("no data.tar"))), "{name}");
        }
        let broken = package(dir.path(), "data.tar.xz", b"not xz");
        assert!(matches!(unpack(&broken), Err(Error::Io { .. })));
    }

    #[test]
    fn unpacking_ends_between_two_files() {
        let dir = tempfile::tempdir().unwrap();
        let mut tar = tar::Builder::new(Vec::new());
        for name in ["a", "b", "c"] {
            let mut header = tar::Header::new_gnu();
            header.set_size(0);
            header.set_mode(0o644);
            tar.append_data(&mut header, name, io::empty()).unwrap();
        }
        let package = package(dir.path(), "data.tar", &tar.into_inner().unwrap());
        let token = CancellationToken::new();
        let mut seen = Vec::new();
        let unpacked = unpack(&package, &token, |entry| {
            seen.push(entry.path);
            token.cancel();
            Ok(())
        });
        assert!(matches!(unpacked, Err(Error::GivenUp)), "{unpacked:?}");
        assert_eq!(seen, [PathBuf::from("a")]);
    }
}
