//! Confinement of the helpers: users, capabilities, Landlock, seccomp.
//!
//! Each is taken from the calling thread and those it starts later. Landlock enforces what the host's kernel knows of
//! it; capabilities and seccomp are there on every kernel that this project runs on. Not here: what QEMU may call
//! (`qemu`), and the seccomp filter it installs itself (`-sandbox`).

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;

use anyhow::Context;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, PathBeneath, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, Scope, path_beneath_rules,
};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

/// The newest Landlock this was written for.
const LANDLOCK: ABI = ABI::V6;

/// If this process, of `program`, is root's, makes it that of a user of its own, where the host lets it; says so where
/// not. To be called by a process with one thread.
pub(crate) fn leave_root(program: &str) {
    if let Err(error) = process::take_own_user() {
        crate::say(program, &format!("still root's, without a user of its own ({error})"));
    }
}

/// Gives up every capability, and every way to get one back.
pub(crate) fn drop_capabilities() -> anyhow::Result<()> {
    rustix::thread::set_no_new_privs(true).context("no_new_privs")?;
    let none = CapabilitySet::empty();
    let nothing = CapabilitySets { effective: none, permitted: none, inheritable: none };
    rustix::thread::set_capabilities(None, nothing).context("capabilities")
}

/// Leaves nothing of the file system and the network that is not open already.
pub(crate) fn deny_everything() -> anyhow::Result<()> {
    ruleset()?.restrict_self().context("landlock")?;
    Ok(())
}

/// What a program may still open.
#[derive(Debug, Default)]
pub(crate) struct Readable {
    /// Files that may be executed and read: the program and where its libraries are.
    pub(crate) programs: Vec<PathBuf>,
    /// What may be read.
    pub(crate) data: Vec<PathBuf>,
    /// Files that may be opened again, to read.
    pub(crate) files: Vec<OwnedFd>,
}

/// Leaves nothing of the file system and the network but what is `readable`. What of it does not exist is skipped.
/// Returns the same for a child, which then can neither signal nor trace this process; none if the host's kernel has
/// no Landlock.
pub(crate) fn deny_all_but(readable: Readable) -> anyhow::Result<Option<OwnedFd>> {
    let read: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::ReadDir;
    let mut ruleset = ruleset()?
        .add_rules(path_beneath_rules(readable.programs, read | AccessFs::Execute))
        .context("landlock")?
        .add_rules(path_beneath_rules(readable.data, read))
        .context("landlock")?;
    for file in readable.files {
        // landlock_add_rule(2), EBADFD: "file descriptor that [...] doesn't represent a file hierarchy": a memory
        // file, which Landlock does not restrict.
        let rule = PathBeneath::new(file, AccessFs::ReadFile);
        ruleset = match ruleset.try_clone().context("landlock")?.add_rule(rule) {
            Ok(added) => added,
            Err(_) => ruleset,
        };
    }
    let nested = ruleset.try_clone().context("landlock")?;
    ruleset.restrict_self().context("landlock")?;
    Ok(nested.into())
}

fn ruleset() -> anyhow::Result<RulesetCreated> {
    let ruleset = || {
        Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(LANDLOCK))?
            .handle_access(AccessNet::from_all(LANDLOCK))?
            .scope(Scope::from_all(LANDLOCK))?
            .create()
    };
    ruleset().context("landlock")
}

/// A system call that is allowed if its arguments of these numbers satisfy their conditions.
pub(crate) type Conditional = (i64, &'static [(u8, Condition)]);

/// What an argument has to be. Compared are its low 32 bits.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Condition {
    /// This.
    Is(i32),
    /// This process's id.
    IsOwnProcess,
    /// Without any of these bits.
    Without(i32),
    /// With all of these bits.
    With(i32),
}

/// Kills the process at every system call that is in neither list.
pub(crate) fn allow_only(lists: &[&[i64]], conditional: &[Conditional]) -> anyhow::Result<()> {
    apply(&compile(rules(lists, conditional)?, SeccompAction::KillProcess, SeccompAction::Allow)?)
}

/// A filter for a program that is not ours: what is in neither list looks absent.
pub(crate) fn filter(calls: &[i64], conditional: &[Conditional]) -> anyhow::Result<BpfProgram> {
    compile(rules(&[calls], conditional)?, ABSENT, SeccompAction::Allow)
}

/// Makes clone3(2), whose flags no filter can see, look absent: the C library then starts threads by clone(2).
pub(crate) fn hide_clone3() -> anyhow::Result<()> {
    let rules = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    apply(&compile(rules, SeccompAction::Allow, ABSENT)?)
}

const ABSENT: SeccompAction = SeccompAction::Errno(libc::ENOSYS.cast_unsigned());

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

fn rules(lists: &[&[i64]], conditional: &[Conditional]) -> anyhow::Result<Rules> {
    let always = lists.iter().flat_map(|list| list.iter()).map(|call| (*call, Vec::new()));
    let mut rules: Rules = always.collect();
    for (call, conditions) in conditional {
        let conditions = conditions.iter().map(|(argument, condition)| {
            let (operator, value) = match *condition {
                Condition::Is(value) => (SeccompCmpOp::Eq, value),
                Condition::IsOwnProcess => (SeccompCmpOp::Eq, std::process::id().cast_signed()),
                Condition::Without(bits) => (SeccompCmpOp::MaskedEq(u64::from(bits.cast_unsigned())), 0),
                Condition::With(bits) => (SeccompCmpOp::MaskedEq(u64::from(bits.cast_unsigned())), bits),
            };
            let value = u64::from(value.cast_unsigned());
            SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, operator, value)
        });
        let conditions = conditions.collect::<Result<Vec<_>, _>>();
        let rule = conditions.and_then(SeccompRule::new).context("seccomp")?;
        rules.entry(*call).or_default().push(rule);
    }
    Ok(rules)
}

fn compile(rules: Rules, otherwise: SeccompAction, matching: SeccompAction) -> anyhow::Result<BpfProgram> {
    let architecture = std::env::consts::ARCH.try_into().context("seccomp")?;
    let filter = SeccompFilter::new(rules, otherwise, matching, architecture);
    filter.and_then(TryInto::try_into).context("seccomp")
}

fn apply(program: &BpfProgram) -> anyhow::Result<()> {
    seccompiler::apply_filter(program).context("seccomp")
}

/// What every thread of ours may call. Nothing that opens, starts or changes anything outside the process.
pub(crate) const EVERYWHERE: &[i64] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_close,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_ppoll,
    libc::SYS_poll,
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sched_yield,
    libc::SYS_clock_gettime,
    libc::SYS_getrandom,
    libc::SYS_rt_sigreturn,
    libc::SYS_rt_sigprocmask,
    libc::SYS_sigaltstack,
    libc::SYS_restart_syscall,
    libc::SYS_getpid,
    libc::SYS_gettid,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// What every thread of ours may call with some arguments: memory that is never executable, and signals to its own
/// threads (abort(3) is one).
pub(crate) const EVERYWHERE_IF: &[Conditional] = &[
    // The standard library's check that a descriptor is its own to close, in debug builds.
    (libc::SYS_fcntl, &[(1, Condition::Is(libc::F_GETFD))]),
    (libc::SYS_mmap, &[(2, Condition::Without(libc::PROT_EXEC))]),
    (libc::SYS_mprotect, &[(2, Condition::Without(libc::PROT_EXEC))]),
    (libc::SYS_tgkill, &[(0, Condition::IsOwnProcess)]),
];
