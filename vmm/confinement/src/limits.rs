//! Resource limits of a process. Not here: which ones a process needs.

use rustix::io::Result;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lowers a limit of this process for good, unless the limit is lower already. Makes system calls only.
pub(crate) fn lower(resource: Resource, to: u64) -> Result<()> {
    let limit = Some(getrlimit(resource).maximum.map_or(to, |maximum| maximum.min(to)));
    setrlimit(resource, Rlimit { current: limit, maximum: limit })
}

/// Longest core file. Linux core(5) says that a program to which `core_pattern` pipes gets the core even if the limit
/// is 0; fs/coredump.c starts no program if it is 1.
const MAX_CORE_BYTES: u64 = 1;

/// Keeps this process, and those that it starts, from leaving a core file: the guest's memory would be in it. Makes
/// system calls only.
pub fn deny_core() -> Result<()> {
    lower(Resource::Core, MAX_CORE_BYTES)
}
