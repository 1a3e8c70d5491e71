//! The messages of `matchlock rpc` and its clients, one JSON object a line.
//!
//! In every received message `null` means absent, and unknown members are ignored. A member is optional to the sender
//! exactly if it is an `Option` here. Bytes travel as padded standard base64 (RFC 4648 §4). Names and meaning are a
//! promise to clients: members and methods are added, never changed. Not here: framing, checks, and the methods'
//! work.

mod create;
mod exec;
mod files;
mod methods;
mod network;
mod notifications;
mod schema;

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use create::{
    CreateParams, CreateResult, DirectMount, ExtraDisk, FileRule, ImageConfig, Kernel, Mount, Resources, Vfs,
    VfsInterception,
};
pub use exec::{
    ExecParams, ExecResult, ExecTtyParams, ProcessInfo, ProcessListResult, ProcessOutputResult,
    ProcessParams, ProcessSignalParams, ProcessWaitResult, ResizeParams, StartedResult, StdinParams,
    StreamResult,
};
pub use files::{
    FileInfo, ListFilesResult, MkdirParams, PathParams, ReadFileParams, ReadFileResult, RemoveParams,
    RenameParams, StatParams, WatchParams, WriteFileParams,
};
pub use methods::{
    AllowListAddResult, AllowListDeleteResult, AllowListParams, Binding, CancelParams, CancelResult,
    CloseParams, Empty, Forward, HelloResult, IdParams, LogResult, MountAddParams, MountEntry,
    MountListResult, MountRemoveParams, PortForwardParams, PortForwardResult,
};
pub use network::{
    BodyReplacement, CallbackAnswer, CallbackRequest, HostMapping, Network, NetworkInterception, NetworkRule,
    RequestMutation, ResponseMutation, Secret,
};
pub use notifications::{
    ChangeKind, ChangeParams, DataParams, EventParams, ExecEvent, FileEvent, NetworkEvent, StdinAckParams,
};
pub use schema::{FIRE_AND_FORGET, METHODS, NOTIFICATIONS, schema};

/// Version of this protocol, which `hello` returns. Raised when something is added that a client may want to test
/// for.
pub const PROTOCOL: u32 = 1;

/// `jsonrpc` of every message.
pub const JSONRPC: &str = "2.0";

/// A line to the server.
#[derive(Debug, Clone, Deserialize)]
pub struct Request<'a> {
    /// Chosen by the client; answers and notifications repeat it.
    pub id: Option<u64>,
    /// The method.
    #[serde(borrow)]
    pub method: Option<Cow<'a, str>>,
    /// The method's parameters, an object.
    #[serde(borrow)]
    pub params: Option<&'a RawValue>,
}

/// An answer. Exactly one of `result` and `error` is present.
#[derive(Debug, Clone, Serialize)]
pub struct Response<T> {
    /// [`JSONRPC`].
    pub jsonrpc: &'static str,
    /// The request's id; absent if it had none, or could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// The result.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<T>,
    /// The error.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorObject>,
}

/// A message from the server that is no answer.
#[derive(Debug, Clone, Serialize)]
pub struct Notification<T> {
    /// [`JSONRPC`].
    pub jsonrpc: &'static str,
    /// The notification's name.
    pub method: &'static str,
    /// The notification's parameters.
    pub params: T,
}

/// The reason why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorObject {
    /// The code, one of [`ErrorCode`].
    pub code: i64,
    /// The message, for people.
    pub message: String,
}

/// The kinds of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The line is no request.
    Parse,
    /// The request cannot be one: it is too long, or lacks the id that its method needs.
    InvalidRequest,
    /// There is no such method.
    MethodNotFound,
    /// The parameters are wrong.
    InvalidParams,
    /// The sandbox does not exist, could not be made, or could not be changed.
    Vm,
    /// A program could not be run, or was lost.
    Exec,
    /// An act on files failed.
    File,
    /// The request was ended by `cancel`, by `close`, or by a time limit of `close`.
    Cancelled,
}

impl ErrorCode {
    /// Every code.
    pub const ALL: [Self; 8] = [
        Self::Parse,
        Self::InvalidRequest,
        Self::MethodNotFound,
        Self::InvalidParams,
        Self::Vm,
        Self::Exec,
        Self::File,
        Self::Cancelled,
    ];

    /// The number on the wire.
    #[must_use]
    pub fn number(self) -> i64 {
        match self {
            Self::Parse => -32700,
            Self::InvalidRequest => -32600,
            Self::MethodNotFound => -32601,
            Self::InvalidParams => -32602,
            Self::Vm => -32000,
            Self::Exec => -32001,
            Self::File => -32002,
            Self::Cancelled => -32003,
        }
    }

    /// The code's name in the schema.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Parse => "parse",
            Self::InvalidRequest => "invalid_request",
            Self::MethodNotFound => "method_not_found",
            Self::InvalidParams => "invalid_params",
            Self::Vm => "vm_failed",
            Self::Exec => "exec_failed",
            Self::File => "file_failed",
            Self::Cancelled => "cancelled",
        }
    }
}
