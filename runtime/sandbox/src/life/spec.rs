//! The specification of a sandbox.

use std::time::Duration;

use images::Pull;
use policy::disks::Disk;
use policy::files::WantedMasks;
use policy::machine::WantedMachine;
use policy::mounts::Mount;
use policy::network::Network;
use policy::resources::WantedResources;

use crate::agent::command::ImageOverrides;
use crate::life::files::FileWatch;

/// How long programs may take to end by themselves unless the user says otherwise: enough for a program that handles
/// SIGTERM.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(2);

/// The specification of a sandbox.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Image reference.
    pub image: String,
    /// Whether and when the image's registry is asked.
    pub pull: Pull,
    /// Kernel reference; empty = the default kernel.
    pub kernel: String,
    /// The machine, or the choice of one.
    pub machine: WantedMachine,
    /// CPUs, memory, disk.
    pub resources: WantedResources,
    /// The user's disks.
    pub disks: Vec<Disk>,
    /// The folders that the guest has beside its image's.
    pub mounts: Vec<Mount>,
    /// Masks of the mounts that are added while the guest runs; `mounts` have theirs.
    pub masks: WantedMasks,
    /// Rules for the files of the mounts, and whether operations on them are told.
    pub watch: FileWatch,
    /// The network, and names and addresses of the sandbox and of others.
    pub network: Network,
    /// Environment of every program, over the image's.
    pub env: Vec<(String, String)>,
    /// Entrypoint in place of the image's.
    pub entrypoint: Option<Vec<String>>,
    /// Values in place of the rest of the image's configuration.
    pub image_config: ImageOverrides,
    /// Lifts the restrictions inside the guest.
    pub privileged: bool,
    /// Whether the command starts with the sandbox. Recorded here; the sandbox's owner starts the command.
    pub launch_entrypoint: bool,
    /// Whether a small init is PID 1 above the command. Recorded here; the starter of the command applies it.
    pub init: bool,
    /// A client's `timeout_seconds`: recorded, not enforced.
    pub unenforced_timeout_seconds: Option<f64>,
    /// How long the sandbox may live.
    pub time_limit: Option<TimeLimit>,
    /// Keeps the record and the log after the end.
    pub keep: bool,
    /// How long the guest's programs may take to end by themselves, at most half of the time to end in. If it is
    /// zero, and neither the record is kept nor a disk writable, the machine is just stopped.
    pub grace: Duration,
}

/// How long a sandbox may live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeLimit {
    /// Counted from its start, preparations included.
    FromStart(Duration),
    /// Counted from the moment when the guest is ready.
    FromReady(Duration),
}

impl TimeLimit {
    /// The limit's length.
    #[must_use]
    pub fn duration(self) -> Duration {
        match self {
            Self::FromStart(limit) | Self::FromReady(limit) => limit,
        }
    }
}
