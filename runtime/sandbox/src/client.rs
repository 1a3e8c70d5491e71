//! The other end of the control socket: asking a sandbox's owner for something.
//!
//! An owner answers the greeting at once whatever it is doing, so one that does not is stopped or hangs, and nobody
//! waits for it longer than [`GREETING_LIMIT`]. Not here: what the owner does ([`crate::control`]).

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use guest_protocol::Exit;
use guest_protocol::frame::{self, Kind, Splitter};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::time::timeout;

use crate::command::Exec;
use crate::control::{Answer, FRAME_KIND, Hello, Request, VERSION};
use crate::detached::DetachedInfo;
use crate::frames::hung_up;
use crate::home::VmPaths;
use crate::records::{Records, Status};
use crate::service::Service;
use crate::{Error, Home, Id, Result, descriptors, reconcile, sys};

/// How long an owner may take to greet.
const GREETING_LIMIT: Duration = Duration::from_secs(10);

/// How much longer than it said an owner may take to end.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// Bytes of an answer taken at once.
const CHUNK: usize = 4 << 10;

/// An answer, and the descriptor that came with it.
type Answered = (Answer, Option<OwnedFd>);

/// Runs a program.
pub(crate) async fn exec(home: &Home, id: &Id, exec: Exec) -> Result<tokio::net::UnixStream> {
    stream(ask(home, id, &Request::Exec(exec)).await?)
}

/// A service stream on which nothing is asked yet.
pub(crate) async fn service(home: &Home, id: &Id) -> Result<tokio::net::UnixStream> {
    stream(ask(home, id, &Request::Service).await?)
}

/// Runs a program that the owner keeps.
pub(crate) async fn detach(home: &Home, id: &Id, exec: Exec) -> Result<u32> {
    match ask(home, id, &Request::Detach(exec)).await? {
        (Answer::Program(program), None) => Ok(program),
        _ => Err(FRAME_KIND),
    }
}

/// The detached programs.
pub(crate) async fn detached(home: &Home, id: &Id) -> Result<Vec<DetachedInfo>> {
    match ask(home, id, &Request::Detached).await? {
        (Answer::Programs(programs), None) => Ok(programs),
        _ => Err(FRAME_KIND),
    }
}

/// Waits for a detached program's end.
pub(crate) async fn wait(home: &Home, id: &Id, program: u32) -> Result<Exit> {
    match ask(home, id, &Request::Wait(program)).await? {
        (Answer::Exited(exit), None) => Ok(exit),
        _ => Err(FRAME_KIND),
    }
}

/// Sends a signal to a detached program.
pub(crate) async fn signal(home: &Home, id: &Id, program: u32, signal: i32) -> Result<()> {
    done(ask(home, id, &Request::Signal { program, signal }).await?)
}

/// Kills a detached program.
pub(crate) async fn kill(home: &Home, id: &Id, program: u32) -> Result<()> {
    done(ask(home, id, &Request::Kill(program)).await?)
}

/// The last output of a detached program.
pub(crate) async fn detached_output(home: &Home, id: &Id, program: u32) -> Result<Vec<u8>> {
    match ask(home, id, &Request::Output(program)).await? {
        (Answer::Output(bytes), None) => Ok(bytes),
        _ => Err(FRAME_KIND),
    }
}

fn done(answered: Answered) -> Result<()> {
    match answered {
        (Answer::Done, None) => Ok(()),
        _ => Err(FRAME_KIND),
    }
}

fn stream(answered: Answered) -> Result<tokio::net::UnixStream> {
    let (Answer::Stream, Some(stream)) = answered else { return Err(FRAME_KIND) };
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(true).map_err(Error::system("guest stream"))?;
    tokio::net::UnixStream::from_std(stream).map_err(Error::system("guest stream"))
}

/// Asks the owner of a sandbox. Once it has greeted, it may take its time: its guest may not be ready yet.
async fn ask(home: &Home, id: &Id, request: &Request) -> Result<Answered> {
    let words = words(request)?;
    let path = home.vm(id).control();
    let connected = async {
        let short = sys::SocketPath::new(&path)?;
        tokio::net::UnixStream::connect(short.path()).await
    };
    let mut owner = connected.await.map_err(|error| why_not(home, id, &path, error))?;
    let mut talk = Talk::default();
    let greeting = async {
        owner.write_all(&words).await.map_err(hung_up)?;
        talk.hear_from(&owner, Talk::greeting).await
    };
    timeout(GREETING_LIMIT, greeting).await.map_err(|_| Error::NoAnswer(id.clone()))??;
    talk.hear_from(&owner, Talk::answer).await
}

/// What is said to an owner.
fn words(request: &Request) -> Result<Vec<u8>> {
    let mut words = frame::encode(&Hello { version: VERSION })?;
    words.extend(frame::encode(request).map_err(|_| Error::TooLong)?);
    Ok(words)
}

/// What an owner has said so far.
#[derive(Debug, Default)]
struct Talk {
    splitter: Splitter,
    /// Arrives with whichever bytes are read together with the message it belongs to.
    descriptor: Option<OwnedFd>,
}

impl Talk {
    async fn hear_from<T>(
        &mut self,
        owner: &tokio::net::UnixStream,
        take: fn(&mut Self) -> Result<Option<T>>,
    ) -> Result<T> {
        loop {
            if let Some(said) = take(self)? {
                return Ok(said);
            }
            let mut bytes = [0; CHUNK];
            let receive = || descriptors::receive(owner, &mut bytes);
            let (length, descriptor) = owner.async_io(Interest::READABLE, receive).await.map_err(hung_up)?;
            self.hear(bytes.get(..length).unwrap_or_default(), descriptor)?;
        }
    }

    fn hear(&mut self, bytes: &[u8], descriptor: Option<OwnedFd>) -> Result<()> {
        if bytes.is_empty() {
            return Err(Error::HangUp);
        }
        self.descriptor = self.descriptor.take().or(descriptor);
        self.splitter.push(bytes);
        Ok(())
    }

    fn greeting(&mut self) -> Result<Option<()>> {
        match self.message::<Hello>()? {
            Some(Hello { version: VERSION }) => Ok(Some(())),
            Some(Hello { version }) => Err(Error::ControlVersion { theirs: version, ours: VERSION }),
            None => Ok(None),
        }
    }

    fn answer(&mut self) -> Result<Option<Answered>> {
        match self.message()? {
            Some(Answer::Refused(refusal)) => Err(refusal.into()),
            Some(answer) => Ok(Some((answer, self.descriptor.take()))),
            None => Ok(None),
        }
    }

    fn message<M: DeserializeOwned>(&mut self) -> Result<Option<M>> {
        match self.splitter.next_frame()? {
            Some((Kind::Message, payload)) => Ok(Some(frame::decode(payload)?)),
            Some(_) => Err(FRAME_KIND),
            None => Ok(None),
        }
    }
}

/// A connection to a sandbox's owner, for callers without a runtime: all of it blocks. See [`crate::Guest`] for the
/// other ones.
#[derive(Debug)]
pub struct Client {
    owner: UnixStream,
    talk: Talk,
    id: Id,
    paths: VmPaths,
}

impl Client {
    /// Reaches the owner of a sandbox.
    pub fn connect(home: &Home, id: &Id) -> Result<Self> {
        let paths = home.vm(id);
        let path = paths.control();
        let connected = sys::SocketPath::new(&path).and_then(|short| {
            let owner = UnixStream::connect(short.path())?;
            owner.set_read_timeout(Some(GREETING_LIMIT))?;
            owner.set_write_timeout(Some(GREETING_LIMIT))?;
            Ok(owner)
        });
        match connected {
            Ok(owner) => Ok(Self { owner, talk: Talk::default(), id: id.clone(), paths }),
            Err(error) => Err(why_not(home, id, &path, error)),
        }
    }

    /// Runs a program. Needs a tokio runtime with I/O around it.
    pub fn exec(self, exec: Exec) -> Result<Service> {
        Ok(Service::new(stream(self.ask_patiently(&Request::Exec(exec))?)?))
    }

    /// A service stream on which nothing is asked yet, for measurements. Needs a tokio runtime with I/O around it.
    pub fn service(self) -> Result<Service> {
        Ok(Service::new(stream(self.ask_patiently(&Request::Service)?)?))
    }

    /// Ends the sandbox, and waits until nothing is left of it: for as long as its owner says it takes, no longer.
    pub fn stop(mut self) -> Result<()> {
        let owner = self.paths.owner().map_err(Error::io(self.paths.directory()))?;
        self.say(&Request::Stop)?;
        self.hear(Talk::greeting)?;
        let (Answer::Stopping { limit_ms }, None) = self.hear(Talk::answer)? else { return Err(FRAME_KIND) };
        let limit = Duration::from_millis(limit_ms).saturating_add(STOP_MARGIN);
        let (ended, end) = mpsc::channel();
        // A lock cannot be waited for with a limit. A thread that waits on after it costs nothing and does nothing.
        std::thread::spawn(move || ended.send(owner.wait()));
        match end.recv_timeout(limit) {
            Ok(waited) => waited.map_err(Error::io(self.paths.directory())),
            Err(_) => Err(Error::NotEnding { id: self.id, after: limit }),
        }
    }

    fn ask_patiently(mut self, request: &Request) -> Result<Answered> {
        self.say(request)?;
        self.hear(Talk::greeting)?;
        self.owner.set_read_timeout(None).map_err(Error::system("control socket"))?;
        self.hear(Talk::answer)
    }

    fn say(&mut self, request: &Request) -> Result<()> {
        let words = words(request)?;
        self.owner.write_all(&words).map_err(|error| self.silence(error))
    }

    fn hear<T>(&mut self, take: fn(&mut Talk) -> Result<Option<T>>) -> Result<T> {
        loop {
            if let Some(said) = take(&mut self.talk)? {
                return Ok(said);
            }
            let mut bytes = [0; CHUNK];
            let received = descriptors::receive(&self.owner, &mut bytes);
            let (length, descriptor) = received.map_err(|error| self.silence(error))?;
            self.talk.hear(bytes.get(..length).unwrap_or_default(), descriptor)?;
        }
    }

    fn silence(&self, error: io::Error) -> Error {
        match error.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Error::NoAnswer(self.id.clone()),
            _ => hung_up(error),
        }
    }
}

/// Why a sandbox cannot be reached: what its record says, once the records are true.
fn why_not(home: &Home, id: &Id, path: &Path, error: io::Error) -> Error {
    let status = || -> Result<Option<Status>> {
        let records = Records::open(home)?;
        reconcile(home, &records)?;
        Ok(records.get(id)?.map(|record| record.status))
    };
    match status() {
        Ok(None) => Error::UnknownVm(id.to_string()),
        Ok(Some(Status::Running)) => Error::Io { path: path.to_path_buf(), source: error },
        Ok(Some(status)) => Error::NotRunning { id: id.clone(), status: status.name() },
        Err(error) => error,
    }
}
