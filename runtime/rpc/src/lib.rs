//! `matchlock rpc`: JSON-RPC over standard input and output, for the SDKs. One sandbox at a time.
//!
//! `docs/rpc.md` specifies the messages. A request's path: `line` cuts it out of the input, `request` reads its
//! envelope, `session` gives it a task, `methods` carry it out, `encode` words the answer, `outbox` sends it. Not
//! here: the JSON types (`wire`), and sandboxes (`sandbox`).

#![cfg_attr(test, allow(clippy::unwrap_used, reason = "tests"))]

mod admission;
mod budget;
mod encode;
mod failure;
mod file_events;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;
mod line;
mod methods;
mod outbox;
mod request;
mod session;
mod stdin;
mod utf8;
mod vm;

use std::io::{self, Read, Write};

use sandbox::Home;
use tokio::sync::mpsc;

use crate::line::{Lines, MAX_LINE};
use crate::outbox::Outbox;
use crate::request::{Refused, Request};
use crate::session::Session;

/// Bytes read from the client at once.
const CHUNK: usize = 64 << 10;

/// The surroundings of a session.
#[derive(Debug)]
pub struct Setup {
    /// The home of sandboxes, images and kernels.
    pub home: Home,
    /// The machine for sandboxes.
    pub machine: policy::machine::WantedMachine,
    /// The kernel for sandboxes that name none; empty = the default one.
    pub kernel: String,
}

/// Serves one client, and returns once the client is gone or `end` completes, and nothing is left of its sandbox.
/// `hang_up` completes when the client can send nothing more; input that it sent before is still read.
///
/// Needs a tokio runtime with time and I/O around it, and starts a reader and a writer thread; the reader's may stay
/// in a read that never returns.
pub async fn serve(
    setup: Setup,
    input: impl Read + Send + 'static,
    output: impl Write + Send + 'static,
    hang_up: impl Future<Output = ()>,
    end: impl Future<Output = ()>,
) {
    // One line waits here, one is being read, one is at work: more would only take memory.
    let (sender, requests) = mpsc::channel(1);
    std::thread::spawn(move || read(input, &sender));
    Session::new(setup, Outbox::start(output)).run(requests, hang_up, end).await;
}

/// Reads requests until the client's input ends or the session does.
fn read(mut input: impl Read, requests: &mpsc::Sender<Result<Request, Refused>>) {
    let mut lines = Lines::new(MAX_LINE);
    let mut buffer = vec![0; CHUNK];
    loop {
        let mut bytes = match input.read(&mut buffer) {
            Ok(0) => break,
            Ok(length) => buffer.get(..length).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                tracing::debug!("input: {error}");
                break;
            }
        };
        while let Some(line) = lines.next(&mut bytes) {
            if requests.blocking_send(request::read(&line)).is_err() {
                return;
            }
        }
    }
    if let Some(line) = lines.end() {
        let _ = requests.blocking_send(request::read(&line));
    }
}
