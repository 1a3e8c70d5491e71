//! All other parameters and results.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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
