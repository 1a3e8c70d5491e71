//! Mounts that are added while the guest runs: FUSE, whose server is the host's end of a service stream.
//!
//! ```text
//!  programs ─▶ kernel ─▶ /dev/fuse ─┬─▶ one request at a time ──▶ stream ─▶ the host's process of this mount
//!                                   └◀─ whole replies ◀────────── stream ◀─
//! ```
//!
//! The agent only carries: it reads nothing of a message but its length. The thread that carries never touches a file
//! of such a mount, since it would wait for itself. When the stream ends, so does the connection to the kernel: what
//! programs do in the mount fails from then on, and it stays in its place until it is removed. When the mount is gone,
//! the stream ends.
//!
//! Not here: the files, and mounts from the start (`shares`).

use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_protocol::frame::Splitter;
use guest_protocol::messages::{MOST_REQUEST, Messages};
use guest_protocol::{AddReply, AddedMount, RemoveReply};
use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen,
};
use rustix::net::{RecvFlags, SendFlags};

use crate::boot::{AtStep, Failure};
use crate::disks::{self, Missing};
use crate::modules::Late;
use crate::stream::{ENDED, Stream};
use crate::{log, sending, shares, words};

/// The means to mount, and what is mounted.
#[derive(Debug)]
pub struct Added {
    /// The directory of all devices, which programs do not see.
    devices: OwnedFd,
    late: Option<Arc<Late>>,
    mounts: Mutex<Vec<Place>>,
}

/// A mount that was added.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Place {
    path: String,
    /// The device number of its file system.
    device: u64,
}

/// The directory of all devices, before it is covered.
pub(crate) fn devices() -> Result<OwnedFd, Failure> {
    rustix::fs::open("/dev", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .at("open /dev")
}

/// Lets later mounts of the agent's namespace into those of programs, whose namespaces let none of theirs out.
///
/// # Errors
///
/// If the kernel refuses.
pub fn let_in() -> Result<(), Failure> {
    let shared = MountPropagationFlags::SHARED | MountPropagationFlags::REC;
    rustix::mount::mount_change("/", shared).at("share mounts with programs")
}

impl Added {
    /// Nothing yet. Before the first mount, `late` is loaded.
    pub(crate) fn new(devices: OwnedFd, late: Arc<Late>) -> Self {
        Self { devices, late: Some(late), mounts: Mutex::default() }
    }

    /// The same where the kernel has all modules. `devices` is a directory with the device `fuse`.
    #[must_use]
    pub fn with_devices(devices: OwnedFd) -> Self {
        Self { devices, late: None, mounts: Mutex::default() }
    }

    /// Writes everything to the hosts of these mounts, and takes them away. Their programs are dead.
    pub(crate) fn end(&self) {
        if self.mounts().is_empty() {
            return;
        }
        rustix::fs::sync();
        // One within another was added after it.
        let mounts = std::mem::take(&mut *self.mounts());
        for place in mounts.iter().rev() {
            if let Err(why) = place.unmount(UnmountFlags::DETACH) {
                log::line(&format!("unmount {}: {why}", place.path));
            }
        }
    }

    fn mounts(&self) -> MutexGuard<'_, Vec<Place>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Mounts; returns the kernel's end of the connection.
    fn mount(&self, mount: &AddedMount) -> Result<(OwnedFd, Place), Failure> {
        let step = format!("mount {}", mount.path);
        self.late.iter().for_each(|late| late.load());
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let connection =
            rustix::fs::openat(&self.devices, "fuse", flags, Mode::empty()).at("open /dev/fuse")?;
        let tree = file_system(&connection, mount).at(&step)?;
        let device = device_of(&tree, "").at(&step)?;
        let missing = if mount.make { Missing::Made } else { Missing::Refused };
        disks::put_as(&tree, !mount.is_file, &mount.path, missing, &step)?;
        let place = Place { path: mount.path.clone(), device };
        self.mounts().push(place.clone());
        Ok((connection, place))
    }

    /// Takes a mount away.
    fn remove(&self, path: &str, force: bool) -> RemoveReply {
        let found = self.mounts().iter().rev().find(|place| place.path == path).cloned();
        let Some(place) = found else { return RemoveReply::Failed(format!("nothing was added at {path}")) };
        // By force, the connection is cut as well, so that nobody waits for the host.
        let flags = if force { UnmountFlags::FORCE | UnmountFlags::DETACH } else { UnmountFlags::empty() };
        match place.unmount(flags) {
            Ok(()) => {
                self.mounts().retain(|other| *other != place);
                RemoveReply::Removed
            }
            Err(Obstacle::Busy) => RemoveReply::Busy,
            Err(Obstacle::Other(why)) => RemoveReply::Failed(why),
        }
    }
}

/// The reason why a mount stays.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
enum Obstacle {
    #[error("it is in use")]
    Busy,
    #[error("{0}")]
    Other(String),
}

impl Place {
    /// Unmounts what is mounted here, if that is this mount. The way to it is gone as when it was mounted: a program
    /// cannot have another one unmounted.
    fn unmount(&self, flags: UnmountFlags) -> Result<(), Obstacle> {
        let (parent, name) = self.path.rsplit_once('/').unwrap_or(("", &self.path));
        let root = disks::root().map_err(|errno| Obstacle::Other(words(errno)))?;
        let parent = disks::place(root, parent, Missing::Refused).map_err(Obstacle::Other)?;
        if device_of(&parent, name) != Ok(self.device) {
            return Err(Obstacle::Other(format!("{} is not where it was mounted", self.path)));
        }
        let path = format!("{}/{name}", shares::by_descriptor(&parent));
        match rustix::mount::unmount(path.as_str(), flags | UnmountFlags::NOFOLLOW) {
            Ok(()) => Ok(()),
            Err(Errno::BUSY) => Err(Obstacle::Busy),
            Err(errno) => Err(Obstacle::Other(words(errno))),
        }
    }
}

/// A file system that is mounted nowhere yet. Nobody has answered its first request, so nothing may be asked of it.
fn file_system(connection: &OwnedFd, mount: &AddedMount) -> Result<OwnedFd, Errno> {
    let context = fsopen("fuse", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let kind = if mount.is_file { "100000" } else { "40000" };
    let descriptor = connection.as_raw_fd().to_string();
    for (name, value) in [
        ("source", "matchlock"),
        ("fd", descriptor.as_str()),
        ("rootmode", kind),
        ("user_id", "0"),
        ("group_id", "0"),
    ] {
        fsconfig_set_string(&context, name, value)?;
    }
    // As on a device of the machine's: every user, with the permissions that the files have.
    fsconfig_set_flag(&context, "default_permissions")?;
    fsconfig_set_flag(&context, "allow_other")?;
    fsconfig_create(&context)?;
    let mut attributes = disks::ATTRIBUTES;
    attributes.set(MountAttrFlags::MOUNT_ATTR_NOSUID, !mount.set_ids);
    attributes.set(MountAttrFlags::MOUNT_ATTR_RDONLY, mount.readonly);
    fsmount(&context, FsMountFlags::FSMOUNT_CLOEXEC, attributes)
}

/// The device number of a file, without asking its file system.
fn device_of(directory: &OwnedFd, name: &str) -> Result<u64, Errno> {
    let flags =
        AtFlags::EMPTY_PATH | AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT | AtFlags::STATX_DONT_SYNC;
    let status = rustix::fs::statx(directory, name, flags, StatxFlags::TYPE)?;
    Ok(rustix::fs::makedev(status.stx_dev_major, status.stx_dev_minor))
}

/// Serves a mount until it is gone, or the host is.
pub(crate) fn serve(stream: BorrowedFd<'_>, input: &Splitter, mount: &AddedMount, added: Option<&Added>) {
    let host = Stream::new(stream);
    let mounted = match added {
        Some(added) if input.at_boundary() => added.mount(mount).map_err(|failure| failure.to_string()),
        Some(_) => Err("bytes came before the mount".to_owned()),
        None => Err("nothing can be mounted".to_owned()),
    };
    let (connection, place) = match mounted {
        Ok(mounted) => mounted,
        Err(why) => return drop(host.reply(&AddReply::Err(why))),
    };
    // A host that has given up serves nothing, and would not find what is mounted.
    if host.reply(&AddReply::Ok(())).is_err() {
        drop(connection);
        return drop(added.map(|added| added.remove(&mount.path, true)));
    }
    let carried = Relay::new(stream, connection).run(|| {
        // Slower without, but not wrong.
        let _ = shares::tune(place.device);
    });
    if let Err(why) = carried {
        log::line(&format!("{}: {why}", place.path));
    }
}

/// Answers a request to take a mount away.
pub(crate) fn remove(host: Stream<'_>, path: &str, force: bool, added: Option<&Added>) {
    let none = || RemoveReply::Failed(format!("nothing was added at {path}"));
    // A host that is gone hears nothing.
    let _ = host.reply(&added.map_or_else(none, |added| added.remove(path, force)));
}

/// Messages on their way between the kernel and the host.
struct Relay<'a> {
    stream: BorrowedFd<'a>,
    connection: OwnedFd,
    /// A request, as far as it is not sent: its bytes from `sent` to `len`.
    request: Vec<u8>,
    sent: usize,
    len: usize,
    replies: Messages,
    /// The kernel has had a reply.
    answered: bool,
}

/// The reason why nothing more is carried, beside an end.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the host sent what is no reply")]
    NoReply,
    #[error("/dev/fuse: {}", words(*.0))]
    System(Errno),
}

/// Whether more may come.
#[derive(PartialEq, Eq)]
enum More {
    Yes,
    No,
}

impl<'a> Relay<'a> {
    fn new(stream: BorrowedFd<'a>, connection: OwnedFd) -> Self {
        // Linux refuses to give a request to somebody who has no room for the longest. Pages that were never written to
        // take no memory.
        let request = vec![0; MOST_REQUEST];
        Self { stream, connection, request, sent: 0, len: 0, replies: Messages::replies(), answered: false }
    }

    /// Carries until the mount is gone, or the host is. Calls `begun` after the first reply, with which both have agreed.
    fn run(mut self, begun: impl FnOnce()) -> Result<(), Broken> {
        let mut begun = Some(begun);
        loop {
            let [kernel, host] = self.wait().map_err(Broken::System)?;
            if kernel.intersects(PollFlags::ERR) || host.intersects(ENDED) {
                return Ok(());
            }
            if kernel.contains(PollFlags::IN) && self.take()? == More::No {
                return Ok(());
            }
            if self.sent < self.len && self.send() == More::No {
                return Ok(());
            }
            if host.contains(PollFlags::IN) {
                if self.answer()? == More::No {
                    return Ok(());
                }
                begun.take_if(|_| self.answered).into_iter().for_each(|begun| begun());
            }
        }
    }

    /// Waits for what can be done now.
    fn wait(&self) -> Result<[PollFlags; 2], Errno> {
        let waits = self.sent < self.len;
        let mut host = PollFlags::IN | PollFlags::RDHUP;
        host.set(PollFlags::OUT, waits);
        let kernel = if waits { PollFlags::empty() } else { PollFlags::IN };
        let mut fds = [
            PollFd::from_borrowed_fd(self.connection.as_fd(), kernel),
            PollFd::from_borrowed_fd(self.stream, host),
        ];
        rustix::io::retry_on_intr(|| rustix::event::poll(&mut fds, None))?;
        Ok(fds.map(|fd| fd.revents()))
    }

    /// Takes a request of the kernel's.
    fn take(&mut self) -> Result<More, Broken> {
        match rustix::io::read(&self.connection, &mut self.request[..]) {
            Ok(len) => (self.sent, self.len) = (0, len),
            // Somebody gave the request up before it was read.
            Err(Errno::AGAIN | Errno::INTR | Errno::NOENT) => {}
            // The mount is gone.
            Err(Errno::NODEV | Errno::CONNABORTED) => return Ok(More::No),
            Err(errno) => return Err(Broken::System(errno)),
        }
        Ok(More::Yes)
    }

    /// Sends the host what it takes of the request.
    fn send(&mut self) -> More {
        let rest = self.request.get(self.sent..self.len).unwrap_or_default();
        match sending::send(self.stream, rest, SendFlags::DONTWAIT) {
            Ok(sent) => self.sent += sent,
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return More::No,
        }
        More::Yes
    }

    /// Gives the kernel the replies that have come.
    fn answer(&mut self) -> Result<More, Broken> {
        match rustix::net::recv(self.stream, self.replies.room(), RecvFlags::DONTWAIT) {
            Ok((0, _)) => return Ok(More::No),
            Ok((count, _)) => self.replies.received(count),
            Err(Errno::AGAIN | Errno::INTR) => {}
            Err(_) => return Ok(More::No),
        }
        while let Some(reply) = self.replies.next_message().map_err(|_| Broken::NoReply)? {
            match rustix::io::retry_on_intr(|| rustix::io::write(&self.connection, reply)) {
                // The program that asked has given the request up.
                Ok(_) | Err(Errno::NOENT) => self.answered = true,
                Err(Errno::NODEV | Errno::CONNABORTED | Errno::PERM) => return Ok(More::No),
                Err(Errno::INVAL) => return Err(Broken::NoReply),
                Err(errno) => return Err(Broken::System(errno)),
            }
        }
        Ok(More::Yes)
    }
}
