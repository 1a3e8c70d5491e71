//! Lists directories: first the host's names, then those that only the guest has.

use std::ffi::CStr;
use std::os::fd::AsFd;
use std::sync::Arc;

use fuse::{Attributes, Errno, Handle, Listed, Listing, NodeId, Result};

use super::{HostFs, OpenKind};
use crate::nodes::{Node, lock, shared};
use crate::specials::Specials;
use crate::sys;

/// Marks a cookie behind all names of the host's.
const SPECIAL: u64 = 1 << 63;

/// The kernel's entry with its node takes some four times as many bytes as an entry of the host's list.
const NODE_FACTOR: usize = 4;

impl HostFs {
    pub(super) fn list_directory(
        &self,
        node: NodeId,
        handle: Handle,
        cookie: u64,
        listing: &mut Listing<'_>,
    ) -> Result<()> {
        let open = self.handle(node, handle)?;
        let OpenKind::Directory(directory) = &open.what else { return Err(Errno::EBADF) };
        if let Some(only) = self.only.as_deref().filter(|_| node == NodeId::ROOT) {
            return self.list_only(&open.node, only, cookie, listing);
        }
        if cookie & SPECIAL == 0 {
            let mut directory = lock(directory);
            let room = listing.room() / if listing.wants_nodes() { NODE_FACTOR } else { 1 };
            let ended = sys::list(&mut directory, cookie, room, |file, ino, cookie, kind, name| {
                let bytes = name.to_bytes();
                if !listing.has_room(bytes.len()) {
                    return false;
                }
                // An entry that cannot be looked up is listed all the same.
                let wants_node = listing.wants_nodes() && !matches!(bytes, b"." | b"..");
                let found = if wants_node { sys::stat_at(file, name).ok() } else { None };
                let entry = found.and_then(|found| self.learn(&open.node, name, &found).ok());
                let ino = entry.map_or(ino, |entry| entry.stat.attributes.ino);
                listing.add(&Listed { ino, cookie, kind, name: bytes }, entry.as_ref())
            });
            match ended {
                Ok(true) => {}
                // Listed nodes count as told to the kernel, so the error comes next time.
                Ok(false) => return Ok(()),
                Err(_) if !listing.is_empty() => return Ok(()),
                Err(errno) => return Err(errno),
            }
        }
        self.list_specials(&open.node, cookie, listing);
        Ok(())
    }

    /// Lists the one name that is shared.
    fn list_only(&self, root: &Arc<Node>, only: &CStr, cookie: u64, listing: &mut Listing<'_>) -> Result<()> {
        let directory = self.nodes.descriptor(root)?;
        let Ok(found) = sys::stat_at(directory.as_fd(), only) else { return Ok(()) };
        if cookie == 0 {
            let (ino, kind) = (self.number(&found), found.attributes.kind());
            listing.add(&Listed { ino, cookie: 1, kind, name: only.to_bytes() }, None);
        }
        Ok(())
    }

    fn list_specials(&self, node: &Arc<Node>, cookie: u64, listing: &mut Listing<'_>) {
        let behind = if cookie & SPECIAL == 0 { 0 } else { cookie & !SPECIAL };
        let specials = shared(&self.specials);
        if specials.is_empty() {
            return;
        }
        for (named, name) in specials.list(node.identity, behind) {
            let kind =
                specials.attributes(Specials::identity(named.ino)).as_ref().map_or(0, Attributes::kind);
            let listed = Listed { ino: named.ino, cookie: named.serial | SPECIAL, kind, name: &name };
            // The entry is listed without its node: the kernel looks the node up when a program asks.
            if !listing.add(&listed, None) {
                return;
            }
        }
    }
}
