//! `create`: the specification of a sandbox.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Network;

/// Parameters of `create`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CreateParams {
    /// Image reference. Required, not empty.
    pub image: Option<String>,
    /// Must not be set.
    pub id: Option<String>,
    /// Lifts the restrictions inside the guest.
    pub privileged: Option<bool>,
    /// Guest kernel.
    pub kernel: Option<Kernel>,
    /// Whether to start the image's entrypoint.
    pub launch_entrypoint: Option<bool>,
    /// Whether a small init is PID 1 above the entrypoint: it reaps orphans, and lets signals act as they do on any
    /// process.
    pub init: Option<bool>,
    /// CPUs, memory, disk, time.
    pub resources: Option<Resources>,
    /// Network; absent = the default. A network that is given replaces the default as a whole.
    pub network: Option<Network>,
    /// Mounts; absent = none.
    pub vfs: Option<Vfs>,
    /// Variables of every program.
    pub env: Option<BTreeMap<String, Option<String>>>,
    /// ext4 images of the host as disks of the guest; at most 8.
    pub extra_disks: Option<Vec<ExtraDisk>>,
    /// Values in place of the image's.
    pub image_config: Option<ImageConfig>,
}

/// Result of `create`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CreateResult {
    /// The sandbox's id: `vm-` and 8 hex digits.
    pub id: String,
}

/// Guest kernel.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Kernel {
    /// Empty = the default; `file:///absolute/path`; or an OCI image.
    #[serde(rename = "ref")]
    pub reference: Option<String>,
}

/// The resources of a sandbox. A member that is not over 0 counts as absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Resources {
    /// CPUs, fractions allowed; default 1.
    pub cpus: Option<f64>,
    /// MB of memory; default 512.
    pub memory_mb: Option<i64>,
    /// MB of writable disk; default 5120.
    pub disk_size_mb: Option<i64>,
    /// Recorded and shown, not enforced: published clients send 300 when their user sets nothing.
    pub timeout_seconds: Option<f64>,
    /// Seconds that the sandbox may run; no limit if absent.
    pub time_limit_seconds: Option<f64>,
}

/// Values in place of the image's. User and directory count if they are not empty; the others if they are present.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageConfig {
    /// `uid`, `uid:gid`, `name`, `name:group`.
    pub user: Option<String>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// Entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments to the entrypoint.
    pub cmd: Option<Vec<String>>,
    /// Variables.
    pub env: Option<BTreeMap<String, Option<String>>>,
}

/// A raw ext4 image of the host as a disk of the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExtraDisk {
    /// The image: a path, or `@` and the name of a volume.
    pub host_path: Option<String>,
    /// The directory that it is mounted on: an absolute path; directories on the way are made.
    pub guest_mount: Option<String>,
    /// Whether the guest cannot write to it.
    pub readonly: Option<bool>,
    /// The new owner of the disk's root directory. Writable disks only.
    pub owner_uid: Option<u32>,
    /// The new group of the disk's root directory. Writable disks only.
    pub owner_gid: Option<u32>,
}

/// The host's files in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Vfs {
    /// Working directory of programs, if neither image nor request names another: an absolute path, made if it is missing.
    /// With mounts `/workspace` if absent.
    pub workspace: Option<String>,
    /// Mounts by guest path; at most 32.
    pub mounts: Option<BTreeMap<String, Option<Mount>>>,
    /// Rules and events.
    pub interception: Option<VfsInterception>,
    /// More of the host's directories and files, by guest path: a short form of `host_fs` mounts. Rules hold here too.
    pub direct_mounts: Option<BTreeMap<String, Option<DirectMount>>>,
}

/// A folder of the guest's beside its image's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mount {
    /// `memory` (the default), `host_fs` (also called `real_fs`), `overlay`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The host's directory or file. `host_fs` and `overlay` only, which need one.
    pub host_path: Option<String>,
    /// Whether the guest cannot write to it. `host_fs` and `overlay` only.
    pub readonly: Option<bool>,
    /// User id of all files to which the guest gave no other. `host_fs` only.
    pub owner_uid: Option<u32>,
    /// Group id of all files to which the guest gave no other. `host_fs` only.
    pub owner_gid: Option<u32>,
    /// When the guest sees what the host changes: `none`, `auto` (the default), `always`. `host_fs` only.
    pub cache: Option<String>,
    /// Globs of names that the guest does not see.
    pub mask: Option<Vec<String>>,
    /// Globs of names that the guest cannot change.
    pub mask_readonly: Option<Vec<String>>,
    /// Whether the guest cannot change what programs of the host run or obey by themselves.
    pub protect: Option<bool>,
    /// Must not be set.
    pub upper: Option<serde_json::Value>,
    /// Must not be set.
    pub lower: Option<serde_json::Value>,
}

/// A directory or file of the host's, as a `host_fs` mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DirectMount {
    /// The host's directory or file.
    pub host_path: Option<String>,
    /// Whether the guest cannot write to it.
    pub readonly: Option<bool>,
}

/// Rules for the guest's operations on mounted files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VfsInterception {
    /// Whether every operation is reported.
    pub emit_events: Option<bool>,
    /// The rules, of which the first match wins.
    pub rules: Option<Vec<FileRule>>,
}

/// A rule for file operations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileRule {
    /// A name for people.
    pub name: Option<String>,
    /// `before` (the default) or `after`.
    pub phase: Option<String>,
    /// The operations; empty = all.
    pub ops: Option<Vec<String>>,
    /// Glob over the guest path; empty = all.
    pub path: Option<String>,
    /// `allow` or `block`.
    pub action: Option<String>,
    /// Time limit of callbacks.
    pub timeout_ms: Option<i64>,
}
