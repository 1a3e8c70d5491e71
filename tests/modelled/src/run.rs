//! The same acts on a provider and on the model, compared step by step.

use std::collections::BTreeMap;
use std::ffi::CString;

use fuse::{
    Access, Allocation, Attributes, Context, Creation, Data, Device, Entry, Errno, FileSystem, Gone, Handle,
    How, LinkTarget, Listing, Name, NameChange, NodeId, OpenFlags, Opening, RenameHow, Result, SetAttributes,
    Sink, Source, WriteHow, Xattr, XattrName, XattrSet,
};
use vm_memory::VolatileSlice;

use crate::model::{Body, File, Id, Model, ROOT};

/// Names that files get: so few that they meet.
const NAMES: [&str; 5] = ["a", "b", "c", "d", "a name of some length"];

/// Where acts on contents begin, and how many bytes they are about: at the edges of chunks.
const OFFSETS: [u16; 8] = [0, 1, 100, 4096, 16_000, 16_384, 20_000, 40_000];
const LENGTHS: [u16; 8] = [0, 1, 100, 384, 512, 4096, 16_384, 30_000];

/// Values of modes and owners.
const MODES: [u32; 6] = [0o644, 0o755, 0o4755, 0o2755, 0o2644, 0o1777];

const XATTRS: [&str; 3] = ["user.a", "security.capability", "user.another"];

/// A file that the guest's kernel has heard of.
struct Heard {
    node: NodeId,
    id: Id,
    lookups: u64,
    open: Option<Handle>,
}

/// A provider and the model, side by side.
pub struct Run<'a> {
    files: &'a dyn FileSystem,
    model: Model,
    heard: Vec<Heard>,
    /// The files are the host's.
    is_host: bool,
}

/// The bytes of a script.
struct Script<'a>(&'a [u8]);

impl Script<'_> {
    fn byte(&mut self) -> Option<usize> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(usize::from(*first))
    }

    fn pick<T: Copy>(&mut self, all: &[T]) -> Option<T> {
        let number = self.byte()?;
        all.get(number % all.len()).copied()
    }
}

impl<'a> Run<'a> {
    /// A provider whose root directory is the model's.
    pub fn new(files: &'a dyn FileSystem, model: Model) -> Self {
        let root = Heard { node: NodeId::ROOT, id: ROOT, lookups: 0, open: None };
        Self { files, model, heard: vec![root], is_host: false }
    }

    /// The same of files that the host has, too. Then some things are not asked for that no guest's kernel asks for: acts on a
    /// file that lost its last name while nobody had it open, and on what is in a directory that the kernel has forgotten.
    pub fn of_host(files: &'a dyn FileSystem, model: Model) -> Self {
        Self { is_host: true, ..Self::new(files, model) }
    }

    /// Does what the bytes say. Each act is a byte that says what is done, and as many bytes as say with what.
    pub fn script(&mut self, data: &[u8]) {
        let mut script = Script(data);
        while self.step(&mut script).is_some() {}
    }

    /// One act, if there is one more.
    fn step(&mut self, script: &mut Script<'_>) -> Option<()> {
        let act = script.byte()?;
        match act % 16 {
            0..=3 => self.make(act / 16, script)?,
            4 => self.link(script)?,
            5 | 6 => self.remove(act % 16 == 6, script)?,
            7 | 8 => self.rename(script)?,
            9 => self.change(script)?,
            10 => self.write(act / 16, script)?,
            11 => self.allocate(act / 16, script)?,
            12 => self.copy(script)?,
            13 => self.set_xattr(act / 16, script)?,
            14 => self.create(act / 16, script)?,
            _ => self.forget(script)?,
        }
        self.compare_known();
        Some(())
    }

    fn heard(&self, script: &mut Script<'_>) -> Option<usize> {
        Some(script.byte()? % self.heard.len())
    }

    /// A directory, most of the time.
    fn directory(&self, script: &mut Script<'_>) -> Option<usize> {
        self.one_of(script, |body| matches!(body, Body::Directory(_)))
    }

    /// A regular file, most of the time.
    fn file(&self, script: &mut Script<'_>) -> Option<usize> {
        self.one_of(script, |body| matches!(body, Body::Regular(_)))
    }

    fn one_of(&self, script: &mut Script<'_>, is_one: fn(&Body) -> bool) -> Option<usize> {
        let number = script.byte()?;
        let all = || (0..self.heard.len()).filter(|at| is_one(&self.model.0[self.heard[*at].id].body));
        let one = all().nth(number / 16 % all().count().max(1)).filter(|_| !number.is_multiple_of(16));
        Some(one.unwrap_or(number / 16 % self.heard.len()))
    }

    /// Whether the kernel does not ask for the file any more, except for attributes: it has no name, and had none when it
    /// could have been opened.
    fn is_lost(&self, at: usize) -> bool {
        let Heard { id, open, .. } = self.heard[at];
        let is_kept = !matches!(self.model.0[id].body, Body::Regular(_) | Body::Link(_));
        self.is_host && !is_kept && open.is_none() && self.model.links(id) == 0
    }

    /// Notes what the provider says to be a file of the model's.
    fn hear(&mut self, found: Result<Entry>, id: Result<Id>) -> Option<usize> {
        let (entry, id) = match (found, id) {
            (Ok(entry), Ok(id)) => (entry, id),
            (found, id) => {
                assert_eq!(found.err(), id.err());
                return None;
            }
        };
        if let Some(at) = self.heard.iter().position(|heard| heard.id == id) {
            assert_eq!(self.heard[at].node, entry.node, "another number for a file that is known");
            self.heard[at].lookups += 1;
            return Some(at);
        }
        assert!(self.heard.iter().all(|heard| heard.node != entry.node), "the number of another file");
        self.heard.push(Heard { node: entry.node, id, lookups: 1, open: None });
        Some(self.heard.len() - 1)
    }

    fn entry(&self, directory: NodeId, name: &str, how: How<'_>, uid: u32) -> Result<Entry> {
        let context = Context { uid, gid: uid, ..Context::default() };
        with_name(name, |name| self.files.entry(&context, directory, name, how))
    }

    fn make(&mut self, what: usize, script: &mut Script<'_>) -> Option<()> {
        let (at, name, mode) = (self.directory(script)?, script.pick(&NAMES)?, script.pick(&MODES)?);
        let Heard { node, id, .. } = self.heard[at];
        let uid = u32::from(what > 8);
        let target = c"where it leads";
        let (how, body, mode) = match what % 5 {
            0 => (How::Existing, None, mode),
            1 => (How::Directory { mode }, Some(Body::default()), mode),
            2 => {
                let device = Device::default();
                (How::Node { mode: 0o100_000 | mode, device }, Some(Body::Regular(Vec::new())), mode)
            }
            3 => (How::Node { mode: 0o010_000 | mode, device: Device::default() }, Some(Body::Fifo), mode),
            _ => {
                let Ok(target) = LinkTarget::new(target) else { panic!("a target") };
                (How::SymbolicLink { target }, Some(Body::Link(b"where it leads".to_vec())), 0o777)
            }
        };
        let found = self.entry(node, name, how, uid);
        let file = |body| File { body, mode, uid, gid: uid, ..File::default() };
        let made = match body {
            None => self.model.find(id, name.as_bytes()),
            Some(body) => self.model.make(id, name.as_bytes(), file(body)),
        };
        self.hear(found, made);
        Some(())
    }

    fn link(&mut self, script: &mut Script<'_>) -> Option<()> {
        let (at, name, to) = (self.directory(script)?, script.pick(&NAMES)?, self.file(script)?);
        if self.is_lost(to) {
            return Some(());
        }
        let found = self.entry(self.heard[at].node, name, How::HardLink { node: self.heard[to].node }, 0);
        let made = self.model.link(self.heard[at].id, name.as_bytes(), self.heard[to].id);
        if self.model.is_directory(self.heard[to].id) {
            // There may be more than one reason.
            assert!(found.is_err() && made.is_err(), "{found:?} {made:?}");
            return Some(());
        }
        self.hear(found, made);
        Some(())
    }

    fn remove(&mut self, directory: bool, script: &mut Script<'_>) -> Option<()> {
        let (at, name) = (self.directory(script)?, script.pick(&NAMES)?);
        let Heard { node, id, .. } = self.heard[at];
        let done = with_name(name, |name| {
            let change = if directory { NameChange::RemoveDirectory(name) } else { NameChange::Unlink(name) };
            self.files.names(&Context::default(), node, change)
        });
        let name = name.as_bytes();
        let expected =
            if directory { self.model.remove_directory(id, name) } else { self.model.unlink(id, name) };
        assert_eq!(done, expected);
        Some(())
    }

    fn rename(&mut self, script: &mut Script<'_>) -> Option<()> {
        let (from, from_name) = (self.directory(script)?, script.pick(&NAMES)?);
        let (to, to_name) = (self.directory(script)?, script.pick(&NAMES)?);
        let how =
            script.pick(&[RenameHow::Replace, RenameHow::Replace, RenameHow::Keep, RenameHow::Exchange])?;
        let (from, to) = (&self.heard[from], &self.heard[to]);
        let done = with_name(from_name, |from_name| {
            with_name(to_name, |to_name| {
                let change = NameChange::Rename { from: from_name, to_parent: to.node, to: to_name, how };
                self.files.names(&Context::default(), from.node, change)
            })
        });
        let expected = self.model.rename((from.id, from_name.as_bytes()), (to.id, to_name.as_bytes()), how);
        let is_reason = match done {
            // To a host, a directory that was removed is still below the one that it was in.
            Err(Errno::EINVAL) => self.model.links(to.id) == 0,
            Err(Errno::ENOTDIR) => !self.model.is_directory(to.id),
            _ => false,
        };
        let is_other = self.is_host && expected == Err(Errno::ENOENT) && is_reason;
        assert!(done == expected || is_other, "{done:?} {expected:?}");
        Some(())
    }

    fn change(&mut self, script: &mut Script<'_>) -> Option<()> {
        let what = script.byte()?;
        let at = if what & 8 != 0 { self.file(script)? } else { self.heard(script)? };
        let (mode, owner, size) = (script.pick(&MODES)?, script.byte()? % 3, script.pick(&OFFSETS)?);
        let owner = u32::try_from(owner).unwrap_or_default();
        let given = |bit: usize| what & bit != 0;
        let change = SetAttributes {
            mode: given(1).then_some(mode),
            uid: given(2).then_some(owner),
            gid: given(4).then_some(owner),
            size: given(8).then_some(size.into()),
            kill_privileges: given(16),
            ..SetAttributes::default()
        };
        if self.is_lost(at) {
            return Some(());
        }
        let Heard { node, id, open, .. } = self.heard[at];
        let handle = open.filter(|_| given(32));
        let done = self.files.attributes(&Context::default(), node, handle, Some(&change)).map(drop);
        let expected = match self.model.0[id].body {
            // A host's link has no mode that could be set.
            Body::Link(_) if self.is_host && change.mode.is_some() && change.size.is_none() => {
                Err(Errno::EOPNOTSUPP)
            }
            _ => self.model.change(id, &change),
        };
        assert_eq!(done, expected);
        Some(())
    }

    /// The handle of a file, which is opened if it is not.
    fn open(&mut self, at: usize, truncates: bool) -> Result<Handle> {
        let Heard { node, id, open, .. } = self.heard[at];
        if let Some(handle) = open.filter(|_| !truncates) {
            return Ok(handle);
        }
        if self.is_lost(at) {
            return Err(Errno::ESTALE);
        }
        let flags =
            OpenFlags::KILL_PRIVILEGES | if truncates { OpenFlags::TRUNCATE } else { OpenFlags::empty() };
        let opening = Opening::File { access: Access::ReadWrite, flags };
        let opened = self.files.open(&Context::default(), node, opening);
        let refused = |errno| if self.is_host && errno == Errno::EINVAL { Errno::ENXIO } else { errno };
        assert_eq!(opened.err(), self.model.bytes(id).err().map(refused));
        let opened = opened?;
        if truncates {
            self.model.truncate(id)?;
            self.model.kill_privileges(id);
        }
        if let Some(former) = self.heard[at].open.replace(opened.handle) {
            self.files.let_go(node, Gone::File(former));
        }
        Ok(opened.handle)
    }

    fn data(&self, at: usize, handle: Handle, act: Data<'_>) -> Result<u64> {
        self.files.data(&Context::default(), self.heard[at].node, handle, act)
    }

    fn write(&mut self, what: usize, script: &mut Script<'_>) -> Option<()> {
        let (at, offset, len) = (self.file(script)?, script.pick(&OFFSETS)?, script.pick(&LENGTHS)?);
        let fill = u8::try_from(script.byte()?).unwrap_or_default();
        let Ok(handle) = self.open(at, what % 8 == 7) else { return Some(()) };
        let mut data = vec![fill; len.into()];
        let (kills, appends) = (what & 1 != 0, what & 2 != 0);
        let mut how = WriteHow::empty();
        how.set(WriteHow::KILL_PRIVILEGES, kills);
        how.set(WriteHow::APPEND, appends);
        let slices = [VolatileSlice::from(&mut data[..])];
        let from = Source::new(&slices, 0, usize::MAX);
        let done = self.data(at, handle, Data::Write { offset: offset.into(), from, how });
        let id = self.heard[at].id;
        let offset =
            if appends { self.model.bytes(id).map_or(0, |bytes| bytes.len()) } else { offset.into() };
        let expected = self.model.write(id, offset, &data).map(|()| u64::from(len));
        assert_eq!(done, expected);
        if kills {
            self.model.kill_privileges(id);
        }
        Some(())
    }

    fn allocate(&mut self, what: usize, script: &mut Script<'_>) -> Option<()> {
        let (at, offset, len) = (self.file(script)?, script.pick(&OFFSETS)?, script.pick(&LENGTHS)?.max(1));
        let Ok(handle) = self.open(at, false) else { return Some(()) };
        let keep_size = what & 1 != 0;
        let how = match what / 2 % 3 {
            0 => Allocation::Reserve { keep_size },
            1 => Allocation::Zero { keep_size },
            _ => Allocation::Punch,
        };
        let done = self.data(at, handle, Data::Allocate { offset: offset.into(), len: len.into(), how });
        let id = self.heard[at].id;
        if self.is_host && done == Err(Errno::EOPNOTSUPP) {
            self.model.kill_privileges(id);
            return Some(());
        }
        assert_eq!(done, Ok(0));
        let Ok(bytes) = self.model.bytes(id) else { panic!("a file that was opened") };
        let (start, end) = (usize::from(offset), usize::from(offset) + usize::from(len));
        if !keep_size && how != Allocation::Punch {
            bytes.resize(bytes.len().max(end), 0);
        }
        if !matches!(how, Allocation::Reserve { .. }) {
            let len = bytes.len();
            bytes[start.min(len)..end.min(len)].fill(0);
        }
        self.model.kill_privileges(id);
        Some(())
    }

    fn copy(&mut self, script: &mut Script<'_>) -> Option<()> {
        let (from, to, len) = (self.file(script)?, self.file(script)?, script.pick(&LENGTHS)?);
        let (offset, to_offset) = (script.pick(&OFFSETS)?, script.pick(&OFFSETS)?);
        let (Ok(handle), Ok(to_handle), true) = (self.open(from, false), self.open(to, false), from != to)
        else {
            return Some(());
        };
        let copy = Data::Copy {
            offset: offset.into(),
            to_node: self.heard[to].node,
            to: to_handle,
            to_offset: to_offset.into(),
            len: len.into(),
        };
        let done = self.data(from, handle, copy);
        let found = self.model.bytes(self.heard[from].id).map(|bytes| bytes.clone()).unwrap_or_default();
        let end = found.len().min(usize::from(offset) + usize::from(len));
        let part = found.get(usize::from(offset)..end).unwrap_or_default();
        let id = self.heard[to].id;
        let expected = self.model.write(id, to_offset.into(), part).map(|()| part.len());
        assert_eq!(done.map(usize::try_from), expected.map(Ok));
        if !part.is_empty() {
            self.model.kill_privileges(id);
        }
        Some(())
    }

    fn set_xattr(&mut self, what: usize, script: &mut Script<'_>) -> Option<()> {
        let (at, name, len) = (self.heard(script)?, script.pick(&XATTRS)?, script.byte()?);
        let Heard { node, id, .. } = self.heard[at];
        let value = vec![b'v'; len];
        let how = [XattrSet::Any, XattrSet::Create, XattrSet::Replace][what % 3];
        let sets = what / 3 % 2 != 1;
        let done = with_xattr(name, |name| {
            let act = if sets { Xattr::Set { name, value: &value, how } } else { Xattr::Remove(name) };
            self.files.xattr(&Context::default(), node, act)
        });
        let (name, xattrs) = (name.as_bytes(), &mut self.model.0[id].xattrs);
        let expected = match (sets, how, xattrs.contains_key(name)) {
            (true, XattrSet::Create, true) => Err(Errno::EEXIST),
            (true, XattrSet::Replace, false) | (false, _, false) => Err(Errno::ENODATA),
            (true, ..) => {
                xattrs.insert(name.to_vec(), value);
                Ok(())
            }
            _ => {
                xattrs.remove(name);
                Ok(())
            }
        };
        assert_eq!(done.map(drop), expected);
        Some(())
    }

    fn create(&mut self, what: usize, script: &mut Script<'_>) -> Option<()> {
        let (at, name, mode) = (self.directory(script)?, script.pick(&NAMES)?, script.pick(&MODES)?);
        let (nameless, exclusive) = (what & 1 != 0, what & 2 != 0);
        let Heard { node, id, .. } = self.heard[at];
        let creation = Creation { mode, access: Access::ReadWrite, flags: OpenFlags::empty(), exclusive };
        let made = with_name(name, |name| {
            self.files.create(&Context::default(), node, (!nameless).then_some(name), creation)
        });
        let file = File {
            body: Body::Regular(Vec::new()),
            mode,
            nameable: nameless && !exclusive,
            ..File::default()
        };
        let expected = match self.model.find(id, name.as_bytes()) {
            _ if nameless => self.model.make_nameless(id, file),
            Ok(_) if exclusive => Err(Errno::EEXIST),
            Ok(found) => self.model.bytes(found).map(|_| found),
            Err(_) => self.model.make(id, name.as_bytes(), file),
        };
        if self.is_host && expected == Err(Errno::EINVAL) {
            // The kernel looks for the name again, and opens no such thing here.
            assert!(made.is_err(), "{made:?}");
            return Some(());
        }
        let opened = made.as_ref().ok().map(|(_, opened)| opened.handle);
        if let (Some(at), Some(opened)) = (self.hear(made.map(|(entry, _)| entry), expected), opened) {
            let former = self.heard[at].open.replace(opened);
            former.into_iter().for_each(|former| self.files.let_go(self.heard[at].node, Gone::File(former)));
        }
        Some(())
    }

    fn forget(&mut self, script: &mut Script<'_>) -> Option<()> {
        let at = self.heard(script)?;
        let id = self.heard[at].id;
        let mut known = self.heard.iter().flat_map(|heard| self.model.places(heard.id));
        // The kernel forgets a directory after what is in it.
        let is_way = self.is_host && known.any(|directory| directory == id);
        if at > 0 && !is_way {
            let Heard { node, lookups, open, .. } = self.heard.swap_remove(at);
            open.into_iter().for_each(|handle| self.files.let_go(node, Gone::File(handle)));
            self.files.let_go(node, Gone::Lookups(lookups));
        }
        Some(())
    }

    /// Compares all that the kernel has heard of.
    fn compare_known(&self) {
        for Heard { node, id, .. } in &self.heard {
            let told =
                self.files.attributes(&Context::default(), *node, None, None).map(|stat| stat.attributes);
            self.compare_attributes(*id, told);
        }
    }

    fn compare_attributes(&self, id: Id, told: Result<Attributes>) {
        let Ok(told) = told else { panic!("a file that is known: {told:?}") };
        let file = &self.model.0[id];
        let (kind, size) = match &file.body {
            Body::Directory(_) => (0o040_000, told.size),
            Body::Regular(bytes) => (0o100_000, u64::try_from(bytes.len()).unwrap_or_default()),
            Body::Link(target) => (0o120_000, u64::try_from(target.len()).unwrap_or_default()),
            Body::Fifo => (0o010_000, 0),
        };
        let links = usize::try_from(told.links);
        assert_eq!(
            (told.mode, told.size, links, told.uid, told.gid),
            (kind | file.mode, size, Ok(self.model.links(id)), file.uid, file.gid)
        );
    }

    /// Compares contents of all files that the kernel has heard of, and everything that has a name.
    pub fn compare(&mut self) {
        for at in 0..self.heard.len() {
            self.compare_contents(at);
        }
        let mut directories = vec![(NodeId::ROOT, ROOT)];
        while let Some((node, id)) = directories.pop() {
            let listed = self.list(node);
            let names = self.model.names(id).cloned().unwrap_or_default();
            assert!(listed.keys().eq(names.keys()), "{listed:?} {names:?}");
            for (name, id) in names {
                let Ok(text) = std::str::from_utf8(&name) else { panic!("a name of ours") };
                let found = self.entry(node, text, How::Existing, 0);
                let ino = found.map(|entry| entry.stat.attributes.ino);
                assert_eq!(ino, Ok(listed[&name].0), "the number in the list");
                assert_eq!(found.map(|entry| entry.stat.attributes.kind()), Ok(listed[&name].1));
                let Some(at) = self.hear(found, Ok(id)) else { continue };
                self.compare_attributes(id, found.map(|entry| entry.stat.attributes));
                self.compare_contents(at);
                if self.model.is_directory(id) {
                    directories.push((self.heard[at].node, id));
                }
            }
        }
    }

    /// All names in a directory, listed a few at a time, with number and type.
    fn list(&self, node: NodeId) -> BTreeMap<Vec<u8>, (u64, u8)> {
        let context = Context::default();
        let Ok(opened) = self.files.open(&context, node, Opening::Directory) else { panic!("a directory") };
        let (mut all, mut cookie, mut bytes) = (BTreeMap::new(), 0, Vec::new());
        loop {
            let mut listing = Listing::new(&mut bytes, 100, false);
            assert_eq!(self.files.list(&context, node, opened.handle, cookie, &mut listing), Ok(()));
            let before = cookie;
            for listed in listing.entries() {
                cookie = listed.cookie;
                if listed.name != b"." && listed.name != b".." {
                    let former = all.insert(listed.name.to_vec(), (listed.ino, listed.kind));
                    assert_eq!(former, None, "a name twice");
                }
            }
            if cookie == before {
                break;
            }
        }
        self.files.let_go(node, Gone::Directory(opened.handle));
        all
    }

    fn compare_contents(&mut self, at: usize) {
        let Heard { node, id, .. } = self.heard[at];
        let context = Context::default();
        let xattrs: BTreeMap<_, _> = XATTRS
            .iter()
            .filter_map(|name| {
                let value = with_xattr(name, |name| self.files.xattr(&context, node, Xattr::Get(name)));
                value.ok().map(|value| (name.as_bytes().to_vec(), value))
            })
            .collect();
        assert_eq!(xattrs, self.model.0[id].xattrs);
        let names: Vec<u8> = xattrs.into_keys().flat_map(|name| [name, vec![0]].concat()).collect();
        assert_eq!(self.files.xattr(&context, node, Xattr::List), Ok(names));
        if self.is_lost(at) {
            return;
        }
        let target = if let Body::Link(target) = &self.model.0[id].body {
            Ok(target.clone())
        } else {
            Err(Errno::EINVAL)
        };
        assert_eq!(self.files.read_link(&context, node), target);
        if let Ok(handle) = self.open(at, false) {
            let len = self.model.bytes(id).map_or(0, |bytes| bytes.len());
            let mut buffer = vec![0xee; len + 100];
            let slices = [VolatileSlice::from(&mut buffer[..])];
            let into = Sink::new(&slices, 0, usize::MAX);
            let count = self.data(at, handle, Data::Read { offset: 0, into });
            let count = count.map_or(0, |count| usize::try_from(count).unwrap_or_default());
            let same = self.model.bytes(id).is_ok_and(|bytes| bytes[..] == buffer[..count]);
            assert!(same, "contents differ");
        }
    }

    /// Takes all names away, closes everything and forgets it. For this, everything must have been [compared](Self::compare).
    pub fn leave_nothing(mut self) {
        while let Some((at, name)) = self.leaf() {
            let Heard { node, id, .. } = self.heard[at];
            let Ok(text) = std::str::from_utf8(&name) else { panic!("a name of ours") };
            let found = self.model.find(id, &name).is_ok_and(|found| self.model.is_directory(found));
            let done = with_name(text, |name| {
                let change = if found { NameChange::RemoveDirectory(name) } else { NameChange::Unlink(name) };
                self.files.names(&Context::default(), node, change)
            });
            let gone =
                if found { self.model.remove_directory(id, &name) } else { self.model.unlink(id, &name) };
            assert_eq!((done, gone), (Ok(()), Ok(())));
        }
        for name in self.model.0[ROOT].xattrs.keys() {
            let Ok(name) = std::str::from_utf8(name) else { panic!("a name of ours") };
            let gone = with_xattr(name, |name| {
                self.files.xattr(&Context::default(), NodeId::ROOT, Xattr::Remove(name))
            });
            assert_eq!(gone, Ok(Vec::new()));
        }
        self.let_go();
    }

    /// Closes everything and forgets it; returns what there is by then.
    pub fn let_go(self) -> Model {
        for Heard { node, lookups, open, .. } in self.heard {
            open.into_iter().for_each(|handle| self.files.let_go(node, Gone::File(handle)));
            self.files.let_go(node, Gone::Lookups(lookups));
        }
        self.model
    }

    /// A name that nothing is below, and its directory.
    fn leaf(&self) -> Option<(usize, Vec<u8>)> {
        let is_leaf = |id: Id| self.model.names(id).map_or(true, BTreeMap::is_empty);
        self.heard.iter().enumerate().find_map(|(at, heard)| {
            let names = self.model.names(heard.id).ok()?;
            names.iter().find(|(_, id)| is_leaf(**id)).map(|(name, _)| (at, name.clone()))
        })
    }
}

/// Calls `act` with a name of a file.
fn with_name<T>(name: &str, act: impl FnOnce(Name<'_>) -> Result<T>) -> Result<T> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    act(Name::new(&name)?)
}

/// Calls `act` with a name of an attribute.
fn with_xattr<T>(name: &str, act: impl FnOnce(XattrName<'_>) -> Result<T>) -> Result<T> {
    let name = CString::new(name).map_err(|_| Errno::EINVAL)?;
    act(XattrName::new(&name)?)
}
