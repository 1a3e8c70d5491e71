//! A running sandbox's guest: programs, files and connections in it.
//!
//! ```text
//! Guest ── of this process ──▶ vsock ports ──────────────────▶ agent
//!       └─ of another one  ──▶ its owner's control socket ──▶ (the same stream, passed on)
//! ```
//!
//! Every request has a stream of its own. Not here: the machine around the guest ([`crate::life`]), what a
//! stream carries ([`crate::service`], [`crate::files`]), and the owner's end of the control socket.

use std::sync::{Arc, Mutex, PoisonError};

use guest_protocol::frame::{self, Kind};
use guest_protocol::{AGENT_PORT, Exit, Request, ServiceFromGuest, ServiceFromHost};
use tokio::net::UnixStream;

use crate::client;
use crate::command::{Defaults, Exec};
use crate::detached::{Detached, DetachedInfo, Log};
use crate::files::Files;
use crate::frames::{hung_up, read_frame, write_message};
use crate::ports::Ports;
use crate::service::{Service, tame, tame_failure};
use crate::{Error, Home, Id, Result};

/// A running sandbox's guest. Clones are the same guest; nothing is kept running by one.
#[derive(Debug, Clone)]
pub struct Guest(Reach);

/// How the guest is reached.
#[derive(Debug, Clone)]
enum Reach {
    /// This process owns the sandbox.
    Own(Arc<Own>),
    /// Another process does.
    Other(Arc<(Home, Id)>),
}

/// What the owner has.
#[derive(Debug)]
struct Own {
    ports: Arc<Ports>,
    defaults: Defaults,
    /// Connected ahead of need, so that a request costs no connection set-up.
    spare: Mutex<Option<UnixStream>>,
    detached: Detached,
}

impl Guest {
    /// The guest of a sandbox that another process owns. Nothing is asked yet, so nothing can fail.
    #[must_use]
    pub fn of(home: &Home, id: &Id) -> Self {
        Self(Reach::Other(Arc::new((home.clone(), id.clone()))))
    }

    /// The guest behind `ports`; output of detached programs goes to `log`.
    pub(crate) fn own(ports: Arc<Ports>, defaults: Defaults, log: Log) -> Self {
        let detached = Detached::new(log);
        Self(Reach::Own(Arc::new(Own { ports, defaults, spare: Mutex::new(None), detached })))
    }

    /// Connects the spare stream.
    pub(crate) async fn refill(&self) -> Result<()> {
        match &self.0 {
            Reach::Own(own) => own.refill().await,
            Reach::Other(_) => Ok(()),
        }
    }

    /// Runs a program. It is asked for when this returns; its first event says whether it runs.
    pub async fn exec(&self, exec: Exec) -> Result<Service> {
        self.exec_stream(exec).await.map(Service::new)
    }

    /// A stream on which this program has been asked for.
    pub(crate) async fn exec_stream(&self, exec: Exec) -> Result<UnixStream> {
        match &self.0 {
            Reach::Own(own) => {
                let request = Request::Exec(Box::new(own.defaults.request(exec)));
                // Before a stream is spent on it.
                let request =
                    frame::encode(&ServiceFromHost::Request(request)).map_err(|_| Error::TooLong)?;
                let mut stream = own.stream().await?;
                tokio::io::AsyncWriteExt::write_all(&mut stream, &request).await.map_err(hung_up)?;
                Ok(stream)
            }
            Reach::Other(other) => client::exec(&other.0, &other.1, exec).await,
        }
    }

    /// A service stream on which nothing is asked yet, for measurements.
    pub async fn service(&self) -> Result<Service> {
        self.stream().await.map(Service::new)
    }

    /// A stream on which nothing has been asked yet.
    pub(crate) async fn stream(&self) -> Result<UnixStream> {
        match &self.0 {
            Reach::Own(own) => own.stream().await,
            Reach::Other(other) => client::service(&other.0, &other.1).await,
        }
    }

    /// Its files.
    #[must_use]
    pub fn files(&self) -> Files {
        Files::new(self.clone())
    }

    /// Connects to a TCP port of the guest's loopback address. The stream is the connection: each direction ends by
    /// itself (`shutdown`), dropping it ends both.
    pub async fn connect(&self, port: u16) -> Result<UnixStream> {
        let mut stream = self.stream().await?;
        write_message(&mut stream, &ServiceFromHost::Request(Request::Connect { port })).await?;
        let mut payload = Vec::new();
        match read_frame(&mut stream, &mut payload).await? {
            Some((Kind::Message, payload)) => match frame::decode(payload)? {
                ServiceFromGuest::Connected => Ok(stream),
                ServiceFromGuest::NotConnected(why) => Err(Error::NotConnected(tame(&why))),
                ServiceFromGuest::Failed(failure) => Err(Error::NotStarted(tame_failure(failure))),
                _ => Err(Error::Guest("an answer to something that was not asked")),
            },
            Some(_) => Err(Error::Guest("data instead of an answer")),
            None => Err(Error::HangUp),
        }
    }

    /// Runs a program that the sandbox's owner keeps: it outlives this call and this process, and so does what it
    /// starts, until it is killed or the sandbox ends. Its standard input is empty, its output goes to the sandbox's
    /// log and to [`Guest::detached_output`]. Returns its number once it runs; [`Error::NotStarted`] if it never does.
    pub async fn detach(&self, exec: Exec) -> Result<u32> {
        match &self.0 {
            Reach::Own(own) => own.detached.start(self, exec).await,
            Reach::Other(other) => client::detach(&other.0, &other.1, exec).await,
        }
    }

    /// The detached programs, oldest first. Those whose end was seen long ago may be missing.
    pub async fn detached(&self) -> Result<Vec<DetachedInfo>> {
        match &self.0 {
            Reach::Own(own) => Ok(own.detached.list()),
            Reach::Other(other) => client::detached(&other.0, &other.1).await,
        }
    }

    /// Waits for the end of a detached program (not of what it started), however often; [`Error::HangUp`] if the guest
    /// ended first.
    pub async fn wait(&self, program: u32) -> Result<Exit> {
        match &self.0 {
            Reach::Own(own) => own.detached.wait(program).await,
            Reach::Other(other) => client::wait(&other.0, &other.1, program).await,
        }
    }

    /// Sends a signal to a detached program's process group.
    pub async fn signal(&self, program: u32, signal: i32) -> Result<()> {
        match &self.0 {
            Reach::Own(own) => own.detached.signal(program, signal).await,
            Reach::Other(other) => client::signal(&other.0, &other.1, program, signal).await,
        }
    }

    /// Kills a detached program and all it started, and waits for their end. [`Guest::wait`] still tells of it.
    pub async fn kill(&self, program: u32) -> Result<()> {
        match &self.0 {
            Reach::Own(own) => own.detached.kill(program).await,
            Reach::Other(other) => client::kill(&other.0, &other.1, program).await,
        }
    }

    /// The last output of a detached program, both streams as they came.
    pub async fn detached_output(&self, program: u32) -> Result<Vec<u8>> {
        match &self.0 {
            Reach::Own(own) => own.detached.output(program),
            Reach::Other(other) => client::detached_output(&other.0, &other.1, program).await,
        }
    }
}

impl Own {
    async fn refill(&self) -> Result<()> {
        let stream = self.ports.connect(AGENT_PORT).await.map_err(hung_up)?;
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
        Ok(())
    }

    async fn stream(self: &Arc<Self>) -> Result<UnixStream> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        match spare.filter(is_open) {
            Some(spare) => {
                let own = Arc::clone(self);
                tokio::spawn(async move { own.refill().await });
                Ok(spare)
            }
            None => self.ports.connect(AGENT_PORT).await.map_err(hung_up),
        }
    }
}

/// Nothing comes on an unused stream but its end.
fn is_open(stream: &UnixStream) -> bool {
    use rustix::net::RecvFlags;
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::net::recv(stream, &mut [0; 1], flags) == Err(rustix::io::Errno::WOULDBLOCK)
}
