//! Service streams: programs run in the guest, seen from the host.
//!
//! Whoever holds the stream talks to the agent directly; hanging up before the program's end cancels it. Not here: who
//! opens streams ([`crate::supervisor`]), and where output goes.

use std::io;

use guest_protocol::frame::{self, DATA_CHUNK, HEAD, Head, Kind};
use guest_protocol::{ExecFailure, Exit, Request, ServiceFromGuest, ServiceFromHost, TerminalSize, Usage};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::{Error, Result};

/// A stream on which a program was asked for.
#[derive(Debug)]
pub struct Service {
    /// What comes from the program.
    pub output: Output,
    /// What goes to it.
    pub input: Input,
}

/// What comes from a program.
#[derive(Debug)]
pub struct Output {
    stream: BufReader<OwnedReadHalf>,
    payload: Vec<u8>,
}

/// What goes to a program.
#[derive(Debug)]
pub struct Input {
    stream: OwnedWriteHalf,
}

/// Something that happened to a program.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// It runs.
    Started,
    /// Its output (of a terminal: all of it).
    Stdout(&'a [u8]),
    /// Its error output.
    Stderr(&'a [u8]),
    /// It ended, and all output came before this.
    Exited(Exit, Usage),
    /// It never ran.
    Failed(ExecFailure),
}

impl Service {
    pub(crate) fn new(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        let output =
            Output { stream: BufReader::with_capacity(DATA_CHUNK + HEAD, read), payload: Vec::new() };
        Self { output, input: Input { stream: write } }
    }

    /// Measures one empty round trip to the agent; the stream must not have been used for a program yet.
    pub async fn ping(&mut self) -> Result<()> {
        self.input.message(&ServiceFromHost::Request(Request::Ping)).await?;
        match self.output.frame().await? {
            Some((Kind::Message, payload)) if matches!(frame::decode(payload)?, ServiceFromGuest::Pong) => {
                Ok(())
            }
            Some(_) => Err(Error::Guest("answer to a ping is no pong")),
            None => Err(Error::HangUp),
        }
    }
}

impl Output {
    /// The next event. Must not be dropped half-way if the stream is to be used any further.
    pub async fn next(&mut self) -> Result<Event<'_>> {
        match self.frame().await? {
            None => Err(Error::HangUp),
            Some((Kind::Stdout, payload)) => Ok(Event::Stdout(payload)),
            Some((Kind::Stderr, payload)) => Ok(Event::Stderr(payload)),
            Some((Kind::Stdin, _)) => Err(Error::Guest("input came from the guest")),
            Some((Kind::Message, payload)) => match frame::decode(payload)? {
                ServiceFromGuest::Started => Ok(Event::Started),
                ServiceFromGuest::Exited(exit, usage) => Ok(Event::Exited(exit, usage)),
                ServiceFromGuest::Failed(failure) => Ok(Event::Failed(failure)),
                _ => Err(Error::Guest("an answer to something that was not asked")),
            },
        }
    }

    async fn frame(&mut self) -> Result<Option<(Kind, &[u8])>> {
        read_frame(&mut self.stream, &mut self.payload).await
    }
}

impl Input {
    /// Input for the program; an empty slice says nothing, see [`Input::end`].
    pub async fn stdin(&mut self, bytes: &[u8]) -> Result<()> {
        for chunk in bytes.chunks(DATA_CHUNK) {
            self.data(chunk).await?;
        }
        Ok(())
    }

    /// End of input.
    pub async fn end(&mut self) -> Result<()> {
        self.data(&[]).await
    }

    /// The terminal has another size.
    pub async fn resize(&mut self, size: TerminalSize) -> Result<()> {
        self.message(&ServiceFromHost::Resize(size)).await
    }

    /// Sends a signal to the program's process group.
    pub async fn signal(&mut self, signal: i32) -> Result<()> {
        self.message(&ServiceFromHost::Signal(signal)).await
    }

    async fn data(&mut self, bytes: &[u8]) -> Result<()> {
        let head = Head::bytes(Kind::Stdin, bytes.len()).ok_or(Error::Guest("input over the frame limit"))?;
        self.stream.write_all(&head).await.map_err(hung_up)?;
        self.stream.write_all(bytes).await.map_err(hung_up)
    }

    async fn message(&mut self, message: &ServiceFromHost) -> Result<()> {
        let bytes = frame::encode(message)?;
        self.stream.write_all(&bytes).await.map_err(hung_up)
    }
}

/// Reads one frame into `payload`; `None` = the stream ended between frames.
pub(crate) async fn read_frame<'a, R>(
    stream: &mut R,
    payload: &'a mut Vec<u8>,
) -> Result<Option<(Kind, &'a [u8])>>
where
    R: AsyncReadExt + Unpin,
{
    let mut head = [0; HEAD];
    match stream.read(&mut head[..1]).await {
        Ok(0) => return Ok(None),
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => return Ok(None),
        Err(error) => return Err(hung_up(error)),
    }
    stream.read_exact(&mut head[1..]).await.map_err(hung_up)?;
    let head = Head::parse(head)?;
    payload.resize(head.len, 0);
    stream.read_exact(payload).await.map_err(hung_up)?;
    Ok(Some((head.kind, payload)))
}

/// The ways in which a stream shows that its other end is gone.
pub(crate) fn hung_up(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof | io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => {
            Error::HangUp
        }
        _ => Error::System { what: "guest stream", source: error },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run<F: Future>(future: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    async fn service_after(bytes: &[u8]) -> Service {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).await.unwrap();
        Service::new(ours)
    }

    fn data(kind: Kind, bytes: &[u8]) -> Vec<u8> {
        [&Head::bytes(kind, bytes.len()).unwrap()[..], bytes].concat()
    }

    #[test]
    fn events_in_order() {
        run(async {
            let exit = ServiceFromGuest::Exited(Exit::Signal(9), Usage::default());
            let bytes = [
                frame::encode(&ServiceFromGuest::Started).unwrap(),
                data(Kind::Stdout, b"out"),
                data(Kind::Stderr, b"err"),
                frame::encode(&exit).unwrap(),
            ];
            let mut service = service_after(&bytes.concat()).await;
            assert_eq!(service.output.next().await.unwrap(), Event::Started);
            assert_eq!(service.output.next().await.unwrap(), Event::Stdout(b"out"));
            assert_eq!(service.output.next().await.unwrap(), Event::Stderr(b"err"));
            assert_eq!(
                service.output.next().await.unwrap(),
                Event::Exited(Exit::Signal(9), Usage::default())
            );
            assert!(matches!(service.output.next().await, Err(Error::HangUp)));
        });
    }

    #[test]
    fn a_hostile_guest_is_an_error() {
        run(async {
            let cases = [
                (data(Kind::Stdin, b"x"), "input from the guest"),
                (vec![9, 0, 0, 0, 0], "unknown kind"),
                (vec![2, 255, 255, 255, 255], "4 GiB frame"),
                (data(Kind::Message, b"\xff\xff"), "no message"),
                (frame::encode(&ServiceFromGuest::Pong).unwrap(), "unasked pong"),
                (vec![2, 5, 0, 0, 0, 1], "cut frame"),
                (vec![2, 5], "cut head"),
            ];
            for (bytes, what) in cases {
                let mut service = service_after(&bytes).await;
                assert!(service.output.next().await.is_err(), "{what}");
                assert!(service.output.payload.capacity() <= frame::MAX_PAYLOAD, "{what}");
            }
        });
    }

    #[test]
    fn input_is_cut_into_frames() {
        run(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut service = Service::new(ours);
            let sender = async {
                service.input.stdin(&vec![7; DATA_CHUNK + 1]).await.unwrap();
                service.input.stdin(&[]).await.unwrap();
                service.input.end().await.unwrap();
                drop(service);
            };
            let receiver = async {
                let (mut theirs, mut payload, mut lengths) = (theirs, Vec::new(), Vec::new());
                while let Some((Kind::Stdin, bytes)) = read_frame(&mut theirs, &mut payload).await.unwrap() {
                    lengths.push(bytes.len());
                }
                lengths
            };
            let ((), lengths) = tokio::join!(sender, receiver);
            assert_eq!(lengths, [DATA_CHUNK, 1, 0]);
        });
    }
}
