//! Messages that the server sends without being asked.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::is_zero;

/// Parameters of every notification that carries bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct DataParams {
    /// The request's id.
    pub id: u64,
    /// The bytes; a UTF-8 character is never split.
    #[schemars(extend("contentEncoding" = "base64"))]
    pub data: String,
}

/// Parameters of `exec_pipe.stdin_ack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StdinAckParams {
    /// The request's id.
    pub id: u64,
    /// Bytes of input that have gone to the program since it started.
    pub bytes: u64,
}

/// Parameters of `watch.change`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ChangeParams {
    /// The request's id.
    pub id: u64,
    /// The kind of change.
    pub kind: ChangeKind,
    /// The file, as an absolute path of the guest.
    pub path: String,
}

/// A kind of change of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ChangeKind {
    /// The file was made, or moved in.
    Created,
    /// The file was written or cut, or its metadata changed.
    Modified,
    /// The file was removed, or moved out.
    Removed,
    /// Changes were lost; the directory should be read again.
    Overflow,
}

/// Parameters of `event`, an event of the sandbox. Some may be lost.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct EventParams {
    /// `file`, `network`, `exec` or `lost`: names the member that is present.
    #[serde(rename = "type")]
    pub kind: String,
    /// Time since 1970: milliseconds for `file` and `lost`, seconds for `network`.
    pub timestamp: i64,
    /// The request.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<NetworkEvent>,
    /// The operation on a mounted file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<FileEvent>,
    /// The program.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecEvent>,
    /// Operations on files of which nothing is told but their number: nobody read in time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lost: Option<u64>,
}

/// An operation on a mounted file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "named for what they are")]
pub struct FileEvent {
    pub op: String,
    pub path: String,
    pub size: u64,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub mode: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub uid: u32,
    #[serde(default, skip_serializing_if = "is_zero")]
    pub gid: u32,
}

/// A request that was passed on or blocked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "named for what they are")]
pub struct NetworkEvent {
    pub method: String,
    /// The URL without its query.
    pub url: String,
    pub host: String,
    pub status_code: u16,
    pub request_bytes: u64,
    pub response_bytes: u64,
    pub duration_ms: u64,
    pub blocked: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub block_reason: Option<String>,
}

/// A program that was run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[expect(missing_docs, reason = "named for what they are")]
pub struct ExecEvent {
    pub command: String,
    pub exit_code: i64,
}
