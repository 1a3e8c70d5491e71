//! Decodes the bytes of a request, and is the only place where a guest's bytes are read.

use std::ffi::CStr;

use fuse_abi::linux as abi;
use fuse_abi::linux::fuse_opcode as op;
use zerocopy::FromBytes;

use crate::file_system::{
    Access, Allocation, Context, Creation, Data, Gone, Handle, How, NameChange, NodeId, OpenFlags, Opening,
    RenameHow, Seek, Sync, WriteHow, Xattr, XattrSet,
};
use crate::negotiate::Init;
use crate::request::{Act, Forgets, Operation, Request, StatForm, Unserved};
use crate::{
    Device, Errno, Extensions, LinkTarget, MAX_DATA_LEN, MAX_XATTR_LEN, Name, Result, SetAttributes, SetTime,
    Time, XattrName,
};

/// Most bytes that one COPY_FILE_RANGE copies, so that a thread is soon free again; the program asks for the rest.
const MAX_COPY_LEN: u64 = 16 << 20;

/// Largest offset in a file.
const MAX_OFFSET: u64 = i64::MAX as u64;

/// Special bits and permissions of `st_mode`.
const MODE_BITS: u32 = 0o7777;

/// The type in `st_mode` (linux/stat.h).
mod file_type {
    pub(super) const MASK: u32 = 0o170_000;
    pub(super) const REGULAR: u32 = 0o100_000;
    pub(super) const FIFO: u32 = 0o010_000;
    pub(super) const CHARACTER: u32 = 0o020_000;
    pub(super) const BLOCK: u32 = 0o060_000;
    pub(super) const SOCKET: u32 = 0o140_000;
}

/// Flags of open(2) that have the same bits on every architecture of this project (asm-generic/fcntl.h).
mod open_flag {
    pub(super) const ACCESS: u32 = 3;
    pub(super) const EXCLUSIVE: u32 = 0o200;
    pub(super) const TRUNCATE: u32 = 0o1000;
    pub(super) const APPEND: u32 = 0o2000;
    pub(super) const DATA_SYNC: u32 = 0o10_000;
    pub(super) const SYNC: u32 = 0o4_010_000;
}

/// Flags of fallocate(2) (linux/falloc.h).
mod allocate {
    pub(super) const KEEP_SIZE: u32 = 1;
    pub(super) const PUNCH_AND_KEEP_SIZE: u32 = 3;
    pub(super) const ZERO: u32 = 0x10;
    pub(super) const ZERO_AND_KEEP_SIZE: u32 = 0x11;
}

/// Decodes a request. `args` are the bytes behind the header, without the data of a WRITE.
pub(crate) fn decode<'a>(header: &abi::fuse_in_header, args: &'a [u8]) -> Result<Request<'a>> {
    let (args, extensions) = Extensions::split(args, header.total_extlen)?;
    let opcode = op::try_from(header.opcode);
    let mut args = Args(args);
    let operation =
        opcode.map_or(Ok(Operation::Unserved(Unserved::Unknown)), |op| operation(op, &mut args))?;
    match operation {
        // The arguments of these requests are not looked at.
        Operation::Unserved(_) | Operation::NotifyReply => {}
        _ if args.0.is_empty() => {}
        _ => return Err(Errno::EINVAL),
    }
    let context = Context { uid: header.uid, gid: header.gid, pid: header.pid, extensions };
    Ok(Request { node: NodeId(header.nodeid), context, operation })
}

fn operation<'a>(opcode: op, args: &mut Args<'a>) -> Result<Operation<'a>> {
    Ok(match opcode {
        op::FUSE_INIT => Operation::Init(init(args)?),
        op::FUSE_DESTROY => Operation::Destroy,
        op::FUSE_LOOKUP => Operation::Entry { name: args.name()?, how: How::Existing },
        op::FUSE_FORGET => Operation::LetGo(Gone::Lookups(args.take::<abi::fuse_forget_in>()?.nlookup)),
        op::FUSE_BATCH_FORGET => Operation::ForgetMany(forgets(args)?),
        op::FUSE_MKDIR => directory(args)?,
        op::FUSE_MKNOD => node(args)?,
        op::FUSE_SYMLINK => symbolic_link(args)?,
        op::FUSE_LINK => hard_link(args)?,
        op::FUSE_UNLINK => Operation::Names(NameChange::Unlink(args.name()?)),
        op::FUSE_RMDIR => Operation::Names(NameChange::RemoveDirectory(args.name()?)),
        op::FUSE_RENAME => {
            let newdir = args.take::<abi::fuse_rename_in>()?.newdir;
            rename(args, newdir, RenameHow::Replace)?
        }
        op::FUSE_RENAME2 => rename2(args)?,
        op::FUSE_GETATTR => stat(args)?,
        op::FUSE_STATX => statx(args)?,
        op::FUSE_SETATTR => change(args)?,
        op::FUSE_OPEN => open(args)?,
        op::FUSE_OPENDIR => {
            args.take::<abi::fuse_open_in>()?;
            Operation::Open(Opening::Directory)
        }
        op::FUSE_CREATE => create(args, false)?,
        op::FUSE_TMPFILE => create(args, true)?,
        op::FUSE_READ => read(args)?,
        op::FUSE_WRITE => write(args)?,
        op::FUSE_FALLOCATE => fallocate(args)?,
        op::FUSE_LSEEK => seek(args)?,
        op::FUSE_COPY_FILE_RANGE => copy(args)?,
        op::FUSE_READDIR => list(args, false)?,
        op::FUSE_READDIRPLUS => list(args, true)?,
        op::FUSE_READLINK => Operation::ReadLink,
        op::FUSE_GETXATTR => {
            let room = xattr_room(args)?;
            Operation::GetXattr { act: Xattr::Get(args.xattr_name()?), room }
        }
        op::FUSE_LISTXATTR => Operation::GetXattr { room: xattr_room(args)?, act: Xattr::List },
        op::FUSE_SETXATTR => set_xattr(args)?,
        op::FUSE_REMOVEXATTR => Operation::SetXattr(Xattr::Remove(args.xattr_name()?)),
        op::FUSE_STATFS => Operation::Statistics,
        op::FUSE_FSYNC | op::FUSE_FSYNCDIR => sync(args, opcode == op::FUSE_FSYNCDIR)?,
        op::FUSE_SYNCFS => {
            args.take::<abi::fuse_syncfs_in>()?;
            Operation::Sync(Sync::All)
        }
        op::FUSE_RELEASE => Operation::LetGo(Gone::File(args.released()?)),
        op::FUSE_RELEASEDIR => Operation::LetGo(Gone::Directory(args.released()?)),
        op::FUSE_NOTIFY_REPLY => Operation::NotifyReply,
        other => Operation::Unserved(unserved(other)),
    })
}

fn unserved(opcode: op) -> Unserved {
    match opcode {
        op::FUSE_FLUSH => Unserved::Flush,
        op::FUSE_ACCESS => Unserved::Access,
        op::FUSE_GETLK | op::FUSE_SETLK | op::FUSE_SETLKW => Unserved::Lock,
        op::FUSE_INTERRUPT => Unserved::Interrupt,
        op::FUSE_IOCTL => Unserved::Ioctl,
        op::FUSE_POLL => Unserved::Poll,
        op::FUSE_BMAP => Unserved::Blocks,
        op::FUSE_SETUPMAPPING | op::FUSE_REMOVEMAPPING => Unserved::Mapping,
        _ => Unserved::Unknown,
    }
}

/// Arguments of a request, read from the front.
struct Args<'a>(&'a [u8]);

impl<'a> Args<'a> {
    fn take<T: FromBytes>(&mut self) -> Result<T> {
        let (value, rest) = T::read_from_prefix(self.0).map_err(|_| Errno::EINVAL)?;
        self.0 = rest;
        Ok(value)
    }

    fn bytes(&mut self, count: usize) -> Result<&'a [u8]> {
        let (bytes, rest) = self.0.split_at_checked(count).ok_or(Errno::EINVAL)?;
        self.0 = rest;
        Ok(bytes)
    }

    fn string(&mut self) -> Result<&'a CStr> {
        let string = CStr::from_bytes_until_nul(self.0).map_err(|_| Errno::EINVAL)?;
        self.bytes(string.count_bytes() + 1)?;
        Ok(string)
    }

    fn name(&mut self) -> Result<Name<'a>> {
        Name::new(self.string()?)
    }

    fn xattr_name(&mut self) -> Result<XattrName<'a>> {
        XattrName::new(self.string()?)
    }

    fn released(&mut self) -> Result<Handle> {
        Ok(Handle(self.take::<abi::fuse_release_in>()?.fh))
    }
}

/// A newer kernel's INIT may be longer than the one known here, an older one's is shorter.
fn init(args: &mut Args<'_>) -> Result<Init> {
    const FIRST: usize = 16;
    let sent = std::mem::take(&mut args.0);
    if sent.len() < FIRST {
        return Err(Errno::EINVAL);
    }
    let mut all = [0; size_of::<abi::fuse_init_in>()];
    let known = sent.len().min(all.len());
    all[..known].copy_from_slice(&sent[..known]);
    let init = abi::fuse_init_in::read_from_bytes(&all).map_err(|_| Errno::EINVAL)?;
    let extended = if init.flags & abi::FUSE_INIT_EXT == 0 { 0 } else { u64::from(init.flags2) << 32 };
    Ok(Init {
        major: init.major,
        minor: init.minor,
        max_readahead: init.max_readahead,
        flags: u64::from(init.flags) | extended,
    })
}

fn forgets<'a>(args: &mut Args<'a>) -> Result<Forgets<'a>> {
    let count =
        usize::try_from(args.take::<abi::fuse_batch_forget_in>()?.count).map_err(|_| Errno::EINVAL)?;
    let len = count.checked_mul(size_of::<abi::fuse_forget_one>()).ok_or(Errno::EINVAL)?;
    Ok(Forgets(args.bytes(len)?))
}

fn directory<'a>(args: &mut Args<'a>) -> Result<Operation<'a>> {
    let mode = args.take::<abi::fuse_mkdir_in>()?.mode & MODE_BITS;
    Ok(Operation::Entry { name: args.name()?, how: How::Directory { mode } })
}

fn node<'a>(args: &mut Args<'a>) -> Result<Operation<'a>> {
    let abi::fuse_mknod_in { mode, rdev, .. } = args.take()?;
    let kind = match mode & file_type::MASK {
        0 => file_type::REGULAR,
        kind @ (file_type::REGULAR
        | file_type::FIFO
        | file_type::CHARACTER
        | file_type::BLOCK
        | file_type::SOCKET) => kind,
        _ => return Err(Errno::EINVAL),
    };
    let how = How::Node { mode: kind | mode & MODE_BITS, device: Device::unpacked(rdev) };
    Ok(Operation::Entry { name: args.name()?, how })
}

fn symbolic_link<'a>(args: &mut Args<'a>) -> Result<Operation<'a>> {
    let name = args.name()?;
    let target = LinkTarget::new(args.string()?)?;
    Ok(Operation::Entry { name, how: How::SymbolicLink { target } })
}

fn hard_link<'a>(args: &mut Args<'a>) -> Result<Operation<'a>> {
    let node = NodeId(args.take::<abi::fuse_link_in>()?.oldnodeid);
    Ok(Operation::Entry { name: args.name()?, how: How::HardLink { node } })
}

fn rename<'a>(args: &mut Args<'a>, newdir: u64, how: RenameHow) -> Result<Operation<'a>> {
    let (from, to) = (args.name()?, args.name()?);
    Ok(Operation::Names(NameChange::Rename { from, to_parent: NodeId(newdir), to, how }))
}

/// A whiteout (`RENAME_WHITEOUT`, 4) is a device node, which the host is never asked to make.
fn rename2<'a>(args: &mut Args<'a>) -> Result<Operation<'a>> {
    let abi::fuse_rename2_in { newdir, flags, .. } = args.take()?;
    let how = match flags {
        0 => RenameHow::Replace,
        1 => RenameHow::Keep,
        2 => RenameHow::Exchange,
        _ => return Err(Errno::EINVAL),
    };
    rename(args, newdir, how)
}

fn handle_if(flags: u32, bit: u32, fh: u64) -> Option<Handle> {
    (flags & bit != 0).then_some(Handle(fh))
}

fn stat<'a>(args: &mut Args<'_>) -> Result<Operation<'a>> {
    let abi::fuse_getattr_in { getattr_flags, fh, .. } = args.take()?;
    Ok(Operation::Stat { handle: handle_if(getattr_flags, abi::FUSE_GETATTR_FH, fh), form: StatForm::Plain })
}

fn statx<'a>(args: &mut Args<'_>) -> Result<Operation<'a>> {
    let abi::fuse_statx_in { getattr_flags, fh, .. } = args.take()?;
    Ok(Operation::Stat {
        handle: handle_if(getattr_flags, abi::FUSE_GETATTR_FH, fh),
        form: StatForm::Extended,
    })
}

fn change<'a>(args: &mut Args<'_>) -> Result<Operation<'a>> {
    let sent: abi::fuse_setattr_in = args.take()?;
    let has = |bit| sent.valid & bit != 0;
    let id = |bit, id: u32| match id {
        _ if !has(bit) => Ok(None),
        u32::MAX => Err(Errno::EINVAL),
        id => Ok(Some(id)),
    };
    let time = |bit, now, seconds, nanoseconds| match () {
        () if has(now) => Ok(Some(SetTime::Now)),
        () if has(bit) => Ok(Some(SetTime::At(moment(seconds, nanoseconds)?))),
        () => Ok(None),
    };
    if has(abi::FATTR_SIZE) && sent.size > MAX_OFFSET {
        return Err(Errno::EINVAL);
    }
    let ctime = has(abi::FATTR_CTIME).then(|| moment(sent.ctime, sent.ctimensec)).transpose()?;
    let change = SetAttributes {
        mode: has(abi::FATTR_MODE).then_some(sent.mode & MODE_BITS),
        uid: id(abi::FATTR_UID, sent.uid)?,
        gid: id(abi::FATTR_GID, sent.gid)?,
        size: has(abi::FATTR_SIZE).then_some(sent.size),
        atime: time(abi::FATTR_ATIME, abi::FATTR_ATIME_NOW, sent.atime, sent.atimensec)?,
        mtime: time(abi::FATTR_MTIME, abi::FATTR_MTIME_NOW, sent.mtime, sent.mtimensec)?,
        ctime,
        kill_privileges: has(abi::FATTR_KILL_SUIDGID),
    };
    Ok(Operation::Change { handle: handle_if(sent.valid, abi::FATTR_FH, sent.fh), change })
}

/// Seconds are signed, although the wire's field is not.
fn moment(seconds: u64, nanoseconds: u32) -> Result<Time> {
    if nanoseconds >= 1_000_000_000 {
        return Err(Errno::EINVAL);
    }
    Ok(Time { seconds: seconds.cast_signed(), nanoseconds })
}

fn access(flags: u32) -> Result<Access> {
    match flags & open_flag::ACCESS {
        0 => Ok(Access::Read),
        1 => Ok(Access::Write),
        2 => Ok(Access::ReadWrite),
        _ => Err(Errno::EINVAL),
    }
}

/// Flags of open(2), and of the request (`FUSE_OPEN_*`).
fn open_flags(flags: u32, of_request: u32) -> OpenFlags {
    let given = |flag, bits| if flags & bits == bits { flag } else { OpenFlags::empty() };
    let kill = of_request & abi::FUSE_OPEN_KILL_SUIDGID != 0;
    given(OpenFlags::TRUNCATE, open_flag::TRUNCATE)
        | given(OpenFlags::APPEND, open_flag::APPEND)
        | given(OpenFlags::SYNC, open_flag::SYNC)
        | given(OpenFlags::DATA_SYNC, open_flag::DATA_SYNC)
        | if kill { OpenFlags::KILL_PRIVILEGES } else { OpenFlags::empty() }
}

fn open<'a>(args: &mut Args<'_>) -> Result<Operation<'a>> {
    let sent: abi::fuse_open_in = args.take()?;
    let flags = open_flags(sent.flags, sent.open_flags);
    Ok(Operation::Open(Opening::File { access: access(sent.flags)?, flags }))
}

fn create<'a>(args: &mut Args<'a>, nameless: bool) -> Result<Operation<'a>> {
    let sent: abi::fuse_create_in = args.take()?;
    // Linux sends "/" for the name of a file that has none.
    let name = if nameless { args.string().map(|_| None)? } else { Some(args.name()?) };
    let creation = Creation {
        mode: sent.mode & MODE_BITS,
        access: access(sent.flags)?,
        flags: open_flags(sent.flags, sent.open_flags),
        exclusive: sent.flags & open_flag::EXCLUSIVE != 0,
    };
    Ok(Operation::Create { name, creation })
}

/// Refuses, with `error`, a range that goes beyond the largest offset in a file.
fn within(offset: u64, len: u64, error: Errno) -> Result<()> {
    match offset.checked_add(len) {
        Some(end) if end <= MAX_OFFSET => Ok(()),
        _ => Err(error),
    }
}

/// The length of data, if one request may move that much.
fn data_len(size: u32) -> Result<usize> {
    usize::try_from(size).ok().filter(|len| *len <= MAX_DATA_LEN).ok_or(Errno::EINVAL)
}

fn read<'a>(args: &mut Args<'_>) -> Result<Operation<'a>> {
    let abi::fuse_read_in { fh, offset, size, .. } = args.take()?;
    within(offset, size.into(), Errno::EINVAL)?;
    Ok(Operation::Use { handle: Handle(fh), act: Act::Read { offset, len: data_len(size)? } })
}

fn write<'a>(args: &mut Args<'_>) -> Result<Operation<'a>> {
    let abi::fuse_write_in { fh, offset, size, write_flags, flags, .. } = args.take()?;
    within(offset, size.into(), Errno::EFBIG)?;
    let mut how = WriteHow::empty();
    how.set(WriteHow::KILL_PRIVILEGES, write_flags & abi::FUSE_WRITE_KILL_SUIDGID != 0);
    how.set(WriteHow::DELAYED, write_flags & abi::FUSE_WRITE_CACHE != 0);
    // A kernel that caches pages has already found the file's end itself.
    how.set(WriteHow::APPEND, flags & open_flag::APPEND != 0 && !how.contains(WriteHow::DELAYED));
    Ok(Operation::Use { handle: Handle(fh), act: Act::Write { offset, len: data_len(size)?, how } })
}

fn fallocate<'a>(args: &mut Args<'_>) -> Result<Operation<'a>> {
    let abi::fuse_fallocate_in { fh, offset, length: len, mode, .. } = args.take()?;
    let how = match mode {
        0 => Allocation::Reserve { keep_size: false },
        allocate::KEEP_SIZE => Allocation::Reserve { keep_size: true },
        allocate::PUNCH_AND_KEEP_SIZE => Allocation::Punch,
        allocate::ZERO => Allocation::Zero { keep_size: false },
        allocate::ZERO_AND_KEEP_SIZE => Allocation::Zero { keep_size: true },
        _ => return Err(Errno::EOPNOTSUPP),
    };
    if len == 0 {
        return Err(Errno::EINVAL);
    }
    within(offset, len, Errno::EFBIG)?;
    Ok(Operation::Use { handle: Handle(fh), act: Act::Contents(Data::Allocate { offset, len, how }) })
}

/// The kernel itself handles seeks from a file's start, its end, and the current offset (`whence` 0 to 2).
fn seek<'a>(args: &mut Args<'_>) -> Result<Operation<'a>> {
    let abi::fuse_lseek_in { fh, offset, whence, .. } = args.take()?;
    let what = match whence {
        3 => Seek::Data,
        4 => Seek::Hole,
        _ => return Err(Errno::EINVAL),
    };
    within(offset, 0, Errno::ENXIO)?;
    Ok(Operation::Use { handle: Handle(fh), act: Act::Contents(Data::Seek { offset, what }) })
}

fn copy<'a>(args: &mut Args<'_>) -> Result<Operation<'a>> {
    let sent: abi::fuse_copy_file_range_in = args.take()?;
    if sent.flags != 0 {
        return Err(Errno::EINVAL);
    }
    let len = sent.len.min(MAX_COPY_LEN);
    within(sent.off_in, len, Errno::EINVAL)?;
    within(sent.off_out, len, Errno::EFBIG)?;
    let act = Data::Copy {
        offset: sent.off_in,
        to_node: NodeId(sent.nodeid_out),
        to: Handle(sent.fh_out),
        to_offset: sent.off_out,
        len,
    };
    Ok(Operation::Use { handle: Handle(sent.fh_in), act: Act::Contents(act) })
}

/// A list may be shorter than the request allows.
fn list<'a>(args: &mut Args<'_>, nodes: bool) -> Result<Operation<'a>> {
    let abi::fuse_read_in { fh, offset: cookie, size, .. } = args.take()?;
    let len = usize::try_from(size).map_or(MAX_DATA_LEN, |size| size.min(MAX_DATA_LEN));
    Ok(Operation::Use { handle: Handle(fh), act: Act::List { cookie, len, nodes } })
}

fn xattr_room(args: &mut Args<'_>) -> Result<usize> {
    let size = args.take::<abi::fuse_getxattr_in>()?.size;
    Ok(usize::try_from(size).map_or(MAX_XATTR_LEN, |size| size.min(MAX_XATTR_LEN)))
}

/// The longer form of this request belongs to a flag that is not negotiated.
fn set_xattr<'a>(args: &mut Args<'a>) -> Result<Operation<'a>> {
    let (size, flags) = (args.take::<u32>()?, args.take::<u32>()?);
    let how = match flags {
        0 => XattrSet::Any,
        1 => XattrSet::Create,
        2 => XattrSet::Replace,
        _ => return Err(Errno::EINVAL),
    };
    let name = args.xattr_name()?;
    let len = usize::try_from(size).ok().filter(|len| *len <= MAX_XATTR_LEN).ok_or(Errno::E2BIG)?;
    Ok(Operation::SetXattr(Xattr::Set { name, value: args.bytes(len)?, how }))
}

fn sync<'a>(args: &mut Args<'_>, directory: bool) -> Result<Operation<'a>> {
    let abi::fuse_fsync_in { fh, fsync_flags, .. } = args.take()?;
    let handle = Handle(fh);
    let data_only = fsync_flags & abi::FUSE_FSYNC_FDATASYNC != 0;
    Ok(Operation::Sync(if directory { Sync::Directory { handle } } else { Sync::File { handle, data_only } }))
}
