//! Service streams: programs run in the guest, seen from the host.
//!
//! Whoever holds the stream talks to the agent directly; hanging up before the program's end cancels it. Not here: who
//! opens streams ([`crate::supervisor`]), and where output goes.

use guest_protocol::frame::{self, DATA_CHUNK, Kind};
use guest_protocol::{ExecFailure, Exit, Request, ServiceFromGuest, ServiceFromHost, TerminalSize, Usage};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::frames::{Frames, write_frame, write_message};
use crate::{Error, Result};

/// Most characters of a guest's words that are passed on.
const MAX_WORDS: usize = 1000;

/// A stream on which a program was asked for. Dropping it cancels the program.
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
    frames: Frames<OwnedReadHalf>,
}

/// What goes to a program. Dropping it cancels the program.
///
/// A call that is dropped half-way may have sent half of something: then the stream is good for nothing but dropping.
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
    /// It ended, and all output came before this; of a detached one more may follow.
    Exited(Exit, Usage),
    /// It never ran.
    Failed(ExecFailure),
}

impl Service {
    pub(crate) fn new(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        Self { output: Output { frames: Frames::new(read) }, input: Input { stream: write } }
    }

    /// Measures one empty round trip to the agent; the stream must not have been used for a program yet.
    pub async fn ping(&mut self) -> Result<()> {
        self.input.message(&ServiceFromHost::Request(Request::Ping)).await?;
        match self.output.message().await? {
            ServiceFromGuest::Pong => Ok(()),
            _ => Err(Error::Guest("answer to a ping is no pong")),
        }
    }

    /// Cancels the program and waits until it is gone: what it still says is lost.
    pub async fn cancel(self) {
        let Self { mut output, input } = self;
        // The guest hears the end of this direction, and ends the other when the program has ended.
        drop(input);
        while let Ok(Some(_)) = output.frames.next().await {}
    }
}

impl Output {
    /// The next event. May be dropped at any time and called again: nothing is lost.
    pub async fn next(&mut self) -> Result<Event<'_>> {
        match self.frames.next().await? {
            None => Err(Error::HangUp),
            Some(Kind::Stdout) => Ok(Event::Stdout(self.frames.payload())),
            Some(Kind::Stderr) => Ok(Event::Stderr(self.frames.payload())),
            Some(Kind::Stdin) => Err(Error::Guest("input came from the guest")),
            Some(Kind::Message) => match frame::decode(self.frames.payload())? {
                ServiceFromGuest::Started => Ok(Event::Started),
                ServiceFromGuest::Exited(exit, usage) => Ok(Event::Exited(exit, usage)),
                ServiceFromGuest::Failed(failure) => Ok(Event::Failed(tame_failure(failure))),
                _ => Err(Error::Guest("an answer to something that was not asked")),
            },
        }
    }

    async fn message(&mut self) -> Result<ServiceFromGuest> {
        match self.frames.next().await? {
            Some(Kind::Message) => Ok(frame::decode(self.frames.payload())?),
            Some(_) => Err(Error::Guest("data instead of an answer")),
            None => Err(Error::HangUp),
        }
    }
}

impl Input {
    /// Input for the program; an empty slice says nothing, see [`Input::end`].
    pub async fn stdin(&mut self, bytes: &[u8]) -> Result<()> {
        for chunk in bytes.chunks(DATA_CHUNK) {
            write_frame(&mut self.stream, Kind::Stdin, chunk).await?;
        }
        Ok(())
    }

    /// End of input.
    pub async fn end(&mut self) -> Result<()> {
        write_frame(&mut self.stream, Kind::Stdin, &[]).await
    }

    /// The terminal has another size.
    pub async fn resize(&mut self, size: TerminalSize) -> Result<()> {
        self.message(&ServiceFromHost::Resize(size)).await
    }

    /// Sends a signal to the program's process group.
    pub async fn signal(&mut self, signal: i32) -> Result<()> {
        self.message(&ServiceFromHost::Signal(signal)).await
    }

    async fn message(&mut self, message: &ServiceFromHost) -> Result<()> {
        write_message(&mut self.stream, message).await
    }
}

/// A guest's words for a message: no control characters, bounded.
pub(crate) fn tame(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(MAX_WORDS).collect()
}

/// The same for a reason why a program never ran.
pub(crate) fn tame_failure(failure: ExecFailure) -> ExecFailure {
    match failure {
        ExecFailure::NotFound(text) => ExecFailure::NotFound(tame(&text)),
        ExecFailure::NotExecutable(text) => ExecFailure::NotExecutable(tame(&text)),
        ExecFailure::User(text) => ExecFailure::User(tame(&text)),
        ExecFailure::WorkingDir(text) => ExecFailure::WorkingDir(tame(&text)),
        ExecFailure::Other(text) => ExecFailure::Other(tame(&text)),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt;

    use super::*;
    use crate::fake::{data, run};
    use crate::frames::read_frame;

    async fn service_after(bytes: &[u8]) -> Service {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).await.unwrap();
        Service::new(ours)
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
                assert!(service.output.frames.room() <= 2 * frame::MAX_PAYLOAD, "{what}");
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
