//! The network part of `create`, and the messages of a callback socket.

use std::collections::BTreeMap;
use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Network of a sandbox.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Network {
    /// How packets get out: `auto` (the default), `tap`, `none`.
    pub arrival: Option<String>,
    /// Hosts that may be reached; empty = every host that nothing else forbids.
    pub allowed_hosts: Option<Vec<String>>,
    /// Hosts that may not be reached, whatever else is said.
    pub denied_hosts: Option<Vec<String>>,
    /// Hosts whose TLS is not looked into.
    pub passthrough_hosts: Option<Vec<String>>,
    /// Whether private addresses are unreachable. Absent = false, if there is a network object.
    pub block_private_ips: Option<bool>,
    /// Lines for /etc/hosts.
    pub add_hosts: Option<Vec<HostMapping>>,
    /// Whether there is no network device.
    pub no_network: Option<bool>,
    /// Whether every connection is inspected.
    pub intercept: Option<bool>,
    /// Rules for requests.
    pub interception: Option<NetworkInterception>,
    /// Secrets by name of their variable.
    pub secrets: Option<BTreeMap<String, Option<Secret>>>,
    /// Unused.
    pub policy_script: Option<String>,
    /// Servers that names are asked of; default: the host's.
    pub dns_servers: Option<Vec<String>>,
    /// Host name; default: the sandbox's id.
    pub hostname: Option<String>,
    /// 68 to 65521; default 1500.
    pub mtu: Option<i64>,
}

/// A line for /etc/hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct HostMapping {
    /// The name.
    pub host: Option<String>,
    /// The address.
    pub ip: Option<String>,
}

/// A secret. Programs see a placeholder; requests to its hosts carry the value.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Secret {
    /// The secret's value.
    pub value: Option<String>,
    /// Hosts that the secret may go to; empty = any.
    pub hosts: Option<Vec<String>>,
    /// The placeholder; absent = a random one.
    pub placeholder: Option<String>,
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Secret").field("hosts", &self.hosts).finish_non_exhaustive()
    }
}

/// Rules for requests, and the socket on which the client answers callbacks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct NetworkInterception {
    /// The rules, in their order.
    pub rules: Option<Vec<NetworkRule>>,
    /// Unix stream socket of the client.
    pub callback_socket: Option<String>,
}

/// A rule for requests.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "named for what they set")]
pub struct NetworkRule {
    pub name: Option<String>,
    /// `before` (the default) or `after`.
    pub phase: Option<String>,
    pub hosts: Option<Vec<String>>,
    pub methods: Option<Vec<String>>,
    pub path: Option<String>,
    /// `allow` (the default), `block`, `mutate`.
    pub action: Option<String>,
    pub timeout_ms: Option<i64>,
    /// The id of a callback, if the client is asked.
    pub callback_id: Option<String>,
    pub set_headers: Option<BTreeMap<String, String>>,
    pub delete_headers: Option<Vec<String>>,
    pub set_query: Option<BTreeMap<String, String>>,
    pub delete_query: Option<Vec<String>>,
    pub rewrite_path: Option<String>,
    pub set_response_headers: Option<BTreeMap<String, String>>,
    pub delete_response_headers: Option<Vec<String>>,
    pub body_replacements: Option<Vec<BodyReplacement>>,
}

/// One literal replacement in a response's body.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct BodyReplacement {
    /// The text that is replaced.
    pub find: Option<String>,
    /// The replacement; absent = nothing.
    pub replace: Option<String>,
}

/// A question on a client's callback socket, one line a connection.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "named as in the request they tell of")]
pub struct CallbackRequest {
    pub callback_id: String,
    /// `before` or `after`.
    pub phase: String,
    pub host: String,
    pub method: String,
    pub path: String,
    /// The first value of each key.
    pub query: BTreeMap<String, String>,
    pub request_headers: BTreeMap<String, Vec<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub status_code: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub response_headers: Option<BTreeMap<String, Vec<String>>>,
    /// Whether the response is a stream of events.
    pub is_sse: bool,
}

/// The answer of a callback. Without any member nothing changes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "named for what they change")]
pub struct CallbackAnswer {
    pub action: Option<String>,
    pub request: Option<RequestMutation>,
    pub response: Option<ResponseMutation>,
    /// The callback failed; nothing changes.
    pub error: Option<String>,
}

/// Changes of a request. `headers` and `query` replace all former ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "named for what they change")]
pub struct RequestMutation {
    pub headers: Option<BTreeMap<String, Vec<String>>>,
    pub query: Option<BTreeMap<String, String>>,
    pub path: Option<String>,
}

/// Changes of a response. `headers` replace all former ones.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "named for what they change")]
pub struct ResponseMutation {
    pub headers: Option<BTreeMap<String, Vec<String>>>,
    pub body_replacements: Option<Vec<BodyReplacement>>,
    #[schemars(extend("contentEncoding" = "base64"))]
    pub set_body_base64: Option<String>,
}
