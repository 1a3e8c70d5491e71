//! Files that are opened, and what is done with their contents.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use fuse::{
    Access, Cache, Context, Creation, Data, Entry, Errno, FileSystem, Gone, Handle, NodeId, OpenFlags,
    Opened, Opening, Result, WriteHow,
};

use super::names::host_mode;
use super::{Caching, HostFs, OpenKind, Spot};
use crate::guest_attributes::MODE_BITS;
use crate::nodes::{Node, Place};
use crate::sys::{self, Directory, Found, Kind};

/// Answers with the number of an error of the system.
fn told(result: std::io::Result<usize>) -> Result<u64> {
    let count = result.map_err(|error| error.raw_os_error().map_or(Errno::EINVAL, Errno::from_number))?;
    u64::try_from(count).map_err(|_| Errno::EIO)
}

impl HostFs {
    /// Opens what is a file or a directory; everything else would do something.
    pub(super) fn open_node(&self, node: &Arc<Node>, opening: Opening) -> Result<Opened> {
        let (what, cache) = match (opening, node.kind) {
            (Opening::Directory, Kind::Directory) => {
                self.look_into(node);
                let named = self.nodes.descriptor(node)?;
                let directory = Directory::new(self.proc.open_directory(named.as_fd())?);
                (OpenKind::Directory(Mutex::new(directory)), self.options.caching.of_directory())
            }
            (Opening::File { access, flags }, Kind::File) => {
                let (file, cache) = self.open_file(node, access, flags)?;
                (OpenKind::File(Arc::new(file)), cache)
            }
            (Opening::Directory, _) => return Err(Errno::ENOTDIR),
            (Opening::File { .. }, Kind::Directory) => return Err(Errno::EISDIR),
            (Opening::File { .. }, Kind::SymbolicLink | Kind::Special) => return Err(Errno::ENXIO),
        };
        self.keep(node.clone(), what, cache)
    }

    fn open_file(&self, node: &Arc<Node>, access: Access, flags: OpenFlags) -> Result<(OwnedFd, Cache)> {
        if access != Access::Read || flags.contains(OpenFlags::TRUNCATE) {
            self.writable()?;
        }
        self.room_for_handle()?;
        let then = sys::current_time();
        let named = match node.place().filter(|_| self.may_open_by_name(node, flags)) {
            Some(place) => match self.open_by_name(node, &place, access, flags) {
                // The name may be another file's since a moment ago, and then a descriptor was kept.
                Err(Errno::ESTALE) if node.has_descriptor() => None,
                opened => Some(opened?),
            },
            None => None,
        };
        let (file, found) = match named {
            Some((file, found)) => (file, Some(found)),
            // The descriptor is of this very file, so that what is opened is nothing put in its place.
            None => (self.proc.open(self.nodes.descriptor(node)?.as_fd(), access, flags)?, None),
        };
        if flags.contains(OpenFlags::TRUNCATE | OpenFlags::KILL_PRIVILEGES) {
            self.kill_privileges(node)?;
        } else if flags.contains(OpenFlags::TRUNCATE) {
            self.drop_capabilities(node);
        }
        let cache = match self.options.caching {
            Caching::None => Cache::DIRECT,
            Caching::Always => Cache::KEEP,
            Caching::Auto if flags.contains(OpenFlags::TRUNCATE) => {
                node.keeps(None);
                Cache::empty()
            }
            Caching::Auto => {
                let found = found.map_or_else(|| sys::stat(file.as_fd()), Ok)?;
                if node.keeps(found.version(then)) { Cache::KEEP } else { Cache::empty() }
            }
        };
        Ok((file, cache))
    }

    fn open_by_name(
        &self,
        node: &Node,
        place: &Place,
        access: Access,
        flags: OpenFlags,
    ) -> Result<(OwnedFd, Found)> {
        let directory = self.nodes.descriptor(&place.parent)?;
        let file = sys::open_at(directory.as_fd(), &place.name, access, flags)?;
        let found = sys::stat(file.as_fd())?;
        if found.identity == node.identity && found.kind() == Kind::File {
            Ok((file, found))
        } else {
            Err(Errno::ESTALE)
        }
    }

    /// Whether it does no harm to open what has the node's name, which may be another file by now.
    fn may_open_by_name(&self, node: &Node, flags: OpenFlags) -> bool {
        self.nodev
            && node.identity.device == self.device
            && !flags.contains(OpenFlags::TRUNCATE)
            && !node.has_descriptor()
    }

    pub(super) fn create_file(
        &self,
        context: &Context<'_>,
        spot: &Spot<'_>,
        creation: Creation,
    ) -> Result<(Entry, Opened)> {
        self.room_for_handle()?;
        let Spot { node: parent, directory, name } = *spot;
        let Creation { mode, access, flags, exclusive } = creation;
        let host = host_mode(mode, Kind::File);
        self.is_free(parent, name)?;
        let file = match sys::create(directory, name.as_c_str(), host, access, flags) {
            Ok(file) => file,
            // The kernel did not know of it.
            Err(Errno::EEXIST) if !exclusive => {
                let entry = self.look_up(parent, directory, name)?;
                let opened = match Kind::of_mode(entry.stat.attributes.mode) {
                    // The kernel looks again, and follows it.
                    Kind::SymbolicLink => Err(Errno::ESTALE),
                    _ => self.open_node(&self.nodes.get(entry.node)?, Opening::File { access, flags }),
                };
                return self.told_or_forgotten(entry, opened);
            }
            Err(errno) => return Err(errno),
        };
        let found = sys::stat(file.as_fd())?;
        let entry = self.tell_made(context, spot, &found, Some(mode & MODE_BITS))?;
        let node = self.nodes.get(entry.node);
        let cache = self.options.caching.of_new_file();
        let opened = node.and_then(|node| self.keep(node, OpenKind::File(Arc::new(file)), cache));
        if opened.is_err() {
            self.unmake(spot, &found);
            self.table.remove(found.identity);
        }
        self.told_or_forgotten(entry, opened)
    }

    /// The kernel hears of an entry only together with what it opened.
    fn told_or_forgotten(&self, entry: Entry, opened: Result<Opened>) -> Result<(Entry, Opened)> {
        if opened.is_err() {
            self.let_go(entry.node, Gone::Lookups(1));
        }
        Ok((entry, opened?))
    }

    pub(super) fn create_nameless(
        &self,
        context: &Context<'_>,
        parent: &Arc<Node>,
        directory: BorrowedFd<'_>,
        creation: Creation,
    ) -> Result<(Entry, Opened)> {
        self.room_for_handle()?;
        let Creation { mode, access, flags, exclusive } = creation;
        let file = sys::create_nameless(directory, host_mode(mode, Kind::File), access, flags, exclusive)?;
        let found = sys::stat(file.as_fd())?;
        let made = self.made(context, parent, &found, Some(mode & MODE_BITS));
        let node = made.and_then(|()| self.nodes.learn(None, found.identity, Kind::File));
        let node = node.inspect_err(|_| self.table.remove(found.identity))?;
        let named = self.proc.open_name(file.as_fd());
        if let Err(errno) = named.and_then(|named| self.nodes.pin(&node, &Arc::new(named))) {
            self.let_go(node.id, Gone::Lookups(1));
            return Err(errno);
        }
        let entry = self.entry_of(&node, self.seen(&node, &found));
        let opened = self.keep(node, OpenKind::File(Arc::new(file)), self.options.caching.of_new_file());
        self.told_or_forgotten(entry, opened)
    }

    pub(super) fn act(&self, node: NodeId, handle: Handle, act: Data<'_>) -> Result<u64> {
        let open = self.handle(node, handle)?;
        let OpenKind::File(file) = &open.what else { return Err(Errno::EBADF) };
        let _change = match act {
            Data::Read { .. } | Data::Seek { .. } | Data::Copy { .. } => None,
            Data::Write { .. } | Data::Allocate { .. } => self.changing(&open.node),
        };
        let fd = file.as_fd();
        match act {
            Data::Read { offset, into } => told(guest_memory::read_at(fd, into.pieces(), offset)),
            Data::Write { offset, from, how } => {
                if how.contains(WriteHow::KILL_PRIVILEGES) {
                    self.kill_privileges(&open.node)?;
                } else if from.len() > 0 {
                    self.drop_capabilities(&open.node);
                }
                if how.contains(WriteHow::APPEND) {
                    u64::try_from(sys::append(fd, &from)?).map_err(|_| Errno::EIO)
                } else {
                    told(guest_memory::write_at(fd, from.pieces(), offset))
                }
            }
            // The kernel asks for privileges to be cleared at writes only, and leaves these to the file system.
            Data::Allocate { offset, len, how } => {
                self.kill_privileges(&open.node)?;
                sys::reserve(fd, offset, len, how).map(|()| 0)
            }
            Data::Seek { offset, what } => sys::seek(fd, offset, what),
            Data::Copy { offset, to_node, to, to_offset, len } => {
                let to = self.file(to_node, to)?;
                let to_node = self.nodes.get(to_node)?;
                let _change = self.changing(&to_node);
                // A copy of nothing changes nothing.
                if offset < sys::stat(fd)?.attributes.size && len > 0 {
                    self.kill_privileges(&to_node)?;
                }
                sys::copy((fd, offset), (to.as_fd(), to_offset), len)
            }
        }
    }

    pub(super) fn sync_directory(&self, node: NodeId, handle: Handle) -> Result<()> {
        match &self.handle(node, handle)?.what {
            OpenKind::Directory(directory) => crate::nodes::lock(directory).sync(),
            OpenKind::File(_) => Err(Errno::EBADF),
        }
    }
}
