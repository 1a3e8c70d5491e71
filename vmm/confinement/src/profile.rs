//! Profiles: the remaining powers of a process as one value, and the one way to enter it.

use std::io;

use rustix::process::Resource;
use rustix::thread::CapabilitySet;

use crate::calls::{self, Call};
use crate::filter::{Filter, Forbidden, Rules, Test};
use crate::paths::{Domain, Landlock, Reachable};
use crate::{limits, user};

/// Why a process could not be confined.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// `PR_SET_NO_NEW_PRIVS` was refused.
    #[error("no_new_privs: {0}")]
    NoNewPrivileges(#[source] io::Error),
    /// Capabilities could not be given up.
    #[error("capabilities: {0}")]
    Capabilities(#[source] io::Error),
    /// A limit could not be lowered.
    #[error("limits: {0}")]
    Limits(#[source] io::Error),
    /// The kernel has Landlock, but refused the domain.
    #[error("landlock: {0}")]
    Landlock(#[from] landlock::RulesetError),
    /// A descriptor could not be duplicated.
    #[error("descriptor: {0}")]
    Descriptor(#[source] io::Error),
    /// The kernel refused the filter.
    #[error("seccomp: {0}")]
    Seccomp(#[source] io::Error),
}

/// A call that is allowed if all tests of its arguments hold. A call may have several such entries.
pub type Conditional = (Call, &'static [Test]);

/// Calls that every program of this project may make with some arguments: for memory that is never executable, and for
/// signals to its own threads (abort(3) sends one). They go with [`calls::RUNTIME`].
pub const RUNTIME_IF: &[Conditional] = &[
    (calls::MMAP, &[Test::lacks(2, libc::PROT_EXEC)]),
    (calls::MPROTECT, &[Test::lacks(2, libc::PROT_EXEC)]),
    (calls::TGKILL, &[Test::is_own_process(0)]),
];

/// Calls with some arguments that go with [`calls::BACK_END`]: threads, and their names.
pub const BACK_END_IF: &[Conditional] =
    &[(calls::CLONE, &[Test::has(0, libc::CLONE_THREAD)]), (calls::PRCTL, &[Test::is(0, libc::PR_SET_NAME)])];

/// Commands of fcntl(2) by which a process that serves devices manages its own descriptors.
pub const OWN_FCNTLS: &[i32] = &[libc::F_GETFD, libc::F_GETFL, libc::F_SETFL, libc::F_DUPFD_CLOEXEC];

/// The call that makes socket pairs for a guest's streams, of a kind that takes no address only: a datagram socket,
/// even as half of a pair, can send to any other on the host (sendto(2), sendmsg(2)).
pub const STREAM_PAIRS: Conditional =
    (calls::SOCKETPAIR, &[Test::is(0, libc::AF_UNIX), Test::is(1, libc::SOCK_STREAM | libc::SOCK_CLOEXEC)]);

/// The system calls of a process.
#[derive(Debug, Clone, Copy)]
pub struct Profile<'a> {
    /// Calls that are allowed with any arguments.
    pub calls: &'a [&'a [Call]],
    /// Calls that are allowed with some arguments.
    pub conditional: &'a [&'a [Conditional]],
    /// Requests of ioctl(2).
    pub ioctls: &'a [u32],
    /// Commands of fcntl(2).
    pub fcntls: &'a [i32],
    /// Calls that look absent, whatever the consequence of other calls is.
    pub absent: &'a [Call],
    /// The consequence of every other call.
    pub otherwise: Forbidden,
}

impl Profile<'_> {
    /// The filter that enforces the profile.
    pub fn filter(&self) -> Filter {
        let mut rules = Rules::new(self.otherwise);
        self.calls.iter().copied().flatten().for_each(|call| rules.allow(*call));
        self.conditional.iter().copied().flatten().for_each(|(call, tests)| rules.allow_if(*call, tests));
        for request in self.ioctls {
            rules.allow_if(calls::IOCTL, &[Test::is(1, request.cast_signed())]);
        }
        for command in self.fcntls {
            rules.allow_if(calls::FCNTL, &[Test::is(1, *command)]);
        }
        self.absent.iter().for_each(|call| rules.forbid(*call, Forbidden::Absent));
        rules.compile()
    }
}

/// Limits on the resources that a process takes from its host; `None` means no limit.
#[derive(Debug, Clone, Copy, Default)]
pub struct Limits {
    /// The longest file that the process may write or make (`RLIMIT_FSIZE`).
    pub file_bytes: Option<u64>,
    /// The most memory that the process may have mapped (`RLIMIT_AS`).
    pub mapped_bytes: Option<u64>,
}

/// The least length to which a log, a console and the like may grow if they are files.
const MIN_FILE_BYTES: u64 = 64 << 20;

impl Limits {
    /// For a process that writes files up to `longest_file` and maps `memory` of a guest, besides `others` for itself.
    #[must_use]
    pub fn new(longest_file: u64, memory: u64, others: u64) -> Self {
        Self {
            file_bytes: Some(longest_file.max(MIN_FILE_BYTES)),
            mapped_bytes: Some(memory.saturating_add(others)),
        }
    }

    /// Lowers the limits of this process for good. Makes system calls only, so it may run between fork(2) and
    /// execve(2).
    pub fn apply(self) -> io::Result<()> {
        for (resource, limit) in [(Resource::Fsize, self.file_bytes), (Resource::As, self.mapped_bytes)] {
            limit.map_or(Ok(()), |limit| limits::lower(resource, limit))?;
        }
        Ok(())
    }
}

/// The parts of the confinement that the host's kernel granted.
#[derive(Debug)]
pub struct Report {
    /// Why the process still belongs to root, if it does.
    pub still_root: Option<io::Error>,
    /// Landlock.
    pub landlock: Landlock,
}

impl Report {
    /// Warnings for the log about missing parts, a line each.
    pub fn warnings(&self) -> impl Iterator<Item = String> {
        let user = self.still_root.as_ref();
        let user =
            user.map(|error| format!("the process is still root's, without a user of its own ({error})"));
        let landlock = (self.landlock == Landlock::None)
            .then(|| "the host's kernel has no Landlock: files are denied by seccomp alone".to_owned());
        [user, landlock].into_iter().flatten()
    }
}

/// Takes root, privileges, capabilities, resources and the file system from the calling thread, which must be the only
/// one, and from the threads that it starts later, in the one order in which every step is still possible. A [`Filter`]
/// comes last, when the process has everything for its work.
pub fn enter(domain: Domain, limits: Limits) -> Result<Report, Error> {
    let still_root = user::take_own_user().err().map(io::Error::from);
    Ok(Report { still_root, landlock: enter_as_is(domain, limits)? })
}

/// Does the same as [`enter`], for a process that keeps its user, who is to own the files that the process makes.
pub fn enter_as_is(domain: Domain, limits: Limits) -> Result<Landlock, Error> {
    drop_privileges()?;
    limits.apply().map_err(Error::Limits)?;
    Ok(domain.enter()?)
}

/// Does the same as [`enter`], for a process that opens nothing any more.
pub fn enter_with_nothing(limits: Limits) -> Result<Report, Error> {
    enter(Domain::new(Reachable::default())?, limits)
}

/// Gives up every capability, and every way to get one back.
fn drop_privileges() -> Result<(), Error> {
    rustix::thread::set_no_new_privs(true).map_err(|error| Error::NoNewPrivileges(error.into()))?;
    user::have_only(CapabilitySet::empty()).map_err(|error| Error::Capabilities(error.into()))
}
