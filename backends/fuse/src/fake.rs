//! A file system that only notes the calls that it gets, for the tests of the protocol and its fuzz body.

use std::sync::Mutex;
use std::time::Duration;

use crate::{
    Attributes, Cache, Context, Creation, Data, Device, Entry, Errno, FileSystem, Gone, Handle, How, Listed,
    Listing, Name, NameChange, NodeId, Opened, Opening, Result, SetAttributes, Stat, Statistics, Sync, Time,
    Xattr,
};

/// A node that does not exist.
pub(crate) const MISSING: NodeId = NodeId(404);

/// The contents of every file, the target of every link, and the value of every attribute.
pub(crate) const CONTENTS: &[u8] = b"contents";

/// The notes of a file system.
#[derive(Debug, Default)]
pub(crate) struct Notes(Mutex<Vec<String>>);

impl Notes {
    /// Takes the notes since the last call.
    pub(crate) fn take(&self) -> Vec<String> {
        self.0.lock().map(|mut notes| std::mem::take(&mut *notes)).unwrap_or_default()
    }

    fn note(&self, node: NodeId, what: String) -> Result<()> {
        if let Ok(mut notes) = self.0.lock() {
            notes.push(format!("{} {what}", node.0));
        }
        if node == MISSING { Err(Errno::ESTALE) } else { Ok(()) }
    }
}

pub(crate) const STAT: Stat = Stat {
    attributes: Attributes {
        ino: 11,
        size: 12,
        blocks: 13,
        atime: Time { seconds: -14, nanoseconds: 15 },
        mtime: Time { seconds: 16, nanoseconds: 17 },
        ctime: Time { seconds: 18, nanoseconds: 19 },
        btime: Some(Time { seconds: 20, nanoseconds: 21 }),
        mode: 0o102_644,
        links: 22,
        uid: 23,
        gid: 24,
        device: Device { major: 8, minor: 257 },
        block_size: 25,
        submount: true,
    },
    valid: Duration::new(26, 27),
};

pub(crate) const ENTRY: Entry =
    Entry { node: NodeId(7), generation: 28, valid: Duration::new(29, 30), stat: STAT };

pub(crate) const OPENED: Opened = Opened { handle: Handle(31), cache: Cache::KEEP };

impl FileSystem for Notes {
    fn entry(&self, context: &Context<'_>, parent: NodeId, name: Name<'_>, how: How<'_>) -> Result<Entry> {
        assert!(!name.as_bytes().contains(&b'/') && !name.as_bytes().is_empty());
        let labels: Vec<_> = context.extensions.labels().collect();
        let groups: Vec<_> = context.extensions.groups().collect();
        self.note(parent, format!("entry {name:?} {how:?}"))?;
        let asker = format!("for {} {} {} {labels:?} {groups:?}", context.uid, context.gid, context.pid);
        self.note(parent, asker).map(|()| ENTRY)
    }

    fn names(&self, _: &Context<'_>, parent: NodeId, change: NameChange<'_>) -> Result<()> {
        self.note(parent, format!("{change:?}"))
    }

    fn attributes(
        &self,
        _: &Context<'_>,
        node: NodeId,
        handle: Option<Handle>,
        change: Option<&SetAttributes>,
    ) -> Result<Stat> {
        self.note(node, format!("attributes {handle:?} {change:?}")).map(|()| STAT)
    }

    fn open(&self, _: &Context<'_>, node: NodeId, opening: Opening) -> Result<Opened> {
        self.note(node, format!("open {opening:?}")).map(|()| OPENED)
    }

    fn create(
        &self,
        _: &Context<'_>,
        parent: NodeId,
        name: Option<Name<'_>>,
        creation: Creation,
    ) -> Result<(Entry, Opened)> {
        self.note(parent, format!("create {name:?} {creation:?}")).map(|()| (ENTRY, OPENED))
    }

    fn data(&self, _: &Context<'_>, node: NodeId, handle: Handle, act: Data<'_>) -> Result<u64> {
        let handle = handle.0;
        let count = match act {
            Data::Read { offset, into } => {
                self.note(node, format!("read {handle} {offset} {}", into.len()))?;
                into.copy_from(CONTENTS)
            }
            Data::Write { offset, from, how } => {
                let mut data = vec![0; from.len()];
                from.copy_to(&mut data);
                self.note(node, format!("write {handle} {offset} {} {how:?}", data.escape_ascii()))?;
                data.len()
            }
            act => {
                self.note(node, format!("{handle} {act:?}"))?;
                33
            }
        };
        u64::try_from(count).map_err(|_| Errno::EIO)
    }

    fn list(
        &self,
        _: &Context<'_>,
        node: NodeId,
        handle: Handle,
        cookie: u64,
        listing: &mut Listing<'_>,
    ) -> Result<()> {
        self.note(node, format!("list {} {cookie} {}", handle.0, listing.wants_nodes()))?;
        let listed = |name| Listed { ino: 11, cookie: 34, kind: STAT.attributes.kind(), name };
        while listing.add(&listed(&b"listed"[..]), Some(&ENTRY)) {}
        Ok(())
    }

    fn read_link(&self, _: &Context<'_>, node: NodeId) -> Result<Vec<u8>> {
        self.note(node, "read_link".to_owned()).map(|()| CONTENTS.to_vec())
    }

    fn xattr(&self, _: &Context<'_>, node: NodeId, act: Xattr<'_>) -> Result<Vec<u8>> {
        self.note(node, format!("xattr {act:?}")).map(|()| CONTENTS.to_vec())
    }

    fn statistics(&self, _: &Context<'_>, node: NodeId) -> Result<Statistics> {
        self.note(node, "statistics".to_owned()).map(|()| Statistics {
            block_size: 4096,
            blocks: 1,
            free: 2,
            available: 3,
            files: 4,
            free_files: 5,
            name_len: 255,
        })
    }

    fn sync(&self, _: &Context<'_>, node: NodeId, what: Sync) -> Result<()> {
        self.note(node, format!("sync {what:?}"))
    }

    fn let_go(&self, node: NodeId, gone: Gone) {
        let _ = self.note(node, format!("{gone:?}"));
    }
}
