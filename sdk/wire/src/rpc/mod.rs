//! What `matchlock rpc` and its clients say to each other, one JSON object a line.
//!
//! In everything that is received, `null` means absent and unknown members mean nothing. A member is optional to the
//! sender exactly if it is an `Option` here. Bytes travel as padded standard base64 (RFC 4648 §4). Names and meaning are
//! a promise to clients: members and methods are added, never changed. Not here: framing, checks, and what the methods
//! do.

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
    CloseParams, Empty, Forward, HelloResult, IdParams, LogResult, PortForwardParams, PortForwardResult,
};
pub use network::{
    BodyReplacement, CallbackAnswer, CallbackRequest, HostMapping, Network, NetworkInterception, NetworkRule,
    RequestMutation, ResponseMutation, Secret,
};
pub use notifications::{
    ChangeKind, ChangeParams, DataParams, EventParams, ExecEvent, FileEvent, NetworkEvent, StdinAckParams,
};
pub use schema::{FIRE_AND_FORGET, METHODS, NOTIFICATIONS, schema};

/// Version of this protocol as `hello` tells it. Raised when something is added that a client may want to ask for.
pub const PROTOCOL: u32 = 1;

/// `jsonrpc` of every message.
pub const JSONRPC: &str = "2.0";

/// A line to the server.
#[derive(Debug, Clone, Deserialize)]
pub struct Request<'a> {
    /// Chosen by the client; answers and notifications carry it.
    pub id: Option<u64>,
    /// Which method.
    #[serde(borrow)]
    pub method: Option<Cow<'a, str>>,
    /// Its parameters, an object.
    #[serde(borrow)]
    pub params: Option<&'a RawValue>,
}

/// An answer. Exactly one of `result` and `error` is there.
#[derive(Debug, Clone, Serialize)]
pub struct Response<T> {
    /// [`JSONRPC`].
    pub jsonrpc: &'static str,
    /// The request's; absent if it had none, or could not be read.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<u64>,
    /// What came of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub result: Option<T>,
    /// Why nothing came of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<ErrorObject>,
}

/// Something told without being asked.
#[derive(Debug, Clone, Serialize)]
pub struct Notification<T> {
    /// [`JSONRPC`].
    pub jsonrpc: &'static str,
    /// Which.
    pub method: &'static str,
    /// About what.
    pub params: T,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorObject {
    /// One of [`ErrorCode`].
    pub code: i64,
    /// For people.
    pub message: String,
}

/// Kinds of errors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ErrorCode {
    /// The line is no request.
    Parse,
    /// A request that cannot be one: too long, or without the id it needs.
    InvalidRequest,
    /// No such method.
    MethodNotFound,
    /// The parameters are wrong.
    InvalidParams,
    /// The sandbox: there is none, it could not be made, or it could not be changed.
    Vm,
    /// A program could not be run, or was lost.
    Exec,
    /// An act on files.
    File,
    /// Ended by `cancel`, by `close`, by a time limit of `close`.
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

    /// Its name in the schema.
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
