//! `create`: what a sandbox is to be.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Network;

/// Parameters of `create`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CreateParams {
    /// Image reference. Required, not empty.
    pub image: Option<String>,
    /// Not to be set.
    pub id: Option<String>,
    /// No restrictions inside the guest.
    pub privileged: Option<bool>,
    /// Guest kernel.
    pub kernel: Option<Kernel>,
    /// Start the image's entrypoint.
    pub launch_entrypoint: Option<bool>,
    /// A small init is PID 1 above the entrypoint: it reaps orphans, and lets signals act as they do on any process.
    pub init: Option<bool>,
    /// CPUs, memory, disk, time.
    pub resources: Option<Resources>,
    /// Network; absent = no policy of the caller's own. If it is there it replaces the default as a whole.
    pub network: Option<Network>,
    /// Mounts; absent = none.
    pub vfs: Option<Vfs>,
    /// Variables of every program.
    pub env: Option<BTreeMap<String, Option<String>>>,
    /// ext4 images of the host as disks of the guest; at most 8.
    pub extra_disks: Option<Vec<ExtraDisk>>,
    /// In place of what the image says.
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

/// How much a sandbox gets. A member that is not over 0 counts as absent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct Resources {
    /// CPUs, fractions allowed; default 1.
    pub cpus: Option<f64>,
    /// MB of memory; default 512.
    pub memory_mb: Option<i64>,
    /// MB of writable disk; default 5120.
    pub disk_size_mb: Option<i64>,
    /// Remembered and shown, not enforced: published clients send 300 when their user sets nothing.
    pub timeout_seconds: Option<f64>,
    /// Seconds the sandbox may run; no limit if absent.
    pub time_limit_seconds: Option<f64>,
}

/// In place of what the image says. For user and directory something not empty wins; for the others, presence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ImageConfig {
    /// `uid`, `uid:gid`, `name`, `name:group`.
    pub user: Option<String>,
    /// Directory.
    pub working_dir: Option<String>,
    /// Entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Arguments to it.
    pub cmd: Option<Vec<String>>,
    /// Variables.
    pub env: Option<BTreeMap<String, Option<String>>>,
}

/// A raw ext4 image of the host as a disk of the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExtraDisk {
    /// The image: a path, or `@` and the name of a volume.
    pub host_path: Option<String>,
    /// Where it is mounted: an absolute path; directories on the way are made.
    pub guest_mount: Option<String>,
    /// Read-only.
    pub readonly: Option<bool>,
    /// User that the mount's root is given to. Writable disks only.
    pub owner_uid: Option<u32>,
    /// Group that the mount's root is given to. Writable disks only.
    pub owner_gid: Option<u32>,
}

/// What the guest sees of the host's files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Vfs {
    /// Directory that programs start in, if neither image nor request names another.
    pub workspace: Option<String>,
    /// Mounts by guest path.
    pub mounts: Option<BTreeMap<String, Option<Mount>>>,
    /// Rules and events.
    pub interception: Option<VfsInterception>,
    /// Host directories without rules, by guest path.
    pub direct_mounts: Option<BTreeMap<String, Option<DirectMount>>>,
}

/// A mount.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Mount {
    /// `memory`, `host_fs` (also called `real_fs`), `overlay`.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The host's directory.
    pub host_path: Option<String>,
    /// Read-only.
    pub readonly: Option<bool>,
    /// User id that every file has. `host_fs` only.
    pub owner_uid: Option<u32>,
    /// Group id that every file has. `host_fs` only.
    pub owner_gid: Option<u32>,
    /// Not to be set.
    pub upper: Option<serde_json::Value>,
    /// Not to be set.
    pub lower: Option<serde_json::Value>,
}

/// A host directory without rules.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DirectMount {
    /// The host's directory.
    pub host_path: Option<String>,
    /// Read-only.
    pub readonly: Option<bool>,
}

/// Rules for what the guest does with mounted files.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct VfsInterception {
    /// Tell every operation.
    pub emit_events: Option<bool>,
    /// First match wins.
    pub rules: Option<Vec<FileRule>>,
}

/// A rule for file operations.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileRule {
    /// For people.
    pub name: Option<String>,
    /// `before` (the default) or `after`.
    pub phase: Option<String>,
    /// Operations; empty = all.
    pub ops: Option<Vec<String>>,
    /// Glob over the guest path; empty = all.
    pub path: Option<String>,
    /// `allow` or `block`.
    pub action: Option<String>,
    /// Of callbacks.
    pub timeout_ms: Option<i64>,
}
