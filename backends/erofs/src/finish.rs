//! The end of an image: directory inodes and directory blocks, once every name is known.
//!
//! Directories contain one another's inode numbers, so all directories first get their places, and are encoded then.

use crate::directory::{self, Dirent, TYPE_DIR};
use crate::format::{self, INODE_SIZE, Inode, Layout, NID_UNIT, NLINK_OFFSET, ROOT_OFFSET};
use crate::sink::{Output, Sink};
use crate::tree::Tree;
use crate::writer::{fits_inline, place};
use crate::{BLOCK_SIZE, DirId, Entry, Error, Result, xattr};

const BLOCK: u64 = BLOCK_SIZE as u64;

/// The place of a directory in the image.
struct Place {
    dir: DirId,
    parent: DirId,
    subdirs: u32,
    size: u64,
    inline: bool,
    /// The place of the directory's inode; an offset within the region of directory inodes until that region has an
    /// address.
    offset: u64,
    first_block: u32,
}

impl Place {
    /// The number of whole blocks outside the metadata.
    fn blocks(&self) -> u64 {
        if self.inline { self.size / BLOCK } else { self.size.div_ceil(BLOCK) }
    }
}

/// Writes every directory. Returns block 0 with the root's inode, and the number of inodes.
pub(crate) fn directories<O: Output>(
    tree: &Tree,
    sink: &mut Sink<O>,
    mut serial: u32,
) -> Result<(Box<[u8; BLOCK_SIZE]>, u64)> {
    let (mut places, links) = walk(tree);
    let mut inodes = places.len() as u64;
    for (node, links) in tree.nodes().zip(&links).filter(|(_, links)| **links > 0) {
        inodes += 1;
        if *links > 1 {
            sink.write_at(&links.to_le_bytes(), node.nid * NID_UNIT + NLINK_OFFSET)?;
        }
    }
    let (nids, region) = assign(tree, sink, &mut places)?;
    sink.seek(region)?;
    let mut block0 = Box::new([0; BLOCK_SIZE]);
    for place in &places {
        serial = serial.wrapping_add(1);
        let (head, _) = encode(tree, place, &nids, serial)?;
        if place.dir == tree.root() {
            let range = ROOT_OFFSET..ROOT_OFFSET + head.len();
            block0.get_mut(range).ok_or(Error::XattrTotal(head.len()))?.copy_from_slice(&head);
        } else {
            sink.fill_to(place.offset)?;
            sink.write(&head)?;
        }
    }
    sink.pad()?;
    for place in places.iter().filter(|place| place.blocks() > 0) {
        let (_, blocks) = encode(tree, place, &nids, 0)?;
        sink.seek(u64::from(place.first_block) * BLOCK)?;
        sink.write(&blocks)?;
        sink.pad()?;
    }
    Ok((block0, inodes))
}

/// Every directory that has a name, parents first, and the number of names of each node.
fn walk(tree: &Tree) -> (Vec<Place>, Vec<u32>) {
    let mut links = vec![0u32; tree.node_count()];
    let start =
        |dir, parent| Place { dir, parent, subdirs: 0, size: 0, inline: false, offset: 0, first_block: 0 };
    let mut places = vec![start(tree.root(), tree.root())];
    let mut next = 0;
    while let Some(dir) = places.get(next).map(|place| place.dir) {
        let mut subdirs = 0;
        for (_, entry) in tree.entries(dir) {
            match entry {
                Entry::Dir(child) => {
                    subdirs += 1;
                    places.push(start(child, dir));
                }
                Entry::Node(node) => links[node.index()] = links[node.index()].saturating_add(1),
            }
        }
        if let Some(place) = places.get_mut(next) {
            place.subdirs = subdirs;
        }
        next += 1;
    }
    (places, links)
}

/// Gives every directory its place. Returns the inode numbers by directory, and the address of the inodes.
fn assign<O: Output>(tree: &Tree, sink: &mut Sink<O>, places: &mut [Place]) -> Result<(Vec<u64>, u64)> {
    let mut nids = vec![0; tree.dir_count()];
    let mut end = 0;
    for slot in places.iter_mut() {
        slot.size = directory::size(&dirents(tree, slot, &nids));
        let tail = (slot.size % BLOCK) as usize;
        let xattrs = xattr::encode(&tree.attributes(slot.dir).xattrs)?;
        let head = INODE_SIZE + xattrs.len();
        if slot.dir == tree.root() {
            // The root's place is fixed; only the rest of block 0 follows it.
            slot.inline = tail > 0 && ROOT_OFFSET + head + tail <= BLOCK_SIZE;
            continue;
        }
        slot.inline = fits_inline(&xattrs, tail);
        let at = place(end, if slot.inline { head + tail } else { INODE_SIZE });
        slot.offset = at as u64;
        end = at + head + if slot.inline { tail } else { 0 };
    }
    let base = u64::from(sink.allocate(end.div_ceil(BLOCK_SIZE) as u64)?) * BLOCK;
    for slot in places.iter_mut() {
        slot.offset = if slot.dir == tree.root() { ROOT_OFFSET as u64 } else { base + slot.offset };
        nids[slot.dir.index()] = slot.offset / NID_UNIT;
        slot.first_block = sink.allocate(slot.blocks())?;
    }
    Ok((nids, base))
}

/// A directory's entries, in order.
fn dirents<'a>(tree: &'a Tree, place: &Place, nids: &[u64]) -> Vec<Dirent<'a>> {
    let nid = |dir: DirId| nids.get(dir.index()).copied().unwrap_or_default();
    let dir = |name: &'static [u8], dir| Dirent { name, nid: nid(dir), file_type: TYPE_DIR };
    let mut all = vec![dir(b".", place.dir), dir(b"..", place.parent)];
    all.extend(tree.entries(place.dir).map(|(name, entry)| match entry {
        Entry::Dir(child) => Dirent { name, nid: nid(child), file_type: TYPE_DIR },
        Entry::Node(node) => {
            let node = tree.node(node);
            Dirent { name, nid: node.nid, file_type: node.kind as u8 }
        }
    }));
    all.sort_unstable_by(|a, b| a.name.cmp(b.name));
    all
}

/// A directory's inode with its tail, and its whole blocks.
fn encode(tree: &Tree, place: &Place, nids: &[u64], serial: u32) -> Result<(Vec<u8>, Vec<u8>)> {
    let attributes = tree.attributes(place.dir);
    let xattrs = xattr::encode(&attributes.xattrs)?;
    let mut blocks = directory::encode(&dirents(tree, place, nids));
    let whole = if place.inline { blocks.len() / BLOCK_SIZE * BLOCK_SIZE } else { blocks.len() };
    let tail = blocks.split_off(whole);
    let layout =
        if place.inline { Layout::Inline(place.first_block) } else { Layout::Plain(place.first_block) };
    let links = place.subdirs.saturating_add(2);
    let mut head = Vec::new();
    Inode {
        file_type: format::S_IFDIR,
        attributes,
        xattrs: &xattrs,
        layout,
        size: place.size,
        links,
        serial,
    }
    .encode(&mut head);
    head.extend_from_slice(&tail);
    Ok((head, blocks))
}
