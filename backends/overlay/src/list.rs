//! Directories that are listed: the names below, without those that are hidden, and then those that were given here.
//!
//! A list takes the same memory however long it is.

use std::sync::Arc;

use fuse::{Errno, Listed, Listing, Name, NodeId, Result};

use crate::below::BelowOpen;
use crate::directory::What;
use crate::files::Files;
use crate::handles::Open;
use crate::locks::shared;
use crate::node::{Node, file_type};

/// Where the names that were given here begin, in the list of a directory that is over one. A place there is 32 bits.
///
/// Bit 63 cannot say it: no program can seek to a negative offset. The cookies of the names below take the other 63 bits, but
/// for ext4's: it has none from here on but that of the end of a directory.
const OWN: u64 = 0x7fff_ffff_0000_0000;

/// Places of `.` and `..` in a directory that is over none.
const ITSELF: u64 = 1;
const PARENT: u64 = 2;

/// Names that are looked at at once.
const BATCH: usize = 256;

/// A name that was given or kept here.
struct Own {
    cookie: u64,
    name: Arc<[u8]>,
    what: What,
    node: Arc<Node>,
}

impl Files {
    pub(crate) fn list_directory(&self, open: &Open, cookie: u64, listing: &mut Listing<'_>) -> Result<()> {
        if !open.node.is_directory() {
            return Err(Errno::ENOTDIR);
        }
        let (base, behind) = match &open.below {
            Some(below) if cookie < OWN => {
                if !self.list_below(&open.node, below, cookie, listing)? {
                    return Ok(());
                }
                (OWN, 0)
            }
            Some(_) => (OWN, cookie - OWN),
            None if !self.list_dots(&open.node, cookie, listing) => return Ok(()),
            None => (0, cookie),
        };
        self.list_own(open, base, behind, listing)
    }

    /// Lists `.` and `..`; returns whether there was room.
    fn list_dots(&self, node: &Node, cookie: u64, listing: &mut Listing<'_>) -> bool {
        let kind = kind(file_type::DIRECTORY);
        let dots = [(ITSELF, &b"."[..], node.ino), (PARENT, b"..", self.parent_ino(node))];
        dots.into_iter()
            .filter(|(place, ..)| cookie < *place)
            .all(|(cookie, name, ino)| listing.add(&Listed { ino, cookie, kind, name }, None))
    }

    fn parent_ino(&self, node: &Node) -> u64 {
        let tree = shared(&self.tree);
        let parent = tree.directory(node.id).and_then(|directory| tree.node(directory.parent));
        parent.map_or(node.ino, |parent| parent.ino)
    }

    /// Lists what is below and not hidden; returns whether that is all.
    fn list_below(
        &self,
        node: &Arc<Node>,
        below: &BelowOpen,
        mut cookie: u64,
        listing: &mut Listing<'_>,
    ) -> Result<bool> {
        loop {
            // The entries in the list are returned first: the error comes next time.
            let names = match below.list(cookie) {
                Ok(names) => names,
                Err(_) if !listing.is_empty() => return Ok(false),
                Err(errno) => return Err(errno),
            };
            if names.is_empty() {
                return Ok(true);
            }
            for one in names {
                cookie = one.cookie;
                if !listing.has_room(one.name.len()) {
                    return Ok(false);
                }
                let (ino, looks_up) = match &one.name[..] {
                    b"." => (node.ino, false),
                    b".." => (self.parent_ino(node), false),
                    name => {
                        let what = shared(&self.tree).directory(node.id).ok().and_then(|own| own.what(name));
                        if matches!(what, Some(What::Hidden | What::Here { .. })) {
                            continue;
                        }
                        (one.ino, listing.wants_nodes())
                    }
                };
                // The end of the list below is the beginning of the rest.
                let listed = Listed { ino, cookie: cookie.min(OWN), kind: one.kind, name: &one.name };
                self.add(node.id, &listed, looks_up, listing);
            }
            if cookie >= OWN {
                return Ok(true);
            }
        }
    }

    /// Lists the names that were given here, and those that were kept and are below no more.
    fn list_own(&self, open: &Open, base: u64, behind: u64, listing: &mut Listing<'_>) -> Result<()> {
        let Ok(mut place) = u32::try_from(behind) else { return Ok(()) };
        loop {
            let some: Vec<Own> = {
                let tree = shared(&self.tree);
                let Ok(directory) = tree.directory(open.node.id) else { return Ok(()) };
                let own = directory.behind(place).filter_map(|(place, name, what)| {
                    let node = tree.node(what.node()?).ok()?.clone();
                    Some(Own { cookie: base + u64::from(place), name: name.clone(), what, node })
                });
                own.take(BATCH).collect()
            };
            let Some(last) = some.last() else { return Ok(()) };
            place = u32::try_from(last.cookie - base).map_err(|_| Errno::EIO)?;
            for Own { cookie, name, what, node } in some {
                if !listing.has_room(name.len()) {
                    return Ok(());
                }
                if matches!(what, What::Kept(_)) && is_below(&open.node, &name) {
                    continue;
                }
                let listed = Listed { ino: node.ino, cookie, kind: kind(node.body.kind()), name: &name };
                self.add(open.node.id, &listed, listing.wants_nodes(), listing);
            }
        }
    }

    /// Adds a name for which there is room, looked up if that is wanted. One that cannot be looked up is listed all the same.
    fn add(&self, parent: NodeId, listed: &Listed<'_>, looks_up: bool, listing: &mut Listing<'_>) {
        let entry = looks_up.then(|| with_name(listed.name, |name| self.find(parent, name)).ok()).flatten();
        let ino = entry.map_or(listed.ino, |entry| entry.stat.attributes.ino);
        listing.add(&Listed { ino, ..*listed }, entry.as_ref());
    }
}

/// Whether the directory below still has a name.
fn is_below(node: &Node, name: &[u8]) -> bool {
    node.below.as_ref().is_some_and(|below| with_name(name, |name| below.find(name)).is_ok())
}

fn with_name<T>(name: &[u8], act: impl FnOnce(Name<'_>) -> Result<T>) -> Result<T> {
    let name = std::ffi::CString::new(name).map_err(|_| Errno::EIO)?;
    act(Name::new(&name)?)
}

fn kind(mode: u32) -> u8 {
    u8::try_from(mode >> 12).unwrap_or_default()
}
