//! Service streams: accepting them, and their first messages.
//!
//! Each stream has a thread, and there are at most [`STREAM_LIMIT`]; the host keeps one spare stream open, so a
//! request finds its thread waiting. Not here: the requests' work (`exec`, `file_service`, `connection`, `added`).

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use guest_protocol::frame::{self, FrameError, Kind, Splitter};
use guest_protocol::{Pong, Refusal, Reply, Request};
use rustix::io::Errno;
use rustix::net::Shutdown;

use crate::added::{self, Added};
use crate::cgroups::Cgroups;
use crate::exec::Firsts;
use crate::host_changes::{self, Folders};
use crate::stream::{self, MESSAGE_CHUNK, Stream};
use crate::{connection, exec, file_service, vsock};

/// Most streams served at a time; a further one is refused and closed.
pub const STREAM_LIMIT: usize = 512;

/// Stack of a stream's thread. Its largest frame is a buffer of input.
const STREAM_STACK: usize = 256 << 10;

/// How long nothing is accepted after the kernel lacked memory for it.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(10);

/// The state that streams share.
#[derive(Debug)]
pub struct Agent {
    /// /dev/null, open for reading and writing.
    pub null: OwnedFd,
    /// The root directory of a devpts file system.
    pub terminals: OwnedFd,
    /// Programs whose own process runs.
    pub programs: Running,
    /// Programs of which anything is left: their process, its descendants, output for the host.
    pub running: Running,
    /// Acts on files that are under way.
    pub file_acts: Running,
    /// Programs that are PID 1 of their namespace.
    pub(crate) firsts: Firsts,
    /// The control groups of programs; tests have none.
    pub(crate) cgroups: Option<Cgroups>,
    /// Shared folders in which the host's changes are repeated.
    folders: Folders,
    /// Mounts that were added; tests may have none.
    pub(crate) added: Option<Added>,
    streams: Mutex<Vec<Arc<OwnedFd>>>,
}

impl Agent {
    /// An agent without streams.
    #[must_use]
    pub fn new(null: OwnedFd, terminals: OwnedFd) -> Self {
        let (programs, running, file_acts) = Default::default();
        let (firsts, streams) = Default::default();
        let folders = Folders::new();
        let (cgroups, added) = (None, None);
        Self { null, terminals, programs, running, file_acts, firsts, cgroups, folders, added, streams }
    }

    /// The agent with limits for programs.
    pub(crate) fn with_cgroups(self, cgroups: Option<Cgroups>) -> Self {
        Self { cgroups, ..self }
    }

    /// The agent with folders that the host may change.
    pub(crate) fn with_folders(self, folders: Folders) -> Self {
        Self { folders, ..self }
    }

    /// The agent with the means to mount what is added.
    #[must_use]
    pub fn with_added(self, added: Added) -> Self {
        Self { added: Some(added), ..self }
    }

    /// Ends all streams, as if the host had hung up.
    pub fn hang_up(&self) {
        for stream in self.streams().iter() {
            let _ = rustix::net::shutdown(stream, Shutdown::Both);
        }
    }

    /// Notes a stream, unless there are too many.
    fn admit(&self, stream: &Arc<OwnedFd>) -> bool {
        let mut streams = self.streams();
        let admitted = streams.len() < STREAM_LIMIT;
        if admitted {
            streams.push(Arc::clone(stream));
        }
        admitted
    }

    fn dismiss(&self, stream: &Arc<OwnedFd>) {
        // A clone that has just been made may hold a copy of the descriptor for a moment; shutdown does not wait for
        // it.
        let _ = rustix::net::shutdown(stream, Shutdown::Both);
        self.streams().retain(|known| !Arc::ptr_eq(known, stream));
    }

    fn streams(&self) -> MutexGuard<'_, Vec<Arc<OwnedFd>>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A counter of running work.
#[derive(Debug, Default)]
pub struct Running {
    count: Mutex<usize>,
    changed: Condvar,
}

/// A piece of work that runs, until this is dropped.
pub(crate) struct Counted<'a>(&'a Running);

impl Drop for Counted<'_> {
    fn drop(&mut self) {
        *self.0.lock() -= 1;
        self.0.changed.notify_all();
    }
}

impl Running {
    /// Counts a piece of work.
    pub(crate) fn enter(&self) -> Counted<'_> {
        *self.lock() += 1;
        Counted(self)
    }

    /// Waits until no work is left, for at most `limit`.
    pub fn wait_for_none(&self, limit: Duration) {
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |count| *count > 0);
        drop(waited);
    }

    fn lock(&self) -> MutexGuard<'_, usize> {
        self.count.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Accepts streams for ever. Only the host's count: a program in the guest must not get around its restrictions by
/// asking here.
pub(crate) fn accept_streams(listener: &OwnedFd, agent: &Arc<Agent>) {
    loop {
        match vsock::accept(listener) {
            Ok((stream, vsock::HOST_CID)) => start_stream(stream, agent),
            Ok(_) | Err(Errno::INTR | Errno::CONNABORTED) => {}
            // The kernel is short of memory or descriptors, which passes; asking again at once would only make it
            // worse.
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
    let stream = Arc::new(stream);
    if !agent.admit(&stream) {
        return refuse(&stream, format!("{STREAM_LIMIT} requests are running"));
    }
    let served = Arc::clone(&stream);
    let shared = Arc::clone(agent);
    let thread = std::thread::Builder::new().name("stream".to_owned()).stack_size(STREAM_STACK);
    let started = thread.spawn(move || {
        serve(served.as_fd(), &shared);
        shared.dismiss(&served);
    });
    if let Err(error) = started {
        refuse(&stream, format!("thread: {error}"));
        agent.dismiss(&stream);
    }
}

fn refuse(stream: &OwnedFd, reason: String) {
    let refusal = Reply::<()>::Err(Refusal(reason));
    let _ = frame::encode(&refusal).and_then(|refusal| stream::send_all(stream, &refusal));
}

fn serve(stream: BorrowedFd<'_>, agent: &Agent) {
    let Ok(Some((request, input, arrived))) = first_request(stream) else { return };
    match request {
        Request::Ping => {}
        Request::Exec(request) => exec::serve(stream, input, &request, arrived, agent),
        Request::File(request) => file_service::serve(Stream::new(stream), input, &request, agent),
        Request::Connect { port } => connection::serve(stream, &input, port),
        Request::HostChanges => host_changes::serve(Stream::new(stream), input, &agent.folders),
        Request::AddMount(mount) => added::serve(stream, &input, &mount, agent.added.as_ref()),
        Request::RemoveMount { path, force } => {
            added::remove(Stream::new(stream), &path, force, agent.added.as_ref());
        }
    }
}

/// Answers pings until another request comes: returns the request, the bytes after it, and its time of arrival.
pub(crate) fn first_request(
    stream: BorrowedFd<'_>,
) -> Result<Option<(Request, Splitter, Instant)>, FrameError> {
    let mut input = Splitter::default();
    let mut room = [MaybeUninit::uninit(); MESSAGE_CHUNK];
    while stream::receive(stream, &mut input, &mut room) {
        let arrived = Instant::now();
        while let Some((kind, payload)) = input.next_frame()? {
            if kind != Kind::Message {
                return Err(FrameError::Kind(kind as u8));
            }
            match frame::decode(payload)? {
                Request::Ping => {
                    stream::send_reply(stream, &Pong)?;
                }
                request => return Ok(Some((request, input, arrived))),
            }
        }
    }
    Ok(None)
}
