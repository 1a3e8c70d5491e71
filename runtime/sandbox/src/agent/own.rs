//! The guest of a sandbox that this process owns: streams to its agent, one for each request, and its detached
//! programs.
//!
//! One stream is connected in advance, so that a request does not wait for a connection. Not here: guests of other
//! processes' sandboxes.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use guest_protocol::frame::{self, Kind};
use guest_protocol::{AGENT_PORT, AddReply, AddedMount, Answer, RemoveReply, Request};
use tokio::io::AsyncWriteExt;
use tokio::net::UnixStream;

use crate::agent::command::{Defaults, Exec};
use crate::agent::detached::{Detached, Log};
use crate::agent::error::{Error, Result};
use crate::agent::frames::{hung_up, read_frame, write_message};
use crate::agent::mounts::Mounts;
use crate::agent::ports::Ports;
use crate::agent::program::{ProgramStream, answered, tame};

/// A guest that is reached through its machine's vsock ports. Clones are the same guest.
#[derive(Debug, Clone)]
pub(crate) struct OwnGuest(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    ports: Arc<Ports>,
    defaults: Defaults,
    spare: Mutex<Option<UnixStream>>,
    detached: Detached,
    mounts: OnceLock<Mounts>,
}

impl OwnGuest {
    /// The guest behind `ports`; output of detached programs goes to `log`.
    pub(crate) fn new(ports: Arc<Ports>, defaults: Defaults, log: Log) -> Self {
        let (spare, detached) = (Mutex::new(None), Detached::new(log));
        Self(Arc::new(Inner { ports, defaults, spare, detached, mounts: OnceLock::new() }))
    }

    /// Connects the spare stream.
    pub(crate) async fn refill(&self) -> Result<()> {
        let stream = self.0.ports.connect(AGENT_PORT).await.map_err(hung_up)?;
        *self.0.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
        Ok(())
    }

    /// Runs a program.
    pub(crate) async fn exec(&self, exec: Exec) -> Result<ProgramStream> {
        self.exec_stream(exec).await.map(ProgramStream::new)
    }

    /// A stream on which this program has been requested.
    pub(crate) async fn exec_stream(&self, exec: Exec) -> Result<UnixStream> {
        let request = Request::Exec(Box::new(self.0.defaults.request(exec)));
        // Checked before a stream is spent on the request.
        let request = frame::encode(&request).map_err(|_| Error::TooLong)?;
        let mut stream = self.stream().await?;
        stream.write_all(&request).await.map_err(hung_up)?;
        Ok(stream)
    }

    /// A stream without a request.
    pub(crate) async fn stream(&self) -> Result<UnixStream> {
        let spare = self.0.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        match spare.filter(is_open) {
            Some(spare) => {
                let own = self.clone();
                tokio::spawn(async move { own.refill().await });
                Ok(spare)
            }
            None => self.0.ports.connect(AGENT_PORT).await.map_err(hung_up),
        }
    }

    /// A stream on which the agent waits to hear of the host's changes of files.
    pub(crate) async fn host_changes(&self) -> Result<UnixStream> {
        // The spare stream is for programs, which somebody waits for.
        let mut stream = self.0.ports.connect(AGENT_PORT).await.map_err(hung_up)?;
        write_message(&mut stream, &Request::HostChanges).await?;
        Ok(stream)
    }

    /// A stream on which the guest's kernel asks for the files of this mount, which it has mounted.
    pub(crate) async fn add_mount(&self, mount: AddedMount) -> Result<UnixStream> {
        let mut stream = self.0.ports.connect(AGENT_PORT).await.map_err(hung_up)?;
        write_message(&mut stream, &Request::AddMount(mount)).await?;
        match answer(&mut stream).await? {
            AddReply::Ok(()) => Ok(stream),
            AddReply::Err(why) => Err(Error::Refused(tame(&why))),
        }
    }

    /// Has the agent take away a mount that was added.
    pub(crate) async fn remove_mount(&self, path: &str, force: bool) -> Result<RemoveReply> {
        let mut stream = self.0.ports.connect(AGENT_PORT).await.map_err(hung_up)?;
        write_message(&mut stream, &Request::RemoveMount { path: path.to_owned(), force }).await?;
        Ok(match answer(&mut stream).await? {
            RemoveReply::Failed(why) => RemoveReply::Failed(tame(&why)),
            reply => reply,
        })
    }

    /// Tells of the task that serves mounts.
    pub(crate) fn set_mounts(&self, mounts: Mounts) {
        // There is one such task.
        let _ = self.0.mounts.set(mounts);
    }

    /// The way to the task that serves mounts.
    pub(crate) fn mounts(&self) -> Result<&Mounts> {
        self.0.mounts.get().ok_or(Error::HangUp)
    }

    /// Starts a detached program.
    pub(crate) async fn detach(&self, exec: Exec) -> Result<u32> {
        self.0.detached.start(self, exec).await
    }

    /// The detached programs.
    pub(crate) fn detached(&self) -> &Detached {
        &self.0.detached
    }
}

/// The answer to a request. Nothing beyond it is read.
async fn answer<A: Answer>(stream: &mut UnixStream) -> Result<A> {
    match read_frame(stream, &mut Vec::new()).await? {
        Some((Kind::Message, payload)) => answered(payload),
        Some(_) => Err(Error::Guest("data instead of an answer")),
        None => Err(Error::HangUp),
    }
}

/// Whether an unused stream still has its other end: nothing but that end's hang-up arrives on it.
fn is_open(stream: &UnixStream) -> bool {
    use rustix::net::RecvFlags;
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::net::recv(stream, &mut [0; 1], flags) == Err(rustix::io::Errno::WOULDBLOCK)
}
