//! What `matchlock get` and `matchlock inspect` print.
//!
//! Of variables there are only names: nothing of this ever holds a value that might be a secret. Times are RFC 3339, UTC.

use std::collections::BTreeMap;

use serde::Serialize;

/// `matchlock get`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VmDetails {
    /// Its id.
    pub id: String,
    /// Owner's process id; 0 = it has ended.
    pub pid: u32,
    /// `running`, `stopped`, `crashed`.
    pub status: String,
    /// Image, as asked for.
    pub image: String,
    /// `YYYY-MM-DDTHH:MM:SSZ`.
    pub created_at: String,
    /// What was asked for.
    pub config: VmConfig,
}

/// What a sandbox was asked to be, in the words of `create`; variables by name only.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VmConfig {
    /// Image reference.
    pub image: String,
    /// No restrictions inside the guest.
    pub privileged: bool,
    /// Whether its command started with it.
    pub launch_entrypoint: bool,
    /// Whether a small init is PID 1 above its command.
    pub init: bool,
    /// Kernel.
    pub kernel: VmKernel,
    /// CPUs, memory, disk, time.
    pub resources: VmResources,
    /// Further disks.
    pub extra_disks: Vec<VmDisk>,
    /// Names and addresses.
    pub network: VmNetwork,
    /// Directories of its own.
    pub vfs: VmVfs,
    /// Variables, each with `***` for its value.
    pub env: BTreeMap<String, &'static str>,
    /// Names of variables.
    pub env_names: Vec<String>,
    /// In place of what the image says.
    pub image_config: VmImageConfig,
}

/// A kernel reference; empty = the default kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmKernel {
    /// The reference.
    #[serde(rename = "ref")]
    pub reference: String,
}

/// What a sandbox may use.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VmResources {
    /// CPUs.
    pub cpus: f64,
    /// Guest RAM.
    pub memory_mb: u32,
    /// Writable disk.
    pub disk_size_mb: u64,
    /// What a client named as `timeout_seconds`; not enforced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<f64>,
    /// How long the sandbox may live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_limit_seconds: Option<f64>,
}

/// A further disk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmDisk {
    /// Its image: an absolute path, or `@` and the name of a volume.
    pub host_path: String,
    /// Where it is mounted.
    pub guest_mount: String,
    /// Whether the sandbox cannot write it.
    pub readonly: bool,
    /// User its root directory was given to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_uid: Option<u32>,
    /// Group its root directory was given to.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_gid: Option<u32>,
}

/// What a sandbox calls itself and others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmNetwork {
    /// Whether it was asked to have none.
    pub no_network: bool,
    /// Host name, if not the id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Lines of /etc/hosts.
    pub add_hosts: Vec<VmHost>,
    /// Lines of /etc/resolv.conf.
    pub dns_servers: Vec<String>,
}

/// What a sandbox has besides its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmVfs {
    /// Directory made for it.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub workspace: String,
}

/// A line of /etc/hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmHost {
    /// Name.
    pub host: String,
    /// Address.
    pub ip: String,
}

/// What replaces the image's words.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VmImageConfig {
    /// User.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Working directory.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Its arguments.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmd: Option<Vec<String>>,
    /// Variables, each with `***` for its value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env: Option<BTreeMap<String, &'static str>>,
    /// Names of variables.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub env_names: Option<Vec<String>>,
}

/// `matchlock inspect`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Inspection {
    /// As `matchlock get` prints it.
    pub vm: VmDetails,
    /// The latest of `history`.
    pub lifecycle: Option<Lifecycle>,
    /// Every version, oldest first.
    pub history: Vec<Lifecycle>,
}

/// One version of a sandbox's lifecycle; what went wrong and what was cleaned up in earlier ones is in it too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lifecycle {
    /// Counted from 1.
    pub version: u32,
    /// Whose.
    pub vm_id: String,
    /// The machine: `kvm`, `software`.
    pub backend: String,
    /// `creating`, `running`, `cleaned`, …
    pub phase: String,
    /// `YYYY-MM-DDTHH:MM:SS.mmmZ`.
    pub updated_at: String,
    /// What went wrong last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// What it has on the host.
    pub resources: LifecycleResources,
    /// Steps of cleaning up, by name.
    pub cleanup: BTreeMap<String, CleanupStep>,
}

/// What a sandbox has on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LifecycleResources {
    /// Directory of its files.
    pub state_dir: String,
    /// Directory made for it in the guest.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub workspace: String,
}

/// One step of cleaning up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CleanupStep {
    /// How it went.
    pub status: StepStatus,
    /// What went wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// `YYYY-MM-DDTHH:MM:SS.mmmZ`.
    pub updated_at: String,
}

/// How a step went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepStatus {
    /// It is done.
    Ok,
    /// It is not.
    Error,
}
