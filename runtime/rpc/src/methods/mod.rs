//! The methods, one file each, and their common parts.
//!
//! A method gets its [`Call`], and the sandbox if it needs one; it returns the line that answers it. `cancel` and
//! input for programs are not here: the session handles them itself, at once.

pub(crate) mod bytes;
pub(crate) mod close;
pub(crate) mod create;

mod allow_list;
mod exec;
mod exec_pipe;
mod exec_stream;
mod exec_tty;
pub(crate) mod file_info;
mod hello;
mod list_files;
mod log;
mod log_stream;
mod mkdir;
mod mount;
mod plan;
mod port_forward;
mod process;
mod program;
mod read_file;
mod relay;
mod remove;
mod rename;
mod stat;
mod watch;
mod write_file;

use std::pin::Pin;
use std::sync::Arc;

use sandbox::{Error, Guest, Home, Id};
use serde::Serialize;
use tokio::time::Instant;
use wire::rpc::ErrorCode;

use crate::budget::{Budget, Held};
use crate::encode;
use crate::failure::Failure;
use crate::outbox::Outbox;
use crate::request::Params;
use crate::stdin::Stdin;
use crate::vm::Vm;

/// A call of a method.
#[derive(Debug)]
pub(crate) struct Call {
    pub(crate) id: Option<u64>,
    pub(crate) params: Params,
    pub(crate) outbox: Outbox,
    pub(crate) budget: Budget,
    /// Input for the call's program.
    pub(crate) stdin: Option<Arc<Stdin>>,
    pub(crate) arrived: Instant,
}

/// The sandbox that a method works in.
#[derive(Debug)]
pub(crate) struct Inside {
    pub(crate) vm: Arc<Vm>,
    pub(crate) guest: Guest,
}

/// The log that a method reads.
#[derive(Debug)]
pub(crate) struct LogOf {
    pub(crate) home: Home,
    pub(crate) id: Id,
    /// The sandbox, unless it is closed.
    pub(crate) vm: Option<Arc<Vm>>,
}

/// A line for the client, and the memory it counts for until it is written.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) line: Vec<u8>,
    pub(crate) held: Option<Held>,
}

/// The result of a method.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// A method at work.
pub(crate) type Task = Pin<Box<dyn Future<Output = Result<Answer>> + Send>>;

/// The way a method is called.
#[derive(Clone, Copy)]
pub(crate) enum Run {
    /// The method needs no sandbox.
    Alone(fn(Call) -> Task),
    /// The method needs a sandbox that runs.
    Inside(fn(Call, Inside) -> Task),
    /// The method needs a sandbox that runs or ran.
    Log(fn(Call, LogOf) -> Task),
}

/// A method.
#[derive(Clone, Copy)]
pub(crate) struct Method {
    pub(crate) run: Run,
    /// The code of failures without one of their own.
    pub(crate) code: ErrorCode,
    /// The method's notifications name its request, which therefore needs an id.
    pub(crate) needs_id: bool,
    /// The client may send input to the method.
    pub(crate) stdin: bool,
    /// The method occupies a stream of the guest's while it is at work.
    pub(crate) stream: bool,
}

impl Method {
    /// A method for which a stream of the guest's is opened.
    fn in_guest(code: ErrorCode, run: fn(Call, Inside) -> Task) -> Self {
        Self { stream: true, ..Self::inside(code, run) }
    }

    fn inside(code: ErrorCode, run: fn(Call, Inside) -> Task) -> Self {
        Self { run: Run::Inside(run), code, needs_id: false, stdin: false, stream: false }
    }

    fn with_id(self) -> Self {
        Self { needs_id: true, ..self }
    }

    fn with_stdin(self) -> Self {
        Self { stdin: true, ..self }
    }
}

/// The method of this name, unless the session handles it itself.
pub(crate) fn find(name: &str) -> Option<Method> {
    use ErrorCode::{Cancelled, Exec, File};
    let method = match name {
        "hello" => {
            let run = Run::Alone(|call| Box::pin(hello::run(call)));
            Method { run, code: ErrorCode::Vm, needs_id: false, stdin: false, stream: false }
        }
        "exec" => Method::in_guest(Exec, |call, inside| Box::pin(exec::run(call, inside))),
        "exec_stream" => {
            Method::in_guest(Exec, |call, inside| Box::pin(exec_stream::run(call, inside))).with_id()
        }
        "exec_pipe" => Method::in_guest(Exec, |call, inside| Box::pin(exec_pipe::run(call, inside)))
            .with_id()
            .with_stdin(),
        "exec_tty" => Method::in_guest(Exec, |call, inside| Box::pin(exec_tty::run(call, inside)))
            .with_id()
            .with_stdin(),
        "process_list" => Method::inside(Exec, |call, inside| Box::pin(process::list(call, inside))),
        "process_wait" => Method::inside(Exec, |call, inside| Box::pin(process::wait(call, inside))),
        "process_signal" => Method::inside(Exec, |call, inside| Box::pin(process::signal(call, inside))),
        "process_kill" => Method::inside(Exec, |call, inside| Box::pin(process::kill(call, inside))),
        "process_output" => Method::inside(Exec, |call, inside| Box::pin(process::output(call, inside))),
        "write_file" => Method::in_guest(File, |call, inside| Box::pin(write_file::run(call, inside))),
        "read_file" => Method::in_guest(File, |call, inside| Box::pin(read_file::run(call, inside))),
        "list_files" => Method::in_guest(File, |call, inside| Box::pin(list_files::run(call, inside))),
        "stat" => Method::in_guest(File, |call, inside| Box::pin(stat::run(call, inside))),
        "mkdir" => Method::in_guest(File, |call, inside| Box::pin(mkdir::run(call, inside))),
        "remove" => Method::in_guest(File, |call, inside| Box::pin(remove::run(call, inside))),
        "rename" => Method::in_guest(File, |call, inside| Box::pin(rename::run(call, inside))),
        "watch" => Method::in_guest(File, |call, inside| Box::pin(watch::run(call, inside))).with_id(),
        "mount_add" => Method::inside(ErrorCode::Vm, |call, inside| Box::pin(mount::add(call, inside))),
        "mount_remove" => Method::inside(ErrorCode::Vm, |call, inside| Box::pin(mount::remove(call, inside))),
        "mount_list" => Method::inside(ErrorCode::Vm, |call, inside| Box::pin(mount::list(call, inside))),
        "port_forward" => {
            Method::inside(ErrorCode::Vm, |call, inside| Box::pin(port_forward::run(call, inside)))
        }
        "allow_list_add" => {
            Method::inside(ErrorCode::Vm, |call, inside| Box::pin(allow_list::add(call, inside)))
        }
        "allow_list_delete" => {
            Method::inside(ErrorCode::Vm, |call, inside| Box::pin(allow_list::delete(call, inside)))
        }
        "log" => {
            let run = Run::Log(|call, log| Box::pin(log::run(call, log)));
            Method { run, code: File, needs_id: false, stdin: false, stream: false }
        }
        "log_stream" => {
            let run = Run::Log(|call, log| Box::pin(log_stream::run(call, log)));
            Method { run, code: Cancelled, needs_id: true, stdin: false, stream: false }
        }
        _ => return None,
    };
    Some(method)
}

impl Call {
    /// The line that answers the call.
    pub(crate) fn answer<T: Serialize>(&self, result: &T) -> Answer {
        Answer { line: encode::result(self.id, result), held: None }
    }

    /// Milliseconds since the call arrived.
    pub(crate) fn millis(&self) -> u64 {
        u64::try_from(self.arrived.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

impl Inside {
    /// An error of a program's.
    pub(crate) async fn exec_failure(&self, error: impl Into<Error>) -> Failure {
        Failure::new(ErrorCode::Exec, self.vm.explain(error).await)
    }

    /// An error of an act on files.
    pub(crate) async fn file_failure(&self, error: impl Into<Error>) -> Failure {
        Failure::new(ErrorCode::File, self.vm.explain(error).await)
    }
}

/// The path in a request. An empty one is left to the guest.
pub(crate) fn path(path: Option<String>) -> Result<String> {
    path.ok_or_else(|| Failure::params("path is required"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_protocol_is_there() {
        for name in wire::rpc::METHODS {
            let of_session = ["cancel", "close", "create"].contains(&name);
            assert_eq!(find(name).is_none(), of_session, "{name}");
        }
        for name in wire::rpc::FIRE_AND_FORGET.iter().chain(&["", "Exec", "exec ", "nonsense"]) {
            assert!(find(name).is_none(), "{name}");
        }
    }
}
