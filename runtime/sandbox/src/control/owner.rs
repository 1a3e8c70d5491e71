//! The control socket: how other `matchlock` processes reach a sandbox's owner.
//!
//! ```text
//! client                          owner
//!   Hello { version }  ─────────▶
//!   Request            ─────────▶
//!                      ◀─────────  Hello { version }
//!                      ◀─────────  Reply (StreamComes: with a descriptor)
//! ```
//!
//! Frames are those of `guest_protocol`, and a connection carries one request. To run a program, the owner opens a
//! service stream, writes the request with the sandbox's defaults merged in, and passes the stream's descriptor on: the
//! program's data never goes through the owner, and a client's death closes the stream, which cancels the program. Only
//! the sandbox's user can reach the socket, as its directory is 0700. Not here: the messages
//! ([`crate::control::dialogue`]), and programs themselves ([`crate::agent::program`]).

use std::os::fd::AsFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use guest_protocol::frame::{self, Kind};
use machine::shares::Keeper;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, Interest};
use tokio::sync::watch;
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::{sleep, timeout};

use crate::agent::descriptors;
use crate::agent::frames::{hung_up, read_frame, write_message};
use crate::agent::own::OwnGuest;
use crate::control::allow_list::{AllowList, Gate, ListChange};
use crate::control::dialogue::{
    AddMount, ChangeAllowList, Changes, Detach, Detached, FRAME_KIND, Hello, Kill, ListMounts, Output,
    Question, RemoveMount, Request, Run, Service, Signal, Stop, Stopping, StreamComes, VERSION, Wait, reply,
};
use crate::control::error::{Error, Result};
use crate::records::home::VmPaths;
use crate::{agent, sys};

/// Most connections at once; more wait in the socket's queue. Each takes a descriptor, and another while a stream is
/// handed over.
const MAX_CONNECTIONS: usize = 256;

/// How long a client may take to send its request, so that silent clients do not keep the others waiting.
const REQUEST_LIMIT: Duration = Duration::from_secs(10);

/// Pause after a failed accept: without free descriptors the next one would fail at once.
const SHORTAGE_PAUSE: Duration = Duration::from_millis(100);

/// State that the connections share with the sandbox's driver.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Set once the guest is ready.
    pub(crate) guest: watch::Sender<Option<OwnGuest>>,
    /// Set once a client asks for the sandbox's end.
    pub(crate) stop: watch::Sender<bool>,
    /// How long the sandbox may take to end.
    pub(crate) stop_limit: Duration,
    /// The way to have changes of overlays written down, once something serves overlays.
    pub(crate) keeper: Mutex<Option<Arc<Keeper>>>,
    /// The way out.
    pub(crate) gate: Arc<Gate>,
}

impl Shared {
    /// Tells of the way to have changes written down.
    pub(crate) fn set_keeper(&self, keeper: Arc<Keeper>) {
        *self.keeper.lock().unwrap_or_else(PoisonError::into_inner) = Some(keeper);
    }

    pub(crate) fn keeper(&self) -> Option<Arc<Keeper>> {
        self.keeper.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Binds the socket.
pub(crate) fn bind(paths: &VmPaths) -> Result<UnixListener> {
    let path = paths.control();
    let short = sys::SocketPath::new(&path).map_err(Error::socket(&path))?;
    let listener = UnixListener::bind(short.path()).map_err(Error::socket(&path))?;
    listener.set_nonblocking(true).map_err(Error::socket(&path))?;
    Ok(listener)
}

/// Serves connections until the future is dropped, and all connections with it.
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
                    if let Err(error) = serve_one(limit, stream, &shared).await {
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

async fn serve_one(limit: Duration, mut stream: tokio::net::UnixStream, shared: &Shared) -> Result<()> {
    match timeout(limit, requested(&mut stream)).await.unwrap_or(Err(agent::Error::HangUp.into()))? {
        Request::Stop(Stop {}) => {
            let limit_ms = u64::try_from(shared.stop_limit.as_millis()).unwrap_or(u64::MAX);
            write_message(&mut stream, &reply::<Stop>(Ok(Stopping { limit_ms }))).await?;
            shared.stop.send_replace(true);
            Ok(())
        }
        Request::Run(Run { exec }) => {
            let service = ready(shared).await?.exec_stream(exec).await;
            hand_over::<Run>(&mut stream, service).await
        }
        Request::Service(Service {}) => {
            let service = ready(shared).await?.stream().await;
            hand_over::<Service>(&mut stream, service).await
        }
        Request::Detach(Detach { exec }) => {
            answer::<Detach>(stream, async { ready(shared).await?.detach(exec).await }).await
        }
        Request::Detached(Detached {}) => {
            answer::<Detached>(stream, async { Ok(ready(shared).await?.detached().list()) }).await
        }
        Request::Wait(Wait { program }) => {
            answer::<Wait>(stream, async { ready(shared).await?.detached().wait(program).await }).await
        }
        Request::Signal(Signal { program, signal }) => {
            let sent = async { ready(shared).await?.detached().signal(program, signal).await };
            answer::<Signal>(stream, sent).await
        }
        Request::Kill(Kill { program }) => {
            answer::<Kill>(stream, async { ready(shared).await?.detached().kill(program).await }).await
        }
        Request::Output(Output { program }) => {
            answer::<Output>(stream, async { ready(shared).await?.detached().output(program) }).await
        }
        Request::Changes(Changes {}) => answer::<Changes>(stream, keep_changes(shared)).await,
        Request::ChangeAllowList(ChangeAllowList { change }) => {
            answer::<ChangeAllowList>(stream, change_allow_list(shared, change)).await
        }
        Request::AddMount(AddMount { mount }) => {
            let added = async { ready(shared).await?.mounts()?.add(mount.mount()?).await };
            answer::<AddMount>(stream, added).await
        }
        Request::RemoveMount(RemoveMount { guest_path, force }) => {
            let removed = async { ready(shared).await?.mounts()?.remove(guest_path, force).await };
            answer::<RemoveMount>(stream, removed).await
        }
        Request::ListMounts(ListMounts {}) => {
            answer::<ListMounts>(stream, async { ready(shared).await?.mounts()?.list().await }).await
        }
    }
}

/// Answers a question, unless the client hangs up first.
async fn answer<Q: Question>(
    mut stream: tokio::net::UnixStream,
    answer: impl Future<Output = Result<Q::Answer, agent::Error>>,
) -> Result<()> {
    let (mut read, mut write) = stream.split();
    let mut nothing = [0];
    let answer = tokio::select! {
        answer = answer => answer,
        _ = read.read(&mut nothing) => return Ok(()),
    };
    Ok(write_message(&mut write, &reply::<Q>(answer)).await?)
}

/// Exchanges greetings, and reads the request.
pub(crate) async fn requested(stream: &mut tokio::net::UnixStream) -> Result<Request> {
    let mut payload = Vec::new();
    let hello: Hello = receive(stream, &mut payload).await?;
    write_message(stream, &Hello { version: VERSION }).await?;
    if hello.version != VERSION {
        return Err(Error::Version { theirs: hello.version, ours: VERSION });
    }
    receive(stream, &mut payload).await
}

/// A client's bytes for this request.
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) fn greeted(request: &Request) -> Result<Vec<u8>> {
    Ok([frame::encode(&Hello { version: VERSION })?, frame::encode(request)?].concat())
}

/// Passes a service stream on, or replies with the reason why there is none.
async fn hand_over<Q: Question<Answer = StreamComes>>(
    stream: &mut tokio::net::UnixStream,
    service: Result<tokio::net::UnixStream, agent::Error>,
) -> Result<()> {
    match service {
        Ok(service) => {
            let message = frame::encode(&reply::<Q>(Ok(StreamComes)))?;
            let pass = || descriptors::send(&*stream, &message, Some(service.as_fd()));
            stream.async_io(Interest::WRITABLE, pass).await.map_err(hung_up)?;
            // The client's copy is now the only one on the host, so the guest sees that client's hang-up.
            drop(service);
            Ok(())
        }
        Err(error) => Ok(write_message(stream, &reply::<Q>(Err(error))).await?),
    }
}

/// Has what was changed of overlays written down, if there are overlays.
async fn keep_changes(shared: &Shared) -> Result<(), agent::Error> {
    ready(shared).await?;
    let Some(keeper) = shared.keeper() else { return Ok(()) };
    let kept = spawn_blocking(move || keeper.keep()).await.map_err(|_| agent::Error::HangUp)?;
    kept.map_err(|error| agent::Error::Refused(error.to_string()))
}

async fn change_allow_list(shared: &Shared, change: ListChange) -> Result<AllowList, agent::Error> {
    ready(shared).await?;
    shared.gate.change(change).await.map_err(agent::Error::Refused)
}

/// Waits until the guest is ready.
async fn ready(shared: &Shared) -> Result<OwnGuest, agent::Error> {
    let mut guest = shared.guest.subscribe();
    let ready = guest.wait_for(Option::is_some).await.map_err(|_| agent::Error::HangUp)?.clone();
    ready.ok_or(agent::Error::HangUp)
}

async fn receive<M: DeserializeOwned>(
    stream: &mut tokio::net::UnixStream,
    payload: &mut Vec<u8>,
) -> Result<M> {
    match read_frame(stream, payload).await? {
        Some((Kind::Message, payload)) => Ok(frame::decode(payload)?),
        Some(_) => Err(FRAME_KIND),
        None => Err(agent::Error::HangUp.into()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use guest_protocol::{Exit, ProgramEvent, Request as GuestRequest, Usage};
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::agent::program::{Event, ProgramStream};
    use crate::control::allow_list::change as change_allow_list_of;
    use crate::fake::{data, exec, request, run, say, with_owner};
    use crate::records::home::OwnedVm;
    use crate::{Client, Guest, GuestError, Home, Id, records};

    /// Plays a guest that prints each request as the program's output, then waits for the hang-up.
    fn echo(hung_up: std::sync::mpsc::Sender<()>) -> impl Fn(tokio::net::UnixStream) + Send + 'static {
        move |mut stream| {
            let hung_up = hung_up.clone();
            tokio::spawn(async move {
                let Some(GuestRequest::Exec(request)) = request(&mut stream).await else { return };
                let words = format!("{:?} {} {:?}", request.program, request.user, request.env);
                say(&mut stream, &ProgramEvent::Started).await;
                stream.write_all(&data(Kind::Stdout, words.as_bytes())).await.unwrap();
                let exited = ProgramEvent::Exited(Exit::Code(3), Usage::default());
                say(&mut stream, &exited).await;
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
                let program = runtime.block_on(Guest::of(home, id).exec(exec(&["echo", "hi"]))).unwrap();
                let ProgramStream { mut output, input } = program;
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
            let started = async {
                Ok::<_, GuestError>(guest.exec(exec(&["x"])).await?.output.next().await.map(|_| ())?)
            };
            tokio::runtime::Handle::current().block_on(started).is_ok()
        });
        assert!(output);
    }

    #[test]
    fn another_process_changes_the_allow_list_of_a_sandbox_that_has_one() {
        let (changed, stopped) = with_owner(drop, |home, id| {
            let runtime = tokio::runtime::Handle::current();
            let ask = |change| runtime.block_on(change_allow_list_of(home, id, change));
            let hosts = || vec!["a.test".to_owned()];
            let added = ask(ListChange::Add(hosts())).unwrap();
            assert_eq!((added.changed, added.allowed), (hosts(), hosts()));
            assert!(ask(ListChange::Nothing).unwrap().changed.is_empty());
            let refused = ask(ListChange::Add(vec![String::new()])).unwrap_err();
            assert!(matches!(refused, Error::Refused(why) if why == "no pattern"));
            ask(ListChange::Delete(hosts())).unwrap()
        });
        assert_eq!(
            (changed.changed.len(), changed.allowed.len(), changed.is_closed, stopped),
            (1, 0, true, false)
        );
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
            bytes.extend(frame::encode(&Request::from(Stop {})).unwrap());
            owner.write_all(&bytes).unwrap();
            let mut answer = Vec::new();
            // The read may end with a reset, as the owner did not read the request.
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
                keeper: Mutex::default(),
                gate: Arc::default(),
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
            write_message(&mut client, &Request::from(Stop {})).await.unwrap();
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
        assert!(matches!(error, GuestError::Agent(agent::Error::TooLong)), "{error}");
    }

    #[test]
    fn nobody_there() {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let id: Id = "vm-00000001".parse().unwrap();
        assert!(matches!(Client::connect(&home, &id), Err(Error::Records(records::Error::UnknownVm(_)))));
    }
}
