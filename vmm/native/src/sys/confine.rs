//! The VMM process's remaining powers on Linux, from before the first guest instruction.
//!
//! The process opens nothing, so Landlock denies it every path, port and abstract socket that the host's kernel can
//! deny. seccomp then allows the few system calls that the process's work takes, `ioctl` only with the requests of the
//! hypervisor and of a TAP that the machine has, and kills the process at any other call. All threads have one filter: they share their memory, so an
//! attacker who controls one thread controls all of them. Not here: namespaces, which would hide nothing that Landlock
//! and seccomp leave in sight.

pub use confinement::Error as ConfineError;
use confinement::calls::{DEVICES, RUNTIME};
use confinement::{Conditional, FIONBIO, Forbidden, Limits, OWN_FCNTLS, Profile, RUNTIME_IF, STREAM_PAIRS};
use machine::devices::DeviceSpec;
use machine::native::protocol::Spec;

/// Takes root, privileges, capabilities and the file system from the calling thread, which must be the only one, and
/// from the threads that it starts later. Every protection that the host's kernel lacks is logged.
pub fn confine_process() -> Result<(), ConfineError> {
    let report = confinement::enter_with_nothing(Limits::default())?;
    report.warnings().for_each(|warning| tracing::warn!("{warning}"));
    Ok(())
}

/// Leaves all threads only the system calls of a running machine. `ioctls` are the hypervisor's requests and
/// the devices'.
/// [`confine_process`] must have been called.
pub fn confine_threads(ioctls: &[u32], limits: Limits) -> Result<(), ConfineError> {
    limits.apply().map_err(ConfineError::Limits)?;
    profile(&[ioctls, &[FIONBIO]].concat()).filter().install_for_all_threads().map_err(ConfineError::Seccomp)
}

/// The process's limits: no file grows past the end of the longest writable disk, and mappings take little more than
/// the guest's memory. The guest's memory may itself be a file, which gets its length before these limits apply.
#[must_use]
pub fn limits(spec: &Spec) -> Limits {
    let longest = spec.devices.iter().map(DeviceSpec::writable_end).max().unwrap_or(0);
    Limits::new(longest, u64::from(spec.memory_mib) << 20, OWN_MEMORY)
}

/// Most bytes that this process maps besides the guest's memory: its code, buffers, and stacks of threads.
const OWN_MEMORY: u64 = 1 << 30;

const CONDITIONAL: &[Conditional] = &[STREAM_PAIRS];

/// The system calls of a running machine. None of them names a file or a process. Some take a socket address, but only
/// for sockets that accept one, and the process neither has nor makes such a socket.
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
