//! The control socket: how other `matchlock` processes reach a sandbox's owner.
//!
//! ```text
//! client                          owner
//!   Hello { version }  ─────────▶
//!   Request            ─────────▶
//!                      ◀─────────  Hello { version }
//!                      ◀─────────  Answer (Stream: with a descriptor)
//! ```
//!
//! Frames as in `guest_protocol`, one request a connection. For a program to run, the owner opens a service stream,
//! writes the request with its own defaults merged in, and passes that very descriptor on: the program's data never
//! goes through the owner, and when the client dies its end of the stream closes, which cancels the program. Only the
//! sandbox's user can reach the socket: its directory is 0700. `Hello` never changes, so that either side can say
//! which version it misses. Not here: how a program is run ([`crate::service`]).

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::Arc;
use std::time::Duration;

use guest_protocol::frame::{self, Kind};
use guest_protocol::{ExecFailure, Exit};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, Interest};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::command::Exec;
use crate::detached::DetachedInfo;
use crate::frames::{hung_up, read_frame, write_message};
use crate::guest::Guest;
use crate::home::VmPaths;
use crate::{Error, Result, descriptors, sys};

/// Raised with every incompatible change of [`Request`] or [`Answer`].
pub(crate) const VERSION: u16 = 3;

/// Most connections at once; more wait in the socket's queue. Each is a descriptor, and one more while a stream is
/// handed over.
const MAX_CONNECTIONS: usize = 256;

/// How long a client may take to say what it wants, so that silent ones do not keep the others waiting.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Out of descriptors, the next accept would say the same at once.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Hello {
    pub(crate) version: u16,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    /// Run a program.
    Exec(Exec),
    /// A service stream on which nothing is asked yet.
    Service,
    /// End the sandbox.
    Stop,
    /// Run a program and keep it.
    Detach(Exec),
    /// List the detached programs.
    Detached,
    /// Wait for a detached program's end.
    Wait(u32),
    /// Send a signal to a detached program.
    Signal {
        /// Which.
        program: u32,
        /// Signal number.
        signal: i32,
    },
    /// Kill a detached program and all it started.
    Kill(u32),
    /// The last output of a detached program.
    Output(u32),
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Answer {
    /// The service stream comes with this message.
    Stream,
    /// The sandbox is being ended, which takes this long at most; it has ended when its owner's lock is free.
    Stopping {
        /// Milliseconds.
        limit_ms: u64,
    },
    /// The detached program's number.
    Program(u32),
    /// The detached programs.
    Programs(Vec<DetachedInfo>),
    /// How it ended.
    Exited(Exit),
    /// It is done.
    Done,
    /// Output.
    Output(Vec<u8>),
    /// It cannot be done.
    Refused(Refusal),
}

/// Why something cannot be done.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Refusal {
    /// The program never ran.
    NotStarted(ExecFailure),
    /// There is no such detached program.
    UnknownProgram(u32),
    /// The detached program has ended.
    ProgramEnded(u32),
    /// The guest is gone.
    HangUp,
    /// Anything else, in the owner's words.
    Other(String),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        match error {
            Error::NotStarted(failure) => Self::NotStarted(failure),
            Error::UnknownProgram(program) => Self::UnknownProgram(program),
            Error::ProgramEnded(program) => Self::ProgramEnded(program),
            Error::HangUp => Self::HangUp,
            error => Self::Other(error.to_string()),
        }
    }
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::NotStarted(failure) => Self::NotStarted(failure),
            Refusal::UnknownProgram(program) => Self::UnknownProgram(program),
            Refusal::ProgramEnded(program) => Self::ProgramEnded(program),
            Refusal::HangUp => Self::HangUp,
            Refusal::Other(text) => Self::Refused(text),
        }
    }
}

/// What connections share with the owner.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Set once the guest is ready.
    pub(crate) guest: watch::Sender<Option<Guest>>,
    /// Set once somebody wants the sandbox to end.
    pub(crate) stop: watch::Sender<bool>,
    /// How long the sandbox may take to end.
    pub(crate) stop_limit: Duration,
}

/// Binds the socket.
pub(crate) fn bind(paths: &VmPaths) -> Result<UnixListener> {
    let path = paths.control();
    let short = sys::SocketPath::new(&path).map_err(Error::io(&path))?;
    let listener = UnixListener::bind(short.path()).map_err(Error::io(&path))?;
    listener.set_nonblocking(true).map_err(Error::io(&path))?;
    Ok(listener)
}

/// Answers connections until it is dropped; then all of them end.
pub(crate) async fn serve(listener: tokio::net::UnixListener, shared: Arc<Shared>) {
    serve_within(REQUEST_LIMIT, listener, shared).await;
}

async fn serve_within(limit: Duration, listener: tokio::net::UnixListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept(), if connections.len() < MAX_CONNECTIONS => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                let shared = Arc::clone(&shared);
                connections.spawn(async move {
                    if let Err(error) = answer(limit, stream, &shared).await {
                        tracing::debug!("control connection: {error}");
                    }
                });
            }
            Err(error) => {
                tracing::debug!("control socket: {error}");
                sleep(SHORTAGE_PAUSE).await;
            }
        }
    }
}

async fn answer(limit: Duration, mut stream: tokio::net::UnixStream, shared: &Shared) -> Result<()> {
    match timeout(limit, requested(&mut stream)).await.unwrap_or(Err(Error::HangUp))? {
        Request::Stop => {
            let limit_ms = u64::try_from(shared.stop_limit.as_millis()).unwrap_or(u64::MAX);
            write_message(&mut stream, &Answer::Stopping { limit_ms }).await?;
            shared.stop.send_replace(true);
            Ok(())
        }
        Request::Exec(exec) => {
            let guest = ready(shared).await?;
            hand_over(&mut stream, guest.exec_stream(exec).await).await
        }
        Request::Service => {
            let guest = ready(shared).await?;
            hand_over(&mut stream, guest.stream().await).await
        }
        request => {
            // Whoever asked may be gone before there is an answer.
            let (mut read, mut write) = stream.split();
            let mut nothing = [0];
            let answer = tokio::select! {
                answer = detached(request, shared) => answer,
                _ = read.read(&mut nothing) => return Ok(()),
            };
            write_message(&mut write, &answer.unwrap_or_else(|error| Answer::Refused(error.into()))).await
        }
    }
}

/// Greets, and hears what is wanted.
pub(crate) async fn requested(stream: &mut tokio::net::UnixStream) -> Result<Request> {
    let mut payload = Vec::new();
    let hello: Hello = receive(stream, &mut payload).await?;
    write_message(stream, &Hello { version: VERSION }).await?;
    if hello.version != VERSION {
        return Err(Error::ControlVersion { theirs: hello.version, ours: VERSION });
    }
    receive(stream, &mut payload).await
}

/// What a client says to ask for this.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn greeted(request: &Request) -> Result<Vec<u8>> {
    Ok([frame::encode(&Hello { version: VERSION })?, frame::encode(request)?].concat())
}

/// What is asked about detached programs.
async fn detached(request: Request, shared: &Shared) -> Result<Answer> {
    let guest = ready(shared).await?;
    match request {
        Request::Detach(exec) => guest.detach(exec).await.map(Answer::Program),
        Request::Detached => guest.detached().await.map(Answer::Programs),
        Request::Wait(program) => guest.wait(program).await.map(Answer::Exited),
        Request::Signal { program, signal } => guest.signal(program, signal).await.map(|()| Answer::Done),
        Request::Kill(program) => guest.kill(program).await.map(|()| Answer::Done),
        Request::Output(program) => guest.detached_output(program).await.map(Answer::Output),
        Request::Exec(_) | Request::Service | Request::Stop => Err(FRAME_KIND),
    }
}

/// Passes a service stream on, or says why there is none.
async fn hand_over(
    stream: &mut tokio::net::UnixStream,
    service: Result<tokio::net::UnixStream>,
) -> Result<()> {
    match service {
        Ok(service) => {
            let message = frame::encode(&Answer::Stream)?;
            let pass = || descriptors::send(&*stream, &message, Some(service.as_fd()));
            stream.async_io(Interest::WRITABLE, pass).await.map_err(hung_up)?;
            // From here on the client's is the only end on the host: its hang-up is the guest's to see.
            drop(service);
            Ok(())
        }
        Err(error) => write_message(stream, &Answer::Refused(error.into())).await,
    }
}

/// Waits until the guest is ready.
async fn ready(shared: &Shared) -> Result<Guest> {
    let mut guest = shared.guest.subscribe();
    let ready = guest.wait_for(Option::is_some).await.map_err(|_| Error::HangUp)?.clone();
    ready.ok_or(Error::HangUp)
}

async fn receive<M: DeserializeOwned>(
    stream: &mut tokio::net::UnixStream,
    payload: &mut Vec<u8>,
) -> Result<M> {
    match read_frame(stream, payload).await? {
        Some((Kind::Message, payload)) => Ok(frame::decode(payload)?),
        Some(_) => Err(FRAME_KIND),
        None => Err(Error::HangUp),
    }
}

pub(crate) const FRAME_KIND: Error = Error::Frame(frame::FrameError::Message);

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use guest_protocol::{Exit, Request as GuestRequest, ServiceFromGuest, Usage};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::fake::{data, exec, request, run, say, with_owner};
    use crate::home::OwnedVm;
    use crate::service::{Event, Service};
    use crate::{Client, Home, Id};

    /// Answers a request with its own words on the program's output, then waits for the hang-up.
    fn echo(hung_up: std::sync::mpsc::Sender<()>) -> impl Fn(tokio::net::UnixStream) + Send + 'static {
        move |mut stream| {
            let hung_up = hung_up.clone();
            tokio::spawn(async move {
                let Some(GuestRequest::Exec(request)) = request(&mut stream).await else { return };
                let words = format!("{:?} {} {:?}", request.program, request.user, request.env);
                say(&mut stream, &ServiceFromGuest::Started).await;
                stream.write_all(&data(Kind::Stdout, words.as_bytes())).await.unwrap();
                let exited = ServiceFromGuest::Exited(Exit::Code(3), Usage::default());
                stream.write_all(&frame::encode(&exited).unwrap()).await.unwrap();
                assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
                hung_up.send(()).unwrap();
            });
        }
    }

    #[test]
    fn a_client_gets_the_only_end_of_the_stream() {
        let (sender, hung_up) = std::sync::mpsc::channel();
        let ((), stopped) = with_owner(echo(sender), move |home, id| {
            for number in 0..3 {
                let runtime = tokio::runtime::Handle::current();
                let service = runtime.block_on(Guest::of(home, id).exec(exec(&["echo", "hi"]))).unwrap();
                let Service { mut output, input } = service;
                let mut words = String::new();
                loop {
                    match runtime.block_on(output.next()).unwrap() {
                        Event::Started => {}
                        Event::Stdout(bytes) => words.push_str(std::str::from_utf8(bytes).unwrap()),
                        Event::Exited(exit, _) => break assert_eq!(exit, Exit::Code(3)),
                        event => panic!("{event:?}"),
                    }
                }
                for part in [r#"Argv(["echo", "hi"]) app"#, r#"("A", "image"), ("B", "exec")]"#] {
                    assert!(words.contains(part), "{number}: {words}");
                }
                assert!(hung_up.try_recv().is_err());
                drop((output, input));
                hung_up.recv_timeout(Duration::from_secs(10)).unwrap();
            }
        });
        assert!(!stopped);
    }

    #[test]
    fn a_dead_spare_is_replaced() {
        let (sender, _hung_up) = std::sync::mpsc::channel();
        let echo = echo(sender);
        let first = std::sync::atomic::AtomicBool::new(true);
        let guest = move |stream| match first.swap(false, std::sync::atomic::Ordering::Relaxed) {
            true => drop(stream),
            false => echo(stream),
        };
        let (output, _) = with_owner(guest, |home, id| {
            let guest = Guest::of(home, id);
            let started = async { guest.exec(exec(&["x"])).await?.output.next().await.map(|_| ()) };
            tokio::runtime::Handle::current().block_on(started).is_ok()
        });
        assert!(output);
    }

    #[test]
    fn stop_returns_when_the_owner_is_gone() {
        let ((), stopped) = with_owner(drop, |home, id| {
            assert!(home.vm(id).is_owned().unwrap());
            Client::connect(home, id).unwrap().stop().unwrap();
            assert!(!home.vm(id).is_owned().unwrap());
        });
        assert!(stopped);
    }

    #[test]
    fn other_versions_are_told_ours() {
        let (hello, stopped) = with_owner(drop, |home, id| {
            let path = home.vm(id).control();
            let short = sys::SocketPath::new(&path).unwrap();
            let mut owner = std::os::unix::net::UnixStream::connect(short.path()).unwrap();
            let mut bytes = frame::encode(&Hello { version: VERSION + 1 }).unwrap();
            bytes.extend(frame::encode(&Request::Stop).unwrap());
            owner.write_all(&bytes).unwrap();
            let mut answer = Vec::new();
            // It may end with a reset: the request was not read.
            let _ = owner.read_to_end(&mut answer);
            let mut splitter = frame::Splitter::default();
            splitter.push(&answer);
            let (_, hello) = splitter.next_frame().unwrap().unwrap();
            let hello: Hello = frame::decode(hello).unwrap();
            assert!(splitter.at_boundary());
            hello.version
        });
        assert_eq!((hello, stopped), (VERSION, false));
    }

    #[test]
    fn silent_clients_do_not_keep_the_others_waiting() {
        let directory = tempfile::tempdir().unwrap();
        let owned = OwnedVm::create(&Home::at(directory.path())).unwrap();
        run(async {
            let listener = bind(&owned.paths).unwrap();
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            let shared = Arc::new(Shared {
                guest: watch::Sender::new(None),
                stop: watch::Sender::new(false),
                stop_limit: Duration::ZERO,
            });
            let limit = Duration::from_millis(50);
            tokio::spawn(serve_within(limit, listener, Arc::clone(&shared)));
            let connect = || tokio::net::UnixStream::connect(owned.paths.control());
            let mut silent = Vec::new();
            for _ in 0..MAX_CONNECTIONS {
                silent.push(connect().await.unwrap());
            }
            let mut client = connect().await.unwrap();
            write_message(&mut client, &Hello { version: VERSION }).await.unwrap();
            write_message(&mut client, &Request::Stop).await.unwrap();
            shared.stop.subscribe().wait_for(|stop| *stop).await.unwrap();
            assert_eq!(silent.pop().unwrap().read(&mut [0]).await.unwrap(), 0);
        });
    }

    #[test]
    fn what_no_frame_can_hold_is_refused() {
        let (error, _) = with_owner(drop, |home, id| {
            let long = "x".repeat(frame::MAX_PAYLOAD);
            tokio::runtime::Handle::current().block_on(Guest::of(home, id).exec(exec(&[&long]))).unwrap_err()
        });
        assert!(matches!(error, Error::TooLong), "{error}");
    }

    #[test]
    fn nobody_there() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let id: Id = "vm-00000001".parse().unwrap();
        assert!(matches!(Client::connect(&home, &id), Err(Error::UnknownVm(_))));
    }
}
