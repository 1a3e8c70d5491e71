//! All other parameters and results.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::Mount;

/// No parameters, or an empty result: `{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Empty {}

/// Result of `hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HelloResult {
    /// Version of the program.
    pub version: String,
    /// The protocol's version, [`super::PROTOCOL`].
    pub protocol: u32,
    /// Every method that is answered.
    pub methods: Vec<String>,
}

/// A request's id, as a parameter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdParams {
    /// The request's id.
    pub id: Option<u64>,
}

/// Parameters of `cancel`.
pub type CancelParams = IdParams;

/// Result of `cancel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CancelResult {
    /// Whether the request was in flight.
    pub cancelled: bool,
}

/// Parameters of `close`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CloseParams {
    /// Seconds until the answer must come; absent or 0 = 2.
    pub timeout_seconds: Option<f64>,
}

/// Result of `log`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct LogResult {
    /// The sandbox's log.
    #[schemars(extend("contentEncoding" = "base64"))]
    pub content: String,
}

/// Parameters of `allow_list_add` and `allow_list_delete`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AllowListParams {
    /// Patterns; at least one.
    pub hosts: Option<Vec<String>>,
}

/// Result of `allow_list_add`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AllowListAddResult {
    /// The patterns that were new.
    pub added: Vec<String>,
    /// The list as it is now.
    pub allowed_hosts: Vec<String>,
}

/// Result of `allow_list_delete`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AllowListDeleteResult {
    /// The patterns that were in the list.
    pub removed: Vec<String>,
    /// The list as it is now.
    pub allowed_hosts: Vec<String>,
}

/// Parameters of `port_forward`, which replaces all earlier forwards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortForwardParams {
    /// The forwards; at least one.
    pub forwards: Option<Vec<Forward>>,
    /// Addresses of the host to listen on; empty = 127.0.0.1.
    pub addresses: Option<Vec<String>>,
}

/// A forward from a port of the host to one of the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Forward {
    /// The host's port; 0 = any that is free.
    pub local_port: Option<i64>,
    /// The guest's port.
    pub remote_port: Option<i64>,
}

/// Result of `port_forward`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortForwardResult {
    /// The listeners, one for each forward and address.
    pub bindings: Vec<Binding>,
}

/// Parameters of `mount_add`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MountAddParams {
    /// The mount's place in the guest: an absolute path. Required.
    pub guest_path: Option<String>,
    /// The mount; absent = an empty folder in memory.
    pub mount: Option<Mount>,
}

/// Parameters of `mount_remove`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MountRemoveParams {
    /// The mount's place in the guest. Required.
    pub guest_path: Option<String>,
    /// Take it away even if programs use it: what they have open there fails then.
    pub force: Option<bool>,
}

/// Result of `mount_list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MountListResult {
    /// The mounts, those from the start first.
    pub mounts: Vec<MountEntry>,
}

/// A mount of a running sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MountEntry {
    /// The mount's place in the guest.
    pub guest_path: String,
    /// `memory`, `host_fs`, `overlay`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The host's directory or file: an absolute path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_path: Option<String>,
    /// Whether the guest cannot write to it.
    pub readonly: bool,
    /// User id of all files to which the guest gave no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_uid: Option<u32>,
    /// Group id of all files to which the guest gave no other.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner_gid: Option<u32>,
    /// When the guest sees what the host changes, unless that is `auto`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<String>,
    /// Whether it was added while the sandbox ran.
    pub added: bool,
    /// The reason why nothing of it can be reached any more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// A listener on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Binding {
    /// The listener's address.
    pub address: String,
    /// The listener's port.
    pub local_port: u16,
    /// The guest's port.
    pub remote_port: u16,
}
