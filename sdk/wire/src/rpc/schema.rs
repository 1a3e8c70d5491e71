//! The whole protocol as one JSON document, made from the types.

use schemars::SchemaGenerator;
use serde_json::{Map, Value, json};

use super::{
    AllowListAddResult, AllowListDeleteResult, AllowListParams, CallbackAnswer, CallbackRequest,
    CancelParams, CancelResult, ChangeParams, CloseParams, CreateParams, CreateResult, DataParams, Empty,
    ErrorCode, ErrorObject, EventParams, ExecParams, ExecResult, ExecTtyParams, HelloResult, IdParams,
    ListFilesResult, LogResult, MkdirParams, MountAddParams, MountListResult, MountRemoveParams, PROTOCOL,
    PathParams, PortForwardParams, PortForwardResult, ProcessListResult, ProcessOutputResult, ProcessParams,
    ProcessSignalParams, ProcessWaitResult, ReadFileParams, ReadFileResult, RemoveParams, RenameParams,
    ResizeParams, StartedResult, StatParams, StdinAckParams, StdinParams, StreamResult, WatchParams,
    WriteFileParams,
};

/// A type in the document.
type Of = fn(&mut SchemaGenerator) -> Value;

macro_rules! table {
    ($($name:literal: $($part:ty),+;)*) => {
        &[$(($name, &[$(|generator| generator.subschema_for::<$part>().to_value()),+])),*]
    };
}

/// Parameters and results of methods that are answered. `exec` has a second result, for `detached`.
const REQUESTS: &[(&str, &[Of])] = table! {
    "allow_list_add": AllowListParams, AllowListAddResult;
    "allow_list_delete": AllowListParams, AllowListDeleteResult;
    "cancel": CancelParams, CancelResult;
    "close": CloseParams, Empty;
    "create": CreateParams, CreateResult;
    "exec": ExecParams, ExecResult, StartedResult;
    "exec_pipe": ExecParams, StreamResult;
    "exec_stream": ExecParams, StreamResult;
    "exec_tty": ExecTtyParams, StreamResult;
    "hello": Empty, HelloResult;
    "list_files": PathParams, ListFilesResult;
    "log": Empty, LogResult;
    "log_stream": Empty, Empty;
    "mkdir": MkdirParams, Empty;
    "mount_add": MountAddParams, Empty;
    "mount_list": Empty, MountListResult;
    "mount_remove": MountRemoveParams, Empty;
    "port_forward": PortForwardParams, PortForwardResult;
    "process_kill": ProcessParams, Empty;
    "process_list": Empty, ProcessListResult;
    "process_output": ProcessParams, ProcessOutputResult;
    "process_signal": ProcessSignalParams, Empty;
    "process_wait": ProcessParams, ProcessWaitResult;
    "read_file": ReadFileParams, ReadFileResult;
    "remove": RemoveParams, Empty;
    "rename": RenameParams, Empty;
    "stat": StatParams, super::FileInfo;
    "watch": WatchParams, Empty;
    "write_file": WriteFileParams, Empty;
};

const UNANSWERED: &[(&str, &[Of])] = table! {
    "exec_pipe.stdin": StdinParams;
    "exec_pipe.stdin_eof": IdParams;
    "exec_tty.resize": ResizeParams;
    "exec_tty.stdin": StdinParams;
    "exec_tty.stdin_eof": IdParams;
};

const TOLD: &[(&str, &[Of])] = table! {
    "event": EventParams;
    "exec_pipe.ready": IdParams;
    "exec_pipe.stderr": DataParams;
    "exec_pipe.stdin_ack": StdinAckParams;
    "exec_pipe.stdout": DataParams;
    "exec_stream.stderr": DataParams;
    "exec_stream.stdout": DataParams;
    "exec_tty.ready": IdParams;
    "exec_tty.stdout": DataParams;
    "log_stream.data": DataParams;
    "watch.change": ChangeParams;
    "watch.ready": IdParams;
};

const fn names<const N: usize>(table: &[(&'static str, &[Of])]) -> [&'static str; N] {
    let mut names = [""; N];
    let mut at = 0;
    while at < N {
        names[at] = table[at].0;
        at += 1;
    }
    names
}

/// Every method that is answered.
pub const METHODS: [&str; REQUESTS.len()] = names(REQUESTS);

/// Every method that is not answered.
pub const FIRE_AND_FORGET: [&str; UNANSWERED.len()] = names(UNANSWERED);

/// Every notification.
pub const NOTIFICATIONS: [&str; TOLD.len()] = names(TOLD);

/// The protocol as a JSON document: a JSON Schema (2020-12) in `$defs`, and tables that tell where each type is used.
#[must_use]
pub fn schema() -> Value {
    let mut generator = schemars::generate::SchemaSettings::draft2020_12().into_generator();
    let mut requests = Map::new();
    for (name, parts) in REQUESTS {
        let mut parts = parts.iter().map(|part| part(&mut generator));
        let (params, mut results) = (parts.next(), parts.collect::<Vec<_>>());
        let result = if results.len() == 1 { results.remove(0) } else { json!({ "anyOf": results }) };
        requests.insert((*name).to_owned(), json!({ "params": params, "result": result }));
    }
    let mut table = |entries: &[(&str, &[Of])]| {
        let mut table = Map::new();
        for (name, parts) in entries {
            let params = parts.first().map(|part| part(&mut generator));
            table.insert((*name).to_owned(), json!({ "params": params }));
        }
        table
    };
    let (unanswered, told) = (table(UNANSWERED), table(TOLD));
    let callback = json!({
        "request": generator.subschema_for::<CallbackRequest>(),
        "answer": generator.subschema_for::<CallbackAnswer>(),
    });
    let error = generator.subschema_for::<ErrorObject>();
    let codes: Map<String, Value> =
        ErrorCode::ALL.iter().map(|code| (code.name().to_owned(), code.number().into())).collect();
    json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "matchlock rpc",
        "protocol": PROTOCOL,
        "error": error,
        "error_codes": codes,
        "requests": requests,
        "fire_and_forget": unanswered,
        "notifications": told,
        "network_callback": callback,
        "$defs": generator.take_definitions(true),
    })
}
