//! What a sandbox is to be.

use std::net::IpAddr;
use std::time::Duration;

use images::Pull;
use policy::disks::Disk;
use policy::machine as choice;
use policy::resources;

use crate::agent::command::ImageOverrides;

/// How long programs may take to end by themselves when nobody says: long enough for one that is told to end and does so.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(2);

/// What a sandbox is to be.
#[derive(Debug, Clone)]
pub struct Spec {
    /// Image reference.
    pub image: String,
    /// When its registry is asked.
    pub pull: Pull,
    /// Kernel reference; empty = the default kernel.
    pub kernel: String,
    /// Which machine.
    pub machine: choice::Request,
    /// CPUs, memory, disk.
    pub resources: resources::Request,
    /// Further disks.
    pub disks: Vec<Disk>,
    /// Host name; `None` = the id.
    pub hostname: Option<String>,
    /// Lines for /etc/hosts.
    pub add_hosts: Vec<(String, IpAddr)>,
    /// Environment of every program, over the image's.
    pub env: Vec<(String, String)>,
    /// Lines for /etc/resolv.conf.
    pub nameservers: Vec<IpAddr>,
    /// Instead of the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Instead of the rest of what the image says.
    pub image_config: ImageOverrides,
    /// No restrictions inside the guest.
    pub privileged: bool,
    /// Whether it was asked to have no network; remembered here, there is none yet.
    pub no_network: bool,
    /// Whether its command starts with it; remembered here, done by whoever owns it.
    pub launch_entrypoint: bool,
    /// Whether a small init is PID 1 above its command; remembered here, done by whoever starts the command.
    pub init: bool,
    /// What a client named as `timeout_seconds`; remembered, not enforced.
    pub unenforced_timeout_seconds: Option<f64>,
    /// How long the sandbox may live.
    pub time_limit: Option<TimeLimit>,
    /// Keep the record and the log afterwards.
    pub keep: bool,
    /// How long the guest's programs may take to end by themselves, of the time there is to end in half at most; zero, not
    /// kept and no writable disk = the machine is just stopped.
    pub grace: Duration,
}

/// How long a sandbox may live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimeLimit {
    /// Counted from its start, preparations included.
    FromStart(Duration),
    /// Counted from when its guest is ready.
    FromReady(Duration),
}

impl TimeLimit {
    /// Its length.
    #[must_use]
    pub fn duration(self) -> Duration {
        match self {
            Self::FromStart(limit) | Self::FromReady(limit) => limit,
        }
    }
}
