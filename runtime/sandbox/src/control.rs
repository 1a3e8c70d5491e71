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

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use guest_protocol::frame::{self, DATA_CHUNK, Kind, Splitter};
use guest_protocol::{AGENT_PORT, Request as GuestRequest, ServiceFromHost};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncWriteExt, Interest};
use tokio::sync::watch;

use crate::command::{Defaults, Exec};
use crate::home::{Home, VmPaths};
use crate::ports::Ports;
use crate::records::{Records, Status};
use crate::service::{Service, hung_up, read_frame};
use crate::{Error, Id, Result, descriptors, reconcile, sys};

/// Raised with every incompatible change of [`Request`] or [`Answer`].
const VERSION: u16 = 2;

#[derive(Debug, Serialize, Deserialize)]
struct Hello {
    version: u16,
}

#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Run a program.
    Exec(Exec),
    /// A service stream on which nothing is asked yet.
    Service,
    /// End the sandbox.
    Stop,
}

#[derive(Debug, Serialize, Deserialize)]
enum Answer {
    /// The service stream comes with this message.
    Stream,
    /// The sandbox is being ended; it has ended when the connection does.
    Stopping,
    /// It cannot be done.
    Refused(String),
}

/// What the owner can do for others once the guest is ready.
#[derive(Debug)]
pub(crate) struct Services {
    ports: Arc<Ports>,
    defaults: Defaults,
    /// Connected ahead of need, so that a request costs no connection set-up.
    spare: Mutex<Option<tokio::net::UnixStream>>,
}

impl Services {
    pub(crate) fn new(ports: Arc<Ports>, defaults: Defaults) -> Arc<Self> {
        Arc::new(Self { ports, defaults, spare: Mutex::new(None) })
    }

    /// Connects the spare stream.
    pub(crate) async fn refill(&self) -> Result<()> {
        let stream = self.ports.connect(AGENT_PORT).await.map_err(hung_up)?;
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = Some(stream);
        Ok(())
    }

    /// A service stream on which nothing has been asked yet.
    pub(crate) async fn stream(self: &Arc<Self>) -> Result<tokio::net::UnixStream> {
        let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner).take();
        match spare.filter(is_open) {
            Some(spare) => {
                let services = Arc::clone(self);
                tokio::spawn(async move { services.refill().await });
                Ok(spare)
            }
            None => self.ports.connect(AGENT_PORT).await.map_err(hung_up),
        }
    }

    /// A service stream on which this program has been asked for.
    pub(crate) async fn exec(self: &Arc<Self>, exec: Exec) -> Result<tokio::net::UnixStream> {
        let request = GuestRequest::Exec(Box::new(self.defaults.request(exec)));
        let request = frame::encode(&ServiceFromHost::Request(request)).map_err(|_| Error::TooLong)?;
        let mut stream = self.stream().await?;
        stream.write_all(&request).await.map_err(hung_up)?;
        Ok(stream)
    }
}

/// Nothing comes on an unused stream but its end.
fn is_open(stream: &tokio::net::UnixStream) -> bool {
    use rustix::net::RecvFlags;
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    rustix::net::recv(stream, &mut [0; 1], flags) == Err(rustix::io::Errno::WOULDBLOCK)
}

/// What connections share with the owner.
#[derive(Debug)]
pub(crate) struct Shared {
    /// Set once the guest is ready.
    pub(crate) services: watch::Sender<Option<Arc<Services>>>,
    /// Set once somebody wants the sandbox to end.
    pub(crate) stop: watch::Sender<bool>,
}

/// Binds the socket.
pub(crate) fn bind(paths: &VmPaths) -> Result<UnixListener> {
    let path = paths.control();
    let short = sys::SocketPath::new(&path).map_err(Error::io(&path))?;
    let listener = UnixListener::bind(short.path()).map_err(Error::io(&path))?;
    listener.set_nonblocking(true).map_err(Error::io(&path))?;
    Ok(listener)
}

/// Answers connections until it is dropped.
pub(crate) async fn serve(listener: tokio::net::UnixListener, shared: Arc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let shared = Arc::clone(&shared);
                tokio::spawn(async move {
                    if let Err(error) = answer(stream, &shared).await {
                        tracing::debug!("control connection: {error}");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: the next accept would say the same at once, for ever.
                tracing::warn!("control socket: {error}");
                return;
            }
        }
    }
}

async fn answer(mut stream: tokio::net::UnixStream, shared: &Shared) -> Result<()> {
    let mut payload = Vec::new();
    let hello: Hello = receive(&mut stream, &mut payload).await?;
    send(&mut stream, &Hello { version: VERSION }).await?;
    if hello.version != VERSION {
        return Err(Error::ControlVersion { theirs: hello.version, ours: VERSION });
    }
    match receive(&mut stream, &mut payload).await? {
        Request::Stop => {
            send(&mut stream, &Answer::Stopping).await?;
            shared.stop.send_replace(true);
            Ok(())
        }
        Request::Exec(exec) => {
            let services = ready(shared).await?;
            hand_over(&mut stream, services.exec(exec).await).await
        }
        Request::Service => {
            let services = ready(shared).await?;
            hand_over(&mut stream, services.stream().await).await
        }
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
        Err(error) => send(stream, &Answer::Refused(error.to_string())).await,
    }
}

/// Waits until the guest is ready.
async fn ready(shared: &Shared) -> Result<Arc<Services>> {
    let mut services = shared.services.subscribe();
    let ready = services.wait_for(Option::is_some).await.map_err(|_| Error::HangUp)?.clone();
    ready.ok_or(Error::HangUp)
}

async fn send<M: Serialize>(stream: &mut tokio::net::UnixStream, message: &M) -> Result<()> {
    stream.write_all(&frame::encode(message)?).await.map_err(hung_up)
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

const FRAME_KIND: Error = Error::Frame(frame::FrameError::Message);

/// A connection to a sandbox's owner. Blocking: owners answer at once, and ^C ends the caller.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    splitter: Splitter,
    /// Arrives with whichever bytes are read together with the message it belongs to.
    descriptor: Option<OwnedFd>,
    paths: VmPaths,
}

impl Client {
    /// Reaches the owner of a sandbox.
    pub fn connect(home: &Home, id: &Id) -> Result<Self> {
        let paths = home.vm(id);
        let path = paths.control();
        let connected = sys::SocketPath::new(&path).and_then(|short| UnixStream::connect(short.path()));
        match connected {
            Ok(stream) => Ok(Self { stream, splitter: Splitter::default(), descriptor: None, paths }),
            Err(error) => Err(why_not(home, id, &path, error)),
        }
    }

    /// Runs a program. Needs a tokio runtime with I/O around it.
    pub fn exec(self, exec: Exec) -> Result<Service> {
        self.stream(&Request::Exec(exec))
    }

    /// A service stream on which nothing is asked yet, for measurements. Needs a tokio runtime with I/O around it.
    pub fn service(self) -> Result<Service> {
        self.stream(&Request::Service)
    }

    fn stream(mut self, request: &Request) -> Result<Service> {
        match self.ask(request)? {
            (Answer::Stream, Some(stream)) => {
                let stream = UnixStream::from(stream);
                stream.set_nonblocking(true).map_err(Error::system("guest stream"))?;
                let stream =
                    tokio::net::UnixStream::from_std(stream).map_err(Error::system("guest stream"))?;
                Ok(Service::new(stream))
            }
            _ => Err(FRAME_KIND),
        }
    }

    /// Ends the sandbox, and waits until nothing is left of it.
    pub fn stop(mut self) -> Result<()> {
        let owner = self.paths.owner().map_err(Error::io(self.paths.directory()))?;
        match self.ask(&Request::Stop)? {
            (Answer::Stopping, None) => owner.wait().map_err(Error::io(self.paths.directory())),
            _ => Err(FRAME_KIND),
        }
    }

    fn ask(&mut self, request: &Request) -> Result<(Answer, Option<OwnedFd>)> {
        let mut message = frame::encode(&Hello { version: VERSION })?;
        message.extend(frame::encode(request).map_err(|_| Error::TooLong)?);
        io::Write::write_all(&mut self.stream, &message).map_err(hung_up)?;
        let hello: Hello = self.receive()?;
        if hello.version != VERSION {
            return Err(Error::ControlVersion { theirs: hello.version, ours: VERSION });
        }
        match self.receive()? {
            Answer::Refused(reason) => Err(Error::Refused(reason)),
            answer => Ok((answer, self.descriptor.take())),
        }
    }

    fn receive<M: DeserializeOwned>(&mut self) -> Result<M> {
        loop {
            match self.splitter.next_frame()? {
                Some((Kind::Message, payload)) => return Ok(frame::decode(payload)?),
                Some(_) => return Err(FRAME_KIND),
                None => {}
            }
            let mut bytes = [0; DATA_CHUNK / 16];
            let (length, received) = descriptors::receive(&self.stream, &mut bytes).map_err(hung_up)?;
            if length == 0 {
                return Err(Error::HangUp);
            }
            self.descriptor = self.descriptor.take().or(received);
            self.splitter.push(&bytes[..length]);
        }
    }
}

/// Why a sandbox cannot be reached: what its record says, once the records are true.
fn why_not(home: &Home, id: &Id, path: &std::path::Path, error: io::Error) -> Error {
    let status = || -> Result<Option<Status>> {
        let records = Records::open(home)?;
        reconcile(home, &records)?;
        Ok(records.get(id)?.map(|record| record.status))
    };
    match status() {
        Ok(None) => Error::UnknownVm(id.to_string()),
        Ok(Some(Status::Running)) => Error::Io { path: PathBuf::from(path), source: error },
        Ok(Some(status)) => Error::NotRunning { id: id.clone(), status: status.name() },
        Err(error) => error,
    }
}

#[cfg(test)]
mod tests {
    use guest_protocol::{Exit, ServiceFromGuest, Stdio, Usage};
    use images::ImageConfig;
    use tokio::io::AsyncReadExt;

    use super::*;
    use crate::home::OwnedVm;
    use crate::service::Event;

    /// A sandbox's directory, and an owner whose guest is `guest`, called with every service stream.
    fn with_owner<T>(
        guest: impl Fn(tokio::net::UnixStream) + Send + 'static,
        client: impl FnOnce(&Home, &Id) -> T + Send + 'static,
    ) -> (T, bool)
    where
        T: Send + 'static,
    {
        let directory = tempfile::tempdir().unwrap();
        let home = Home::at(directory.path());
        let owned = OwnedVm::create(&home).unwrap();
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(async {
            let (ports, device) = Ports::pair().unwrap();
            let device = descriptors::watched(device, Interest::READABLE | Interest::WRITABLE).unwrap();
            rustix::io::ioctl_fionbio(&device, true).unwrap();
            tokio::spawn(async move {
                loop {
                    let mut message = [0; 16];
                    let receive = |device: &OwnedFd| descriptors::receive(device, &mut message);
                    let Ok((8, Some(stream))) = device.async_io(Interest::READABLE, receive).await else {
                        return;
                    };
                    let stream = UnixStream::from(stream);
                    stream.set_nonblocking(true).unwrap();
                    guest(tokio::net::UnixStream::from_std(stream).unwrap());
                }
            });
            let image = ImageConfig { user: "app".into(), env: vec!["A=image".into()], ..Default::default() };
            let services = Services::new(Arc::new(ports), Defaults { image, ..Default::default() });
            services.refill().await.unwrap();
            let shared = Arc::new(Shared {
                services: watch::Sender::new(Some(services)),
                stop: watch::Sender::new(false),
            });
            let listener = tokio::net::UnixListener::from_std(bind(&owned.paths).unwrap()).unwrap();
            tokio::spawn(serve(listener, Arc::clone(&shared)));
            let id = owned.id.clone();
            let handle = tokio::runtime::Handle::current();
            let result = tokio::task::spawn_blocking(move || {
                let _inside = handle.enter();
                client(&home, &id)
            });
            // What an owner does when it is asked to stop, cut down to letting go of its lock.
            let mut stop = shared.stop.subscribe();
            let stopping = tokio::spawn(async move {
                stop.wait_for(|stop| *stop).await.unwrap();
                drop(owned);
            });
            let result = result.await.unwrap();
            stopping.abort();
            (result, *shared.stop.borrow())
        })
    }

    fn exec(argv: &[&str]) -> Exec {
        let program = guest_protocol::Program::Argv(argv.iter().map(|arg| (*arg).to_owned()).collect());
        let env = vec![("B".to_owned(), "exec".to_owned())];
        Exec { program, env, working_dir: None, user: None, stdio: Stdio::Null, detached: false }
    }

    /// Answers a request with its own words on the program's output, then waits for the hang-up.
    fn echo(hung_up: std::sync::mpsc::Sender<()>) -> impl Fn(tokio::net::UnixStream) + Send + 'static {
        move |mut stream| {
            let hung_up = hung_up.clone();
            tokio::spawn(async move {
                let mut payload = Vec::new();
                let Ok(request) = receive(&mut stream, &mut payload).await else { return };
                let ServiceFromHost::Request(GuestRequest::Exec(request)) = request else {
                    panic!("{request:?}")
                };
                let words = format!("{:?} {} {:?}", request.program, request.user, request.env);
                let head = frame::Head::bytes(Kind::Stdout, words.len()).unwrap();
                stream.write_all(&[&head[..], words.as_bytes()].concat()).await.unwrap();
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
                let service = Client::connect(home, id).unwrap().exec(exec(&["echo", "hi"])).unwrap();
                let Service { mut output, input } = service;
                let runtime = tokio::runtime::Handle::current();
                let mut words = String::new();
                loop {
                    match runtime.block_on(output.next()).unwrap() {
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
                hung_up.recv_timeout(std::time::Duration::from_secs(10)).unwrap();
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
            let Service { mut output, .. } = Client::connect(home, id).unwrap().exec(exec(&["x"])).unwrap();
            matches!(tokio::runtime::Handle::current().block_on(output.next()), Ok(Event::Stdout(_)))
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
            let mut client = Client::connect(home, id).unwrap();
            let mut bytes = frame::encode(&Hello { version: VERSION + 1 }).unwrap();
            bytes.extend(frame::encode(&Request::Stop).unwrap());
            io::Write::write_all(&mut client.stream, &bytes).unwrap();
            let hello: Hello = client.receive().unwrap();
            assert!(matches!(client.receive::<Answer>(), Err(Error::HangUp)));
            hello.version
        });
        assert_eq!((hello, stopped), (VERSION, false));
    }

    #[test]
    fn what_no_frame_can_hold_is_refused() {
        let (error, _) = with_owner(drop, |home, id| {
            let long = "x".repeat(frame::MAX_PAYLOAD);
            Client::connect(home, id).unwrap().exec(exec(&[&long])).unwrap_err()
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
