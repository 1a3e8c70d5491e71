//! The client's end of the control socket: requests to a sandbox's owner.
//!
//! An owner answers the greeting at once, whatever it is doing. An owner that does not is suspended or hangs, so a
//! client waits for it for at most [`GREETING_LIMIT`]. Not here: the owner's end ([`crate::control::owner`]).

use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use guest_protocol::frame::{self, Kind, Splitter};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use serde::de::DeserializeOwned;
use tokio::io::{AsyncWriteExt, Interest};
use tokio::time::timeout;

use crate::agent::descriptors;
use crate::agent::frames::hung_up;
use crate::control::dialogue::{
    FRAME_KIND, Hello, Question, Reply, Request, Stop, Stopping, StreamComes, VERSION,
};
use crate::control::error::{Error, Result};
use crate::records::home::VmPaths;
use crate::records::reconcile;
use crate::records::store::{Records, Status};
use crate::{Home, Id, agent, records, sys};

/// How long an owner may take to greet.
const GREETING_LIMIT: Duration = Duration::from_secs(10);

/// How much longer than it announced an owner may take to end.
const STOP_MARGIN: Duration = Duration::from_secs(5);

/// Bytes of an answer read at once.
const CHUNK: usize = 4 << 10;

/// An answer, and the descriptor that came with it.
type Answered<T> = (T, Option<OwnedFd>);

/// Asks the owner of a sandbox. After its greeting an owner may take its time, as its guest may not be ready yet.
pub(crate) async fn ask<Q: Question>(home: &Home, id: &Id, question: Q) -> Result<Q::Answer> {
    match ask_within(GREETING_LIMIT, home, id, question).await? {
        (answer, None) => Ok(answer),
        (_, Some(_)) => Err(FRAME_KIND),
    }
}

/// Asks the owner of a sandbox for a stream.
pub(crate) async fn ask_for_stream(
    home: &Home,
    id: &Id,
    question: impl Question<Answer = StreamComes>,
) -> Result<tokio::net::UnixStream> {
    let answered = ask_within(GREETING_LIMIT, home, id, question).await?;
    let (StreamComes, Some(stream)) = answered else { return Err(FRAME_KIND) };
    let stream = UnixStream::from(stream);
    stream.set_nonblocking(true).map_err(agent::Error::Stream)?;
    Ok(tokio::net::UnixStream::from_std(stream).map_err(agent::Error::Stream)?)
}

async fn ask_within<Q: Question>(
    limit: Duration,
    home: &Home,
    id: &Id,
    question: Q,
) -> Result<Answered<Q::Answer>> {
    let words = words(&question.into())?;
    let path = home.vm(id).control();
    let connected = connect(&path).and_then(tokio::net::UnixStream::from_std);
    let mut owner = connected.map_err(|error| why_not(home, id, &path, error))?;
    let mut talk = Talk::default();
    let greeting = async {
        owner.write_all(&words).await.map_err(hung_up)?;
        talk.hear_from(&owner, Talk::greeting).await
    };
    timeout(limit, greeting).await.map_err(|_| Error::NoAnswer(id.clone()))??;
    talk.hear_from(&owner, Talk::answer).await
}

/// Connects without waiting.
fn connect(path: &Path) -> io::Result<UnixStream> {
    let short = sys::SocketPath::new(path)?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &SocketAddrUnix::new(short.path())?)?;
    Ok(UnixStream::from(socket))
}

/// Encodes the greeting and a request.
fn words(request: &Request) -> Result<Vec<u8>> {
    let mut words = frame::encode(&Hello { version: VERSION })?;
    words.extend(frame::encode(request).map_err(|_| agent::Error::TooLong)?);
    Ok(words)
}

/// The bytes that an owner has sent so far.
#[derive(Debug, Default)]
struct Talk {
    splitter: Splitter,
    /// Arrives with one of the reads that hold its message.
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
            return Err(agent::Error::HangUp.into());
        }
        self.descriptor = self.descriptor.take().or(descriptor);
        self.splitter.push(bytes);
        Ok(())
    }

    fn greeting(&mut self) -> Result<Option<()>> {
        match self.message::<Hello>()? {
            Some(Hello { version: VERSION }) => Ok(Some(())),
            Some(Hello { version }) => Err(Error::Version { theirs: version, ours: VERSION }),
            None => Ok(None),
        }
    }

    fn answer<T: DeserializeOwned>(&mut self) -> Result<Option<Answered<T>>> {
        match self.message::<Reply<T>>()? {
            Some(Err(refusal)) => Err(refusal.into()),
            Some(Ok(answer)) => Ok(Some((answer, self.descriptor.take()))),
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

/// A blocking connection to a sandbox's owner, for commands without a runtime. [`crate::Guest`] makes the requests to
/// the guest.
#[derive(Debug)]
pub struct Client {
    owner: UnixStream,
    talk: Talk,
    id: Id,
    paths: VmPaths,
}

impl Client {
    /// Connects to the owner of a sandbox.
    pub fn connect(home: &Home, id: &Id) -> Result<Self> {
        let paths = home.vm(id);
        let path = paths.control();
        let connected = connect(&path).and_then(|owner| {
            owner.set_nonblocking(false)?;
            owner.set_read_timeout(Some(GREETING_LIMIT))?;
            owner.set_write_timeout(Some(GREETING_LIMIT))?;
            Ok(owner)
        });
        match connected {
            Ok(owner) => Ok(Self { owner, talk: Talk::default(), id: id.clone(), paths }),
            Err(error) => Err(why_not(home, id, &path, error)),
        }
    }

    /// Ends the sandbox, and waits until nothing is left of it, for as long as the owner announced.
    pub fn stop(self) -> Result<()> {
        self.stop_within(STOP_MARGIN)
    }

    fn stop_within(mut self, margin: Duration) -> Result<()> {
        let owner = self.paths.owner().map_err(records::Error::io(self.paths.directory()))?;
        self.say(&Stop {}.into())?;
        self.hear(Talk::greeting)?;
        let (Stopping { limit_ms }, None) = self.hear(Talk::answer)? else { return Err(FRAME_KIND) };
        let limit = Duration::from_millis(limit_ms).saturating_add(margin);
        let (ended, end) = mpsc::channel();
        // flock(2) has no time limit. A thread that goes on waiting costs nothing and does nothing.
        std::thread::spawn(move || ended.send(owner.wait()));
        match end.recv_timeout(limit) {
            Ok(waited) => Ok(waited.map_err(records::Error::io(self.paths.directory()))?),
            Err(_) => Err(Error::NotEnding { id: self.id, after: limit }),
        }
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
            _ => hung_up(error).into(),
        }
    }
}

/// Explains why a sandbox cannot be reached, from its record after a reconcile.
fn why_not(home: &Home, id: &Id, path: &Path, error: io::Error) -> Error {
    let status = || -> Result<Option<Status>, records::Error> {
        let records = Records::open(home)?;
        reconcile(home, &records)?;
        Ok(records.get(id)?.map(|record| record.status))
    };
    match status() {
        Ok(None) => records::Error::UnknownVm(id.to_string()).into(),
        // unix(7): the socket's queue is full, as the owner accepts nothing; or the socket was removed.
        Ok(Some(Status::Running))
            if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::NotFound) =>
        {
            Error::NoAnswer(id.clone())
        }
        Ok(Some(Status::Running)) => Error::socket(path)(error),
        Ok(Some(status)) => Error::NotRunning { id: id.clone(), status: status.name() },
        Err(error) => error.into(),
    }
}

#[cfg(test)]
mod tests {
    use guest_protocol::{
        ConnectReply, Exit, FileReply, ProgramControl, ProgramEvent, Request as GuestRequest, Usage,
    };
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::agent::program::Event;
    use crate::control::dialogue::{Detached, reply};
    use crate::fake::{control, exec, request, run, say, with_owner};
    use crate::records::home::OwnedVm;
    use crate::{DetachedState, Guest, GuestError};

    /// Plays three parts: a program that exits with the number of the first signal, a file system of one file, a port
    /// that echoes.
    async fn guest(mut stream: tokio::net::UnixStream) {
        match request(&mut stream).await {
            Some(GuestRequest::Exec(_)) => {
                say(&mut stream, &ProgramEvent::Started).await;
                if let Some(ProgramControl::Signal(signal)) = control(&mut stream).await {
                    let exit = Exit::Code(u8::try_from(signal).unwrap());
                    say(&mut stream, &ProgramEvent::Exited(exit, Usage::default())).await;
                }
            }
            Some(GuestRequest::File(_)) => say(&mut stream, &FileReply::Ok(())).await,
            Some(GuestRequest::Connect { .. }) => {
                say(&mut stream, &ConnectReply::Ok(())).await;
                let (mut read, mut write) = stream.split();
                tokio::io::copy(&mut read, &mut write).await.unwrap();
            }
            Some(_) | None => {}
        }
    }

    #[test]
    fn another_process_can_do_all_that_the_owner_can() {
        let serve = |stream| drop(tokio::spawn(guest(stream)));
        let ((), stopped) = with_owner(serve, |home, id| {
            let guest = Guest::of(home, id);
            run(async {
                let mut program = guest.exec(exec(&["x"])).await.unwrap();
                assert_eq!(program.output.next().await.unwrap(), Event::Started);
                program.input.signal(4).await.unwrap();
                let exited = Event::Exited(Exit::Code(4), Usage::default());
                assert_eq!(program.output.next().await.unwrap(), exited);

                guest.files().remove("/x", false).await.unwrap();

                let mut connection = guest.connect(80).await.unwrap();
                connection.write_all(b"hello").await.unwrap();
                connection.shutdown().await.unwrap();
                let mut echo = String::new();
                connection.read_to_string(&mut echo).await.unwrap();
                assert_eq!(echo, "hello");
            });
        });
        assert!(!stopped);
    }

    #[test]
    fn detached_programs_are_the_owners() {
        let serve = |stream| drop(tokio::spawn(guest(stream)));
        with_owner(serve, |home, id| {
            let guest = Guest::of(home, id);
            run(async {
                let program = guest.detach(exec(&["x", "y"])).await.unwrap();
                let list = guest.detached().await.unwrap();
                assert_eq!((list[0].id, list[0].command.as_str()), (program, "x y"));
                // This wait is dropped before its answer.
                let limit = Duration::from_millis(50);
                assert!(timeout(limit, guest.wait(program)).await.is_err(), "it runs");
                guest.signal(program, 7).await.unwrap();
                assert_eq!(guest.wait(program).await.unwrap(), Exit::Code(7));
                assert!(matches!(
                    guest.signal(program, 7).await,
                    Err(GuestError::Agent(agent::Error::ProgramEnded(_)))
                ));
                assert_eq!(guest.detached_output(program).await.unwrap(), b"");
                guest.kill(program).await.unwrap();
                let state = guest.detached().await.unwrap()[0].state;
                assert_eq!(state, DetachedState::Exited(Exit::Code(7)));
                assert!(matches!(
                    guest.kill(99).await,
                    Err(GuestError::Agent(agent::Error::UnknownProgram(99)))
                ));
            });
        });
    }

    /// A sandbox whose owner lives, and the listener of its socket.
    fn owned() -> (tempfile::TempDir, Home, OwnedVm, std::os::unix::net::UnixListener) {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let owned = OwnedVm::create(&home).unwrap();
        let listener = crate::control::owner::bind(&owned.paths).unwrap();
        listener.set_nonblocking(false).unwrap();
        (directory, home, owned, listener)
    }

    #[test]
    fn an_owner_that_is_suspended_is_not_waited_for() {
        let (_directory, home, owned, _listener) = owned();
        let client = Client::connect(&home, &owned.id).unwrap();
        client.owner.set_read_timeout(Some(Duration::from_millis(50))).unwrap();
        let error = client.stop().unwrap_err();
        assert_eq!(error.to_string(), format!("the owner of VM {} does not answer", owned.id));
        assert!(matches!(error, Error::NoAnswer(id) if id == owned.id));
        let asked = run(ask_within(Duration::from_millis(50), &home, &owned.id, Detached {}));
        assert!(matches!(asked, Err(Error::NoAnswer(_))));
    }

    #[test]
    fn an_owner_that_does_not_do_what_it_said_is_not_waited_for() {
        let (_directory, home, owned, listener) = owned();
        let owner = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut words = frame::encode(&Hello { version: VERSION }).unwrap();
            words.extend(frame::encode(&reply::<Stop>(Ok(Stopping { limit_ms: 10 }))).unwrap());
            stream.write_all(&words).unwrap();
            io::Read::read_to_end(&mut stream, &mut Vec::new())
        });
        let client = Client::connect(&home, &owned.id).unwrap();
        let error = client.stop_within(Duration::ZERO).unwrap_err();
        assert!(matches!(error, Error::NotEnding { .. }), "{error}");
        let _ = owner.join().unwrap();
    }
}
