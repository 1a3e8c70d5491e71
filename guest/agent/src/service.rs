//! Service streams: taking them from the listening socket, and their first messages.
//!
//! One thread a stream, at most [`STREAM_LIMIT`]; the host keeps one spare stream open, so a request finds its thread
//! waiting. Not here: what a request does (`exec`).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guest_protocol::frame::{self, FrameError, Kind, Splitter};
use guest_protocol::{ExecFailure, ExecRequest, Request, ServiceFromGuest, ServiceFromHost};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags};

use crate::{exec, vsock};

/// Most streams served at a time; a further one is told so and closed.
pub const STREAM_LIMIT: usize = 512;

/// Stack of a stream's thread. Its largest frames are a buffer of input and the stack of a child about to execute.
const STREAM_STACK: usize = 256 << 10;

/// How long nothing is accepted after the kernel had no memory for it.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(10);

/// What streams share.
#[derive(Debug)]
pub struct Agent {
    /// /dev/null, open for reading and writing.
    pub null: OwnedFd,
    /// The root directory of a devpts file system.
    pub terminals: OwnedFd,
    /// Programs that run.
    pub running: Running,
    streams: AtomicUsize,
}

impl Agent {
    /// An agent without streams.
    #[must_use]
    pub fn new(null: OwnedFd, terminals: OwnedFd) -> Self {
        Self { null, terminals, running: Running::default(), streams: AtomicUsize::new(0) }
    }
}

/// Counts running programs.
#[derive(Debug, Default)]
pub struct Running {
    count: Mutex<usize>,
    changed: Condvar,
}

impl Running {
    /// Counts one, until dropped.
    pub(crate) fn enter(&self) -> impl Drop {
        struct One<'a>(&'a Running);
        impl Drop for One<'_> {
            fn drop(&mut self) {
                *self.0.lock() -= 1;
                self.0.changed.notify_all();
            }
        }
        *self.lock() += 1;
        One(self)
    }

    /// Waits until none is left, but not for longer than `limit`.
    pub fn wait_for_none(&self, limit: Duration) {
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |count| *count > 0);
        drop(waited);
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes streams for ever. Only the host's: a program in the guest must not get around its restrictions by asking here.
pub(crate) fn accept_streams(listener: &OwnedFd, agent: &Arc<Agent>) {
    loop {
        match vsock::accept(listener) {
            Ok((stream, vsock::HOST_CID)) => start_stream(stream, agent),
            Ok(_) | Err(Errno::INTR | Errno::CONNABORTED) => {}
            // Short of memory or descriptors: that passes, and until then asking again at once would only make it worse.
            Err(Errno::NOMEM | Errno::NOBUFS | Errno::MFILE | Errno::NFILE) => {
                std::thread::sleep(SHORTAGE_PAUSE)
            }
            Err(errno) => {
                crate::log::line(&format!("accept: {}", crate::words(errno)));
                return;
            }
        }
    }
}

/// Serves a stream on a thread of its own.
pub fn start_stream(stream: OwnedFd, agent: &Arc<Agent>) {
    if agent.streams.fetch_add(1, Ordering::Relaxed) >= STREAM_LIMIT {
        agent.streams.fetch_sub(1, Ordering::Relaxed);
        return refuse(stream.as_fd(), format!("{STREAM_LIMIT} requests are running"));
    }
    let stream = Arc::new(stream);
    let served = Arc::clone(&stream);
    let shared = Arc::clone(agent);
    let thread = std::thread::Builder::new().name("stream".to_owned()).stack_size(STREAM_STACK);
    let started = thread.spawn(move || {
        serve(served.as_fd(), &shared);
        // A clone that has just been made may hold a copy of the descriptor for a moment; this does not wait for it.
        let _ = rustix::net::shutdown(&served, rustix::net::Shutdown::Both);
        shared.streams.fetch_sub(1, Ordering::Relaxed);
    });
    if let Err(error) = started {
        agent.streams.fetch_sub(1, Ordering::Relaxed);
        refuse(stream.as_fd(), format!("thread: {error}"));
    }
}

fn refuse(stream: BorrowedFd<'_>, reason: String) {
    let _ = send_message(stream, &ServiceFromGuest::Failed(ExecFailure::Other(reason)));
}

fn serve(stream: BorrowedFd<'_>, agent: &Agent) {
    if let Ok(Some((request, input, arrived))) = first_exec(stream) {
        exec::serve(stream, input, &request, arrived, agent);
    }
}

/// Answers pings until a program is asked for: the request, what arrived behind it, and when.
fn first_exec(stream: BorrowedFd<'_>) -> Result<Option<(Box<ExecRequest>, Splitter, Instant)>, FrameError> {
    let mut input = Splitter::default();
    while receive(stream, &mut input) {
        let arrived = Instant::now();
        while let Some((kind, payload)) = input.next_frame()? {
            if kind != Kind::Message {
                return Err(FrameError::Kind(kind as u8));
            }
            match frame::decode(payload)? {
                ServiceFromHost::Request(Request::Ping) => send_message(stream, &ServiceFromGuest::Pong)?,
                ServiceFromHost::Request(Request::Exec(request)) => {
                    return Ok(Some((request, input, arrived)));
                }
                ServiceFromHost::Request(Request::File(_) | Request::Connect { .. })
                | ServiceFromHost::Resize(_)
                | ServiceFromHost::Signal(_) => return Err(FrameError::Message),
            }
        }
    }
    Ok(None)
}

/// Waits for bytes and adds them to `input`; false at the stream's end.
pub(crate) fn receive(stream: BorrowedFd<'_>, input: &mut Splitter) -> bool {
    let mut buffer = [MaybeUninit::uninit(); 4096];
    loop {
        match rustix::net::recv(stream, &mut buffer, RecvFlags::empty()) {
            Ok(((bytes, _), _)) => {
                input.push(bytes);
                return !bytes.is_empty();
            }
            Err(Errno::INTR) => {}
            Err(_) => return false,
        }
    }
}

/// Sends one message, waiting until the host takes it.
pub(crate) fn send_message(stream: BorrowedFd<'_>, message: &ServiceFromGuest) -> Result<(), FrameError> {
    send_all(stream, &frame::encode(message)?)
}

/// Sends bytes, waiting until the host takes them.
pub(crate) fn send_all(stream: BorrowedFd<'_>, mut rest: &[u8]) -> Result<(), FrameError> {
    while !rest.is_empty() {
        let sent = rustix::io::retry_on_intr(|| rustix::net::send(stream, rest, SendFlags::NOSIGNAL));
        rest = sent.ok().and_then(|sent| rest.get(sent..)).ok_or(FrameError::Truncated)?;
    }
    Ok(())
}
