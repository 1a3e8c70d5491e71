//! The confinement of the process of shared folders.
//!
//! * A mount namespace whose root has the shared directories in it and nothing else: no other file of the user's has a
//!   name. Nothing below them is executed, and no device is opened.
//! * The user who shares them, and none of root's powers, whoever started the process.
//! * Landlock: where the host lets nobody have namespaces, it is what keeps the process to the shared directories.
//! * seccomp: no socket, no program, no signal.
//!
//! Not here: what a name in a request may be (`fuse`), and how it is walked (`shares`).

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use anyhow::{Context, bail};
use confinement::calls::{self, Call};
use confinement::{
    BACK_END_IF, Domain, FIONBIO, Forbidden, Landlock, Limits, OWN_FCNTLS, Profile, RUNTIME_IF, Reachable,
    Shared, User,
};
use rustix::fs::{Mode, OFlags};
use rustix::process::geteuid;

/// Most bytes that this process maps besides the guest's memory: its code, stacks of threads, and its records of files,
/// which have limits of their own.
const OWN_MEMORY: u64 = 4 << 30;

/// How much of the limits of files that are kept in memory this process takes for them: allocations leave gaps.
const KEPT_FACTOR: u64 = 2;

/// A directory that is shared.
#[derive(Debug)]
pub(crate) struct Directory {
    pub(crate) directory: OwnedFd,
    /// Nothing in it is changed.
    pub(crate) readonly: bool,
}

/// Memory that the process takes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Memory {
    /// Bytes of the guest's that it maps.
    pub(crate) mapped: u64,
    /// Bytes of the guest's files that it keeps.
    pub(crate) kept: u64,
}

/// The descriptors by which the confined process reaches files.
#[derive(Debug)]
pub(crate) struct Inside {
    /// The shared directories.
    pub(crate) shared: Vec<OwnedFd>,
    /// `/proc/self/fd`.
    pub(crate) own: OwnedFd,
}

/// Leaves this process the shared directories, as `user` if it is root's, and so much memory.
pub(crate) fn walls(
    mut shared: Vec<Directory>,
    user: Option<&User>,
    memory: Memory,
) -> anyhow::Result<Inside> {
    let (own, missing) = match see_only(&mut shared) {
        Ok(own) => (own, None),
        Err(error) => {
            let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
            let own = rustix::fs::open("/proc/self/fd", flags, Mode::empty()).context("/proc/self/fd")?;
            (own, Some(error))
        }
    };
    if let Some(user) = user.filter(|_| geteuid().is_root()) {
        confinement::take_user(user).context("user of the shared folders")?;
    }
    let landlock = restrict(&shared, memory)?;
    match (missing, landlock) {
        (Some(error), Landlock::None) => bail!(
            "nothing would keep a guest from other files of yours: no namespaces ({error}), and no Landlock"
        ),
        (Some(error), _) => {
            crate::say(&format!("no root directory of its own ({error}): Landlock has to do"))
        }
        (None, Landlock::None) => crate::say("no Landlock: a root directory of its own has to do"),
        (None, _) => {}
    }
    Ok(Inside { shared: shared.into_iter().map(|shared| shared.directory).collect(), own })
}

/// Enters a root directory that has the shared directories in it, and nothing else; they are those of that root from then
/// on. Returns `/proc/self/fd`.
fn see_only(shared: &mut [Directory]) -> io::Result<OwnedFd> {
    confinement::isolate()?;
    let own = confinement::own_descriptors()?;
    let outside: Vec<_> = shared
        .iter()
        .map(|shared| Shared { directory: shared.directory.as_fd(), readonly: shared.readonly })
        .collect();
    let inside = confinement::enter_shared(&outside)?;
    shared.iter_mut().zip(inside).for_each(|(shared, directory)| shared.directory = directory);
    Ok(own)
}

fn restrict(shared: &[Directory], memory: Memory) -> anyhow::Result<Landlock> {
    let mut reachable = Reachable::default();
    for Directory { directory, readonly } in shared {
        let directory = directory.try_clone().context("descriptor")?;
        if *readonly { &mut reachable.directories } else { &mut reachable.writable }.push(directory);
    }
    let Memory { mapped, kept } = memory;
    let mapped = mapped.saturating_add(OWN_MEMORY).saturating_add(kept.saturating_mul(KEPT_FACTOR));
    // A file may get as long as the guest likes: it is the user's space, and the guest's kernel says so to its programs.
    let limits = Limits { mapped_bytes: Some(mapped), file_bytes: None };
    Ok(confinement::enter_as_is(Domain::new(reachable)?, limits)?)
}

/// Leaves this process the system calls that serving takes. To be called when all it works with is open.
pub(crate) fn close_the_last_door() -> anyhow::Result<()> {
    // A statically linked program asks the kernel where the clock is, by prctl(2), when the clock is first read.
    let _ = rustix::time::clock_gettime(rustix::time::ClockId::RealtimeCoarse);
    PROFILE.filter().install_for_all_threads().context("seccomp")
}

/// Events, and the end of a connection.
const EVENTS: &[Call] = &[calls::EPOLL_CTL, calls::EPOLL_WAIT, calls::EPOLL_PWAIT, calls::SHUTDOWN];

/// Files: found, opened, made, changed, moved and removed, by names in directories that are open.
const FILES: &[Call] = &[
    calls::OPENAT,
    calls::OPENAT2,
    calls::STATX,
    calls::NEWFSTATAT,
    calls::GETDENTS64,
    calls::READLINKAT,
    calls::MKDIRAT,
    calls::SYMLINKAT,
    calls::LINKAT,
    calls::UNLINKAT,
    calls::RENAMEAT2,
    calls::FCHMODAT,
    calls::UTIMENSAT,
    calls::FTRUNCATE,
    calls::FALLOCATE,
    calls::LSEEK,
    calls::PREAD64,
    calls::PWRITE64,
    calls::PREADV,
    calls::PWRITEV,
    calls::PREADV2,
    calls::PWRITEV2,
    calls::COPY_FILE_RANGE,
    calls::FSYNC,
    calls::FDATASYNC,
    calls::SYNCFS,
    calls::FSTATFS,
];

/// Watching directories, of a queue of events that was made before.
const WATCHES: &[Call] = &[calls::INOTIFY_ADD_WATCH, calls::INOTIFY_RM_WATCH];

const PROFILE: Profile<'_> = Profile {
    calls: &[calls::RUNTIME, calls::BACK_END, EVENTS, FILES, WATCHES],
    conditional: &[RUNTIME_IF, BACK_END_IF],
    ioctls: &[FIONBIO],
    fcntls: OWN_FCNTLS,
    // No filter can see the flags of clone3(2). Where that call is absent, the C library starts threads by clone(2).
    absent: &[calls::CLONE3],
    otherwise: Forbidden::Kill,
};

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::fs::{self, File};

    use confinement::testing::{self, Fate, asked, try_everything};
    use fuse::{Context as Asker, FileSystem, How, Name, NodeId};
    use process::{Spawn, spawn};
    use shares::{HostFs, Options, OwnFiles};

    use super::*;

    #[test]
    #[ignore = "the process that another test confines"]
    fn confined() {
        let asked = asked();
        restrict(&[], Memory::default()).unwrap();
        close_the_last_door().unwrap();
        asked.end(|| {
            // The process may use threads, events and memory.
            std::thread::spawn(|| vec![1u8; 1 << 20]).join().unwrap();
            virtio::Event::new().unwrap().signal();
        });
    }

    #[test]
    fn forbidden_calls_kill_the_process() {
        // Its work is files; which of them, Landlock and its root directory say.
        let files = ["open to read", "open to write", "create", "stat", "unlink", "shorten a file"];
        let mut exceptions = Vec::from(files.map(|name| (name, Fate::Could)));
        exceptions.push(("clone3", Fate::Absent));
        try_everything("confine::tests::confined", &exceptions, &Fate::Killed);
    }

    #[test]
    #[ignore = "the process that another test confines"]
    fn landlocked() {
        let channel = process::parent_channel().unwrap();
        let (secret, mut directories) = channel.recv::<String>().unwrap().unwrap();
        let shared = vec![Directory { directory: directories.remove(0), readonly: false }];
        testing::pretend_absent(&[calls::UNSHARE]);
        let Inside { mut shared, own } = walls(shared, None, Memory::default()).unwrap();
        let files = HostFs::of(shared.remove(0), OwnFiles::of(own), Options::default()).unwrap();
        close_the_last_door().unwrap();
        let name = Name::new(c"new").unwrap();
        files.entry(&Asker::default(), NodeId::ROOT, name, How::Directory { mode: 0o755 }).unwrap();
        let found = File::open(secret).map(drop).map_err(|error| error.kind().to_string());
        channel.send(&found, &[]).unwrap();
        std::process::exit(0);
    }

    #[test]
    fn without_namespaces_landlock_keeps_it_from_other_files() {
        if !testing::has_landlock_of_networks() {
            skip::skip("landlock", "this kernel's Landlock is too old or switched off");
            return;
        }
        let house = tempfile::tempdir().unwrap();
        let (shared, secret) = (house.path().join("shared"), house.path().join("secret"));
        fs::create_dir(&shared).unwrap();
        fs::write(&secret, "secret").unwrap();
        let mut spec = Spawn::new(&std::env::current_exe().unwrap());
        spec.stderr = Some(rustix::io::dup(io::stderr()).unwrap());
        let test = "confine::tests::landlocked";
        spec.args = ["--exact", test, "--ignored", "--test-threads=1"].map(Into::into).into();
        let (_child, channel) = spawn(spec).unwrap();
        channel.send(&secret.to_str().unwrap(), &[File::open(&shared).unwrap().as_fd()]).unwrap();
        let (found, _) = channel.recv::<Result<(), String>>().unwrap().unwrap();
        assert_eq!(found, Err(io::ErrorKind::PermissionDenied.to_string()));
        assert!(shared.join("new").is_dir());
    }
}
