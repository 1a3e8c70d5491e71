//! Reports of changes, by inotify(7).
//!
//! inotify watches single directories, by inode. A recursive watch therefore follows the tree: a new directory is
//! watched and then read, and the entries that it already has are reported; a directory that disappears is forgotten
//! with all below it. When the kernel loses events, everything is watched anew before the host is told, so that
//! reading the tree again misses nothing.
//!
//! A single file is watched through its directory, so that its replacement is reported as well.
//!
//! If a host does not read, changes wait in the kernel, which merges equal ones and bounds their number.

use std::collections::HashMap;
use std::ffi::{CStr, CString};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use guest_protocol::frame::{self, DATA_CHUNK};
use guest_protocol::{Change, ChangeKind, FileReply, WatchEvent};
use rustix::event::PollFlags;
use rustix::fs::inotify::{self, CreateFlags, ReadFlags, Reader, WatchFlags};
use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags};
use rustix::io::Errno;

use super::{Act, CHECK_EVERY, Stop, Trying, guest_path, refused, split};
use crate::stream::{HungUp, Stream};

/// Most directories of one watch: the least that the kernel lets a user watch (fs.inotify.max_user_watches).
const WATCH_LIMIT: usize = 8192;

/// Room for events that are read at once.
const EVENTS_ROOM: usize = 16 << 10;

const APPEARED: ReadFlags = ReadFlags::CREATE.union(ReadFlags::MOVED_TO);
const DISAPPEARED: ReadFlags = ReadFlags::DELETE.union(ReadFlags::MOVED_FROM);
const MODIFIED: ReadFlags = ReadFlags::MODIFY.union(ReadFlags::CLOSE_WRITE).union(ReadFlags::ATTRIB);
const ROOT_GONE: ReadFlags = ReadFlags::DELETE_SELF.union(ReadFlags::MOVE_SELF).union(ReadFlags::UNMOUNT);

/// Reports changes until the host hangs up.
pub(super) fn watch(stream: Stream<'_>, path: &str, recursive: bool) -> Act {
    let mut watch = Watch::new(stream, path, recursive)?;
    watch.begin()?;
    stream.reply(&FileReply::Ok(WatchEvent::Watching))?;
    loop {
        stream.wait_for(watch.inotify.as_fd(), PollFlags::IN)?;
        watch.told = None;
        for event in watch.events()? {
            if event.mask.contains(ReadFlags::QUEUE_OVERFLOW) {
                watch.begin_anew()?;
                // The remaining events are about watches that no longer exist.
                break;
            }
            watch.take(&event)?;
        }
        watch.flush()?;
    }
}

/// An event of inotify.
struct Event {
    directory: i32,
    mask: ReadFlags,
    name: Option<CString>,
}

struct Watch<'a> {
    stream: Stream<'a>,
    inotify: OwnedFd,
    /// The directory that is watched first.
    root: CString,
    /// The only file in it that matters, and its path in the host's words.
    only: Option<(Vec<u8>, CString)>,
    recursive: bool,
    /// The watched directories, by watch descriptor.
    directories: HashMap<i32, CString>,
    /// The root's watch descriptor.
    first: Option<i32>,
    /// Frames for the host.
    frames: Vec<u8>,
    /// The last change among those that were read together.
    told: Option<Change>,
}

impl<'a> Watch<'a> {
    fn new(stream: Stream<'a>, path: &str, recursive: bool) -> Result<Self, Stop> {
        let path = guest_path(path)?;
        let status = rustix::fs::stat(path.as_c_str()).trying("watch", &path)?;
        let is_directory = FileType::from_raw_mode(status.st_mode) == FileType::Directory;
        let (root, only) = match is_directory {
            true => (trim(&path), None),
            false => {
                let file = resolve(&path).trying("watch", &path)?;
                let (above, name) = split(&file);
                (trim(&c_string(above)), Some((name.to_vec(), path)))
            }
        };
        Ok(Self {
            stream,
            inotify: new_inotify()?,
            root,
            recursive: recursive && only.is_none(),
            only,
            directories: HashMap::new(),
            first: None,
            frames: Vec::new(),
            told: None,
        })
    }

    /// Watches the root.
    fn begin(&mut self) -> Act {
        let flags = WatchFlags::DELETE_SELF | WatchFlags::MOVE_SELF;
        let first = self.add(&self.root, flags).trying("watch", &self.root)?;
        self.first = Some(first);
        self.directories.insert(first, self.root.clone());
        if self.recursive { self.follow(vec![self.root.clone()], false) } else { Ok(()) }
    }

    fn add(&self, directory: &CStr, more: WatchFlags) -> Result<i32, Errno> {
        const EVENTS: WatchFlags = WatchFlags::CREATE
            .union(WatchFlags::MOVE)
            .union(WatchFlags::DELETE)
            .union(WatchFlags::MODIFY)
            .union(WatchFlags::CLOSE_WRITE)
            .union(WatchFlags::ATTRIB);
        let flags = EVENTS | WatchFlags::ONLYDIR | WatchFlags::EXCL_UNLINK | more;
        inotify::add_watch(&self.inotify, directory, flags)
    }

    /// Watches the directories below these watched ones, and reports their entries if `news` is set.
    fn follow(&mut self, mut unread: Vec<CString>, news: bool) -> Act {
        let mut count = 0usize;
        while let Some(directory) = unread.pop() {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NONBLOCK | OFlags::CLOEXEC;
            let opened = rustix::fs::open(directory.as_c_str(), flags, Mode::empty()).and_then(Dir::new);
            let mut entries = match opened {
                Ok(entries) => entries,
                // The directory is gone again, which another event will tell.
                Err(errno) if is_gone(errno) => continue,
                Err(errno) => return Err(errno).trying("watch", &directory),
            };
            while let Some(entry) = entries.read() {
                if count.is_multiple_of(CHECK_EVERY) {
                    self.stream.check()?;
                }
                count += 1;
                let entry = entry.trying("watch", &directory)?;
                let name = entry.file_name();
                if name == c"." || name == c".." {
                    continue;
                }
                let path = join(&directory, name);
                if news {
                    self.tell(ChangeKind::Created, &path)?;
                }
                if is_real_directory(&entries, &entry) && self.enter(&path)? {
                    unread.push(path);
                }
            }
        }
        Ok(())
    }

    /// Watches a directory below the root; `false` if it is none, or is excluded.
    fn enter(&mut self, directory: &CString) -> Result<bool, Stop> {
        if is_of_the_kernel(directory) {
            return Ok(false);
        }
        if self.directories.len() >= WATCH_LIMIT {
            return Err(refused(format_args!("watch more than {WATCH_LIMIT} directories"), Errno::NOSPC));
        }
        match self.add(directory, WatchFlags::DONT_FOLLOW) {
            Ok(watch) => {
                self.directories.insert(watch, directory.clone());
                Ok(true)
            }
            Err(errno) if is_gone(errno) => Ok(false),
            Err(errno) => Err(errno).trying("watch", directory),
        }
    }

    /// The events that have arrived.
    fn events(&self) -> Result<Vec<Event>, Stop> {
        let mut room = [MaybeUninit::uninit(); EVENTS_ROOM];
        let mut reader = Reader::new(&self.inotify, &mut room);
        let mut events = Vec::new();
        loop {
            match reader.next() {
                Ok(event) => events.push(Event {
                    directory: event.wd(),
                    mask: event.events(),
                    name: event.file_name().map(CStr::to_owned),
                }),
                Err(Errno::AGAIN | Errno::INTR) => return Ok(events),
                Err(errno) => return Err(refused("inotify", errno)),
            }
            if reader.is_buffer_empty() {
                return Ok(events);
            }
        }
    }

    fn take(&mut self, event: &Event) -> Act {
        // A directory that was forgotten may have had events left.
        let Some(directory) = self.directories.get(&event.directory) else { return Ok(()) };
        if event.mask.contains(ReadFlags::IGNORED) {
            self.directories.remove(&event.directory);
            return Ok(());
        }
        let Some(name) = &event.name else {
            return if self.first == Some(event.directory) { self.root_event(event.mask) } else { Ok(()) };
        };
        let path = match &self.only {
            Some((only, _)) if only != name.as_bytes() => return Ok(()),
            Some((_, path)) => path.clone(),
            None => join(directory, name),
        };
        let is_directory = self.recursive && event.mask.contains(ReadFlags::ISDIR);
        if event.mask.intersects(APPEARED) {
            self.tell(ChangeKind::Created, &path)?;
            if is_directory && self.enter(&path)? {
                self.follow(vec![path], true)?;
            }
        } else if event.mask.intersects(DISAPPEARED) {
            if is_directory {
                self.forget(&path);
            }
            self.tell(ChangeKind::Removed, &path)?;
        } else if event.mask.intersects(MODIFIED) {
            self.tell(ChangeKind::Modified, &path)?;
        }
        Ok(())
    }

    /// Handles an event of the root itself. Once the root is gone, no change below it can be reported.
    fn root_event(&mut self, mask: ReadFlags) -> Act {
        if !mask.intersects(ROOT_GONE) {
            return Ok(());
        }
        self.inotify = new_inotify()?;
        self.directories.clear();
        let gone = self.name().clone();
        self.tell(ChangeKind::Removed, &gone)
    }

    /// Starts over after lost events, as no knowledge of the tree is certain.
    fn begin_anew(&mut self) -> Act {
        self.inotify = new_inotify()?;
        self.directories.clear();
        let begun = self.begin();
        if exists(&self.root) {
            begun?;
        }
        let root = self.name().clone();
        self.tell(ChangeKind::Overflow, &root)
    }

    /// The watched path in the host's words.
    fn name(&self) -> &CString {
        self.only.as_ref().map_or(&self.root, |(_, path)| path)
    }

    /// Ends the watches of a directory that is gone from here, and of all below it: in another place they would
    /// report wrong paths.
    fn forget(&mut self, gone: &CStr) {
        let gone = gone.to_bytes();
        let inotify = &self.inotify;
        self.directories.retain(|watch, directory| {
            let below = directory.as_bytes().strip_prefix(gone);
            let stays = below.is_none_or(|rest| !rest.is_empty() && !rest.starts_with(b"/"));
            if !stays {
                // The watch of a removed directory has ended by itself.
                let _ = inotify::remove_watch(inotify, *watch);
            }
            stays
        });
    }

    /// Adds a change to the frames, unless it equals the last one.
    fn tell(&mut self, kind: ChangeKind, path: &CStr) -> Act {
        let change = Change { kind, path: path.to_bytes().to_vec() };
        if self.told.as_ref() != Some(&change) {
            let event = FileReply::Ok(WatchEvent::Change(change.clone()));
            self.frames.extend(frame::encode_reply(&event).map_err(HungUp::from)?);
            self.told = Some(change);
        }
        if self.frames.len() >= DATA_CHUNK { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Act {
        self.stream.send(&self.frames)?;
        self.frames.clear();
        Ok(())
    }
}

fn new_inotify() -> Result<OwnedFd, Stop> {
    inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK).map_err(|errno| refused("inotify", errno))
}

fn exists(path: &CStr) -> bool {
    rustix::fs::stat(path).is_ok()
}

/// Whether the error means that a directory disappeared a moment ago.
fn is_gone(errno: Errno) -> bool {
    matches!(errno, Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
}

/// Whether an entry is a directory, and no link to one.
fn is_real_directory(entries: &Dir, entry: &rustix::fs::DirEntry) -> bool {
    let kind = match entry.file_type() {
        FileType::Unknown => entries
            .fd()
            .and_then(|fd| rustix::fs::statat(fd, entry.file_name(), AtFlags::SYMLINK_NOFOLLOW))
            .map_or(FileType::Unknown, |status| FileType::from_raw_mode(status.st_mode)),
        known => known,
    };
    kind == FileType::Directory
}

/// Whether the directory is in procfs or sysfs, which are endless and give inotify no events.
fn is_of_the_kernel(directory: &CStr) -> bool {
    let status = rustix::fs::statfs(directory);
    status.is_ok_and(|status| [libc::PROC_SUPER_MAGIC, libc::SYSFS_MAGIC].contains(&status.f_type))
}

/// A file's path without symbolic links.
fn resolve(path: &CStr) -> Result<CString, Errno> {
    let path = Path::new(std::ffi::OsStr::from_bytes(path.to_bytes()));
    let resolved = std::fs::canonicalize(path);
    let resolved = resolved.map_err(|error| Errno::from_io_error(&error).unwrap_or(Errno::IO))?;
    Ok(c_string(resolved.as_os_str().as_bytes()))
}

/// A directory's path without slashes at its end; the root's is `/`.
fn trim(path: &CStr) -> CString {
    let bytes = path.to_bytes();
    let end = bytes.iter().rposition(|byte| *byte != b'/').map_or(1, |last| last + 1);
    c_string(bytes.get(..end).unwrap_or_default())
}

fn join(directory: &CStr, name: &CStr) -> CString {
    let directory = directory.to_bytes();
    let directory = directory.strip_suffix(b"/").unwrap_or(directory);
    c_string(&[directory, b"/", name.to_bytes()].concat())
}

/// Bytes without NUL as a C string.
fn c_string(bytes: &[u8]) -> CString {
    CString::new(bytes).unwrap_or_default()
}
