//! Running programs.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters of `exec`, `exec_stream` and `exec_pipe`. One of `command` and `argv` is needed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecParams {
    /// A command for `sh -c`.
    pub command: Option<String>,
    /// An argument vector, run without a shell.
    pub argv: Option<Vec<String>>,
    /// Working directory; empty = the sandbox's.
    pub working_dir: Option<String>,
    /// `uid`, `uid:gid`, `name`, `name:group`; empty = the sandbox's.
    pub user: Option<String>,
    /// Variables, which override the sandbox's.
    pub env: Option<BTreeMap<String, Option<String>>>,
    /// `exec` only: answer with a process id once the program runs, and leave it running.
    pub detached: Option<bool>,
    /// `exec_pipe` only: report by `exec_pipe.stdin_ack` how much of the input has gone to the program.
    pub stdin_ack: Option<bool>,
}

/// Parameters of `exec_tty`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecTtyParams {
    /// A command for `sh -c`.
    pub command: Option<String>,
    /// An argument vector, run without a shell.
    pub argv: Option<Vec<String>>,
    /// Working directory; empty = the sandbox's.
    pub working_dir: Option<String>,
    /// `uid`, `uid:gid`, `name`, `name:group`; empty = the sandbox's.
    pub user: Option<String>,
    /// Variables, which override the sandbox's.
    pub env: Option<BTreeMap<String, Option<String>>>,
    /// Rows of the terminal; 0 = 24.
    pub rows: Option<i64>,
    /// Columns of the terminal; 0 = 80.
    pub cols: Option<i64>,
}

/// Result of `exec`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecResult {
    /// The program's status; 128 + n for signal n.
    pub exit_code: u8,
    /// The program's standard output.
    #[schemars(extend("contentEncoding" = "base64"))]
    pub stdout: String,
    /// The program's standard error.
    #[schemars(extend("contentEncoding" = "base64"))]
    pub stderr: String,
    /// Milliseconds from the request's arrival to the program's end, seen from the host.
    pub duration_ms: u64,
}

/// Result of `exec` with `detached`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StartedResult {
    /// The program's id, for `process_wait` and `process_signal`.
    pub process_id: u32,
}

/// Result of `exec_stream`, `exec_pipe` and `exec_tty`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StreamResult {
    /// The program's status; 128 + n for signal n.
    pub exit_code: u8,
    /// Milliseconds from the request's arrival to the program's end, seen from the host.
    pub duration_ms: u64,
}

/// Parameters of `exec_pipe.stdin` and `exec_tty.stdin`, which are not answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StdinParams {
    /// The id of the request that runs the program.
    pub id: Option<u64>,
    /// Input.
    #[schemars(extend("contentEncoding" = "base64"))]
    pub data: Option<String>,
}

/// Parameters of `exec_tty.resize`, which is not answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ResizeParams {
    /// The id of the request that runs the program.
    pub id: Option<u64>,
    /// Rows.
    pub rows: Option<i64>,
    /// Columns.
    pub cols: Option<i64>,
}

/// A detached program.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessInfo {
    /// The program's id, for `process_wait` and `process_signal`.
    pub process_id: u32,
    /// The command, or the argument vector quoted for a shell.
    pub command: String,
    /// Whether the program still runs.
    pub running: bool,
    /// The program's status, once it has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<u8>,
}

/// Result of `process_list`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessListResult {
    /// The programs, in the order of their starts.
    pub processes: Vec<ProcessInfo>,
}

/// Parameters of `process_wait`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessParams {
    /// The program's id. Required.
    pub process_id: Option<u32>,
}

/// Parameters of `process_signal`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessSignalParams {
    /// The program's id. Required.
    pub process_id: Option<u32>,
    /// Signal number; default 15 (SIGTERM).
    pub signal: Option<i64>,
}

/// Result of `process_wait`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessWaitResult {
    /// The program's status; 128 + n for signal n.
    pub exit_code: u8,
}

/// Result of `process_output`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessOutputResult {
    /// The program's last output, both streams in their order, at most 64 KiB.
    #[schemars(extend("contentEncoding" = "base64"))]
    pub output: String,
}
