//! Control groups: limits on programs, and killing all processes of a program at once.
//!
//! ```text
//!  /                 the agent and the kernel's threads, without a limit
//!  └─ programs       CPU quota, CPU weight, memory and processes of all programs together
//!     ├─ 1           a program and all it starts: memory and processes
//!     └─ 2           another
//! ```
//!
//! A program that takes all it can get (a fork bomb, endless memory) reaches the limits of its own group. The rest up to
//! the common limits is for the other programs, and the rest beyond them for agent and kernel, which therefore answer,
//! cancel and power off whatever programs do. A kernel without a controller does without its limits.
//!
//! Programs see the groups read-only unless they are privileged (`mounts`); the agent has a mount of its own.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{AtFlags, CWD, Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::OpenTreeFlags;

use crate::boot::{AtStep, Failure};
use crate::files;

/// The mount point of the kernel's tree of groups.
const PLACE: &str = "/sys/fs/cgroup";

/// The group of all programs.
const PROGRAMS: &str = "programs";

/// The controllers that are used.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// CPU weight of all programs together. The agent, whose own is a hundred, then has ten times as much of a CPU that both
/// want.
const PROGRAMS_WEIGHT: u32 = 10;

/// Memory reserved for agent and kernel, beside one part in [`MEMORY_PARTS`] of all.
const SYSTEM_MEMORY: u64 = 12 << 20;

/// Memory that each program must leave to the others, beside one part in [`MEMORY_PARTS`] of all.
const OTHERS_MEMORY: u64 = 8 << 20;

/// See [`SYSTEM_MEMORY`] and [`OTHERS_MEMORY`].
const MEMORY_PARTS: u64 = 64;

/// Most that either reserve grows to.
const RESERVE_LIMIT: u64 = 64 << 20;

/// One part in this many of the kernel's possible threads is reserved for agent and kernel.
const SYSTEM_THREADS_PART: u64 = 4;

/// One part in this many of the kernel's possible threads is the most for one program. This also bounds the time for
/// ending a fork bomb, as each process takes time to end.
const EACH_THREADS_PART: u64 = 4;

/// Period of the CPU quota, microseconds.
const CPU_PERIOD_US: u64 = 100_000;

/// Least CPU quota the kernel takes, microseconds.
const CPU_QUOTA_LEAST_US: u64 = 1000;

/// Longest of the files that are read.
const READ_LIMIT: usize = 4096;

/// The files of a group with their values; a file's controller may be missing.
type Settings = Vec<(&'static str, String)>;

/// The limits of all programs together, and of each.
#[derive(Debug, PartialEq, Eq)]
struct Limits {
    all: Settings,
    each: Settings,
}

impl Limits {
    /// The limits on a machine with this much available memory, whose kernel makes this many threads.
    fn of(memory: u64, threads: u64, quota_milli: u32) -> Self {
        let reserve = |least: u64| (least + memory / MEMORY_PARTS).min(RESERVE_LIMIT);
        let (system, others) = (reserve(SYSTEM_MEMORY), reserve(OTHERS_MEMORY));
        let memory_of = |reserved: u64| memory.saturating_sub(reserved).max(memory / 2).to_string();
        let all_threads = threads - threads / SYSTEM_THREADS_PART;
        let each_threads = threads / EACH_THREADS_PART;
        let mut all = vec![
            ("memory.max", memory_of(system)),
            ("pids.max", all_threads.to_string()),
            ("cpu.weight", PROGRAMS_WEIGHT.to_string()),
        ];
        let mut each =
            vec![("memory.max", memory_of(system + others)), ("pids.max", each_threads.to_string())];
        if quota_milli > 0 {
            let quota = ("cpu.max", cpu_max(quota_milli));
            all.push(quota.clone());
            // The quota once more, for programs that look for it in their own group only.
            each.push(quota);
        }
        Self { all, each }
    }

    /// The limits on this machine.
    fn of_this_machine(quota_milli: u32) -> Result<Self, Failure> {
        let threads = read("/proc/sys/kernel/threads-max")?;
        let threads = threads.trim().parse().map_err(|_| not_understood("threads-max"))?;
        let memory = available(&read("/proc/meminfo")?).ok_or_else(|| not_understood("meminfo"))?;
        Ok(Self::of(memory, threads, quota_milli))
    }
}

fn read(path: &str) -> Result<String, Failure> {
    let bytes = files::read_regular(path, READ_LIMIT).at(&format!("read {path}"))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn not_understood(what: &str) -> Failure {
    Failure::because(format!("read {what}"), "it says something unknown")
}

/// The memory that programs could have, in bytes, without the kernel's own.
fn available(meminfo: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn cpu_max(quota_milli: u32) -> String {
    let quota_us = (u64::from(quota_milli) * CPU_PERIOD_US / 1000).max(CPU_QUOTA_LEAST_US);
    format!("{quota_us} {CPU_PERIOD_US}")
}

/// The groups of all programs.
#[derive(Debug)]
pub(crate) struct Cgroups {
    programs: OwnedFd,
    each: Settings,
    /// Made in advance, so that no program waits for its group.
    spare: Mutex<Option<(u64, OwnedFd)>>,
    last: AtomicU64,
}

impl Cgroups {
    /// Makes the group of all programs, before the tree is made read-only for them. `None` if the kernel has no control
    /// groups.
    pub(crate) fn make(quota_milli: u32) -> Result<Option<Self>, Failure> {
        let controllers = match files::read_regular("/sys/fs/cgroup/cgroup.controllers", READ_LIMIT) {
            Err(Errno::NOENT) if quota_milli == 0 => return Ok(None),
            controllers => controllers.at("read cgroup.controllers")?,
        };
        let limits = Limits::of_this_machine(quota_milli)?;
        let own_mount = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let root = rustix::mount::open_tree(CWD, PLACE, own_mount).at("open the control groups")?;
        let controllers = String::from_utf8_lossy(&controllers);
        let enabled =
            CONTROLLERS.into_iter().filter(|name| controllers.split_whitespace().any(|c| c == *name));
        let enabled: String = enabled.map(|name| format!("+{name} ")).collect();
        let programs = make_directory(root.as_fd(), PROGRAMS).at("make the cgroup programs")?;
        for group in [root.as_fd(), programs.as_fd()] {
            write(group, "cgroup.subtree_control", &enabled).at("delegate controllers")?;
        }
        set(programs.as_fd(), &limits.all).at("limit programs")?;
        let groups = Self { programs, each: limits.each, spare: Mutex::new(None), last: AtomicU64::new(0) };
        groups.refill();
        Ok(Some(groups))
    }

    /// The group for one more program.
    pub(crate) fn group(&self) -> Result<Group<'_>, Errno> {
        let (number, directory) = match self.spare().take() {
            Some(spare) => spare,
            None => self.fresh()?,
        };
        Ok(Group { groups: self, number, directory })
    }

    /// Makes the next program's group, unless it exists.
    pub(crate) fn refill(&self) {
        if self.spare().is_none() {
            // The next program's own attempt reports the error.
            let fresh = self.fresh().ok();
            let left = match &mut *self.spare() {
                Some(_) => fresh,
                spare => {
                    *spare = fresh;
                    None
                }
            };
            if let Some((number, _)) = left {
                self.remove(number);
            }
        }
    }

    fn fresh(&self) -> Result<(u64, OwnedFd), Errno> {
        let number = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        let directory = make_directory(self.programs.as_fd(), &number.to_string())?;
        match set(directory.as_fd(), &self.each) {
            Ok(()) => Ok((number, directory)),
            Err(errno) => {
                self.remove(number);
                Err(errno)
            }
        }
    }

    /// Removes a group. A group in which a privileged program has made others stays, empty.
    fn remove(&self, number: u64) {
        let _ = rustix::fs::unlinkat(&self.programs, number.to_string(), AtFlags::REMOVEDIR);
    }

    fn spare(&self) -> std::sync::MutexGuard<'_, Option<(u64, OwnedFd)>> {
        self.spare.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The group of one program, which is removed when this is dropped; it must be empty by then.
#[derive(Debug)]
pub(crate) struct Group<'a> {
    groups: &'a Cgroups,
    number: u64,
    directory: OwnedFd,
}

impl Group<'_> {
    /// The group's directory.
    pub(crate) fn directory(&self) -> BorrowedFd<'_> {
        self.directory.as_fd()
    }

    /// Kills every process in the group. Kernels before 5.14 cannot; there each process is killed by its namespace.
    pub(crate) fn kill(&self) {
        let _ = write(self.directory(), "cgroup.kill", "1");
    }
}

impl Drop for Group<'_> {
    fn drop(&mut self) {
        self.groups.remove(self.number);
    }
}

fn make_directory(above: BorrowedFd<'_>, name: &str) -> Result<OwnedFd, Errno> {
    rustix::fs::mkdirat(above, name, Mode::from_raw_mode(0o755))?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::openat(above, name, flags, Mode::empty())
}

/// Sets those of the settings whose files exist.
fn set(group: BorrowedFd<'_>, settings: &Settings) -> Result<(), Errno> {
    for (file, value) in settings {
        match write(group, file, value) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(errno),
        }
    }
    Ok(())
}

fn write(group: BorrowedFd<'_>, file: &str, value: &str) -> Result<(), Errno> {
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(group, file, flags, Mode::empty())?;
    rustix::io::retry_on_intr(|| rustix::io::write(&file, value.as_bytes())).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn number(settings: &Settings, file: &str) -> u64 {
        let value = settings.iter().find(|(name, _)| *name == file).map(|(_, value)| value.parse());
        value.and_then(Result::ok).unwrap_or_default()
    }

    #[test]
    fn quota() {
        assert_eq!(cpu_max(500), "50000 100000");
        assert_eq!(cpu_max(1), "1000 100000");
        assert_eq!(cpu_max(u32::MAX), "429496729500 100000");
        let limits = Limits::of(512 * MIB, 4000, 500);
        for settings in [limits.all, limits.each] {
            assert!(settings.contains(&("cpu.max", "50000 100000".to_owned())));
        }
        let without = Limits::of(512 * MIB, 4000, 0);
        assert!(without.all.iter().chain(&without.each).all(|(file, _)| *file != "cpu.max"));
    }

    #[test]
    fn memory_that_is_available() {
        let meminfo =
            "MemTotal:         223524 kB\nMemFree: 1 kB\nMemAvailable:     187508 kB\nBuffers: 3 kB\n";
        assert_eq!(available(meminfo), Some(187_508 << 10));
        for text in ["", "MemAvailable: x kB", "MemAvailable: 5", "MemAvailable: 18446744073709551615 kB"] {
            assert_eq!(available(text), None, "{text}");
        }
    }

    #[test]
    fn something_is_kept_back_from_all_and_more_from_each() {
        for (memory, threads) in
            [(0, 0), (48, 300), (205, 1640), (460, 3700), (3900, 31_000), (500_000, 4_000_000)]
        {
            let (memory, limits) = (memory * MIB, Limits::of(memory * MIB, threads, 0));
            let (all, each) = (number(&limits.all, "memory.max"), number(&limits.each, "memory.max"));
            assert!(each <= all && all <= memory && each >= memory / 2, "{memory}: {limits:?}");
            assert!(memory - each <= 2 * RESERVE_LIMIT || each == memory / 2);
            let (all, each) = (number(&limits.all, "pids.max"), number(&limits.each, "pids.max"));
            assert!(2 * each <= all && all <= threads && each >= threads / 5, "{threads}: {limits:?}");
        }
        let limits = Limits::of(205 * MIB, 1640, 0);
        assert!(number(&limits.each, "memory.max") > 175 * MIB, "a small machine is for its programs");
        assert!(number(&limits.all, "memory.max") < 205 * MIB - SYSTEM_MEMORY);
    }
}
