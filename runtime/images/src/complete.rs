//! What a layer leaves open, taken from the layers below it: what the directories are that it only implies, and what hard links
//! to files of theirs are.
//!
//! Engines apply layers one after the other to one tree; here each is a file of its own that any image may have, made without
//! a look at others. So a layer with gaps is made once more for its place in an image, where they are told apart from what
//! would come of nothing. Not here: which layers lie below which (`stack`).

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};

use erofs::{Attributes, DirId, Image, Inode, InodeKind, Input, NodeId, Options, Output, Special, Writer};
use waiting::CancellationToken;

use crate::error::{EntryError, LayerError};
use crate::layer::{Converted, GAP_XATTR, Gaps, IMPLIED, LINK, MAX_SYMLINKS, OPAQUE_XATTR};
use crate::tar_stream::show;

/// Names looked up in the layers below those of one image: a minute's work.
pub(crate) const MAX_LOOKUPS: u64 = 16 << 20;

type Result<T> = std::result::Result<T, LayerError>;

/// The layers below one, as the tree that overlayfs makes of them.
pub(crate) struct Below<'a, I> {
    /// Lowest first.
    pub(crate) layers: &'a [Image<I>],
    /// Names that may still be looked up.
    pub(crate) lookups: &'a mut u64,
}

/// An inode of a layer.
#[derive(Clone)]
struct Place {
    layer: usize,
    inode: Inode,
}

/// The directories that are joined to one, topmost first.
type Joined = Vec<Place>;

/// What a name is.
enum Found {
    Directory(Joined),
    Node(Place),
    Nothing,
}

impl<I: Input> Below<'_, I> {
    fn root(&self) -> Result<Joined> {
        let roots = self.layers.iter().enumerate().rev();
        roots.map(|(layer, image)| Ok(Place { layer, inode: image.root()? })).collect()
    }

    fn entry(&mut self, directory: &Joined, name: &[u8]) -> Result<Found> {
        let mut joined = Joined::new();
        for place in directory {
            let left = self.lookups.checked_sub(1);
            let what = "names looked up in the layers below others";
            *self.lookups = left.ok_or(LayerError::Limit { what, limit: MAX_LOOKUPS })?;
            let Some(image) = self.layers.get(place.layer) else { break };
            let Some(inode) = image.lookup(&place.inode, name)? else { continue };
            let found = Place { layer: place.layer, inode };
            match found.inode.kind {
                InodeKind::Dir => {
                    let opaque = found.inode.attributes.xattrs.contains_key(OPAQUE_XATTR);
                    joined.push(found);
                    if opaque {
                        break;
                    }
                }
                // A whiteout.
                InodeKind::Special(Special::CharDevice { major: 0, minor: 0 }) => break,
                _ if joined.is_empty() => return Ok(Found::Node(found)),
                _ => break,
            }
        }
        Ok(if joined.is_empty() { Found::Nothing } else { Found::Directory(joined) })
    }

    /// The file that a hard link's target names; symbolic links on the way are followed within the root.
    fn target(&mut self, target: &[u8]) -> Result<Found> {
        let mut way = vec![self.root()?];
        let mut followed = 0;
        let mut pending: Vec<Box<[u8]>> = target.rsplit(|byte| *byte == b'/').map(Box::from).collect();
        while let Some(part) = pending.pop() {
            if matches!(&*part, b"" | b".") {
                continue;
            }
            if &*part == b".." {
                way.truncate(way.len().saturating_sub(1).max(1));
                continue;
            }
            let here = way.last().cloned().unwrap_or_default();
            match self.entry(&here, &part)? {
                Found::Directory(joined) => way.push(joined),
                Found::Node(place) if pending.is_empty() => return Ok(Found::Node(place)),
                Found::Node(place) if place.inode.kind == InodeKind::Symlink && followed < MAX_SYMLINKS => {
                    followed += 1;
                    let Some(image) = self.layers.get(place.layer) else { return Ok(Found::Nothing) };
                    let to = image.target(&place.inode)?;
                    if to.starts_with(b"/") {
                        way.truncate(1);
                    }
                    pending.extend(to.rsplit(|byte| *byte == b'/').map(Box::from));
                }
                _ => return Ok(Found::Nothing),
            }
        }
        Ok(way.pop().map_or(Found::Nothing, Found::Directory))
    }
}

/// Makes the layer of `base` once more, for its place above others. `None` = it is the same there.
pub(crate) fn complete<I: Input, O: Output>(
    base: &Image<I>,
    gaps: Gaps,
    mut below: Below<'_, I>,
    output: O,
    options: Options,
    given_up: &CancellationToken,
) -> Result<Option<(O, Converted)>> {
    let described = if gaps.directories { described(base, &mut below)? } else { HashMap::new() };
    if described.is_empty() && !gaps.links {
        return Ok(None);
    }
    let writer = Writer::new(output, options);
    let mut copy =
        Copy { base, below, writer, nodes: HashMap::new(), links: HashMap::new(), described, given_up };
    copy.all()?;
    let (output, summary) = copy.writer.finish().map_err(LayerError::Write)?;
    Ok(Some((output, Converted { len: summary.len, opaque_root: false, gaps: Gaps::default() })))
}

fn is_implied(inode: &Inode) -> bool {
    inode.attributes.xattrs.get(GAP_XATTR).is_some_and(|mark| mark == IMPLIED)
}

/// What the directories are that are only implied, by their numbers, where it is not what they are without layers below.
fn described<I: Input>(base: &Image<I>, below: &mut Below<'_, I>) -> Result<HashMap<u64, Attributes>> {
    let root = base.root()?;
    let on_the_way = on_the_way(base, &root)?;
    let mut described = HashMap::new();
    let mut pending = vec![(root, below.root()?)];
    while let Some((dir, joined)) = pending.pop() {
        for (name, nid, is_dir) in base.entries(&dir)? {
            if !is_dir || !on_the_way.contains(&nid) {
                continue;
            }
            // A directory that is new here has nothing below it, and neither has what it holds.
            let Found::Directory(joined) = below.entry(&joined, &name)? else { continue };
            let inode = base.inode(nid)?;
            if let Some(top) = joined.first().filter(|_| is_implied(&inode)) {
                let attributes = as_below(&inode.attributes, &top.inode.attributes);
                if !is_the_same(&attributes, &inode.attributes) {
                    described.insert(nid, attributes);
                }
            }
            pending.push((inode, joined));
        }
    }
    Ok(described)
}

/// The implied directories, and those above them.
fn on_the_way(base: &Image<impl Input>, root: &Inode) -> Result<HashSet<u64>> {
    let mut parents = HashMap::new();
    let mut on_the_way = HashSet::new();
    let mut pending = vec![root.clone()];
    while let Some(dir) = pending.pop() {
        for (_, nid, _) in base.entries(&dir)?.into_iter().filter(|(_, _, is_dir)| *is_dir) {
            let inode = base.inode(nid)?;
            if parents.insert(nid, dir.nid).is_some() {
                return Err(erofs::ReadError::Damaged("a directory with two names").into());
            }
            let mut above = is_implied(&inode).then_some(nid);
            while let Some(nid) = above.filter(|nid| on_the_way.insert(*nid)) {
                above = parents.get(&nid).copied();
            }
            pending.push(inode);
        }
    }
    Ok(on_the_way)
}

fn is_of_overlay(name: &[u8]) -> bool {
    name.starts_with(b"trusted.overlay.")
}

/// A directory as it is below; what overlayfs is told of it is the layer's own.
fn as_below(own: &Attributes, below: &Attributes) -> Attributes {
    let own = own.xattrs.iter().filter(|(name, _)| is_of_overlay(name) && *name != GAP_XATTR);
    let below_xattrs = below.xattrs.iter().filter(|(name, _)| !is_of_overlay(name));
    let xattrs = own.chain(below_xattrs).map(|(name, value)| (name.clone(), value.clone())).collect();
    Attributes { xattrs, ..below.clone() }
}

/// Whether nobody could tell them apart: times of directories change whenever something is put into them.
fn is_the_same(one: &Attributes, other: &Attributes) -> bool {
    let all = |attributes: &Attributes| {
        let xattrs = attributes.xattrs.iter().filter(|(name, _)| *name != GAP_XATTR);
        let xattrs: Vec<_> = xattrs.map(|(name, value)| (name.clone(), value.clone())).collect();
        (attributes.mode, attributes.uid, attributes.gid, xattrs)
    };
    all(one) == all(other)
}

struct Copy<'a, I, O> {
    base: &'a Image<I>,
    below: Below<'a, I>,
    writer: Writer<O>,
    /// What has been copied of the layer itself, by number: all names of a file stay one file.
    nodes: HashMap<u64, NodeId>,
    /// The same of the layers below.
    links: HashMap<(usize, u64), NodeId>,
    described: HashMap<u64, Attributes>,
    given_up: &'a CancellationToken,
}

impl<I: Input, O: Output> Copy<'_, I, O> {
    fn all(&mut self) -> Result<()> {
        let root = self.base.root()?;
        let new_root = self.writer.tree().root();
        // The root's mark stays: whether a root was described is told apart when it is mounted.
        self.writer.tree_mut().attributes_mut(new_root).clone_from(&root.attributes);
        let mut seen = HashSet::from([root.nid]);
        let mut pending = vec![(root, new_root, Vec::new())];
        while let Some((dir, new, way)) = pending.pop() {
            for (name, nid, is_dir) in self.base.entries(&dir)? {
                waiting::check(self.given_up).map_err(|given_up| LayerError::Read(given_up.into()))?;
                let path = [way.as_slice(), &name].concat();
                if is_dir {
                    if !seen.insert(nid) {
                        return Err(erofs::ReadError::Damaged("a directory with two names").into());
                    }
                    let (inode, below) = self.directory(nid, new, &name).map_err(|error| error.at(&path))?;
                    pending.push((inode, below, [path.as_slice(), b"/"].concat()));
                    continue;
                }
                let node = match self.nodes.get(&nid) {
                    Some(node) => *node,
                    None => self.node(nid).map_err(|error| error.at(&path))?,
                };
                self.nodes.insert(nid, node);
                self.writer
                    .tree_mut()
                    .link(new, &name, node)
                    .map_err(|error| Failed::from(error).at(&path))?;
            }
        }
        Ok(())
    }

    fn directory(
        &mut self,
        nid: u64,
        parent: DirId,
        name: &[u8],
    ) -> std::result::Result<(Inode, DirId), Failed> {
        let inode = self.base.inode(nid)?;
        let attributes = self.described.remove(&nid).unwrap_or_else(|| {
            let mut attributes = inode.attributes.clone();
            attributes.xattrs.remove(GAP_XATTR);
            attributes
        });
        let made = self.writer.tree_mut().make_dir(parent, name, attributes)?;
        Ok((inode, made))
    }

    fn node(&mut self, nid: u64) -> std::result::Result<NodeId, Failed> {
        let inode = self.base.inode(nid)?;
        if inode.attributes.xattrs.get(GAP_XATTR).is_none_or(|mark| mark != LINK) {
            return Ok(copy(&mut self.writer, self.base, &inode)?);
        }
        let target = self.base.target(&inode)?;
        let missing = || Failed::Entry(EntryError::LinkTarget(show(&target)));
        let place = match self.below.target(&target)? {
            Found::Node(place) => place,
            Found::Directory(_) => return Err(Failed::Entry(EntryError::LinkToDirectory)),
            Found::Nothing => return Err(missing()),
        };
        let key = (place.layer, place.inode.nid);
        if let Some(node) = self.links.get(&key) {
            return Ok(*node);
        }
        let image = self.below.layers.get(place.layer).ok_or_else(missing)?;
        let node = copy(&mut self.writer, image, &place.inode)?;
        self.links.insert(key, node);
        Ok(node)
    }
}

/// Fails either for an entry's sake or for the whole layer's.
enum Failed {
    Entry(EntryError),
    Layer(LayerError),
}

impl Failed {
    /// The error of the entry at this path.
    fn at(self, path: &[u8]) -> LayerError {
        match self {
            Self::Entry(why) => LayerError::Entry { path: show(path), why },
            Self::Layer(error) => error,
        }
    }
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

/// Of names, which are those of an image and so may be had.
impl From<erofs::Error> for Failed {
    fn from(error: erofs::Error) -> Self {
        Self::Entry(EntryError::Store(error))
    }
}

/// Copies anything but a directory.
fn copy(writer: &mut Writer<impl Output>, image: &Image<impl Input>, inode: &Inode) -> Result<NodeId> {
    let attributes = &inode.attributes;
    let node = match inode.kind {
        InodeKind::Dir => return Err(erofs::ReadError::Damaged("a directory").into()),
        InodeKind::Symlink => writer.symlink(attributes, &image.target(inode)?),
        InodeKind::Special(special) => writer.special(attributes, special),
        InodeKind::File => match image.extents(inode)? {
            None => writer.file(attributes, inode.size, &mut image.data(inode)),
            Some(extents) => {
                let mut data = extents.iter().map(|extent| {
                    let mut data = image.data(inode);
                    data.seek(extent.offset);
                    data.take(extent.len)
                });
                let mut parts = Parts { current: data.next(), rest: data };
                writer.sparse_file(attributes, inode.size, &extents, &mut parts)
            }
        },
    };
    node.map_err(LayerError::Write)
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
    use super::*;
    use crate::fixtures::LayerBuilder;
    use crate::layer::{Limits, convert};

    /// The layer above the other, with what is wrong with it.
    fn completed(above: LayerBuilder, mut lookups: u64, given_up: &CancellationToken) -> String {
        let made = |layer: LayerBuilder| {
            convert(&mut &*layer.build(), Vec::new(), [0; 16], Limits::default()).unwrap()
        };
        let (below, _) = made(LayerBuilder::default().dir("a", 0o700).file("a/f", 0o644, b"x"));
        let (above, converted) = made(above);
        let open = |bytes: &'static [u8]| Image::open(bytes, bytes.len() as u64).unwrap();
        let layers = [open(below.leak())];
        let below = Below { layers: &layers, lookups: &mut lookups };
        let options = Options { uuid: [0; 16], max_len: 1 << 20 };
        match complete(&open(above.leak()), converted.gaps, below, Vec::new(), options, given_up) {
            Ok(Some(_)) => "made".to_owned(),
            Ok(None) => "the same".to_owned(),
            Err(error) => error.to_string(),
        }
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
}
