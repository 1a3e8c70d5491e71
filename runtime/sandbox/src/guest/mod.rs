//! A running sandbox's guest: programs, files and connections in it.
//!
//! ```text
//! Guest ── of this process ──▶ vsock ports ──────────────────▶ agent
//!       └─ of another one  ──▶ its owner's control socket ──▶ (the same stream, passed on)
//! ```
//!
//! Every request has a stream of its own. Not here: the machine around the guest ([`crate::life`]), the content of a
//! stream ([`crate::agent::program`], [`crate::guest::files`]), and the owner's end of the control socket.

mod error;
mod files;
mod forward;

pub use error::Error;
pub use files::{FileReader, FileWriter, Files, MAX_LISTING, MAX_PATH, Watch};
pub use forward::{Binding, Forward, Forwards, MAX_CONNECTIONS};

use std::sync::Arc;

use guest_protocol::frame::Kind;
use guest_protocol::{ConnectReply, Exit, Request};
use policy::mounts::Mount;
use tokio::net::UnixStream;

use crate::agent::command::Exec;
use crate::agent::detached::DetachedInfo;
use crate::agent::frames::{read_frame, write_message};
use crate::agent::mounts::MountInfo;
use crate::agent::own::OwnGuest;
use crate::agent::program::{ProgramStream, answered, tame};
use crate::control::client;
use crate::control::dialogue::{
    self, AddMount, Detach, Kill, ListMounts, Question, RemoveMount, Run, Signal, StreamComes, Wait,
};
use crate::guest::error::Result;
use crate::{Home, Id, agent};

/// A running sandbox's guest. Clones are the same guest; none keeps the sandbox running.
#[derive(Debug, Clone)]
pub struct Guest(Reach);

/// How the guest is reached.
#[derive(Debug, Clone)]
enum Reach {
    /// This process owns the sandbox.
    Own(OwnGuest),
    /// Another process owns it.
    Other(Arc<Other>),
}

/// A sandbox of another process.
#[derive(Debug)]
struct Other {
    home: Home,
    id: Id,
}

impl From<OwnGuest> for Guest {
    fn from(own: OwnGuest) -> Self {
        Self(Reach::Own(own))
    }
}

impl Guest {
    /// The guest of a sandbox that another process owns. Nothing is sent yet, so nothing can fail.
    #[must_use]
    pub fn of(home: &Home, id: &Id) -> Self {
        Self(Reach::Other(Arc::new(Other { home: home.clone(), id: id.clone() })))
    }

    /// Requests a program, whose first event says whether it runs.
    pub async fn exec(&self, exec: Exec) -> Result<ProgramStream> {
        match &self.0 {
            Reach::Own(own) => Ok(own.exec(exec).await?),
            Reach::Other(other) => other.ask_for_stream(Run { exec }).await.map(ProgramStream::new),
        }
    }

    /// A stream without a request, for measurements.
    pub async fn service(&self) -> Result<ProgramStream> {
        self.stream().await.map(ProgramStream::new)
    }

    /// A stream without a request.
    pub(crate) async fn stream(&self) -> Result<UnixStream> {
        match &self.0 {
            Reach::Own(own) => Ok(own.stream().await?),
            Reach::Other(other) => other.ask_for_stream(dialogue::Service {}).await,
        }
    }

    /// The guest's files.
    #[must_use]
    pub fn files(&self) -> Files {
        Files::new(self.clone())
    }

    /// Connects to a TCP port of the guest's loopback address. The returned stream is the connection: `shutdown` ends
    /// one direction, dropping it ends both.
    pub async fn connect(&self, port: u16) -> Result<UnixStream> {
        let mut stream = self.stream().await?;
        write_message(&mut stream, &Request::Connect { port }).await?;
        let mut payload = Vec::new();
        match read_frame(&mut stream, &mut payload).await? {
            Some((Kind::Message, payload)) => match answered::<ConnectReply>(payload)? {
                Ok(()) => Ok(stream),
                Err(why) => Err(Error::NotConnected(tame(&why))),
            },
            Some(_) => Err(Error::protocol("data instead of an answer")),
            None => Err(agent::Error::HangUp.into()),
        }
    }

    /// Runs a program that the sandbox's owner keeps. The program and its descendants outlive this call and this
    /// process, until they are killed or the sandbox ends. Standard input is empty, output goes to the sandbox's log
    /// and to [`Guest::detached_output`]. Returns the program's number once it runs, or [`agent::Error::NotStarted`].
    pub async fn detach(&self, exec: Exec) -> Result<u32> {
        match &self.0 {
            Reach::Own(own) => Ok(own.detach(exec).await?),
            Reach::Other(other) => other.ask(Detach { exec }).await,
        }
    }

    /// The detached programs, oldest first. Programs that ended long ago may be missing.
    pub async fn detached(&self) -> Result<Vec<DetachedInfo>> {
        match &self.0 {
            Reach::Own(own) => Ok(own.detached().list()),
            Reach::Other(other) => other.ask(dialogue::Detached {}).await,
        }
    }

    /// Waits for the end of a detached program, not of its descendants; may be called any number of times.
    /// [`agent::Error::HangUp`] if the guest ends first.
    pub async fn wait(&self, program: u32) -> Result<Exit> {
        match &self.0 {
            Reach::Own(own) => Ok(own.detached().wait(program).await?),
            Reach::Other(other) => other.ask(Wait { program }).await,
        }
    }

    /// Sends a signal to a detached program's process group.
    pub async fn signal(&self, program: u32, signal: i32) -> Result<()> {
        match &self.0 {
            Reach::Own(own) => Ok(own.detached().signal(program, signal).await?),
            Reach::Other(other) => other.ask(Signal { program, signal }).await,
        }
    }

    /// Kills a detached program and its descendants, and waits for their end. [`Guest::wait`] still knows the program
    /// afterwards.
    pub async fn kill(&self, program: u32) -> Result<()> {
        match &self.0 {
            Reach::Own(own) => Ok(own.detached().kill(program).await?),
            Reach::Other(other) => other.ask(Kill { program }).await,
        }
    }

    /// Adds a mount. It is there when this returns.
    pub async fn add_mount(&self, mount: &Mount) -> Result<()> {
        match &self.0 {
            Reach::Own(own) => Ok(own.mounts()?.add(mount.clone()).await?),
            Reach::Other(other) => other.ask(AddMount { mount: mount.into() }).await,
        }
    }

    /// Takes away what was added at a place of the guest; by force even if it is in use: what is open there fails then.
    pub async fn remove_mount(&self, guest_path: &str, force: bool) -> Result<()> {
        let guest_path = guest_path.to_owned();
        match &self.0 {
            Reach::Own(own) => Ok(own.mounts()?.remove(guest_path, force).await?),
            Reach::Other(other) => other.ask(RemoveMount { guest_path, force }).await,
        }
    }

    /// The mounts, those from the start first.
    pub async fn mounts(&self) -> Result<Vec<MountInfo>> {
        match &self.0 {
            Reach::Own(own) => Ok(own.mounts()?.list().await?),
            Reach::Other(other) => other.ask(ListMounts {}).await,
        }
    }

    /// The last output of a detached program, both streams in their order.
    pub async fn detached_output(&self, program: u32) -> Result<Vec<u8>> {
        match &self.0 {
            Reach::Own(own) => Ok(own.detached().output(program)?),
            Reach::Other(other) => other.ask(dialogue::Output { program }).await,
        }
    }
}

impl Other {
    async fn ask<Q: Question>(&self, question: Q) -> Result<Q::Answer> {
        Ok(client::ask(&self.home, &self.id, question).await?)
    }

    async fn ask_for_stream(&self, question: impl Question<Answer = StreamComes>) -> Result<UnixStream> {
        Ok(client::ask_for_stream(&self.home, &self.id, question).await?)
    }
}
