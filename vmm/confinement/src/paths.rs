//! The files that a process may still open: Landlock.

use std::os::fd::{AsRawFd, OwnedFd};
use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

use crate::Error;

/// The newest Landlock for which this module is written; an older kernel enforces the part that it knows.
const LANDLOCK: ABI = ABI::V6;

/// How much of Landlock the host's kernel enforces.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Landlock {
    /// All that this project asks for.
    Full,
    /// A part of it: the kernel's Landlock is older. Files are always covered.
    Partial,
    /// Nothing: the kernel has no Landlock, or it is switched off.
    None,
}

/// The files that a process may still open, and whether it opens connections.
#[derive(Debug, Default)]
pub struct Reachable {
    /// Files that may be executed and read: the program, and the directories of its libraries.
    pub programs: Vec<PathBuf>,
    /// Files and directories that may be read.
    pub data: Vec<PathBuf>,
    /// Files that may be opened again, to read.
    pub files: Vec<OwnedFd>,
    /// Directories whose contents may be read.
    pub directories: Vec<OwnedFd>,
    /// Directories in which files, directories and links may also be made, changed and removed.
    pub writable: Vec<OwnedFd>,
    /// TCP connections may be opened, to any address.
    pub connections: bool,
}

/// A Landlock domain to enter: of the file system only the reachable files, no TCP but connections where these are
/// allowed, no signal to a process outside, no abstract socket outside.
#[derive(Debug)]
pub struct Domain(RulesetCreated);

impl Domain {
    /// A domain with `reachable` and nothing else. Paths in it that do not exist are skipped.
    pub fn new(reachable: Reachable) -> Result<Self, Error> {
        let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
        let change = AccessFs::WriteFile
            | AccessFs::Truncate
            | AccessFs::Refer
            | AccessFs::RemoveDir
            | AccessFs::RemoveFile
            | AccessFs::MakeDir
            | AccessFs::MakeReg
            | AccessFs::MakeSym;
        // Landlock forbids what it handles.
        let network = match reachable.connections {
            true => AccessNet::from_all(LANDLOCK) & !AccessNet::ConnectTcp,
            false => AccessNet::from_all(LANDLOCK),
        };
        let ruleset = || {
            Ruleset::default()
                .set_compatibility(CompatLevel::BestEffort)
                .handle_access(AccessFs::from_all(LANDLOCK))?
                .handle_access(network)?
                .scope(Scope::from_all(LANDLOCK))?
                .create()?
                .add_rules(path_beneath_rules(reachable.programs, read | AccessFs::Execute))?
                .add_rules(path_beneath_rules(reachable.data, read))
        };
        let ruleset = ruleset()?;
        let inside = |directories: Vec<OwnedFd>, rights| {
            directories
                .into_iter()
                .map(move |directory| Ok::<_, RulesetError>(PathBeneath::new(directory, rights)))
        };
        let mut ruleset = ruleset
            .add_rules(inside(reachable.directories, read))?
            .add_rules(inside(reachable.writable, read | change))?;
        for file in reachable.files {
            // landlock_add_rule(2), EBADFD: "file descriptor that [...] doesn't represent a file hierarchy": a memory
            // file, which Landlock does not restrict.
            let rule = PathBeneath::new(file, AccessFs::ReadFile);
            ruleset = match ruleset.try_clone().map_err(Error::Descriptor)?.add_rule(rule) {
                Ok(added) => added,
                Err(_) => ruleset,
            };
        }
        Ok(Self(ruleset))
    }

    /// The same rules for a child. The child's domain lies below this process's, so the child can neither signal nor
    /// trace this process.
    pub fn for_child(&self) -> Result<ChildDomain, Error> {
        Ok(ChildDomain(self.0.try_clone().map_err(Error::Descriptor)?.into()))
    }

    pub(crate) fn enter(self) -> Result<Landlock, RulesetError> {
        Ok(match self.0.restrict_self()?.ruleset {
            RulesetStatus::FullyEnforced => Landlock::Full,
            RulesetStatus::PartiallyEnforced => Landlock::Partial,
            RulesetStatus::NotEnforced => Landlock::None,
        })
    }
}

/// A domain for a child to enter; without an effect if the kernel has no Landlock.
#[derive(Debug)]
pub struct ChildDomain(Option<OwnedFd>);

impl ChildDomain {
    /// Enters the domain. The thread needs no_new_privs. The method makes one system call, and neither allocates nor
    /// takes a lock, so it may run between fork(2) and execve(2).
    pub fn enter(&self) -> std::io::Result<()> {
        let Some(ruleset) = &self.0 else { return Ok(()) };
        // SAFETY: the call takes two integers and touches no memory.
        match unsafe { libc::syscall(libc::SYS_landlock_restrict_self, ruleset.as_raw_fd(), 0) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}
