//! POSIX's rules for files, in the shortest form.

use std::collections::BTreeMap;

use fuse::{Errno, RenameHow, Result, SetAttributes};

/// The attribute that gives a program capabilities.
const CAPABILITIES: &[u8] = b"security.capability";

/// A file's number in the model.
pub(crate) type Id = usize;

/// The root directory.
pub(crate) const ROOT: Id = 0;

/// A file.
#[derive(Debug, Clone, Default)]
pub(crate) struct File {
    pub(crate) body: Body,
    /// Special bits and permissions.
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
    /// Without a name, it may get one.
    pub(crate) nameable: bool,
}

/// The contents of a file of each kind.
#[derive(Debug, Clone)]
pub(crate) enum Body {
    Directory(BTreeMap<Vec<u8>, Id>),
    Regular(Vec<u8>),
    Link(Vec<u8>),
    Fifo,
}

impl Default for Body {
    fn default() -> Self {
        Self::Directory(BTreeMap::new())
    }
}

/// All files that there ever were.
#[derive(Debug, Clone)]
pub struct Model(pub(crate) Vec<File>);

impl Default for Model {
    /// An empty root directory of root's.
    fn default() -> Self {
        Self(vec![File { mode: 0o755, ..File::default() }])
    }
}

impl Model {
    pub(crate) fn names(&self, directory: Id) -> Result<&BTreeMap<Vec<u8>, Id>> {
        match &self.0[directory].body {
            Body::Directory(names) => Ok(names),
            _ => Err(Errno::ENOTDIR),
        }
    }

    fn names_mut(&mut self, directory: Id) -> &mut BTreeMap<Vec<u8>, Id> {
        match &mut self.0[directory].body {
            Body::Directory(names) => names,
            _ => panic!("{directory} is no directory"),
        }
    }

    pub(crate) fn is_directory(&self, id: Id) -> bool {
        self.names(id).is_ok()
    }

    pub(crate) fn find(&self, directory: Id, name: &[u8]) -> Result<Id> {
        self.names(directory)?.get(name).copied().ok_or(Errno::ENOENT)
    }

    /// The directories in which a file has names.
    pub(crate) fn places(&self, id: Id) -> impl Iterator<Item = Id> {
        self.0.iter().enumerate().flat_map(move |(directory, file)| {
            let names = if let Body::Directory(names) = &file.body { Some(names) } else { None };
            names
                .into_iter()
                .flat_map(|names| names.values())
                .filter(move |other| **other == id)
                .map(move |_| directory)
        })
    }

    pub(crate) fn links(&self, id: Id) -> usize {
        let names = self.places(id).count();
        match &self.0[id].body {
            Body::Directory(_) if id != ROOT && names == 0 => 0,
            Body::Directory(names) => 2 + names.values().filter(|child| self.is_directory(**child)).count(),
            _ => names,
        }
    }

    /// Whether a directory is `above`, or below it.
    fn is_within(&self, id: Id, above: Id) -> bool {
        id == above || self.places(id).next().is_some_and(|parent| self.is_within(parent, above))
    }

    fn check_living(&self, directory: Id) -> Result<()> {
        self.names(directory)?;
        if self.links(directory) == 0 { Err(Errno::ENOENT) } else { Ok(()) }
    }

    fn check_free(&self, directory: Id, name: &[u8]) -> Result<()> {
        match self.find(directory, name) {
            Ok(_) => Err(Errno::EEXIST),
            Err(Errno::ENOENT) => self.check_living(directory),
            Err(errno) => Err(errno),
        }
    }

    /// Makes a file without a name.
    pub(crate) fn make_nameless(&mut self, directory: Id, mut file: File) -> Result<Id> {
        self.names(directory)?;
        let parent = &self.0[directory];
        if parent.mode & 0o2000 != 0 {
            file.gid = parent.gid;
            if matches!(file.body, Body::Directory(_)) {
                file.mode |= 0o2000;
            }
        }
        self.0.push(file);
        Ok(self.0.len() - 1)
    }

    pub(crate) fn make(&mut self, directory: Id, name: &[u8], file: File) -> Result<Id> {
        self.check_free(directory, name)?;
        let id = self.make_nameless(directory, file)?;
        self.names_mut(directory).insert(name.to_vec(), id);
        Ok(id)
    }

    pub(crate) fn link(&mut self, directory: Id, name: &[u8], id: Id) -> Result<Id> {
        if self.is_directory(id) {
            return Err(Errno::EPERM);
        }
        self.check_free(directory, name)?;
        if self.links(id) == 0 && !self.0[id].nameable {
            return Err(Errno::ENOENT);
        }
        self.0[id].nameable = false;
        self.names_mut(directory).insert(name.to_vec(), id);
        Ok(id)
    }

    pub(crate) fn unlink(&mut self, directory: Id, name: &[u8]) -> Result<()> {
        if self.is_directory(self.find(directory, name)?) {
            return Err(Errno::EISDIR);
        }
        self.names_mut(directory).remove(name);
        Ok(())
    }

    pub(crate) fn remove_directory(&mut self, directory: Id, name: &[u8]) -> Result<()> {
        if !self.names(self.find(directory, name)?)?.is_empty() {
            return Err(Errno::ENOTEMPTY);
        }
        self.names_mut(directory).remove(name);
        Ok(())
    }

    pub(crate) fn rename(&mut self, from: (Id, &[u8]), to: (Id, &[u8]), how: RenameHow) -> Result<()> {
        let moved = self.find(from.0, from.1)?;
        let other = match self.find(to.0, to.1) {
            Ok(other) => Some(other),
            Err(Errno::ENOENT) => None,
            Err(errno) => return Err(errno),
        };
        match (how, other) {
            (RenameHow::Exchange, None) => return Err(Errno::ENOENT),
            (RenameHow::Keep, Some(_)) => return Err(Errno::EEXIST),
            _ => self.check_living(to.0)?,
        }
        if self.is_directory(moved) && self.is_within(to.0, moved) {
            return Err(Errno::EINVAL);
        }
        match (how, other) {
            (RenameHow::Exchange, Some(other)) => {
                if self.is_directory(other) && self.is_within(from.0, other) {
                    return Err(Errno::EINVAL);
                }
                self.names_mut(from.0).insert(from.1.to_vec(), other);
                self.names_mut(to.0).insert(to.1.to_vec(), moved);
                return Ok(());
            }
            (RenameHow::Replace, Some(other)) if other == moved => return Ok(()),
            (_, Some(other)) => match (self.is_directory(moved), self.names(other)) {
                (true, Err(_)) => return Err(Errno::ENOTDIR),
                (false, Ok(_)) if self.is_within(from.0, other) => return Err(Errno::ENOTEMPTY),
                (false, Ok(_)) => return Err(Errno::EISDIR),
                (true, Ok(names)) if !names.is_empty() => return Err(Errno::ENOTEMPTY),
                _ => {}
            },
            (_, None) => {}
        }
        self.names_mut(from.0).remove(from.1);
        self.names_mut(to.0).insert(to.1.to_vec(), moved);
        Ok(())
    }

    /// The bytes of a regular file.
    pub(crate) fn bytes(&mut self, id: Id) -> Result<&mut Vec<u8>> {
        match &mut self.0[id].body {
            Body::Regular(bytes) => Ok(bytes),
            Body::Directory(_) => Err(Errno::EISDIR),
            Body::Link(_) | Body::Fifo => Err(Errno::EINVAL),
        }
    }

    pub(crate) fn write(&mut self, id: Id, offset: usize, data: &[u8]) -> Result<()> {
        let bytes = self.bytes(id)?;
        let end = offset + data.len();
        if !data.is_empty() {
            bytes.resize(bytes.len().max(end), 0);
            bytes[offset..end].copy_from_slice(data);
            self.drop_capabilities(id);
        }
        Ok(())
    }

    /// Drops all contents.
    pub(crate) fn truncate(&mut self, id: Id) -> Result<()> {
        self.bytes(id)?.clear();
        self.drop_capabilities(id);
        Ok(())
    }

    /// Changes attributes, all or none.
    pub(crate) fn change(&mut self, id: Id, change: &SetAttributes) -> Result<()> {
        if let Some(size) = change.size {
            self.bytes(id)?.resize(usize::try_from(size).map_err(|_| Errno::EFBIG)?, 0);
            self.drop_capabilities(id);
        }
        let is_given = change.uid.is_some() || change.gid.is_some();
        if change.kill_privileges || is_given && !self.is_directory(id) {
            self.kill_privileges(id);
        }
        let file = &mut self.0[id];
        file.mode = change.mode.unwrap_or(file.mode);
        file.uid = change.uid.unwrap_or(file.uid);
        file.gid = change.gid.unwrap_or(file.gid);
        Ok(())
    }

    pub(crate) fn kill_privileges(&mut self, id: Id) {
        let file = &mut self.0[id];
        file.mode &= if file.mode & 0o010 != 0 { !0o6000 } else { !0o4000 };
        self.drop_capabilities(id);
    }

    /// Each change of contents takes capabilities, even one that root makes.
    fn drop_capabilities(&mut self, id: Id) {
        self.0[id].xattrs.remove(CAPABILITIES);
    }
}
