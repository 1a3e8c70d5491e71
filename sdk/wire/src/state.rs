//! The output of `matchlock get`, `matchlock inspect` and `matchlock diff --json`.
//!
//! Of variables there are only names: no value here can be a secret. Times are RFC 3339, UTC.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::is_zero;

/// `matchlock get`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VmDetails {
    /// The sandbox's id.
    pub id: String,
    /// Owner's process id; 0 = it has ended.
    pub pid: u32,
    /// `running`, `stopped`, `crashed`.
    pub status: String,
    /// The sandbox's image, as the user named it.
    pub image: String,
    /// `YYYY-MM-DDTHH:MM:SSZ`.
    pub created_at: String,
    /// The specification.
    pub config: VmConfig,
}

/// A sandbox's specification, in the terms of `create`; variables by name only.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VmConfig {
    /// Image reference.
    pub image: String,
    /// Whether programs run without the restrictions inside the guest.
    pub privileged: bool,
    /// Whether the command started with the sandbox.
    pub launch_entrypoint: bool,
    /// Whether a small init is PID 1 above the command.
    pub init: bool,
    /// Kernel.
    pub kernel: VmKernel,
    /// CPUs, memory, disk, time.
    pub resources: VmResources,
    /// The user's disks.
    pub extra_disks: Vec<VmDisk>,
    /// Names and addresses.
    pub network: VmNetwork,
    /// Directories.
    pub vfs: VmVfs,
    /// Variables, each with `***` for its value.
    pub env: BTreeMap<String, &'static str>,
    /// Names of variables.
    pub env_names: Vec<String>,
    /// Values in place of the image's.
    pub image_config: VmImageConfig,
}

/// A kernel reference; empty = the default kernel.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmKernel {
    /// The reference.
    #[serde(rename = "ref")]
    pub reference: String,
}

/// The resources of a sandbox.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct VmResources {
    /// CPUs.
    pub cpus: f64,
    /// Guest RAM.
    pub memory_mb: u32,
    /// Writable disk.
    pub disk_size_mb: u64,
    /// A client's `timeout_seconds`: not enforced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<f64>,
    /// How long the sandbox may live.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_limit_seconds: Option<f64>,
}

/// A disk of the user's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmDisk {
    /// The disk's image: an absolute path, or `@` and the name of a volume.
    pub host_path: String,
    /// The directory that the disk is mounted on.
    pub guest_mount: String,
    /// Whether the guest cannot write to the disk.
    pub readonly: bool,
    /// The user that owns the disk's root directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_uid: Option<u32>,
    /// The group that owns the disk's root directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_gid: Option<u32>,
}

/// Names and addresses of a sandbox and of others.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmNetwork {
    /// Whether the user asked for no network.
    pub no_network: bool,
    /// How packets get out: `auto`, `tap`, `none`; absent in a record of an older release.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub arrival: String,
    /// Hosts that could be reached from the start; empty = the public internet.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub allowed_hosts: Vec<String>,
    /// Hosts that cannot be reached.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub denied_hosts: Vec<String>,
    /// Hosts whose TLS is not looked into.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub passthrough_hosts: Vec<String>,
    /// Whether private addresses are closed.
    pub block_private_ips: bool,
    /// Host name, if not the id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Lines of /etc/hosts.
    pub add_hosts: Vec<VmHost>,
    /// Lines of /etc/resolv.conf.
    pub dns_servers: Vec<String>,
}

/// Directories of a sandbox beside its image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmVfs {
    /// The working directory if neither sandbox nor image has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub workspace: String,
    /// The folders beside the image's, by their places.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub mounts: BTreeMap<String, VmMount>,
}

/// A folder of a sandbox's beside its image's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmMount {
    /// `memory`, `host_fs`, `overlay`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The path on the host: absolute.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<String>,
    /// Whether the guest cannot write to the folder.
    pub readonly: bool,
    /// The user that the guest sees as the owner of files to which it gave no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_uid: Option<u32>,
    /// The group that the guest sees as that of files to which it gave no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_gid: Option<u32>,
    /// When the guest sees what the host changes, unless that is `auto`: `none`, `always`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// Whether it was added while the sandbox ran.
    #[serde(skip_serializing_if = "is_zero")]
    pub added: bool,
}

/// A line of /etc/hosts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct VmHost {
    /// Name.
    pub host: String,
    /// Address.
    pub ip: String,
}

/// Values in place of the image's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct VmImageConfig {
    /// User.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user: String,
    /// Working directory.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub working_dir: String,
    /// Entrypoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Arguments to the entrypoint.
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
    /// The sandbox, as in `matchlock get`.
    pub vm: VmDetails,
    /// The latest version in `history`.
    pub lifecycle: Option<Lifecycle>,
    /// Every version, oldest first.
    pub history: Vec<Lifecycle>,
}

/// One version of a sandbox's lifecycle, including the errors and the cleaning up of earlier versions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Lifecycle {
    /// The version's number, counted from 1.
    pub version: u32,
    /// The sandbox's id.
    pub vm_id: String,
    /// The machine: `kvm`, `software`.
    pub backend: String,
    /// `creating`, `running`, `cleaned`, …
    pub phase: String,
    /// `YYYY-MM-DDTHH:MM:SS.mmmZ`.
    pub updated_at: String,
    /// The latest error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub last_error: Option<String>,
    /// The sandbox's directories.
    pub resources: LifecycleResources,
    /// Steps of cleaning up, by name.
    pub cleanup: BTreeMap<String, CleanupStep>,
}

/// A sandbox's directories on the host and in the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct LifecycleResources {
    /// Directory of the sandbox's files on the host.
    pub state_dir: String,
    /// Working directory in the guest, if neither sandbox nor image has one.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub workspace: String,
}

/// One step of cleaning up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct CleanupStep {
    /// The result of the step.
    pub status: StepStatus,
    /// The step's error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// `YYYY-MM-DDTHH:MM:SS.mmmZ`.
    pub updated_at: String,
}

/// The result of a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepStatus {
    /// The step succeeded.
    Ok,
    /// The step failed.
    Error,
}

/// The changes of an overlay.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OverlayChanges {
    /// The overlay's place in the guest.
    pub guest_path: String,
    /// The host's directory that it is over.
    pub host_path: String,
    /// Each change; paths are relative to both.
    pub changes: Vec<OverlayChange>,
    /// Changes that are not told, because their paths are too long.
    #[serde(skip_serializing_if = "is_zero")]
    pub left_out: u64,
}

/// A path that is another one than it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct OverlayChange {
    /// `added`, `modified`, `deleted`, `renamed`, `permissions`.
    pub kind: String,
    /// The path. Bytes that are no text are shown as `\xNN`.
    pub path: String,
    /// The path of the same file before, of one that was renamed or got a further name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<String>,
    /// Whether it is a directory.
    pub directory: bool,
    /// `file`, `directory`, `symbolic link` or `special file`, unless it is deleted. A special file is not taken over.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub file_type: Option<String>,
    /// The type of the file on the host that is changed, renamed or deleted, in the words of `type`.
    #[serde(rename = "type_before", skip_serializing_if = "Option::is_none")]
    pub file_type_before: Option<String>,
    /// The permission bits, in octal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<String>,
    /// The permission bits of the file on the host that is changed, renamed or deleted, in octal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode_before: Option<String>,
    /// The target of a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
    /// Whether the contents are others than on the host.
    pub modified: bool,
    /// The reason why the change cannot be taken over.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conflict: Option<String>,
}
