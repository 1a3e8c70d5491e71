//! Facts about this host, gathered for `policy`.
//!
//! Not here: decisions.

use std::path::PathBuf;

pub use arrival::Lack;
pub use guest_memory::{Pages, SharedFile};
use policy::machine::HostFacts;
use policy::resources;
use rustix::process::{Resource, getrlimit};

use crate::life::error::{Error, Result};
use crate::life::network;
use crate::sys;

pub use crate::life::network::Lacking;

/// The guest agent's program.
const AGENT: &str = "matchlock-guest";

/// The vCPU engine of the software machine.
const QEMU: &str = "qemu-system-x86_64";

/// The environment variable that names another agent.
const AGENT_ENV: &str = "MATCHLOCK_GUEST_INIT";

/// Probes the host, in microseconds.
#[must_use]
pub fn facts() -> HostFacts {
    sys::facts(process::find_program(QEMU).map(|path| path.display().to_string()))
}

/// The CPUs and the RAM that this process may use, and the longest file that it may write.
#[must_use]
pub fn resources() -> resources::Host {
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let file_mb = getrlimit(Resource::Fsize).current.map(|bytes| bytes >> 20);
    resources::Host { cpus: u32::try_from(cpus).unwrap_or(u32::MAX), memory_mb: sys::memory_mb(), file_mb }
}

/// The file that a machine's memory would be if other processes are to map it, to look at.
pub fn shared_memory() -> std::io::Result<SharedFile> {
    SharedFile::new()
}

/// Finds the guest agent's file.
pub fn agent() -> Result<PathBuf> {
    match std::env::var_os(AGENT_ENV) {
        Some(path) => {
            let path = PathBuf::from(path);
            std::fs::metadata(&path).map_err(Error::io(&path))?;
            Ok(path)
        }
        None => process::find_program(AGENT).ok_or(Error::NoAgent),
    }
}

/// Whether this host gives sandboxes a network. Makes one, which goes at once.
pub fn network() -> Result<(), Lacking> {
    network::probe()
}

/// The walls between a QEMU that its guest has taken over and the user's files on this host, an entry each; an entry
/// that is missing has the reason. `None` if a program of the software machine is missing.
#[must_use]
pub fn qemu_walls() -> Option<Result<Vec<Result<String, String>>, machine::MachineError>> {
    Some(machine::software::walls(&machine::software::Programs::find().ok()?))
}
