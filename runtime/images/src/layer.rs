//! One layer: the entries of its tar applied to a tree, and its whiteouts turned into overlayfs' form.
//!
//! Names are resolved as container engines do: below the root of this layer alone, following symbolic links on the
//! way within it, but never the last part. Nothing here is ever a path of the host.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use erofs::{Attributes, DirId, Entry, NodeId, Options, Output, Special, Writer};

use crate::error::{EntryError, LayerError};
use crate::tar_stream::{Source, TarEntry, TarKind, TarStream, show};

/// OCI image specification, layer: "a whiteout file is an empty file with a special filename that signifies a path
/// should be deleted", namely this prefix and the name.
const WHITEOUT: &[u8] = b".wh.";

/// OCI image specification, layer: "an opaque whiteout indicates that all siblings are hidden in the lower layer".
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Other names with this prefix are AUFS' own bookkeeping.
const WHITEOUT_META: &[u8] = b".wh..wh.";

/// overlayfs: "A directory is made opaque by setting the xattr \"trusted.overlay.opaque\" to \"y\"."
pub(crate) const OPAQUE_XATTR: &[u8] = b"trusted.overlay.opaque";

/// overlayfs leaves whiteouts out of a listing only if it joins directories, or if this attribute says that the
/// directory was copied from a lower layer; an empty one does not say which. The kernel sets it in its own upper
/// layers.
const ORIGIN_XATTR: &[u8] = b"trusted.overlay.origin";

/// Marks entries that depend on the layers below: directories that the layer only implies, and symbolic links that
/// stand for hard links to lower layers' files. No tar can set it, and overlayfs shows it to nobody.
pub(crate) const GAP_XATTR: &[u8] = b"trusted.overlay.matchlock";
pub(crate) const IMPLIED: &[u8] = b"implied";
pub(crate) const LINK: &[u8] = b"link";

/// Symbolic links followed on the way to one entry; the kernel has the same limit.
pub(crate) const MAX_SYMLINKS: usize = 40;

/// Parts of names on the way to one entry, including those of symbolic links.
const MAX_WALKED_PARTS: u64 = 4096;

/// Bytes of memory for a name beside its own: its share of a tree's node, of the list of inodes, of the directory's
/// encoding at the end.
pub(crate) const NAME_COST: u64 = 160;

/// Bytes of memory for a directory beside its name: the directory, and the first node of its own tree.
pub(crate) const DIRECTORY_COST: u64 = 448;

/// Bytes of memory for a directory's first attribute beside its own; a whiteout in the directory adds one.
const ATTRIBUTES_COST: u64 = 576;

/// Bytes of memory for any attribute beside its own.
const ATTRIBUTE_COST: u64 = 64;

/// Limits on one layer.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of the tar, and of the file made of it.
    pub(crate) bytes: u64,
    /// Bytes of the files of all layers that one import writes.
    pub(crate) import_bytes: u64,
    /// Entries.
    pub(crate) entries: u64,
    /// Memory for names, link targets and attributes, in bytes.
    pub(crate) metadata_bytes: u64,
    /// Parts of names looked up on the way to entries.
    pub(crate) walked_parts: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            bytes: 64 << 30,
            import_bytes: 128 << 30,
            entries: 4 << 20,
            metadata_bytes: 256 << 20,
            walked_parts: 64 << 20,
        }
    }
}

/// The result of a conversion beside the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Converted {
    /// Length of the file.
    pub(crate) len: u64,
    /// The layer hides all layers below it. overlayfs has no opaque root, so the stacking of layers applies this.
    pub(crate) opaque_root: bool,
    pub(crate) gaps: Gaps,
}

/// The parts of a layer that depend on the layers below (`complete`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Gaps {
    /// The layer implies directories without describing them.
    pub(crate) directories: bool,
    /// The layer has hard links to lower layers' files.
    pub(crate) links: bool,
}

impl Gaps {
    pub(crate) fn any(self) -> bool {
        self.directories || self.links
    }
}

/// Writes the layer of `tar` to `output`.
pub(crate) fn convert<O: Output>(
    tar: &mut dyn Source,
    output: O,
    uuid: [u8; 16],
    limits: Limits,
) -> Result<(O, Converted), LayerError> {
    let options = Options { uuid, max_len: limits.bytes };
    let mut layer = Layer {
        writer: Writer::new(output, options),
        symlinks: HashMap::new(),
        whiteouts: Vec::new(),
        opaque: HashSet::new(),
        implied: HashSet::new(),
        links: HashMap::new(),
        metadata_bytes: 0,
        walked_parts: 0,
        limits,
    };
    layer.implied.insert(layer.writer.tree().root());
    let mut tar = TarStream::new(tar);
    let mut entries = 0;
    while let Some(entry) = tar.next()? {
        entries += 1;
        if entries > limits.entries {
            return Err(LayerError::Limit { what: "entries in a layer", limit: limits.entries });
        }
        let path = show(&entry.path);
        layer.apply(entry, &mut tar).map_err(|why| match why {
            Failed::Entry(why) => LayerError::Entry { path, why },
            Failed::Layer(error) => error,
        })?;
    }
    let replaced = layer.whiteouts()?;
    let opaque_root = layer.opaque.contains(&layer.writer.tree().root());
    let gaps = layer.mark_gaps(replaced);
    let (output, summary) = layer.writer.finish().map_err(LayerError::Write)?;
    Ok((output, Converted { len: summary.len, opaque_root, gaps }))
}

/// A failure because of one entry, or of the whole layer.
enum Failed {
    Entry(EntryError),
    Layer(LayerError),
}

impl From<EntryError> for Failed {
    fn from(why: EntryError) -> Self {
        Self::Entry(why)
    }
}

impl From<erofs::Error> for Failed {
    fn from(error: erofs::Error) -> Self {
        match error {
            erofs::Error::Read(error) => Self::Layer(crate::tar_stream::read_error(error)),
            erofs::Error::ShortData { .. } => Self::Layer(LayerError::Truncated),
            erofs::Error::Write(_) | erofs::Error::ImageSize { .. } | erofs::Error::Inodes => {
                Self::Layer(LayerError::Write(error))
            }
            other => Self::Entry(EntryError::Store(other)),
        }
    }
}

struct Layer<O> {
    writer: Writer<O>,
    /// Targets in normal form, for names that lead through them.
    symlinks: HashMap<NodeId, Box<[u8]>>,
    /// Names that hide lower layers' entries; they are applied when the layer is complete.
    whiteouts: Vec<(DirId, Box<[u8]>)>,
    opaque: HashSet<DirId>,
    /// Directories that have no entry of their own.
    implied: HashSet<DirId>,
    /// Symbolic links that stand for hard links to files outside this layer, by target.
    links: HashMap<Vec<u8>, NodeId>,
    metadata_bytes: u64,
    walked_parts: u64,
    limits: Limits,
}

impl<O: Output> Layer<O> {
    fn apply(&mut self, entry: TarEntry, data: &mut dyn Read) -> Result<(), Failed> {
        let mut parts = parts(&entry.path)?;
        let Some(name) = parts.pop() else { return self.root(entry) };
        if parts.iter().any(|part| part.starts_with(WHITEOUT_META)) {
            return Ok(());
        }
        let parent = self.directory(&parts)?;
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            return self.whiteout(parent, name, hidden);
        }
        let attributes = attributes(&entry);
        if let TarKind::Directory = entry.kind {
            // An existing directory keeps its entries.
            self.budget(cost(&attributes))?;
            match self.writer.tree().entry(parent, name) {
                Some(Entry::Dir(dir)) => self.describe(dir, attributes),
                _ => drop(self.make_dir(parent, name, attributes)?),
            }
            return Ok(());
        }
        self.budget(NAME_COST + name.len() as u64)?;
        let node = self.node(&entry.kind, &attributes, data)?;
        Ok(self.writer.tree_mut().link(parent, name, node)?)
    }

    fn node(
        &mut self,
        kind: &TarKind,
        attributes: &Attributes,
        data: &mut dyn Read,
    ) -> Result<NodeId, Failed> {
        Ok(match kind {
            TarKind::File(size) => self.writer.file(attributes, *size, data)?,
            TarKind::Sparse(size, extents) => self.writer.sparse_file(attributes, *size, extents, data)?,
            TarKind::HardLink(target) => match self.link_target(target)? {
                Some(node) => node,
                None => self.link_below(target)?,
            },
            TarKind::Symlink(target) => {
                // Linux gives every symbolic link this mode.
                let attributes = Attributes { mode: 0o777, ..attributes.clone() };
                self.budget(NAME_COST + target.len() as u64)?;
                let node = self.writer.symlink(&attributes, target)?;
                self.symlinks.insert(node, short(target));
                node
            }
            TarKind::CharDevice(major, minor) => {
                self.writer.special(attributes, Special::CharDevice { major: *major, minor: *minor })?
            }
            TarKind::BlockDevice(major, minor) => {
                self.writer.special(attributes, Special::BlockDevice { major: *major, minor: *minor })?
            }
            TarKind::Fifo => self.writer.special(attributes, Special::Fifo)?,
            TarKind::Directory => return Err(EntryError::Root.into()),
        })
    }

    fn root(&mut self, entry: TarEntry) -> Result<(), Failed> {
        if entry.kind != TarKind::Directory {
            return Err(EntryError::Root.into());
        }
        self.describe(self.writer.tree().root(), attributes(&entry));
        Ok(())
    }

    /// Applies a directory's own entry.
    fn describe(&mut self, dir: DirId, attributes: Attributes) {
        self.implied.remove(&dir);
        *self.writer.tree_mut().attributes_mut(dir) = attributes;
    }

    fn whiteout(&mut self, parent: DirId, name: &[u8], hidden: &[u8]) -> Result<(), Failed> {
        self.budget(NAME_COST + ATTRIBUTES_COST + name.len() as u64)?;
        match hidden {
            _ if name == OPAQUE => drop(self.opaque.insert(parent)),
            _ if name.starts_with(WHITEOUT_META) => {}
            b"" | b"." | b".." => return Err(EntryError::Whiteout.into()),
            _ => self.whiteouts.push((parent, hidden.into())),
        }
        Ok(())
    }

    /// The directory at this path; missing directories on the way are made.
    fn directory(&mut self, path: &[&[u8]]) -> Result<DirId, Failed> {
        self.walk(path, true)?.ok_or_else(|| EntryError::NotADirectory.into())
    }

    /// The target of a hard link, if this layer has it.
    fn link_target(&mut self, target: &[u8]) -> Result<Option<NodeId>, Failed> {
        let mut parts = parts(target)?;
        let name = parts.pop().ok_or(EntryError::LinkToDirectory)?;
        let Some(parent) = self.walk(&parts, false)? else { return Ok(None) };
        match self.writer.tree().entry(parent, name) {
            Some(Entry::Node(node)) => Ok(Some(node)),
            Some(Entry::Dir(_)) => Err(EntryError::LinkToDirectory.into()),
            None => Ok(None),
        }
    }

    /// The stand-in for a lower layer's file: a symbolic link to it, in a form that no tar can make.
    fn link_below(&mut self, target: &[u8]) -> Result<NodeId, Failed> {
        let target = parts(target)?.join(&b'/');
        if let Some(node) = self.links.get(&target) {
            return Ok(*node);
        }
        self.budget(NAME_COST + 2 * target.len() as u64)?;
        let attributes =
            Attributes { xattrs: [(GAP_XATTR.to_vec(), LINK.to_vec())].into(), ..Attributes::default() };
        let node = self.writer.symlink(&attributes, &target)?;
        self.links.insert(target, node);
        Ok(node)
    }

    fn make_dir(&mut self, parent: DirId, name: &[u8], attributes: Attributes) -> Result<DirId, Failed> {
        self.budget(NAME_COST + DIRECTORY_COST + name.len() as u64)?;
        Ok(self.writer.tree_mut().make_dir(parent, name, attributes)?)
    }

    /// Follows a path of directories and symbolic links within the root. `None` if a part is missing and not to be
    /// made.
    fn walk(&mut self, path: &[&[u8]], make: bool) -> Result<Option<DirId>, Failed> {
        let root = self.writer.tree().root();
        let mut way = vec![root];
        let (mut followed, mut walked) = (0, 0);
        // The parts still to walk, last part first.
        let mut pending: Vec<Box<[u8]>> = path.iter().rev().map(|part| (*part).into()).collect();
        while let Some(part) = pending.pop() {
            walked += 1;
            if walked > MAX_WALKED_PARTS {
                return Err(EntryError::TooDeep.into());
            }
            self.walked_parts += 1;
            if self.walked_parts > self.limits.walked_parts {
                let (what, limit) = ("parts of names in a layer", self.limits.walked_parts);
                return Err(Failed::Layer(LayerError::Limit { what, limit }));
            }
            let here = way.last().copied().unwrap_or(root);
            match self.writer.tree().entry(here, &part) {
                _ if &*part == b".." => {
                    // Only symbolic links contain `..` here; the root's parent is the root.
                    way.pop();
                }
                Some(Entry::Dir(dir)) => way.push(dir),
                Some(Entry::Node(node)) => {
                    let target = self.symlinks.get(&node).ok_or(EntryError::NotADirectory)?;
                    followed += 1;
                    if followed > MAX_SYMLINKS {
                        return Err(EntryError::SymlinkLoop.into());
                    }
                    if target.starts_with(b"/") {
                        way.clear();
                    }
                    let split = target.split(|byte| *byte == b'/').rev();
                    pending.extend(split.filter(|part| !part.is_empty()).map(Box::from));
                }
                None if make => {
                    // OCI does not define missing parents; engines make them like this.
                    let attributes = Attributes { mode: 0o755, ..Attributes::default() };
                    self.budget(ATTRIBUTES_COST + ATTRIBUTE_COST)?;
                    let dir = self.make_dir(here, &part, attributes)?;
                    self.implied.insert(dir);
                    way.push(dir);
                }
                None => return Ok(None),
            }
        }
        Ok(way.last().copied().or(Some(root)))
    }

    fn budget(&mut self, bytes: u64) -> Result<(), Failed> {
        self.metadata_bytes = self.metadata_bytes.saturating_add(bytes);
        if self.metadata_bytes > self.limits.metadata_bytes {
            let limit = self.limits.metadata_bytes;
            return Err(Failed::Layer(LayerError::Limit {
                what: "bytes of memory for the names of a layer",
                limit,
            }));
        }
        Ok(())
    }

    /// Puts the whiteouts into the tree. Returns the directories that replace those of lower layers.
    ///
    /// OCI image specification, layer: "Whiteout files MUST only apply to resources in lower/parent layers." A
    /// whiteout of a name that this layer has therefore hides only lower layers' entries: a file hides them anyway, a
    /// directory must be opaque.
    fn whiteouts(&mut self) -> Result<HashSet<DirId>, LayerError> {
        let whiteouts = std::mem::take(&mut self.whiteouts);
        let mut replaced = HashSet::new();
        for (parent, name) in &whiteouts {
            if let Some(Entry::Dir(dir)) = self.writer.tree().entry(*parent, name) {
                self.opaque.insert(dir);
                replaced.insert(dir);
            }
        }
        let cut_off = self.with_all_below(self.opaque.clone());
        let root = self.writer.tree().root();
        let mut hiding = None;
        for (parent, name) in &whiteouts {
            // If no lower layer shows through, a whiteout has nothing to hide.
            if cut_off.contains(parent) || self.writer.tree().entry(*parent, name).is_some() {
                continue;
            }
            let node = match hiding {
                Some(node) => node,
                // overlayfs: "A whiteout is created as a character device with 0/0 device number"
                None => {
                    let device = Special::CharDevice { major: 0, minor: 0 };
                    self.writer.special(&Attributes::default(), device).map_err(LayerError::Write)?
                }
            };
            hiding = Some(node);
            self.writer
                .tree_mut()
                .link(*parent, name, node)
                .map_err(|error| LayerError::Entry { path: show(name), why: EntryError::Store(error) })?;
            if *parent != root {
                self.writer
                    .tree_mut()
                    .attributes_mut(*parent)
                    .xattrs
                    .insert(ORIGIN_XATTR.to_vec(), Vec::new());
            }
        }
        for dir in self.opaque.iter().filter(|dir| **dir != root) {
            let attributes = self.writer.tree_mut().attributes_mut(*dir);
            attributes.xattrs.insert(OPAQUE_XATTR.to_vec(), b"y".to_vec());
        }
        Ok(replaced)
    }

    /// Marks the parts that depend on the layers below, and returns their kinds, not counting the root.
    ///
    /// A directory that the layer only implies keeps its attributes from below. A directory that replaces another, or
    /// is inside a directory through which no lower layer shows, has nothing below it.
    fn mark_gaps(&mut self, replaced: HashSet<DirId>) -> Gaps {
        let below_opaque = self.opaque.iter().flat_map(|dir| self.writer.tree().entries(*dir));
        let below_opaque = below_opaque.filter_map(|(_, entry)| match entry {
            Entry::Dir(dir) => Some(dir),
            Entry::Node(_) => None,
        });
        let new = self.with_all_below(replaced.into_iter().chain(below_opaque).collect());
        let root = self.writer.tree().root();
        let there = self.with_all_below([root].into());
        let mut gaps = Gaps { directories: false, links: !self.links.is_empty() };
        for dir in self.implied.iter().filter(|dir| there.contains(dir) && !new.contains(dir)) {
            gaps.directories |= *dir != root;
            let attributes = self.writer.tree_mut().attributes_mut(*dir);
            attributes.xattrs.insert(GAP_XATTR.to_vec(), IMPLIED.to_vec());
        }
        gaps
    }

    /// These directories, and every directory below them.
    fn with_all_below(&self, mut dirs: HashSet<DirId>) -> HashSet<DirId> {
        let mut pending: Vec<DirId> = dirs.iter().copied().collect();
        while let Some(dir) = pending.pop() {
            for (_, entry) in self.writer.tree().entries(dir) {
                if let Entry::Dir(below) = entry
                    && dirs.insert(below)
                {
                    pending.push(below);
                }
            }
        }
        dirs
    }
}

/// The parts of a path below the root; engines take absolute names as relative to it.
fn parts(path: &[u8]) -> Result<Vec<&[u8]>, Failed> {
    let parts = path.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    let parts: Vec<&[u8]> = parts.collect();
    if parts.contains(&b"..".as_slice()) { Err(EntryError::ParentDirectory.into()) } else { Ok(parts) }
}

/// A symbolic link's target in normal form.
fn short(target: &[u8]) -> Box<[u8]> {
    let parts = target.split(|byte| *byte == b'/').filter(|part| !matches!(*part, b"" | b"."));
    let root: &[u8] = if target.starts_with(b"/") { b"/" } else { b"" };
    [root, &parts.collect::<Vec<_>>().join(&b'/')].concat().into()
}

/// Bytes of memory for the extended attributes of a directory.
pub(crate) fn cost(attributes: &Attributes) -> u64 {
    let bytes =
        attributes.xattrs.iter().map(|(key, value)| ATTRIBUTE_COST + (key.len() + value.len()) as u64);
    bytes.sum::<u64>() + if attributes.xattrs.is_empty() { 0 } else { ATTRIBUTES_COST }
}

/// The attributes of an entry. Extended attributes that no guest's file system can hold are left out, as engines do,
/// and so are overlayfs' own, since this layer will be part of an overlay.
fn attributes(entry: &TarEntry) -> Attributes {
    let foreign = |name: &[u8]| name.starts_with(b"trusted.overlay.") || name.starts_with(b"user.overlay.");
    let kept = entry.xattrs.iter().filter(|(name, _)| erofs::can_store_xattr(name) && !foreign(name));
    Attributes {
        mode: entry.mode,
        uid: entry.uid,
        gid: entry.gid,
        mtime: entry.mtime,
        xattrs: kept.cloned().collect(),
    }
}
#[cfg(test)]
pub(crate) mod bombs;
#[cfg(test)]
mod tests;
