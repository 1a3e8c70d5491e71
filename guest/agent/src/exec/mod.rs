//! Running a program for the host: one stream, one thread, one loop over all events.
//!
//! ```text
//!             ┌────────── stdin ─────────┐
//!  stream ◀───┤ relay: one poll(2) loop  ├───▶ program (PID 1 or 2 of its own namespaces)
//!             └───── stdout, stderr ─────┘
//! ```
//!
//! * Memory is bounded: at most one frame waits in either direction, and while it does, its source is not read. A host
//!   that does not take output stops the program, not the agent.
//! * The end of the stream, or a breach of the protocol, cancels: SIGTERM to the program's group, SIGKILL to all of its
//!   namespace after half a second. It is noticed whatever else is stuck.
//! * When the program ends, every other process of its namespace is killed; `Exited` follows the last byte of output.
//!   The descendants of a detached program live on: `Exited` follows the bytes that the program left in its outputs, and
//!   the descendants end when the host hangs up.
//!
//! Not here: the reasons for this shape of PID namespace (`namespace`), and accepting streams (`service`).

mod arch;
mod calls;
mod child;
mod filter;
mod first;
mod namespace;
mod program;
mod relay;
mod restrict;
mod spawn;
mod user;

pub(crate) use first::Firsts;

use std::os::fd::BorrowedFd;
use std::time::Instant;

use guest_protocol::frame::Splitter;
use guest_protocol::{ExecRequest, Exit, ProgramEvent};
use rustix::process::{WaitId, WaitIdOptions};

use crate::cgroups::Cgroups;
use crate::service::Agent;

/// Serves one request to its end. `input` holds the bytes that came after the request, `arrived` the time of its
/// arrival.
///
/// The calling thread enters the program's PID namespace, and must end after this.
pub(crate) fn serve(
    stream: BorrowedFd<'_>,
    input: Splitter,
    request: &ExecRequest,
    arrived: Instant,
    agent: &Agent,
) {
    let _running = agent.running.enter();
    let program = agent.programs.enter();
    match spawn::start(stream, request, agent) {
        Ok((child, streams)) => {
            let _first = request.first.then(|| agent.firsts.enter(child.pid));
            relay::Relay::new(stream, input, child, streams, arrived, request.detached, program).run();
            // The next request is still on its way.
            agent.cgroups.iter().for_each(Cgroups::refill);
        }
        Err(failure) => {
            let _ = crate::stream::send_reply(stream, &ProgramEvent::Failed(failure));
        }
    }
}

/// Reaps a process that is known to have ended, or waits until it does.
fn reap(pidfd: BorrowedFd<'_>) -> Exit {
    let wait = || rustix::process::waitid(WaitId::PidFd(pidfd), WaitIdOptions::EXITED);
    let status = rustix::io::retry_on_intr(wait).ok().flatten();
    let byte = |number: i32| u8::try_from(number & 0xff).unwrap_or(u8::MAX);
    match status.map(|status| (status.exit_status(), status.terminating_signal())) {
        Some((Some(code), _)) => Exit::Code(byte(code)),
        Some((None, Some(signal))) => Exit::Signal(byte(signal)),
        // The process is no child of ours, or was reaped elsewhere; neither can happen. A wrong status is better than
        // a stuck stream.
        Some((None, None)) | None => Exit::Signal(byte(libc::SIGKILL)),
    }
}
