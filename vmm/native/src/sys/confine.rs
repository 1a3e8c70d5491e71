//! What the VMM process may still do on Linux, before the first guest instruction.
//!
//! The process opens nothing, so Landlock denies it every path, port and abstract socket the host's kernel can deny.
//! seccomp then allows the few system calls that its work takes, `ioctl` only with the hypervisor's own requests, and
//! kills the process at any other. All threads have one filter: they share their memory, so that whoever controls one
//! controls them all. Not here: namespaces, which would hide nothing that Landlock and seccomp leave in sight.

pub use confinement::Error as ConfineError;
use confinement::calls::{DEVICES, RUNTIME};
use confinement::{Conditional, FIONBIO, Forbidden, Limits, OWN_FCNTLS, Profile, RUNTIME_IF, STREAM_PAIRS};
use machine::devices::DeviceSpec;
use machine::native::protocol::Spec;

/// Takes root, privileges, capabilities and the file system from the calling thread, the only one, and those it will
/// start. The log hears what the host's kernel does not have.
pub fn confine_process() -> Result<(), ConfineError> {
    let report = confinement::enter_with_nothing(Limits::default())?;
    report.warnings().for_each(|warning| tracing::warn!("{warning}"));
    Ok(())
}

/// Leaves all threads only the system calls of a running machine. `ioctls` are the hypervisor's requests. Needs
/// [`confine_process`].
pub fn confine_threads(ioctls: &[u32], limits: Limits) -> Result<(), ConfineError> {
    limits.apply().map_err(ConfineError::Limits)?;
    profile(&[ioctls, &[FIONBIO]].concat()).filter().install_for_all_threads().map_err(ConfineError::Seccomp)
}

/// The process writes nothing behind the longest writable disk, and maps little more than the guest's memory. The memory
/// itself, which may be a file, comes first.
#[must_use]
pub fn limits(spec: &Spec) -> Limits {
    let longest = spec.devices.iter().map(DeviceSpec::writable_end).max().unwrap_or(0);
    Limits::new(longest, u64::from(spec.memory_mib) << 20, OWN_MEMORY)
}

/// What this process maps besides the guest's memory: its code, buffers, and stacks of threads.
const OWN_MEMORY: u64 = 1 << 30;

const CONDITIONAL: &[Conditional] = &[STREAM_PAIRS];

/// Nothing in it names a file or a process; an address only for sockets that take one, and the process neither has nor
/// makes such a socket.
fn profile(ioctls: &[u32]) -> Profile<'_> {
    Profile {
        calls: &[RUNTIME, DEVICES],
        conditional: &[RUNTIME_IF, CONDITIONAL],
        ioctls,
        fcntls: OWN_FCNTLS,
        absent: &[],
        otherwise: Forbidden::Kill,
    }
}
