//! The recorded specification of a sandbox, which anyone may read later.
//!
//! The serialized form is the state database's own; members are added, never changed. Not here: leaving out secrets
//! (`life::remembered`), and the JSON that users see (`wire`).

use std::net::IpAddr;

use serde::{Deserialize, Serialize};

/// A specification without anything that could be secret.
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
    /// The folders beside the image's.
    pub mounts: Vec<MountConfig>,
    /// A client's `timeout_seconds`: not enforced.
    pub timeout_seconds: Option<f64>,
    /// How long the sandbox may live.
    pub time_limit_seconds: Option<f64>,
    /// Host name; `None` = the id.
    pub hostname: Option<String>,
    /// Lines for /etc/hosts.
    pub add_hosts: Vec<(String, IpAddr)>,
    /// Lines for /etc/resolv.conf.
    pub nameservers: Vec<IpAddr>,
    /// Names of variables; their values are never stored.
    pub env: Vec<String>,
    /// Names of variables in place of the image's.
    pub image_env: Option<Vec<String>>,
    /// Entrypoint in place of the image's.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments to the entrypoint in place of the image's.
    pub cmd: Option<Vec<String>>,
    /// User in place of the image's; empty = the image's.
    pub user: String,
    /// Working directory in place of the image's; empty = the image's.
    pub working_dir: String,
    /// Whether programs run without the restrictions inside the guest.
    pub privileged: bool,
    /// Working directory if neither sandbox nor image has one; empty = none.
    pub workspace: String,
    /// Whether the user asked for no network.
    pub no_network: bool,
    /// The network that was asked for.
    pub network: NetworkConfig,
    /// Whether the command started with the sandbox.
    pub launch_entrypoint: bool,
    /// Whether a small init is PID 1 above the command.
    pub init: bool,
    /// Whether the record, and what was changed of overlays, is kept when the sandbox has ended.
    pub keep: bool,
}

/// The network that was asked for. Run-time changes of the allow list are not in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkConfig {
    /// `auto`, `tap`, `none`; empty in a record of an older release, whose sandboxes had no network.
    pub arrival: String,
    /// Largest packet.
    pub mtu: u16,
    /// Hosts that may be reached; none = the public internet.
    pub allowed: Vec<String>,
    /// Hosts that may not be reached.
    pub denied: Vec<String>,
    /// Hosts whose TLS is not looked into.
    pub passthrough: Vec<String>,
    /// Whether every connection is inspected.
    pub intercept: bool,
    /// Whether private addresses are open, as far as the lists open them.
    pub private_open: bool,
}

/// A disk of the user's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct DiskConfig {
    /// The disk's image: an absolute path, or `@` and the name of a volume.
    pub source: String,
    /// The directory that the disk is mounted on.
    pub guest_path: String,
    /// Whether the guest cannot write to the disk.
    pub readonly: bool,
    /// The user that owns the disk's root directory.
    pub uid: Option<u32>,
    /// The group that owns the disk's root directory.
    pub gid: Option<u32>,
}

/// A folder beside the image's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountConfig {
    /// The folder's place.
    pub guest_path: String,
    /// `memory`, `host_fs`, `overlay`.
    pub kind: String,
    /// The path on the host: absolute.
    pub host_path: Option<String>,
    /// Whether the guest may only read.
    pub readonly: bool,
    /// The user that the guest sees as the owner of files to which it gave no other.
    pub uid: Option<u32>,
    /// The group that the guest sees as that of files to which it gave no other.
    pub gid: Option<u32>,
    /// When the guest sees what the host changes: `none`, `auto`, `always`; `host_fs` only.
    pub cache: Option<String>,
    /// Whether it was added while the sandbox ran.
    pub added: bool,
}
