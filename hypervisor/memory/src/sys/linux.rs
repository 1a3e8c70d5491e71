//! The file behind shared guest memory: one that the host backs with huge pages, wherever this process can have such a
//! file.
//!
//! Linux has one switch for all memfds (`shmem_enabled`, which many distributions leave at `never`), but another for
//! each tmpfs (`huge=`), and it lets an unprivileged process mount a tmpfs in namespaces of its own. So a short-lived
//! child of this process mounts one and leaves a file without a name on it; the mount disappears with the file. Not
//! here: mapping the file.

use std::ffi::{CStr, c_void};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};

use rustix::fs::{MemfdFlags, Mode, OFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::Advice;
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags};
use rustix::process::{Pid, WaitOptions, getgid, getuid, waitpid};
use rustix::thread::{UnshareFlags, unshare_unsafe};

use super::{NoOwnMount, Pages};

/// Advice for all guest memory: huge pages, and no place in core files.
pub(crate) const ADVICE: [Advice; 2] = [Advice::LinuxHugepage, Advice::LinuxDontDump];

/// The flag that keeps a send(2) to a peer that has hung up from raising a signal.
pub(crate) const NO_SIGNAL: libc::c_int = libc::MSG_NOSIGNAL;

/// Linux's switch for memfds.
const SWITCH: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// A file that several processes can map as guest memory. A new one has no length yet.
///
/// A process that finds the file shorter than its mapping is ended by SIGBUS, so the file must never shrink. A memfd is
/// sealed against that. A file on a tmpfs cannot be sealed; there it is protected because ftruncate(2), the one call
/// that shortens a file without a name, is not in the VMM's profile (the list of forbidden calls has it), and
/// fallocate(2) cannot shorten a file on a tmpfs. A back end in another process that needs ftruncate(2) for its own
/// files could end the VMM of its own sandbox by that call, and no other.
#[derive(Debug)]
pub struct SharedFile {
    file: File,
    pages: Pages,
}

impl SharedFile {
    /// The best file that this host has. It must be made before this process is confined.
    pub fn new() -> io::Result<Self> {
        let made = match switch() {
            Switch::On => return Ok(Self { file: memfd()?, pages: Pages::Huge }),
            Switch::Denied => {
                let source = io::Error::other("shmem_enabled denies them to all shared memory");
                Err(NoOwnMount { step: "tmpfs with huge pages", source })
            }
            Switch::Off => on_own_mount(),
        };
        match made {
            Ok(file) => Ok(Self { file, pages: Pages::HugeByOwnMount }),
            Err(why) => Ok(Self { file: memfd()?, pages: Pages::Small(why) }),
        }
    }

    /// A memfd, whatever the size of its pages.
    #[cfg(test)]
    pub(crate) fn sealed() -> io::Result<Self> {
        Ok(Self { file: memfd()?, pages: Pages::Huge })
    }

    /// The kind of pages in which the host keeps the file.
    #[must_use]
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// The file, after it has been given its final length.
    pub(crate) fn with_len(self, len: u64) -> Result<File, (&'static str, Errno)> {
        rustix::fs::ftruncate(&self.file, len).map_err(|errno| ("ftruncate", errno))?;
        if !matches!(self.pages, Pages::HugeByOwnMount) {
            let seals = SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL;
            rustix::fs::fcntl_add_seals(&self.file, seals).map_err(|errno| ("sealing", errno))?;
        }
        Ok(self.file)
    }
}

/// Gives whole pages of guest memory back to the host. They read as zeroes afterwards.
///
/// # Safety
///
/// The range is mapped (from a file if `shared`), and no Rust reference leads into it.
pub(crate) unsafe fn give_back(start: *mut c_void, len: usize, shared: bool) -> io::Result<()> {
    // A private page can be dropped; a shared page stays in its file unless a hole is made there.
    let advice = if shared { Advice::LinuxRemove } else { Advice::LinuxDontNeed };
    // SAFETY: the caller promises that the contents of the range may change at any time.
    Ok(unsafe { rustix::mm::madvise(start, len, advice) }?)
}

fn memfd() -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    Ok(rustix::fs::memfd_create("guest-ram", flags)?.into())
}

/// The setting of the host's switch for huge pages in memfds.
#[derive(Debug, PartialEq, Eq)]
enum Switch {
    /// Memfds that ask for huge pages get them.
    On,
    /// Memfds have no huge pages; a tmpfs may have them.
    Off,
    /// No shared memory has huge pages, whatever its mount asks for.
    Denied,
}

fn switch() -> Switch {
    let switch = std::fs::read_to_string(SWITCH).unwrap_or_default();
    match switch.split_once('[').and_then(|(_, rest)| rest.split_once(']')) {
        Some(("always" | "within_size" | "advise" | "force", _)) => Switch::On,
        Some(("deny", _)) => Switch::Denied,
        _ => Switch::Off,
    }
}

/// The child's steps, in order.
#[derive(Debug, Clone, Copy)]
#[repr(u8)]
enum Step {
    Namespace,
    Users,
    Mount,
    File,
}

/// The first byte of the child's report when it has made the file, in place of a failed [`Step`].
const DONE: u8 = u8::MAX;

impl Step {
    const ALL: [Self; 4] = [Self::Namespace, Self::Users, Self::Mount, Self::File];

    fn name(self) -> &'static str {
        match self {
            Self::Namespace => "namespaces of the process's own",
            Self::Users => "users in the namespace",
            Self::Mount => "tmpfs with huge pages",
            Self::File => "file on the tmpfs",
        }
    }
}

/// A file without a name on a tmpfs with huge pages.
///
/// A child process makes the file, because only a process with one thread may enter a user namespace, and because this
/// process must stay in its own namespaces. Parent and child share their table of descriptors, so the parent has what
/// the child opens.
fn on_own_mount() -> Result<File, NoOwnMount> {
    let failed = |step: &'static str| move |errno: Errno| NoOwnMount { step, source: errno.into() };
    let (mut says, tells) =
        rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC | rustix::pipe::PipeFlags::NONBLOCK)
            .map(|(says, tells)| (File::from(says), tells))
            .map_err(failed("pipe"))?;
    let users = [(c"/proc/self/uid_map", getuid().as_raw()), (c"/proc/self/gid_map", getgid().as_raw())]
        .map(|(path, id)| (path, format!("0 {id} 1")));
    let flags = libc::CLONE_FILES | libc::SIGCHLD;
    // SAFETY: as for fork(2): without CLONE_VM the child has a copy of this process's memory, and of its threads only
    // the calling one. The child makes system calls on values prepared above, takes no lock, allocates nothing, and
    // ends.
    let child = unsafe { libc::syscall(libc::SYS_clone, libc::c_long::from(flags), 0, 0, 0, 0) };
    if child == 0 {
        let (step, value) = match in_child(&users) {
            Ok(file) => (DONE, file.into_raw_fd()),
            Err((step, errno)) => (step as u8, errno.raw_os_error()),
        };
        let [v0, v1, v2, v3] = value.to_le_bytes();
        let report = [step, v0, v1, v2, v3];
        // If the report cannot be written, the parent does without the file.
        let _ = rustix::io::write(&tells, &report);
        // SAFETY: ends the child, and runs none of the parent's handlers.
        unsafe { libc::_exit(0) }
    }
    let child = i32::try_from(child).ok().and_then(Pid::from_raw);
    let child = child.ok_or_else(|| NoOwnMount { step: "child", source: io::Error::last_os_error() })?;
    while matches!(waitpid(Some(child), WaitOptions::empty()), Err(Errno::INTR)) {}
    let mut report = [0; 5];
    says.read_exact(&mut report).map_err(|source| NoOwnMount { step: "child", source })?;
    let [step, v0, v1, v2, v3] = report;
    let value = RawFd::from_le_bytes([v0, v1, v2, v3]);
    match Step::ALL.get(usize::from(step)) {
        Some(step) => Err(failed(step.name())(Errno::from_raw_os_error(value))),
        // SAFETY: the child has opened the descriptor in the table that both processes share, and has ended: nobody
        // else owns it.
        None => Ok(unsafe { OwnedFd::from_raw_fd(value) }.into()),
    }
}

/// Makes the file in the child, by system calls only.
fn in_child(users: &[(&CStr, String)]) -> Result<OwnedFd, (Step, Errno)> {
    let at = |step| move |errno| (step, errno);
    let tmpfs = || rustix::mount::fsopen(c"tmpfs", FsOpenFlags::FSOPEN_CLOEXEC);
    let context = match tmpfs() {
        Err(Errno::PERM) => {
            // SAFETY: descriptors stay shared (no CLONE_FILES), and nothing in this function depends on the previous
            // namespaces.
            unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }
                .map_err(at(Step::Namespace))?;
            // user_namespaces(7): a group cannot be mapped before setgroups(2) is given up. The file needs an owner who
            // exists in the new namespace.
            write(c"/proc/self/setgroups", b"deny").map_err(at(Step::Users))?;
            for (path, map) in users {
                write(path, map.as_bytes()).map_err(at(Step::Users))?;
            }
            tmpfs()
        }
        context => context,
    };
    let mount = context.and_then(|context| {
        // tmpfs(5): without a size a tmpfs ends at half of the host's memory; 0 means no limit, as for a memfd.
        for (key, value) in [(c"huge", c"advise"), (c"mode", c"0700"), (c"size", c"0")] {
            rustix::mount::fsconfig_set_string(context.as_fd(), key, value)?;
        }
        rustix::mount::fsconfig_create(context.as_fd())?;
        let attributes = MountAttrFlags::MOUNT_ATTR_NOSUID
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOEXEC;
        rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attributes)
    });
    let mount = mount.map_err(at(Step::Mount))?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::openat(&mount, c".", flags, Mode::RUSR | Mode::WUSR).map_err(at(Step::File))
}

fn write(path: &CStr, bytes: &[u8]) -> Result<(), Errno> {
    let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
    rustix::io::write(&file, bytes).map(drop)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::print_stderr, reason = "tests")]

    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    use std::os::unix::process::CommandExt;
    use std::process::Command;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend};

    use super::*;
    use crate::{Backing, allocate};

    const SIZE: usize = 32 << 20;

    /// How many kB of such memory, all of it touched, are in huge pages.
    fn huge_kib(backing: Backing) -> u64 {
        let field = if matches!(backing, Backing::Anonymous) { "AnonHugePages:" } else { "ShmemPmdMapped:" };
        let ram = allocate(&[(GuestAddress(0), SIZE)], backing).unwrap();
        for page in (0..SIZE as u64).step_by(4096) {
            ram.write_obj(page + 1, GuestAddress(page)).unwrap();
        }
        let address = ram.get_host_address(GuestAddress(0)).unwrap().addr();
        let maps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let mut lines = maps.lines().skip_while(|line| !line.starts_with(&format!("{address:x}-")));
        let line = lines.find(|line| line.starts_with(field)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// A host whose memory is fragmented gives few huge pages, or none, to any kind of memory.
    fn assert_as_huge_as_private(file: SharedFile) {
        let (shared, private) = (huge_kib(Backing::Shared(file)), huge_kib(Backing::Anonymous));
        assert!(shared <= SIZE as u64 >> 10);
        if private == 0 {
            return skip::skip("huge-pages", "this host has none left, or gives none");
        }
        assert!(shared > 0, "no huge page of shared memory, {private} kB of private");
    }

    #[test]
    fn shared_memory_is_huge_pages_where_the_host_has_them() {
        let file = SharedFile::new().unwrap();
        if let Pages::Small(why) = file.pages() {
            return skip::skip("huge-pages", format!("this host has none for shared memory: {why}"));
        }
        assert_as_huge_as_private(file);
    }

    #[test]
    fn a_mount_of_its_own_has_huge_pages_whatever_the_switch_says() {
        let file = match on_own_mount() {
            Ok(file) => file,
            Err(why) => return skip::skip("user-namespaces", why.to_string()),
        };
        assert!(rustix::io::fcntl_getfd(&file).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.uid(), metadata.nlink(), metadata.len()), (getuid().as_raw(), 0, 0));
        if switch() == Switch::Denied {
            return skip::skip("huge-pages", "this host denies them to every shared memory");
        }
        assert_as_huge_as_private(SharedFile { file, pages: Pages::HugeByOwnMount });
    }

    #[test]
    fn so_it_is_for_a_user_without_privilege_and_its_process_stays_where_it_is() {
        // A directory that every user can reach.
        let directory = tempfile::tempdir().unwrap();
        std::fs::set_permissions(directory.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let program = directory.path().join("tests");
        std::fs::copy(std::env::current_exe().unwrap(), &program).unwrap();
        let mut alone = Command::new(program);
        alone.args(["--exact", "sys::linux::tests::alone", "--ignored", "--nocapture"]);
        if getuid().is_root() {
            alone.uid(65534).gid(65534);
        }
        let output = alone.output().unwrap();
        let said = [output.stdout, output.stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
        assert!(output.status.success() && said[0].contains("1 passed"), "{said:?}");
        // The notes of the skipped tests.
        eprint!("{}", said[1]);
    }

    #[test]
    #[ignore = "the process that another test starts"]
    fn alone() {
        let namespaces =
            || ["user", "mnt"].map(|name| std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap());
        let mounts = || std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
        let before = (namespaces(), mounts(), open());
        let file = on_own_mount();
        let left = usize::from(file.is_ok());
        assert_eq!((namespaces(), mounts(), open() - left), before);
        drop(file);
        a_mount_of_its_own_has_huge_pages_whatever_the_switch_says();
    }
}
