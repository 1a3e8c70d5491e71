//! Everything else that is asked and answered.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// No parameters, or nothing to say: `{}`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Empty {}

/// Result of `hello`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HelloResult {
    /// Version of the program.
    pub version: String,
    /// [`super::PROTOCOL`].
    pub protocol: u32,
    /// Every method that is answered.
    pub methods: Vec<String>,
}

/// A request's id, as a parameter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct IdParams {
    /// Which.
    pub id: Option<u64>,
}

/// Parameters of `cancel`.
pub type CancelParams = IdParams;

/// Result of `cancel`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CancelResult {
    /// Whether there was such a request in flight.
    pub cancelled: bool,
}

/// Parameters of `close`.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct CloseParams {
    /// When to answer at the latest; absent or 0 = 2.
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
    /// Those that were not there.
    pub added: Vec<String>,
    /// The list as it is now.
    pub allowed_hosts: Vec<String>,
}

/// Result of `allow_list_delete`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct AllowListDeleteResult {
    /// Those that were there.
    pub removed: Vec<String>,
    /// The list as it is now.
    pub allowed_hosts: Vec<String>,
}

/// Parameters of `port_forward`, which replaces all earlier forwards.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortForwardParams {
    /// At least one.
    pub forwards: Option<Vec<Forward>>,
    /// Addresses of the host; empty = 127.0.0.1.
    pub addresses: Option<Vec<String>>,
}

/// From a port of the host to one of the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Forward {
    /// On the host; 0 = any that is free.
    pub local_port: Option<i64>,
    /// In the guest.
    pub remote_port: Option<i64>,
}

/// Result of `port_forward`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PortForwardResult {
    /// One for each forward and address.
    pub bindings: Vec<Binding>,
}

/// A listener on the host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Binding {
    /// Its address.
    pub address: String,
    /// Its port.
    pub local_port: u16,
    /// Where it leads.
    pub remote_port: u16,
}
