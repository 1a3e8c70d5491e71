//! Completes a layer by the layers below it: the attributes of directories that it only implies, and the targets of
//! hard links to lower layers' files.
//!
//! Container engines apply layers one after the other to one tree; here each layer is a file of its own that any
//! image may use, made without a look at others. A layer with such gaps is therefore made once more for its place in
//! an image, if the lower layers make a difference. Not here: the order of layers (`stack`).

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::vec;

use erofs::{
    Attributes, BLOCK_SIZE, DirEntry, DirId, Image, Inode, InodeKind, Input, NodeId, Options, Output,
    Special, Writer,
};
use waiting::{CancellationToken, Wanted};

use crate::error::{EntryError, LayerError};
use crate::layer::{
    Converted, DIRECTORY_COST, GAP_XATTR, Gaps, IMPLIED, LINK, MAX_SYMLINKS, NAME_COST, OPAQUE_XATTR, cost,
};
use crate::tar_stream::show;

/// Lookups of names in the layers below those of one image: a minute's work.
pub(crate) const MAX_LOOKUPS: u64 = 16 << 20;

/// Bytes of attributes, as in memory, that are read in the time of one lookup.
const LOOKUP_ATTRIBUTES: u64 = 768;

/// Bytes of a link's target that are read in the time of one lookup.
const LOOKUP_TARGET: u64 = 64;

/// Bytes of memory for a number in a growing set or map.
const NUMBER_COST: u64 = 48;

/// Bytes of memory for a directory that is joined to others.
const PLACE_COST: u64 = size_of::<Place>() as u64;

/// Bytes of memory for a directory while it is walked, beside its own name and a block of names.
const FRAME_COST: u64 = 512;

/// Bytes of memory for the names of a block, for each byte of the block: no name is shorter than 13 bytes.
const NAMES_FACTOR: u64 = 6;

type Result<T> = std::result::Result<T, LayerError>;

/// The layers below one, seen as the tree that overlayfs makes of them.
pub(crate) struct Below<'a, I> {
    /// Lowest first.
    pub(crate) layers: &'a [Image<I>],
    /// Lookups that are left.
    pub(crate) lookups: &'a mut u64,
    /// Memory that one layer may take, in bytes.
    pub(crate) metadata_bytes: u64,
    pub(crate) given_up: &'a CancellationToken,
}

/// A directory of a layer, without its extended attributes.
struct Place {
    layer: usize,
    inode: Inode,
}

impl Place {
    fn new(layer: usize, mut inode: Inode) -> Self {
        inode.attributes.xattrs.clear();
        Self { layer, inode }
    }
}

/// The directories that are joined to one, topmost first.
type Joined = Vec<Place>;

/// The object that a name stands for in the layers below.
enum Found {
    Directory(Joined),
    /// An object other than a directory, and the layer that has it.
    Node(usize, Inode),
    Nothing,
}

/// Memory that is taken, of the kinds whose amount an image can influence.
struct Memory {
    bytes: u64,
    limit: u64,
}

impl Memory {
    fn take(&mut self, bytes: u64) -> Result<()> {
        self.bytes = self.bytes.saturating_add(bytes);
        let what = "bytes of memory for a layer above others";
        if self.bytes > self.limit { Err(LayerError::Limit { what, limit: self.limit }) } else { Ok(()) }
    }

    fn give_back(&mut self, bytes: u64) {
        self.bytes = self.bytes.saturating_sub(bytes);
    }
}

fn joined_cost(joined: &Joined) -> u64 {
    joined.len() as u64 * PLACE_COST
}

impl<'a, I: Input> Below<'a, I> {
    /// The same layers, for another pass.
    fn again(&mut self) -> Below<'_, I> {
        Below { lookups: self.lookups, ..*self }
    }

    fn memory(&self) -> Memory {
        Memory { bytes: 0, limit: self.metadata_bytes }
    }

    /// Counts work that takes as long as this many lookups.
    fn work(&mut self, lookups: u64) -> Result<()> {
        waiting::check(self.given_up).map_err(|given_up| LayerError::Read(given_up.into()))?;
        let left = self.lookups.checked_sub(lookups);
        let what = "names looked up in the layers below others";
        *self.lookups = left.ok_or(LayerError::Limit { what, limit: MAX_LOOKUPS })?;
        Ok(())
    }

    /// Reads an inode of one of the layers, or of the one above them.
    fn inode(&mut self, image: &Image<I>, nid: u64) -> Result<Inode> {
        let inode = image.inode(nid)?;
        self.work(cost(&inode.attributes) / LOOKUP_ATTRIBUTES)?;
        Ok(inode)
    }

    fn root(&self) -> Result<Joined> {
        let roots = self.layers.iter().enumerate().rev();
        roots.map(|(layer, image)| Ok(Place::new(layer, image.root()?))).collect()
    }

    fn entry(&mut self, directory: &[Place], name: &[u8]) -> Result<Found> {
        let mut joined = Joined::new();
        for place in directory {
            let blocks = place.inode.size / BLOCK_SIZE as u64;
            // Each step of the search reads a block of names, for twice the time of a short directory.
            self.work(1 + 2 * u64::from((blocks + 1).ilog2()))?;
            let Some(image) = self.layers.get(place.layer) else { break };
            let Some(inode) = image.lookup(&place.inode, name)? else { continue };
            self.work(cost(&inode.attributes) / LOOKUP_ATTRIBUTES)?;
            match inode.kind {
                InodeKind::Dir => {
                    let opaque = inode.attributes.xattrs.contains_key(OPAQUE_XATTR);
                    joined.push(Place::new(place.layer, inode));
                    if opaque {
                        break;
                    }
                }
                // A whiteout in overlayfs' form.
                InodeKind::Special(Special::CharDevice { major: 0, minor: 0 }) => break,
                _ if joined.is_empty() => return Ok(Found::Node(place.layer, inode)),
                _ => break,
            }
        }
        joined.shrink_to_fit();
        Ok(if joined.is_empty() { Found::Nothing } else { Found::Directory(joined) })
    }

    /// Finds the file that a hard link's target names; symbolic links on the way are followed within the root.
    fn target(&mut self, target: &[u8], memory: &mut Memory) -> Result<Found> {
        let root = self.root()?;
        let mut way = Way { directories: Vec::new(), memory };
        self.work(target.len() as u64 / LOOKUP_TARGET)?;
        let mut followed = 0;
        let mut pending: Vec<Box<[u8]>> = parts(target);
        while let Some(part) = pending.pop() {
            if &*part == b".." {
                way.truncate(way.directories.len().saturating_sub(1));
                continue;
            }
            match self.entry(way.directories.last().unwrap_or(&root), &part)? {
                Found::Directory(joined) => way.push(joined)?,
                Found::Node(layer, inode) if pending.is_empty() => return Ok(Found::Node(layer, inode)),
                Found::Node(layer, inode) if inode.kind == InodeKind::Symlink && followed < MAX_SYMLINKS => {
                    followed += 1;
                    let Some(image) = self.layers.get(layer) else { return Ok(Found::Nothing) };
                    let to = image.target(&inode)?;
                    self.work(to.len() as u64 / LOOKUP_TARGET)?;
                    if to.starts_with(b"/") {
                        way.truncate(0);
                    }
                    pending.extend(parts(&to));
                }
                _ => return Ok(Found::Nothing),
            }
        }
        Ok(Found::Directory(Joined::new()))
    }
}

/// The parts of a path without empty ones and dots, last one first.
fn parts(path: &[u8]) -> Vec<Box<[u8]>> {
    let parts = path.rsplit(|byte| *byte == b'/');
    parts.filter(|part| !matches!(*part, b"" | b".")).map(Box::from).collect()
}

/// Directories from the root's own on.
struct Way<'a> {
    directories: Vec<Joined>,
    memory: &'a mut Memory,
}

impl Way<'_> {
    fn push(&mut self, joined: Joined) -> Result<()> {
        let taken = self.memory.take(joined_cost(&joined));
        self.directories.push(joined);
        taken
    }

    fn truncate(&mut self, len: usize) {
        for joined in self.directories.drain(len..) {
            self.memory.give_back(joined_cost(&joined));
        }
    }
}

impl Drop for Way<'_> {
    fn drop(&mut self) {
        self.truncate(0);
    }
}

/// Makes the layer of `base` once more for its place above others; `None` if it would be the same.
pub(crate) fn complete<I: Input, O: Output>(
    base: &Image<I>,
    gaps: Gaps,
    mut below: Below<'_, I>,
    output: O,
    options: Options,
) -> Result<Option<(O, Converted)>> {
    let another = gaps.links || gaps.directories && is_another(base, below.again())?;
    if !another {
        return Ok(None);
    }
    let writer = Writer::new(output, options);
    let walk = Walk::new(base, below)?;
    let mut copy =
        Copy { walk, writer, directories: Vec::new(), nodes: HashMap::new(), links: HashMap::new() };
    copy.all()?;
    let (output, summary) = copy.writer.finish().map_err(LayerError::Write)?;
    Ok(Some((output, Converted { len: summary.len, opaque_root: false, gaps: Gaps::default() })))
}

/// Whether a directory that the layer only implies differs from the one below.
fn is_another<I: Input>(base: &Image<I>, below: Below<'_, I>) -> Result<bool> {
    let mut walk = Walk::new(base, below)?;
    while let Some(step) = walk.next()? {
        if let Met::Directory { described: Some(_), .. } = step.met {
            return Ok(true);
        }
    }
    Ok(false)
}

fn is_implied(inode: &Inode) -> bool {
    inode.attributes.xattrs.get(GAP_XATTR).is_some_and(|mark| mark == IMPLIED)
}

fn is_of_overlay(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.")
}

/// A directory with the attributes from below; attributes that are for overlayfs are the layer's own.
fn as_below(own: &Attributes, mut below: Attributes) -> Attributes {
    let own = own.xattrs.iter().filter(|(name, _)| is_of_overlay(name) && *name != GAP_XATTR);
    below.xattrs.retain(|name, _| !is_of_overlay(name));
    below.xattrs.extend(own.map(|(name, value)| (name.clone(), value.clone())));
    below
}

/// Whether nobody could tell two directories apart. Their times do not count, as they change with every new entry.
fn is_the_same(one: &Attributes, other: &Attributes) -> bool {
    let [xattrs, other_xattrs] =
        [one, other].map(|attributes| attributes.xattrs.iter().filter(|(name, _)| *name != GAP_XATTR));
    (one.mode, one.uid, one.gid) == (other.mode, other.uid, other.gid) && xattrs.eq(other_xattrs)
}

/// A walk through a layer, which keeps only the path from the root in memory.
struct Walk<'a, I> {
    base: &'a Image<I>,
    below: Below<'a, I>,
    /// The path, from the root on.
    frames: Vec<Frame>,
    seen: HashSet<u64>,
    memory: Memory,
}

/// A directory on the path.
struct Frame {
    name: Vec<u8>,
    dir: Inode,
    /// The next block to be read, and the names that are left of the last one.
    next: u64,
    entries: vec::IntoIter<DirEntry>,
    /// The directories below, once they were looked for.
    joined: Option<Joined>,
    /// Memory taken for the directory.
    bytes: u64,
}

struct Step {
    /// How many directories this one is in.
    depth: usize,
    name: Vec<u8>,
    met: Met,
}

enum Met {
    /// A directory's own attributes, and those that replace them if it is only implied.
    Directory { own: Attributes, described: Option<Attributes> },
    /// The number of an object other than a directory.
    Node(u64),
}

impl<'a, I: Input> Walk<'a, I> {
    fn new(base: &'a Image<I>, below: Below<'a, I>) -> Result<Self> {
        let (memory, joined) = (below.memory(), below.root()?);
        let mut walk = Self { base, below, frames: Vec::new(), seen: HashSet::new(), memory };
        walk.enter(Vec::new(), base.root()?)?;
        if let Some(root) = walk.frames.last_mut() {
            root.joined = Some(joined);
        }
        Ok(walk)
    }

    fn enter(&mut self, name: Vec<u8>, mut dir: Inode) -> Result<()> {
        let names = dir.size.min(BLOCK_SIZE as u64) * NAMES_FACTOR;
        let bytes = FRAME_COST + name.len() as u64 + names;
        self.memory.take(bytes + NUMBER_COST)?;
        if !self.seen.insert(dir.nid) {
            return Err(erofs::ReadError::Damaged("a directory with two names").into());
        }
        dir.attributes.xattrs.clear();
        let entries = Vec::new().into_iter();
        self.frames.push(Frame { name, dir, next: 0, entries, joined: None, bytes });
        Ok(())
    }

    fn next(&mut self) -> Result<Option<Step>> {
        while let Some(frame) = self.frames.last_mut() {
            waiting::check(self.below.given_up).map_err(|given_up| LayerError::Read(given_up.into()))?;
            let Some(DirEntry { name, nid, is_dir }) = frame.entries.next() else {
                if let Some(entries) = self.base.entries(&frame.dir, frame.next)? {
                    frame.next += 1;
                    frame.entries = entries.into_iter();
                } else {
                    self.memory.give_back(frame.bytes);
                    self.frames.pop();
                }
                continue;
            };
            let depth = self.frames.len();
            if !is_dir {
                return Ok(Some(Step { depth, name, met: Met::Node(nid) }));
            }
            let inode = self.below.inode(self.base, nid)?;
            let own = inode.attributes.clone();
            let implied = is_implied(&inode);
            self.enter(name.clone(), inode)?;
            let described = if implied { self.described(&own)? } else { None };
            return Ok(Some(Step { depth, name, met: Met::Directory { own, described } }));
        }
        Ok(None)
    }

    /// The attributes of the last directory on the path in the layers below, if it is only implied here and they
    /// differ.
    fn described(&mut self, own: &Attributes) -> Result<Option<Attributes>> {
        let mut above: &[Place] = &[];
        for frame in &mut self.frames {
            if frame.joined.is_none() {
                // A directory without one below has nothing below its entries either.
                let joined = match self.below.entry(above, &frame.name)? {
                    Found::Directory(joined) => joined,
                    Found::Node(..) | Found::Nothing => Joined::new(),
                };
                self.memory.take(joined_cost(&joined))?;
                frame.bytes += joined_cost(&joined);
                frame.joined = Some(joined);
            }
            above = frame.joined.as_deref().unwrap_or_default();
        }
        let Some(top) = above.first() else { return Ok(None) };
        let Some(image) = self.below.layers.get(top.layer) else { return Ok(None) };
        let there = self.below.inode(image, top.inode.nid)?;
        Ok(Some(as_below(own, there.attributes)).filter(|attributes| !is_the_same(own, attributes)))
    }

    /// The path of an entry, for an error.
    fn path(&self, step: &Step) -> String {
        let parts =
            self.frames.get(1..step.depth).unwrap_or_default().iter().map(|frame| frame.name.as_slice());
        show(&parts.chain([step.name.as_slice()]).collect::<Vec<_>>().join(&b'/'))
    }
}

struct Copy<'a, I, O> {
    walk: Walk<'a, I>,
    writer: Writer<O>,
    /// The new directories on the path.
    directories: Vec<DirId>,
    /// Copies of the layer's own inodes, by number, so that all names of a file stay one file.
    nodes: HashMap<u64, NodeId>,
    /// Copies of lower layers' inodes.
    links: HashMap<(usize, u64), NodeId>,
}

impl<I: Input, O: Output> Copy<'_, I, O> {
    fn all(&mut self) -> Result<()> {
        let root = self.walk.base.root()?;
        let new_root = self.writer.tree().root();
        // The root keeps its mark: mounting decides whether the root was described.
        self.writer.tree_mut().attributes_mut(new_root).clone_from(&root.attributes);
        self.directories.push(new_root);
        while let Some(mut step) = self.walk.next()? {
            self.one(&mut step).map_err(|failed| match failed {
                Failed::Entry(why) => LayerError::Entry { path: self.walk.path(&step), why },
                Failed::Layer(error) => error,
            })?;
        }
        Ok(())
    }

    fn one(&mut self, step: &mut Step) -> std::result::Result<(), Failed> {
        self.directories.truncate(step.depth);
        let parent = self.directories.last().copied().unwrap_or(self.writer.tree().root());
        self.walk.memory.take(NAME_COST + step.name.len() as u64)?;
        match &mut step.met {
            Met::Directory { own, described } => {
                own.xattrs.remove(GAP_XATTR);
                let attributes = described.take().unwrap_or_else(|| std::mem::take(own));
                self.walk.memory.take(DIRECTORY_COST + cost(&attributes))?;
                self.directories.push(self.writer.tree_mut().make_dir(parent, &step.name, attributes)?);
            }
            Met::Node(nid) => {
                let node = match self.nodes.get(nid) {
                    Some(node) => *node,
                    None => self.node(*nid)?,
                };
                self.writer.tree_mut().link(parent, &step.name, node)?;
            }
        }
        Ok(())
    }

    fn node(&mut self, nid: u64) -> std::result::Result<NodeId, Failed> {
        self.walk.memory.take(NUMBER_COST)?;
        let inode = self.walk.base.inode(nid)?;
        let is_link = inode.attributes.xattrs.get(GAP_XATTR).is_some_and(|mark| mark == LINK);
        let node = match is_link {
            true => self.link(&inode)?,
            false => copy(&mut self.writer, self.walk.base, &inode, self.walk.below.given_up)?,
        };
        self.nodes.insert(nid, node);
        Ok(node)
    }

    /// Copies the file below that a hard link leads to.
    fn link(&mut self, inode: &Inode) -> std::result::Result<NodeId, Failed> {
        let Walk { base, below, memory, .. } = &mut self.walk;
        let target = base.target(inode)?;
        let missing = || Failed::Entry(EntryError::LinkTarget(show(&target)));
        let (layer, inode) = match below.target(&target, memory)? {
            Found::Node(layer, inode) => (layer, inode),
            Found::Directory(_) => return Err(Failed::Entry(EntryError::LinkToDirectory)),
            Found::Nothing => return Err(missing()),
        };
        let key = (layer, inode.nid);
        if let Some(node) = self.links.get(&key) {
            return Ok(*node);
        }
        memory.take(NUMBER_COST)?;
        let image = below.layers.get(layer).ok_or_else(missing)?;
        let node = copy(&mut self.writer, image, &inode, below.given_up)?;
        self.links.insert(key, node);
        Ok(node)
    }
}

/// A failure because of one entry, or of the whole layer.
enum Failed {
    Entry(EntryError),
    Layer(LayerError),
}

impl From<LayerError> for Failed {
    fn from(error: LayerError) -> Self {
        Self::Layer(error)
    }
}

impl From<erofs::ReadError> for Failed {
    fn from(error: erofs::ReadError) -> Self {
        Self::Layer(error.into())
    }
}

/// An error about a name: names are the image's, so they may be wrong.
impl From<erofs::Error> for Failed {
    fn from(error: erofs::Error) -> Self {
        Self::Entry(EntryError::Store(error))
    }
}

/// Copies an object other than a directory.
fn copy(
    writer: &mut Writer<impl Output>,
    image: &Image<impl Input>,
    inode: &Inode,
    given_up: &CancellationToken,
) -> Result<NodeId> {
    let attributes = &inode.attributes;
    let node = match inode.kind {
        InodeKind::Dir => return Err(erofs::ReadError::Damaged("a directory").into()),
        InodeKind::Symlink => writer.symlink(attributes, &image.target(inode)?),
        InodeKind::Special(special) => writer.special(attributes, special),
        InodeKind::File => match image.extents(inode)? {
            None => writer.file(attributes, inode.size, &mut Wanted::new(image.data(inode), given_up)),
            Some(extents) => {
                let mut data = extents.iter().map(|extent| {
                    let mut data = image.data(inode);
                    data.seek(extent.offset);
                    data.take(extent.len)
                });
                let parts = Parts { current: data.next(), rest: data };
                writer.sparse_file(attributes, inode.size, &extents, &mut Wanted::new(parts, given_up))
            }
        },
    };
    node.map_err(|error| match error {
        erofs::Error::Read(error) if waiting::is_given_up(&error) => LayerError::Read(error),
        error => LayerError::Write(error),
    })
}

/// One reader after the other.
struct Parts<R, I> {
    current: Option<R>,
    rest: I,
}

impl<R: Read, I: Iterator<Item = R>> Read for Parts<R, I> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(current) = &mut self.current {
            let len = current.read(buffer)?;
            if len > 0 || buffer.is_empty() {
                return Ok(len);
            }
            self.current = self.rest.next();
        }
        Ok(0)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::process::{Command, Stdio};

    use super::*;
    use crate::fixtures::LayerBuilder;
    use crate::layer::bombs::peak;
    use crate::layer::{Limits, convert};

    type Stored = Image<&'static [u8]>;

    fn made(tar: &[u8]) -> (Stored, Gaps) {
        let (bytes, converted) = convert(&mut &*tar, Vec::new(), [0; 16], Limits::default()).unwrap();
        let bytes: &'static [u8] = bytes.leak();
        (Image::open(bytes, converted.len).unwrap(), converted.gaps)
    }

    const OPTIONS: Options = Options { uuid: [0; 16], max_len: 1 << 30 };

    fn outcome<O>(completed: Result<Option<(O, Converted)>>) -> String {
        match completed {
            Ok(Some(_)) => "made".to_owned(),
            Ok(None) => "the same".to_owned(),
            Err(error) => error.to_string(),
        }
    }

    /// Completes the upper of two layers, and returns its error if there is one.
    fn completed(above: LayerBuilder, mut lookups: u64, given_up: &CancellationToken) -> String {
        let (below, _) = made(&LayerBuilder::default().dir("a", 0o700).file("a/f", 0o644, b"x").build());
        let (above, gaps) = made(&above.build());
        let metadata_bytes = Limits::default().metadata_bytes;
        let below = Below { layers: &[below], lookups: &mut lookups, metadata_bytes, given_up };
        outcome(complete(&above, gaps, below, Vec::new(), OPTIONS))
    }

    #[test]
    fn it_has_an_end() {
        let (layer, wanted) = (LayerBuilder::default, CancellationToken::new());
        let implied = || layer().file("a/b/c/d", 0o644, b"");
        assert_eq!(
            completed(implied(), 1, &wanted),
            "more than 16777216 names looked up in the layers below others"
        );
        assert_eq!(completed(implied(), 10, &wanted), "made");
        assert_eq!(completed(layer().file("b/c", 0o644, b""), 1, &wanted), "the same");
        let link = || layer().dir("b", 0o755).hard_link("b/l", "a/f");
        assert_eq!(completed(link(), 2, &wanted), "made");
        assert!(completed(link(), 1, &wanted).starts_with("more than "));
        let missing = completed(layer().hard_link("b/l", "a/g"), 10, &wanted);
        assert!(missing.starts_with("\"b/l\": is a hard link to \"a/g\""), "{missing}");
        let given_up = CancellationToken::new();
        given_up.cancel();
        for layer in [implied(), link()] {
            assert_eq!(completed(layer, 10, &given_up), waiting::GivenUp.to_string());
        }
    }

    #[test]
    fn attributes_and_links_are_work_as_well() {
        let wanted = CancellationToken::new();
        let value = [b'x'; 60_000];
        let tar = LayerBuilder::default().pax(&[("SCHILY.xattr.user.a", &value)]).dir("a", 0o700);
        let (below, _) = made(&tar.build());
        let links = LayerBuilder::default().pax(&[("linkpath", &[b'/'; 4000])]).symlink("s", "").build();
        let (links, _) = made(&links);
        let layers = [below, links];
        for (above, needed) in [
            (LayerBuilder::default().file("a/f", 0o644, b""), 200),
            (LayerBuilder::default().hard_link("l", "s/x"), 100),
        ] {
            let (above, gaps) = made(&above.build());
            let mut lookups = needed;
            let below =
                Below { layers: &layers, lookups: &mut lookups, metadata_bytes: 1 << 20, given_up: &wanted };
            let _ = complete(&above, gaps, below, Vec::new(), OPTIONS);
            assert!(lookups < needed / 2, "{lookups}");
        }
    }

    /// A reader whose work is given up at one of its reads.
    struct GivenUpAt {
        bytes: Vec<u8>,
        reads: std::cell::Cell<u32>,
        given_up: CancellationToken,
    }

    impl Input for GivenUpAt {
        fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
            self.reads.set(self.reads.get().saturating_sub(1));
            if self.reads.get() == 0 {
                self.given_up.cancel();
            }
            self.bytes.as_slice().read_exact_at(buffer, offset)
        }
    }

    /// Work that is given up at any read ends soon, with the right error.
    #[test]
    fn it_is_given_up_anywhere() {
        let convert = |layer: LayerBuilder| {
            let (bytes, converted) =
                convert(&mut &*layer.build(), Vec::new(), [0; 16], Limits::default()).unwrap();
            (bytes, converted.gaps)
        };
        let large = vec![1; 4 << 20];
        let below = || convert(LayerBuilder::default().dir("a", 0o700).file("a/f", 0o644, &large)).0;
        for above in [
            LayerBuilder::default().file("a/b/c/d", 0o644, b"").file("a/b/c/e", 0o644, b""),
            LayerBuilder::default().file("x", 0o644, &large),
            LayerBuilder::default().hard_link("l", "a/f"),
        ] {
            let (above, gaps) = convert(above);
            let gaps = Gaps { links: gaps.links || !gaps.directories, ..gaps };
            let run = |reads: u32| {
                let given_up = CancellationToken::new();
                let open = |bytes: Vec<u8>| {
                    let len = bytes.len() as u64;
                    let input = GivenUpAt { bytes, reads: reads.into(), given_up: given_up.clone() };
                    Image::open(input, len).unwrap()
                };
                let (base, layers) = (open(above.clone()), [open(below())]);
                let below = Below {
                    layers: &layers,
                    lookups: &mut 1000,
                    metadata_bytes: 1 << 20,
                    given_up: &given_up,
                };
                (complete(&base, gaps, below, Vec::new(), OPTIONS), given_up)
            };
            let given_up = (2..12).filter(|reads| match run(*reads) {
                (Err(LayerError::Read(error)), _) => waiting::is_given_up(&error),
                (Ok(Some((output, _))), _) => {
                    assert!(output.len() < 1 << 20, "copied to the end after {reads} reads");
                    false
                }
                (other, _) => panic!("{:?}", other.map(drop)),
            });
            assert!(given_up.count() >= 4);
        }
    }

    /// The variable that names the layers for the child.
    const BOMB: &str = "MATCHLOCK_TEST_BOMB";

    /// Bytes over the limit that a measurement may show.
    const TOLERANCE: u64 = 6 << 20;

    /// An upper layer, the number of layers below it, and that lower layer.
    fn bomb(name: &str) -> (Vec<u8>, usize, Vec<u8>) {
        let layer = LayerBuilder::default;
        let attributes = |layer: LayerBuilder| {
            let value = [b'x'; 60_000];
            let names = ["a", "b", "c"].map(|name| format!("SCHILY.xattr.user.{name}"));
            layer.pax(&names.each_ref().map(|name| (name.as_str(), &value[..])))
        };
        match name {
            // The lower layers hold the same directories, so each is joined to all of its kind.
            "attributes" => {
                let below =
                    (0..100).fold(layer(), |layer, index| attributes(layer).dir(&format!("{index}"), 0o700));
                let above =
                    (0..100).fold(layer(), |layer, index| layer.file(&format!("{index}/f"), 0o644, b""));
                (above.build(), 20, below.build())
            }
            "paths" => {
                let part = |byte: u8| vec![[byte; 250]; 15].join(&b'/');
                let to = |index: u8| [format!("s{index}/").as_bytes(), &part(b'a')].concat();
                let links = (1..35).fold(layer(), |layer, index| {
                    layer.pax(&[("linkpath", &to(index - 1))]).symlink(&format!("s{index}"), "")
                });
                let deep = |layer: LayerBuilder, index| layer.file(&format!("s34/{index}/x/f"), 0o644, b"");
                ((0..1000).fold(links, deep).build(), 20, layer().dir("s0", 0o700).build())
            }
            _ => {
                let path = ["a"; 2000].join("/");
                let dir = layer().pax(&[("path", path.as_bytes())]).dir("x", 0o700).build();
                let file =
                    layer().pax(&[("path", format!("{path}/f").as_bytes())]).file("x", 0o644, b"").build();
                (file, 200, dir)
            }
        }
    }

    #[test]
    #[ignore = "the child's side of another test"]
    fn in_the_child() {
        let (above, times, below) = bomb(&std::env::var(BOMB).unwrap());
        let (base, gaps) = made(&above);
        let layers: Vec<Stored> = (0..times).map(|_| made(&below).0).collect();
        let given_up = CancellationToken::new();
        for metadata_bytes in [8 << 20, 64 << 20] {
            peak();
            let before = peak();
            let below = Below {
                layers: &layers,
                lookups: &mut MAX_LOOKUPS.clone(),
                metadata_bytes,
                given_up: &given_up,
            };
            let completed = outcome(complete(&base, gaps, below, tempfile::tempfile().unwrap(), OPTIONS));
            let taken = peak().saturating_sub(before);
            writeln!(io::stdout(), "{completed}, {} KiB", taken >> 10).unwrap();
            assert!(taken < metadata_bytes + TOLERANCE, "{} KiB", taken >> 10);
        }
    }

    #[test]
    fn memory_is_what_the_limit_says() {
        for (name, outcomes) in [
            ("attributes", ["more than 8388608 bytes of memory for a layer above others", "made"]),
            ("paths", ["made", "made"]),
            ("depth", ["more than 8388608 bytes of memory for a layer above others", "made"]),
        ] {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child
                .args(["--exact", "complete::tests::in_the_child", "--ignored", "--nocapture"])
                .env(BOMB, name);
            let output = child.stderr(Stdio::inherit()).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(output.status.success(), "{name}: {said}");
            for outcome in outcomes {
                assert!(said.contains(&format!("{outcome}, ")), "{name}: {said}");
            }
        }
    }
}
