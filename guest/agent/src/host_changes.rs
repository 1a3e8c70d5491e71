//! Changes that the host made in shared folders, repeated here, so that programs that watch files (inotify) hear of them.
//!
//! The server of a folder says what happened; this thread does the same once more, on mounts that nobody else has. The
//! server knows the thread by its number, answers as if the act were the thread's, and changes nothing; an act that it
//! does not expect it refuses. So the kernel forgets what it knew, and tells its watchers. Not here: which changes are
//! repeated, which the host decides.

use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use guest_protocol::frame::{self, Kind, Splitter};
use guest_protocol::{HostAct, HostChange, HostChangeReply, NewFile};
use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, StatxFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT,
};
use rustix::io::Errno;

use crate::stream::{HungUp, MESSAGE_CHUNK, Stream};

/// Longest name, without its NUL (NAME_MAX).
const NAME_LIMIT: usize = 255;

/// Longest path, its NUL included (PATH_MAX).
const PATH_LIMIT: usize = 4096;

/// The roots of shared folders that the host may change, with their numbers: mounts that no program of the guest has.
pub(crate) type Folders = Vec<(u16, OwnedFd)>;

/// Repeats changes until the host hangs up. `input` holds the bytes that came after the request.
pub(crate) fn serve(stream: Stream<'_>, input: Splitter, folders: &Folders) {
    // The host is gone, or breaks the protocol.
    let _ = repeat_all(stream, input, folders);
}

fn repeat_all(stream: Stream<'_>, mut input: Splitter, folders: &Folders) -> Result<(), HungUp> {
    let thread = rustix::thread::gettid().as_raw_nonzero().get();
    stream.reply(&HostChangeReply::Thread(thread.unsigned_abs()))?;
    let mut room = [MaybeUninit::uninit(); MESSAGE_CHUNK];
    loop {
        while let Some((kind, payload)) = input.next_frame()? {
            if kind != Kind::Message {
                return Err(HungUp);
            }
            let done = repeat(folders, &frame::decode(payload)?);
            stream.reply(&HostChangeReply::Done(done.is_ok()))?;
        }
        stream.receive(&mut input, &mut room)?;
    }
}

fn repeat(folders: &Folders, change: &HostChange) -> Result<(), Errno> {
    let HostChange { share, directory, name, what } = change;
    let (_, folder) = folders.iter().find(|(number, _)| number == share).ok_or(Errno::NODEV)?;
    let (directory, name) = (open(folder, directory)?, checked(name)?);
    let directory = directory.as_fd();
    match what {
        HostAct::Appeared(new) => match make(directory, &name, *new) {
            // A program found the name before: it is told as one that changed.
            Err(Errno::EXIST) => touch(directory, &name, false),
            done => done,
        },
        HostAct::Vanished { directory: is_directory } => {
            let flags = if *is_directory { AtFlags::REMOVEDIR } else { AtFlags::empty() };
            rustix::fs::unlinkat(directory, &name, flags)
        }
        HostAct::Moved { to_directory, to } => {
            rustix::fs::renameat(directory, &name, open(folder, to_directory)?, &checked(to)?)
        }
        HostAct::Written => touch(directory, &name, false),
        HostAct::Changed => touch(directory, &name, true),
    }
}

/// A name that is one component of a path.
fn checked(name: &[u8]) -> Result<CString, Errno> {
    let is_one = !matches!(name, b"" | b"." | b"..") && !name.contains(&b'/') && name.len() <= NAME_LIMIT;
    CString::new(name).ok().filter(|_| is_one).ok_or(Errno::INVAL)
}

/// A directory of a folder, which is neither left nor found by a link.
fn open(folder: &OwnedFd, path: &[u8]) -> Result<OwnedFd, Errno> {
    let path = if path.is_empty() { b"." } else { path };
    if path.len() >= PATH_LIMIT {
        return Err(Errno::NAMETOOLONG);
    }
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let resolve = ResolveFlags::BENEATH
        | ResolveFlags::NO_SYMLINKS
        | ResolveFlags::NO_MAGICLINKS
        | ResolveFlags::NO_XDEV;
    rustix::fs::openat2(folder, path, flags, Mode::empty(), resolve)
}

fn make(directory: BorrowedFd<'_>, name: &CStr, new: NewFile) -> Result<(), Errno> {
    let mode = Mode::RUSR | Mode::WUSR;
    match new {
        NewFile::File => rustix::fs::mknodat(directory, name, FileType::RegularFile, mode, 0),
        NewFile::Directory => rustix::fs::mkdirat(directory, name, Mode::RWXU),
        // The link's own target is the server's to tell.
        NewFile::Link => rustix::fs::symlinkat(c".", directory, name),
    }
}

/// Has the kernel tell that a file was written, or that its attributes were changed.
fn touch(directory: BorrowedFd<'_>, name: &CStr, attributes: bool) -> Result<(), Errno> {
    // First, as the answer to the change of times has times that are new: the kernel would believe that its pages are, too.
    let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::STATX_FORCE_SYNC;
    rustix::fs::statx(directory, name, flags, StatxFlags::BASIC_STATS)?;
    let time = |nanoseconds| Timespec { tv_sec: 0, tv_nsec: nanoseconds };
    // Linux tells of new times of modification as of a write, and of both times as of attributes.
    let last_access = time(if attributes { UTIME_NOW } else { UTIME_OMIT });
    let times = Timestamps { last_access, last_modification: time(UTIME_NOW) };
    rustix::fs::utimensat(directory, name, &times, AtFlags::SYMLINK_NOFOLLOW)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::fs;

    use super::*;

    fn change(directory: &str, name: &str, what: HostAct) -> HostChange {
        HostChange { share: 3, directory: directory.into(), name: name.into(), what }
    }

    #[test]
    fn acts_are_done_in_the_folder_and_nowhere_else() {
        let house = tempfile::tempdir().unwrap();
        let folder = house.path().join("folder");
        fs::create_dir_all(folder.join("a/b")).unwrap();
        fs::write(house.path().join("secret"), "").unwrap();
        std::os::unix::fs::symlink("..", folder.join("out")).unwrap();
        let folders: Folders = vec![(3, fs::File::open(&folder).unwrap().into())];
        let done = |change| repeat(&folders, &change);
        assert_eq!(done(change("a/b", "new", HostAct::Appeared(NewFile::File))), Ok(()));
        assert_eq!(done(change("a/b", "new", HostAct::Appeared(NewFile::File))), Ok(()));
        assert_eq!(done(change("", "d", HostAct::Appeared(NewFile::Directory))), Ok(()));
        assert_eq!(done(change("d", "l", HostAct::Appeared(NewFile::Link))), Ok(()));
        assert_eq!(done(change("d", "l", HostAct::Changed)), Ok(()));
        let moved = HostAct::Moved { to_directory: "d".into(), to: "moved".into() };
        assert_eq!(done(change("a/b", "new", moved)), Ok(()));
        assert!(folder.join("d/moved").is_file());
        assert_eq!(done(change("d", "moved", HostAct::Vanished { directory: false })), Ok(()));
        assert_eq!(done(change("a", "b", HostAct::Vanished { directory: true })), Ok(()));
        let gone = HostAct::Vanished { directory: false };
        for (directory, name) in
            [("..", "secret"), ("out", "secret"), ("a", "../../secret"), ("", ".."), ("/", "x")]
        {
            assert!(done(change(directory, name, gone.clone())).is_err(), "{directory} {name}");
        }
        let out = HostAct::Moved { to_directory: "..".into(), to: "taken".into() };
        assert_eq!(done(change("d", "l", out)), Err(Errno::XDEV));
        assert_eq!(done(HostChange { share: 4, ..change("", "d", gone) }), Err(Errno::NODEV));
        assert_eq!(done(change("", &"x".repeat(256), HostAct::Written)), Err(Errno::INVAL));
        assert!(house.path().join("secret").is_file() && folder.join("d/l").is_symlink());
    }
}
