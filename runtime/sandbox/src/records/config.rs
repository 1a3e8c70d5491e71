//! What a sandbox was asked to be, as far as anybody may read it later.
//!
//! The serialized form is the state database's own; members are added, never changed. Not here: what of a specification is
//! kept (`life::remembered`), and the JSON that users see (`wire`).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// What was asked for, without what nobody may read.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Config {
    /// Image reference.
    pub image: String,
    /// Kernel reference; empty = the default kernel.
    pub kernel: String,
    /// CPUs.
    pub cpus: f64,
    /// Guest RAM.
    pub memory_mb: u32,
    /// Writable disk.
    pub disk_size_mb: u64,
    /// The user's disks.
    pub disks: Vec<DiskConfig>,
    /// What a client named as `timeout_seconds`; not enforced.
    pub timeout_seconds: Option<f64>,
    /// How long the sandbox may live.
    pub time_limit_seconds: Option<f64>,
    /// Host name; `None` = the id.
    pub hostname: Option<String>,
    /// Lines for /etc/hosts.
    pub add_hosts: Vec<(String, IpAddr)>,
    /// Lines for /etc/resolv.conf.
    pub nameservers: Vec<IpAddr>,
    /// Names of variables; their values are nobody's business.
    pub env: Vec<String>,
    /// Names of variables instead of the image's.
    pub image_env: Option<Vec<String>>,
    /// Instead of the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Instead of the image's arguments to it.
    pub cmd: Option<Vec<String>>,
    /// Instead of the image's user; empty = the image's.
    pub user: String,
    /// Instead of the image's working directory; empty = the image's.
    pub working_dir: String,
    /// No restrictions inside the guest.
    pub privileged: bool,
    /// Directory of the sandbox's own; empty = none.
    pub workspace: String,
    /// No network.
    pub no_network: bool,
    /// Whether its command started with it.
    pub launch_entrypoint: bool,
    /// Whether a small init is PID 1 above its command.
    pub init: bool,
}

/// A disk of the user's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskConfig {
    /// Its image: an absolute path, or `@` and the name of a volume.
    pub source: String,
    /// Where it is mounted.
    pub guest_path: String,
    /// Whether the guest cannot write it.
    pub readonly: bool,
    /// User its root directory was given to.
    pub uid: Option<u32>,
    /// Group its root directory was given to.
    pub gid: Option<u32>,
}
