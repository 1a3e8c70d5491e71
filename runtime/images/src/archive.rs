//! An image archive as named members: a tar that is read in place, or a directory; a stream may also be a root file
//! system.
//!
//! Member names come from manifests, which are hostile: in a tar they are only keys of an index, in a directory no
//! part of them may be `..` or a symbolic link. Not here: the members' meaning (`manifest`).

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, FileType, Mode, OFlags};

use crate::error::LayerError;
use crate::space::{Space, check_space};
use crate::stream::{MAGIC_LEN, decompressed, fill, is_compressed};
use crate::tar_stream::{Source, TarKind, TarStream};
use crate::walk::Walk;
use crate::{Error, ImportSource, Progress, Result};

/// Most members of an archive.
const MAX_MEMBERS: usize = 1 << 16;

/// Most bytes of members' names and link targets.
const MAX_NAME_BYTES: usize = 16 << 20;

/// Largest archive that is spooled because it cannot be read in place.
const MAX_SPOOLED_BYTES: u64 = 128 << 30;

/// An open archive.
pub(crate) struct Archive {
    /// The archive's name in errors.
    name: String,
    contents: Contents,
}

enum Contents {
    Directory(File),
    Tar { file: Arc<File>, start: u64, end: u64, index: Index },
}

/// The index of a tar.
#[derive(Default)]
struct Index {
    /// Offset and length of each file's data.
    members: HashMap<Vec<u8>, (u64, u64)>,
    entries: u64,
    /// Whether one of the names is a directory of a root file system.
    has_root_names: bool,
    /// Set if the tar has more members than any image archive; `members` is then incomplete.
    too_many: Option<LayerError>,
}

/// Names that tell the form of an archive, so they are noticed in an archive of any size.
const MARKS: [&[u8]; 3] = [b"manifest.json", b"index.json", b"oci-layout"];

/// Directories by which a root file system is recognized if its name says nothing.
const ROOT_NAMES: [&[u8]; 7] = [b"bin", b"etc", b"lib", b"nix", b"sbin", b"usr", b"var"];

impl Archive {
    /// Opens `source`; a source that cannot be read in place is copied to an unnamed file in `tmp`.
    pub(crate) fn open(source: ImportSource<'_>, tmp: &Path, progress: &dyn Progress) -> Result<Self> {
        match source {
            ImportSource::Path(path) => {
                let name = path.display().to_string();
                let file = File::open(path).map_err(Error::io(path))?;
                if file.metadata().map_err(Error::io(path))?.is_dir() {
                    return Ok(Self { name, contents: Contents::Directory(file) });
                }
                Self::from_file(name, file, tmp, progress)
            }
            ImportSource::File(file) => Self::from_file("standard input".to_owned(), file, tmp, progress),
            ImportSource::Reader(reader) => Self::spooled("the archive".to_owned(), reader, tmp, progress),
        }
    }

    fn from_file(name: String, mut file: File, tmp: &Path, progress: &dyn Progress) -> Result<Self> {
        let io_error = |source| Error::Io { path: name.clone().into(), source };
        if !file.metadata().map_err(io_error)?.is_file() {
            return Self::spooled(name, &mut file, tmp, progress);
        }
        let start = file.stream_position().map_err(io_error)?;
        let end = file.metadata().map_err(io_error)?.len();
        let mut magic = [0; MAGIC_LEN];
        file.read_at(&mut magic, start).map_err(io_error)?;
        if is_compressed(&magic) {
            // The unpacked size is not known yet, but hardly less than the packed one.
            check_space(tmp, end.saturating_sub(start), &name)?;
            return Self::spooled(name, &mut file, tmp, progress);
        }
        Self::tar(name, file, start, end)
    }

    fn spooled(name: String, reader: &mut dyn Read, tmp: &Path, progress: &dyn Progress) -> Result<Self> {
        let spool_error = |source| Error::Io { path: tmp.to_owned(), source };
        let mut spool = tempfile::tempfile_in(tmp).map_err(spool_error)?;
        progress.step("reading the archive", None);
        let mut reader = decompressed(reader).map_err(|error| Error::archive(&name, error.to_string()))?;
        let mut buffer = vec![0; 256 << 10];
        let (mut len, mut space) = (0, Space::default());
        loop {
            let got =
                fill(&mut reader, &mut buffer).map_err(|error| Error::archive(&name, error.to_string()))?;
            let Some(bytes) = buffer.get(..got).filter(|bytes| !bytes.is_empty()) else { break };
            space.take(&spool, got as u64).and_then(|()| spool.write_all(bytes)).map_err(spool_error)?;
            progress.advance(got as u64);
            len += got as u64;
            if len > MAX_SPOOLED_BYTES {
                return Err(Error::archive(&name, format!("more than {MAX_SPOOLED_BYTES} bytes")));
            }
        }
        drop(reader);
        Self::tar(name, spool, 0, len)
    }

    /// Opens the tar between two places of a file.
    pub(crate) fn tar(name: String, file: File, start: u64, end: u64) -> Result<Self> {
        let file = Arc::new(file);
        let index = index(Member { file: Arc::clone(&file), at: start, end });
        let index = index.map_err(|error| Error::archive(&name, format!("not a valid archive: {error}")))?;
        Ok(Self { name, contents: Contents::Tar { file, start, end, index } })
    }

    /// Whether the archive is a directory of the host.
    pub(crate) fn is_directory(&self) -> bool {
        matches!(self.contents, Contents::Directory(_))
    }

    /// Whether the archive has no members.
    pub(crate) fn is_empty(&self) -> Result<bool> {
        match &self.contents {
            Contents::Tar { index, .. } => Ok(index.entries == 0),
            Contents::Directory(directory) => {
                let mut entries = rustix::fs::Dir::read_from(directory)
                    .map_err(|errno| self.error(io::Error::from(errno).to_string()))?;
                let own = |name: &[u8]| matches!(name, b"." | b"..");
                Ok(!entries.any(|entry| entry.is_ok_and(|entry| !own(entry.file_name().to_bytes()))))
            }
        }
    }

    /// Whether the archive has one of the directories that every root file system has some of.
    pub(crate) fn has_root_names(&self) -> bool {
        match &self.contents {
            Contents::Tar { index, .. } => index.has_root_names,
            Contents::Directory(directory) => ROOT_NAMES.iter().any(|name| {
                rustix::fs::statat(directory, *name, AtFlags::SYMLINK_NOFOLLOW)
                    .is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
            }),
        }
    }

    /// Fails if the archive has more members than the index.
    pub(crate) fn is_whole(&self) -> Result<()> {
        match &self.contents {
            Contents::Tar { index: Index { too_many: Some(error), .. }, .. } => {
                Err(self.error(format!("not a valid archive: {error}")))
            }
            _ => Ok(()),
        }
    }

    /// The whole archive as one tar, with its length if that is known.
    pub(crate) fn whole(&self) -> Result<(Box<dyn Read + Send>, Option<u64>)> {
        match &self.contents {
            Contents::Tar { file, start, end, .. } => {
                let whole = Member { file: Arc::clone(file), at: *start, end: *end };
                Ok((Box::new(whole), Some(end.saturating_sub(*start))))
            }
            Contents::Directory(directory) => {
                let walk = directory.try_clone().and_then(|directory| Walk::new(directory.into()));
                Ok((Box::new(walk.map_err(|error| self.error(error.to_string()))?), None))
            }
        }
    }

    /// An error about this archive.
    pub(crate) fn error(&self, why: impl Into<String>) -> Error {
        Error::archive(&self.name, why)
    }

    /// Opens a member for reading; `None` if there is none of this name.
    pub(crate) fn find(&self, name: &str) -> Result<Option<Member>> {
        match &self.contents {
            Contents::Tar { file, index, .. } => Ok(index
                .members
                .get(&normal(name.as_bytes()))
                .map(|(at, len)| Member { file: Arc::clone(file), at: *at, end: at + len })),
            Contents::Directory(directory) => {
                let opened = beneath(directory, name);
                let file = match opened {
                    Ok(file) => file,
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
                    Err(error) => return Err(self.error(format!("{name}: {error}"))),
                };
                let metadata = file.metadata().map_err(|error| self.error(format!("{name}: {error}")))?;
                if !metadata.is_file() {
                    return Err(self.error(format!("{name} is not a regular file")));
                }
                Ok(Some(Member { file: Arc::new(file), at: 0, end: metadata.len() }))
            }
        }
    }

    /// Opens a member that must exist.
    pub(crate) fn member(&self, name: &str) -> Result<Member> {
        self.find(name)?.ok_or_else(|| self.error(format!("{} is missing", show_name(name))))
    }

    /// The bytes of a member that must exist, at most `max` of them.
    pub(crate) fn bytes(&self, name: &str, max: u64) -> Result<Vec<u8>> {
        let member = self.member(name)?;
        if member.len() > max {
            return Err(self.error(format!("{} has more than {max} bytes", show_name(name))));
        }
        let mut bytes = Vec::new();
        let mut member = member;
        member
            .read_to_end(&mut bytes)
            .map_err(|error| self.error(format!("{}: {error}", show_name(name))))?;
        Ok(bytes)
    }
}

/// One file of an archive.
pub(crate) struct Member {
    file: Arc<File>,
    at: u64,
    end: u64,
}

impl Member {
    /// Bytes left.
    pub(crate) fn len(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }
}

impl Read for Member {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let want = buffer.len().min(usize::try_from(self.len()).unwrap_or(usize::MAX));
        let len = self.file.read_at(buffer.get_mut(..want).unwrap_or_default(), self.at)?;
        self.at += len as u64;
        Ok(len)
    }
}

impl Source for Member {
    fn skip(&mut self, len: u64) -> io::Result<()> {
        if len > self.len() {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.at += len;
        Ok(())
    }

    fn position(&self) -> u64 {
        self.at
    }
}

/// Finds every member's data. A link counts as its target: old archives store a layer once.
fn index(tar: Member) -> std::result::Result<Index, LayerError> {
    let end = tar.end;
    let mut tar = TarStream::new(tar);
    let (mut index, mut links) = (Index::default(), Vec::new());
    let mut name_bytes = 0;
    while let Some(entry) = tar.next()? {
        let path = normal(&entry.path);
        index.entries += 1;
        index.has_root_names |= names_root(&path, &entry.kind);
        let is_file = matches!(entry.kind, TarKind::File(_));
        if index.too_many.is_some() && !(is_file && MARKS.contains(&path.as_slice())) {
            continue;
        }
        name_bytes += path.len();
        match entry.kind {
            TarKind::File(len) => {
                let at = tar.position();
                if at.checked_add(len).is_none_or(|after| after > end) {
                    return Err(LayerError::Truncated);
                }
                index.members.insert(path, (at, len));
            }
            TarKind::HardLink(target) => {
                name_bytes += target.len();
                links.push((path, normal(&target)));
            }
            TarKind::Symlink(target) => {
                let parent = path.iter().rposition(|byte| *byte == b'/').map_or(&[][..], |at| &path[..at]);
                let target = normal(&[parent, b"/", &target].concat());
                name_bytes += target.len();
                links.push((path, target));
            }
            _ => {}
        }
        if index.members.len() + links.len() > MAX_MEMBERS {
            index.too_many = Some(LayerError::Limit { what: "members", limit: MAX_MEMBERS as u64 });
        }
        if name_bytes > MAX_NAME_BYTES {
            index.too_many = Some(LayerError::Limit { what: "bytes of names", limit: MAX_NAME_BYTES as u64 });
        }
    }
    for (path, target) in links {
        if let Some(found) = index.members.get(&target).copied() {
            index.members.insert(path, found);
        }
    }
    Ok(index)
}

/// Whether an entry is a directory that every root file system has, or is inside one.
fn names_root(path: &[u8], kind: &TarKind) -> bool {
    let (first, below) = match path.iter().position(|byte| *byte == b'/') {
        Some(at) => (path.get(..at).unwrap_or_default(), true),
        None => (path, false),
    };
    ROOT_NAMES.contains(&first) && (below || *kind == TarKind::Directory)
}

/// A name in normal form, where `..` takes back the part before it.
fn normal(name: &[u8]) -> Vec<u8> {
    let mut parts: Vec<&[u8]> = Vec::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            _ => parts.push(part),
        }
    }
    parts.join(&b'/')
}

/// Opens a file below a directory, part by part, following no link.
fn beneath(directory: &File, name: &str) -> io::Result<File> {
    let mut parts: Vec<&str> = name.split('/').collect();
    if parts.iter().any(|part| matches!(*part, "" | "." | "..")) {
        return Err(io::ErrorKind::InvalidFilename.into());
    }
    let last = parts.pop().unwrap_or_default();
    let mut here = directory.try_clone()?;
    for part in parts {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        here = rustix::fs::openat(&here, part, flags, Mode::empty())?.into();
    }
    // NONBLOCK: opening a pipe must not wait.
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(&here, last, flags, Mode::empty())?.into())
}

fn show_name(name: &str) -> String {
    name.chars().take(200).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normal() {
        for (name, wanted) in
            [("./a//b", "a/b"), ("/a/../b", "b"), ("../../x", "x"), ("a/b/../../../c", "c"), ("", "")]
        {
            assert_eq!(normal(name.as_bytes()), wanted.as_bytes(), "{name}");
        }
    }

    #[test]
    fn a_directory_is_not_left() {
        let dir = tempfile::tempdir().unwrap();
        let (outside, inside) = (dir.path().join("secret"), dir.path().join("layout"));
        std::fs::write(&outside, "secret").unwrap();
        std::fs::create_dir_all(inside.join("blobs")).unwrap();
        std::os::unix::fs::symlink(&outside, inside.join("blobs/link")).unwrap();
        std::os::unix::fs::symlink(dir.path(), inside.join("up")).unwrap();
        std::fs::write(inside.join("blobs/good"), "good").unwrap();
        let open = || Archive::open(ImportSource::Path(&inside), dir.path(), &crate::Quiet).unwrap();
        for name in
            ["../secret", "blobs/../../secret", "blobs/link", "up/secret", "/etc/passwd", "blobs//good"]
        {
            assert!(open().find(name).is_err(), "{name}");
        }
        assert_eq!(open().bytes("blobs/good", 10).unwrap(), b"good");
        assert!(open().find("blobs/none").unwrap().is_none());
        assert!(open().bytes("blobs/good", 3).is_err());
    }
}
