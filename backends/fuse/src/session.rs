//! One mount: from its first request, which agrees on a version, to its last. The first request of the next mount ends it, too,
//! as a kernel that crashed says nothing more.

use std::sync::atomic::{AtomicBool, Ordering};

use fuse_abi::linux as abi;
use fuse_abi::linux::fuse_opcode;
use vm_memory::VolatileSlice;

use crate::decode::decode;
use crate::encode::{self, HEADER_LEN, Reply};
use crate::file_system::{Context, Data, FileSystem, Gone, Handle, NodeId};
use crate::negotiate::{Agreement, Coherence, Init, negotiate};
use crate::request::{Act, Operation, Request, StatForm};
use crate::scratch::{Received, Scratch, WRITE_HEAD_LEN};
use crate::{Errno, Listing, Result, Source};

/// A file system as one kernel has it mounted. Several threads may serve its requests at once.
#[derive(Debug)]
pub struct Session<F> {
    files: F,
    coherence: Coherence,
    /// A version is agreed on, and the mount is not gone.
    mounted: AtomicBool,
}

impl<F: FileSystem> Session<F> {
    /// A mount of `files` that is yet to come.
    pub fn new(files: F, coherence: Coherence) -> Self {
        Self { files, coherence, mounted: AtomicBool::new(false) }
    }

    /// The file system that is mounted.
    pub fn files(&self) -> &F {
        &self.files
    }

    /// Serves the request that is in `request`; returns how many bytes its reply has in `reply`. A request without a
    /// reply, or one that cannot be answered, has none.
    pub fn serve(
        &self,
        scratch: &mut Scratch,
        request: &[VolatileSlice<'_>],
        reply: &[VolatileSlice<'_>],
    ) -> usize {
        let Some(Received { header, args, list }) = scratch.receive(request) else { return 0 };
        let reply = Reply::new(reply, header.unique);
        let silent = is_silent(header.opcode);
        let room = reply.room();
        if !silent && room < HEADER_LEN {
            return 0;
        }
        let result = args.and_then(|args| decode(&header, args)).and_then(|asked| {
            // An act that could not be told would leave a reference or a handle for ever.
            if !silent && room - HEADER_LEN < encode::least_len(&asked.operation) {
                return Err(Errno::EIO);
            }
            self.answer(&asked, request, &reply, list)
        });
        if silent { 0 } else { reply.finish(result) }
    }

    /// Forgets the mount without having been asked to: its device was reset.
    pub fn reset(&self) {
        self.mounted.store(false, Ordering::Release);
        self.files.let_go(NodeId::ROOT, Gone::Everything);
    }

    /// Does what is asked, and puts the answer behind the reply's header; returns its length.
    fn answer(
        &self,
        asked: &Request<'_>,
        request: &[VolatileSlice<'_>],
        reply: &Reply<'_>,
        list: &mut Vec<u8>,
    ) -> Result<usize> {
        let Request { node, ref context, ref operation } = *asked;
        let files = &self.files;
        if !matches!(operation, Operation::Init(_)) && !self.mounted.load(Ordering::Acquire) {
            return Err(Errno::EIO);
        }
        match *operation {
            Operation::Init(offer) => self.init(offer, reply),
            Operation::Destroy => {
                self.reset();
                Ok(0)
            }
            Operation::Entry { name, how } => {
                Ok(reply.put(&encode::entry(&files.entry(context, node, name, how)?)))
            }
            Operation::Names(change) => files.names(context, node, change).map(|()| 0),
            Operation::Stat { handle, form } => {
                let stat = files.attributes(context, node, handle, None)?;
                Ok(match form {
                    StatForm::Plain => reply.put(&encode::stat(&stat)),
                    StatForm::Extended => reply.put(&encode::statx(&stat)),
                })
            }
            Operation::Change { handle, ref change } => {
                Ok(reply.put(&encode::stat(&files.attributes(context, node, handle, Some(change))?)))
            }
            Operation::Open(opening) => Ok(reply.put(&encode::opened(&files.open(context, node, opening)?))),
            Operation::Create { name, creation } => {
                let (entry, opened) = files.create(context, node, name, creation)?;
                Ok(reply.put_created(&entry, &opened))
            }
            Operation::Use { handle, ref act } => {
                let opened = Open { context, node, handle };
                self.act(&opened, act, request, reply, list)
            }
            Operation::ReadLink => reply.put_all(&files.read_link(context, node)?, usize::MAX),
            Operation::GetXattr { act, room } => {
                let value = files.xattr(context, node, act)?;
                match (room, u32::try_from(value.len())) {
                    // A program that gives no room asks how much it needs.
                    (0, Ok(size)) => Ok(reply.put(&abi::fuse_getxattr_out { size, padding: 0 })),
                    _ => reply.put_all(&value, room),
                }
            }
            Operation::SetXattr(act) => files.xattr(context, node, act).map(|_| 0),
            Operation::Statistics => Ok(reply.put(&encode::statistics(&files.statistics(context, node)?))),
            Operation::Sync(what) => files.sync(context, node, what).map(|()| 0),
            Operation::LetGo(gone) => {
                files.let_go(node, gone);
                Ok(0)
            }
            Operation::ForgetMany(forgets) => {
                forgets.iter().for_each(|(node, count)| files.let_go(node, Gone::Lookups(count)));
                Ok(0)
            }
            Operation::NotifyReply => Ok(0),
            Operation::Unserved(unserved) => Err(unserved.errno()),
        }
    }

    /// Does what is asked of something open.
    fn act(
        &self,
        opened: &Open<'_>,
        act: &Act<'_>,
        request: &[VolatileSlice<'_>],
        reply: &Reply<'_>,
        list: &mut Vec<u8>,
    ) -> Result<usize> {
        let Open { context, node, handle } = *opened;
        let data = |act| self.files.data(context, node, handle, act);
        match *act {
            Act::Read { offset, len } => {
                let into = reply.body(len);
                let count = data(Data::Read { offset, into })?;
                Ok(usize::try_from(count).map_or(into.len(), |count| count.min(into.len())))
            }
            Act::Write { offset, len, how } => {
                let from = Source::new(request, WRITE_HEAD_LEN, usize::MAX);
                if from.len() != len {
                    return Err(Errno::EINVAL);
                }
                Ok(reply.put(&moved(data(Data::Write { offset, from, how })?)))
            }
            Act::Contents(act) => {
                let count = data(act)?;
                Ok(match act {
                    Data::Seek { .. } => reply.put(&abi::fuse_lseek_out { offset: count }),
                    Data::Copy { .. } => reply.put(&moved(count)),
                    _ => 0,
                })
            }
            Act::List { cookie, len, nodes } => {
                let room = reply.body(len);
                let mut listing = Listing::new(list, room.len(), nodes);
                self.files.list(context, node, handle, cookie, &mut listing)?;
                Ok(room.copy_from(listing.as_bytes()))
            }
        }
    }

    fn init(&self, offer: Init, reply: &Reply<'_>) -> Result<usize> {
        match negotiate(offer, self.coherence)? {
            Agreement::AnotherVersion(out) => Ok(reply.put(&out)),
            Agreement::Agreed(out) => {
                // A kernel that starts anew has not said goodbye: the mount that the device had is gone.
                if self.mounted.swap(true, Ordering::AcqRel) {
                    self.files.let_go(NodeId::ROOT, Gone::Everything);
                }
                Ok(reply.put(&out))
            }
        }
    }
}

/// Something open, and who asks for it.
struct Open<'a> {
    context: &'a Context<'a>,
    node: NodeId,
    handle: Handle,
}

/// Requests to which a kernel takes no reply.
fn is_silent(opcode: u32) -> bool {
    matches!(
        fuse_opcode::try_from(opcode),
        Ok(fuse_opcode::FUSE_FORGET | fuse_opcode::FUSE_BATCH_FORGET | fuse_opcode::FUSE_NOTIFY_REPLY)
    )
}

fn moved(count: u64) -> abi::fuse_write_out {
    abi::fuse_write_out { size: u32::try_from(count).unwrap_or(u32::MAX), padding: 0 }
}

#[cfg(test)]
pub(crate) mod tests;
