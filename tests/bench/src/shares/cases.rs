//! The operations that are asked of a server: kinds of them, each as a kernel performs it, and clients that perform one after the other.

use std::fs::{self, File};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use fuse_abi::linux as abi;
use fuse_abi::linux::fuse_opcode as op;
use zerocopy::FromBytes;

use super::wire::{Answer, Ask, DATA, Wire};

/// Files that are looked at, and entries of the directory that is listed.
const FILES: u64 = 1000;
const ENTRIES: usize = 1000;

/// Bytes of the file that is read from, and of each that is written to.
const READ_FROM: usize = 64 << 20;
const WRITTEN_TO: usize = 4 << 20;

/// Bytes of a small read or write, and of room for a list.
const SMALL: usize = 4096;
const LIST: usize = 128 << 10;

const FILES_IN: &[u8] = b"files";
const LISTED: &[u8] = b"listed";
const WRITTEN: &[u8] = b"written";
const BIG: &[u8] = b"big";

/// A kind of operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Case {
    Getattr,
    Lookup,
    LookupMiss,
    OpenReadRelease,
    Read4k,
    Write4k,
    Read1m,
    Write1m,
    CreateToForget,
    Readdirplus,
}

impl Case {
    pub(super) const ALL: [Self; 10] = [
        Self::Getattr,
        Self::Lookup,
        Self::LookupMiss,
        Self::OpenReadRelease,
        Self::Read4k,
        Self::Write4k,
        Self::Read1m,
        Self::Write1m,
        Self::CreateToForget,
        Self::Readdirplus,
    ];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Getattr => "GETATTR",
            Self::Lookup => "LOOKUP",
            Self::LookupMiss => "LOOKUP of nothing",
            Self::OpenReadRelease => "OPEN, READ 4 KiB, RELEASE",
            Self::Read4k => "READ 4 KiB",
            Self::Write4k => "WRITE 4 KiB",
            Self::Read1m => "READ 1 MiB",
            Self::Write1m => "WRITE 1 MiB",
            Self::CreateToForget => "CREATE, RELEASE, UNLINK, FORGET",
            Self::Readdirplus => "READDIRPLUS of 1,000, FORGETs",
        }
    }
}

/// Makes the tree that is asked for, for so many clients.
pub(super) fn plant(directory: &Path, clients: usize) -> Result<()> {
    let path = |name: &[u8]| directory.join(String::from_utf8_lossy(name).as_ref());
    for name in [FILES_IN, LISTED, WRITTEN] {
        fs::create_dir(path(name))?;
    }
    for number in 0..FILES {
        fs::write(path(FILES_IN).join(format!("file-{number:04}")), [7; SMALL])?;
    }
    for number in 0..ENTRIES {
        File::create(path(LISTED).join(format!("entry-{number:04}")))?;
    }
    for number in 0..clients {
        fs::write(path(WRITTEN).join(number.to_string()), vec![7; WRITTEN_TO])?;
    }
    fs::write(path(BIG), vec![7; READ_FROM])?;
    Ok(())
}

/// The tree as a server tells of it.
pub(super) struct Tree {
    files_in: u64,
    files: Vec<u64>,
    listed: u64,
    big: (u64, u64),
    /// The directory of the files that clients write to, each open.
    written_in: u64,
    written: Vec<(u64, u64)>,
}

impl Tree {
    /// Looks everything up, below the root or below a name in it.
    pub(super) fn find(wire: &mut Wire<'_>, below: Option<&[u8]>, clients: usize) -> Result<Self> {
        let root = match below {
            Some(name) => find(wire, 1, name)?,
            None => 1,
        };
        let files_in = find(wire, root, FILES_IN)?;
        let files = (0..FILES).map(|number| find(wire, files_in, format!("file-{number:04}").as_bytes()));
        let files = files.collect::<Result<_>>()?;
        let big = find(wire, root, BIG)?;
        let written_in = find(wire, root, WRITTEN)?;
        let written = (0..clients).map(|number| {
            let node = find(wire, written_in, number.to_string().as_bytes())?;
            Ok((node, open(wire, node, READ_WRITE)?))
        });
        let written = written.collect::<Result<_>>()?;
        let big = (big, open(wire, big, 0)?);
        Ok(Self { files_in, files, listed: find(wire, root, LISTED)?, big, written_in, written })
    }
}

/// Flags of open(2).
const READ_WRITE: u32 = 2;
const NEW: u32 = 0o302;

fn look_up(parent: u64, name: &[u8]) -> Ask {
    Ask::new(op::FUSE_LOOKUP, parent).with_name(name).for_reply::<abi::fuse_entry_out>()
}

fn find(wire: &mut Wire<'_>, parent: u64, name: &[u8]) -> Result<u64> {
    let found = wire.call(look_up(parent, name))?.read::<abi::fuse_entry_out>(0);
    Ok(found.with_context(|| String::from_utf8_lossy(name).into_owned())?.nodeid)
}

fn open_ask(node: u64, flags: u32) -> Ask {
    let open = abi::fuse_open_in { flags, open_flags: 0 };
    Ask::new(op::FUSE_OPEN, node).with(&open).for_reply::<abi::fuse_open_out>()
}

fn open(wire: &mut Wire<'_>, node: u64, flags: u32) -> Result<u64> {
    Ok(wire.call(open_ask(node, flags))?.read::<abi::fuse_open_out>(0)?.fh)
}

fn release(opcode: op, node: u64, fh: u64) -> Ask {
    Ask::new(opcode, node).with(&abi::fuse_release_in { fh, ..Default::default() })
}

fn read(opcode: op, (node, fh): (u64, u64), offset: u64, size: usize) -> Result<Ask> {
    let read = abi::fuse_read_in { fh, offset, size: u32::try_from(size)?, ..Default::default() };
    Ok(Ask::new(opcode, node).with(&read).for_data(size))
}

fn write((node, fh): (u64, u64), offset: u64, size: usize) -> Result<Ask> {
    let write = abi::fuse_write_in { fh, offset, size: u32::try_from(size)?, ..Default::default() };
    Ok(Ask::new(op::FUSE_WRITE, node).with(&write).with_data(size).for_reply::<abi::fuse_write_out>())
}

/// One of those who ask: what it is at, and what it has in hand.
#[derive(Default)]
struct Client {
    step: u8,
    node: u64,
    handle: u64,
    name: [u8; 16],
    cookie: u64,
    listed: Vec<u64>,
}

/// Clients of one kind, as many as are under way at once.
pub(super) struct Clients<'t> {
    case: Case,
    tree: &'t Tree,
    clients: Vec<Client>,
    list: Vec<u8>,
    random: u64,
    serial: u64,
    /// Operations that have ended.
    pub(super) done: u64,
}

impl<'t> Clients<'t> {
    pub(super) fn new(case: Case, tree: &'t Tree, count: usize) -> Self {
        let client = || Client { listed: Vec::with_capacity(ENTRIES), ..Client::default() };
        let clients = (0..count).map(|_| client()).collect();
        let list = vec![0; if case == Case::Readdirplus { LIST } else { 0 }];
        Self { case, tree, clients, list, random: 0x9e37_79b9_7f4a_7c15, serial: 0, done: 0 }
    }

    /// Lets every client perform operations, one after the other, for as long as `more` says, which is asked before each one:
    /// how many have begun, and each time something came back.
    pub(super) fn run(&mut self, wire: &mut Wire<'_>, mut more: impl FnMut(u64) -> bool) -> Result<()> {
        let (mut begun, mut busy) = (0, 0usize);
        for number in 0..self.clients.len() {
            if more(begun) {
                let ask = self.begin(number)?;
                wire.ask(number, &ask)?;
                (begun, busy) = (begun + 1, busy + 1);
            }
        }
        wire.tell()?;
        while busy > 0 {
            wire.wait()?;
            while let Some(number) = wire.answered()? {
                let next = match self.next(wire, number)? {
                    Some(ask) => Some(ask),
                    None => {
                        self.done += 1;
                        if more(begun) {
                            begun += 1;
                            Some(self.begin(number)?)
                        } else {
                            None
                        }
                    }
                };
                match next {
                    Some(ask) => wire.ask(number, &ask)?,
                    None => busy -= 1,
                }
            }
            wire.tell()?;
        }
        wire.settle()
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random % below
    }

    /// The first request of an operation.
    fn begin(&mut self, number: usize) -> Result<Ask> {
        let tree = self.tree;
        let pick = self.draw(FILES);
        let file = tree.files[usize::try_from(pick)?];
        let offset = |draw: u64, size: usize| draw * size as u64;
        self.clients[number].step = 0;
        Ok(match self.case {
            Case::Getattr => {
                let stat = abi::fuse_getattr_in::default();
                Ask::new(op::FUSE_GETATTR, file).with(&stat).for_reply::<abi::fuse_attr_out>()
            }
            Case::Lookup => look_up(tree.files_in, &numbered(b"file-0000", 4, pick)),
            Case::LookupMiss => look_up(tree.files_in, b"no-such-file"),
            Case::OpenReadRelease => {
                self.clients[number].node = file;
                open_ask(file, 0)
            }
            Case::Read4k => {
                let at = offset(self.draw((READ_FROM / SMALL) as u64), SMALL);
                read(op::FUSE_READ, tree.big, at, SMALL)?
            }
            Case::Read1m => {
                let at = offset(self.draw((READ_FROM / DATA) as u64), DATA);
                read(op::FUSE_READ, tree.big, at, DATA)?
            }
            Case::Write4k => {
                let at = offset(self.draw((WRITTEN_TO / SMALL) as u64), SMALL);
                write(tree.written[number], at, SMALL)?
            }
            Case::Write1m => {
                let at = offset(self.draw((WRITTEN_TO / DATA) as u64), DATA);
                write(tree.written[number], at, DATA)?
            }
            Case::CreateToForget => {
                self.serial += 1;
                let name = numbered(b"new-000000000000", 12, self.serial);
                self.clients[number].name = name;
                let create = abi::fuse_create_in { flags: NEW, mode: 0o100_644, umask: 0o22, open_flags: 0 };
                let ask = Ask::new(op::FUSE_CREATE, tree.written_in).with(&create).with_name(&name);
                ask.for_reply::<abi::fuse_entry_out>().for_reply::<abi::fuse_open_out>()
            }
            Case::Readdirplus => {
                let open = abi::fuse_open_in::default();
                Ask::new(op::FUSE_OPENDIR, tree.listed).with(&open).for_reply::<abi::fuse_open_out>()
            }
        })
    }

    /// The request that follows an answer, or nothing if that was the operation's last.
    fn next(&mut self, wire: &mut Wire<'_>, number: usize) -> Result<Option<Ask>> {
        let answer = wire.answer(number)?;
        let step = self.clients[number].step;
        self.clients[number].step += 1;
        let outcome = match self.case {
            Case::Getattr => answer.read::<abi::fuse_attr_out>(0).map(|_| None),
            Case::Lookup => answer.read::<abi::fuse_entry_out>(0).map(|_| None),
            Case::LookupMiss => missing(&answer).map(|()| None),
            Case::Read4k => whole(&answer, SMALL),
            Case::Read1m => whole(&answer, DATA),
            Case::Write4k => written(&answer, SMALL),
            Case::Write1m => written(&answer, DATA),
            Case::OpenReadRelease => self.open_read_release(number, step, &answer),
            Case::CreateToForget => self.create_to_forget(wire, number, step, &answer),
            Case::Readdirplus => self.readdirplus(wire, number, step, &answer),
        };
        outcome.with_context(|| format!("{}, request {step}", self.case.name()))
    }

    fn open_read_release(&mut self, number: usize, step: u8, answer: &Answer) -> Result<Option<Ask>> {
        let client = &mut self.clients[number];
        match step {
            0 => {
                client.handle = answer.read::<abi::fuse_open_out>(0)?.fh;
                Ok(Some(read(op::FUSE_READ, (client.node, client.handle), 0, SMALL)?))
            }
            1 => {
                whole(answer, SMALL)?;
                Ok(Some(release(op::FUSE_RELEASE, client.node, client.handle)))
            }
            _ => empty(answer),
        }
    }

    fn create_to_forget(
        &mut self,
        wire: &mut Wire<'_>,
        number: usize,
        step: u8,
        answer: &Answer,
    ) -> Result<Option<Ask>> {
        let client = &mut self.clients[number];
        match step {
            0 => {
                client.node = answer.read::<abi::fuse_entry_out>(0)?.nodeid;
                let opened: abi::fuse_open_out = answer.read(size_of::<abi::fuse_entry_out>())?;
                Ok(Some(release(op::FUSE_RELEASE, client.node, opened.fh)))
            }
            1 => {
                empty(answer)?;
                Ok(Some(Ask::new(op::FUSE_UNLINK, self.tree.written_in).with_name(&client.name)))
            }
            _ => {
                wire.forget(client.node, 1)?;
                empty(answer)
            }
        }
    }

    fn readdirplus(
        &mut self,
        wire: &mut Wire<'_>,
        number: usize,
        step: u8,
        answer: &Answer,
    ) -> Result<Option<Ask>> {
        let (tree, client) = (self.tree, &mut self.clients[number]);
        match step {
            0 => (client.handle, client.cookie) = (answer.read::<abi::fuse_open_out>(0)?.fh, 0),
            1 => {
                ensure!(answer.error == 0, "error {}", -answer.error);
                let data = self.list.get_mut(..answer.len).context("a list that is too long")?;
                wire.data(number, data)?;
                let Some(cookie) = listed(data, &mut client.listed)? else {
                    let count = client.listed.len();
                    ensure!(count == ENTRIES, "{count} of {ENTRIES} were listed");
                    client.listed.drain(..).try_for_each(|node| wire.forget(node, 1))?;
                    return Ok(Some(release(op::FUSE_RELEASEDIR, tree.listed, client.handle)));
                };
                client.cookie = cookie;
            }
            _ => return empty(answer),
        }
        // The list goes on until a part of it is empty.
        client.step = 1;
        Ok(Some(read(op::FUSE_READDIRPLUS, (tree.listed, client.handle), client.cookie, LIST)?))
    }
}

/// A name whose last `digits` bytes are those of a number.
fn numbered<const N: usize>(name: &[u8; N], digits: usize, mut number: u64) -> [u8; N] {
    let mut name = *name;
    for place in (N - digits..N).rev() {
        name[place] = b'0' + (number % 10) as u8;
        number /= 10;
    }
    name
}

fn empty(answer: &Answer) -> Result<Option<Ask>> {
    ensure!(answer.error == 0, "error {}", -answer.error);
    Ok(None)
}

fn missing(answer: &Answer) -> Result<()> {
    const ENOENT: i32 = 2;
    if answer.error == -ENOENT {
        return Ok(());
    }
    ensure!(answer.read::<abi::fuse_entry_out>(0)?.nodeid == 0, "it is there");
    Ok(())
}

fn whole(answer: &Answer, len: usize) -> Result<Option<Ask>> {
    ensure!(answer.error == 0 && answer.len == len, "error {}, {} of {len} bytes", -answer.error, answer.len);
    Ok(None)
}

fn written(answer: &Answer, len: usize) -> Result<Option<Ask>> {
    let size = answer.read::<abi::fuse_write_out>(0)?.size;
    ensure!(usize::try_from(size)? == len, "{size} of {len} bytes");
    Ok(None)
}

/// Notes the nodes of a list; returns where it goes on.
fn listed(mut list: &[u8], nodes: &mut Vec<u64>) -> Result<Option<u64>> {
    let mut cookie = None;
    while !list.is_empty() {
        let (entry, rest) = abi::fuse_entry_out::read_from_prefix(list).ok().context("an entry")?;
        let (head, name) = abi::fuse_dirent::read_from_prefix(rest).ok().context("an entry")?;
        let len = usize::try_from(head.namelen)?;
        let name = name.get(..len).context("a name")?;
        if name != b"." && name != b".." {
            ensure!(entry.nodeid != 0, "an entry without a node");
            nodes.push(entry.nodeid);
        }
        cookie = Some(head.off);
        let whole = size_of::<abi::fuse_entry_out>() + size_of::<abi::fuse_dirent>() + len;
        list = list.get(whole.next_multiple_of(8)..).unwrap_or_default();
    }
    Ok(cookie)
}
