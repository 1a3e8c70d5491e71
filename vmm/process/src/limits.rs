//! Resource limits of a process. Not here: which ones a process needs.

use rustix::io::Result;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Lowers a limit of this process for good, unless it is lower already. Makes system calls only.
pub(crate) fn lower(resource: Resource, to: u64) -> Result<()> {
    let limit = Some(getrlimit(resource).maximum.map_or(to, |maximum| maximum.min(to)));
    setrlimit(resource, Rlimit { current: limit, maximum: limit })
}
