//! ProgramStream streams: programs in the guest, seen from the host.
//!
//! The holder of a stream talks to the agent directly; hanging up before the program's end cancels it. Not here:
//! opening a stream ([`crate::agent::own`]), and the destination of output.

use guest_protocol::frame::{self, DATA_CHUNK, Kind};
use guest_protocol::{
    Answer, ExecFailure, Exit, Pong, ProgramControl, ProgramEvent, Refusal, Reply, Request, TerminalSize,
    Usage,
};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

use crate::agent::error::{Error, Result};
use crate::agent::frames::{Frames, write_frame, write_message};

/// Most characters of the guest's own text in a message.
const MAX_WORDS: usize = 1000;

/// A stream on which a program was requested. Dropping it cancels the program.
#[derive(Debug)]
pub struct ProgramStream {
    /// The program's events and output.
    pub output: Output,
    /// The program's input and signals.
    pub input: Input,
}

/// The receiving half of a program's stream.
#[derive(Debug)]
pub struct Output {
    frames: Frames<OwnedReadHalf>,
    stage: Stage,
}

/// How far a program has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Stage {
    Asked,
    Running,
    Ended,
    NeverRan,
}

/// The sending half of a program's stream. Dropping it cancels the program.
///
/// A call that is dropped half-way may have sent part of a message: then the stream is good for nothing but dropping.
#[derive(Debug)]
pub struct Input {
    stream: OwnedWriteHalf,
}

/// An event of a program.
#[derive(Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// The program runs.
    Started,
    /// Standard output; of a program on a terminal, all output.
    Stdout(&'a [u8]),
    /// Standard error.
    Stderr(&'a [u8]),
    /// The program ended, after all of its output. A detached program's descendants may still write.
    Exited(Exit, Usage),
    /// The program never ran.
    Failed(ExecFailure),
}

impl ProgramStream {
    pub(crate) fn new(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        Self {
            output: Output { frames: Frames::new(read), stage: Stage::Asked },
            input: Input { stream: write },
        }
    }

    /// Waits for one empty round trip to the agent. No program may have been requested on the stream.
    pub async fn ping(&mut self) -> Result<()> {
        write_message(&mut self.input.stream, &Request::Ping).await?;
        let Pong = answer(&mut self.output.frames).await?;
        Ok(())
    }

    /// Cancels the program and waits until it is gone; output on the way is dropped.
    pub async fn cancel(self) {
        let Self { mut output, input } = self;
        // The guest sees the end of this direction, and ends the other one when the program has ended.
        drop(input);
        while let Ok(Some(_)) = output.frames.next().await {}
    }
}

impl Output {
    /// The next event. The call may be dropped at any time and made again: nothing is lost.
    pub async fn next(&mut self) -> Result<Event<'_>> {
        let kind = self.frames.next().await?.ok_or(Error::HangUp)?;
        match kind {
            Kind::Stdout | Kind::Stderr if matches!(self.stage, Stage::Asked | Stage::NeverRan) => {
                Err(Error::Guest("output of a program that has not started"))
            }
            Kind::Stdout => Ok(Event::Stdout(self.frames.payload())),
            Kind::Stderr => Ok(Event::Stderr(self.frames.payload())),
            Kind::Stdin => Err(Error::Guest("input came from the guest")),
            Kind::Message => match (answered(self.frames.payload())?, self.stage) {
                (ProgramEvent::Started, Stage::Asked) => {
                    self.stage = Stage::Running;
                    Ok(Event::Started)
                }
                (ProgramEvent::Failed(failure), Stage::Asked) => {
                    self.stage = Stage::NeverRan;
                    Ok(Event::Failed(tame_failure(failure)))
                }
                (ProgramEvent::Exited(exit, usage), Stage::Running) => {
                    self.stage = Stage::Ended;
                    Ok(Event::Exited(exit, usage))
                }
                (ProgramEvent::Started | ProgramEvent::Failed(_) | ProgramEvent::Exited(..), _) => {
                    Err(Error::Guest("an event that this program cannot have"))
                }
            },
        }
    }
}

impl Input {
    /// Sends input to the program; an empty slice sends nothing, see [`Input::end`].
    pub async fn stdin(&mut self, bytes: &[u8]) -> Result<()> {
        for chunk in bytes.chunks(DATA_CHUNK) {
            write_frame(&mut self.stream, Kind::Stdin, chunk).await?;
        }
        Ok(())
    }

    /// Ends the program's input.
    pub async fn end(&mut self) -> Result<()> {
        write_frame(&mut self.stream, Kind::Stdin, &[]).await
    }

    /// Tells the program's terminal its new size.
    pub async fn resize(&mut self, size: TerminalSize) -> Result<()> {
        self.control(&ProgramControl::Resize(size)).await
    }

    /// Sends a signal to the program's process group.
    pub async fn signal(&mut self, signal: i32) -> Result<()> {
        self.control(&ProgramControl::Signal(signal)).await
    }

    async fn control(&mut self, control: &ProgramControl) -> Result<()> {
        write_message(&mut self.stream, control).await
    }
}

/// Waits for the next answer; anything else in its place is an error.
pub(crate) async fn answer<A: Answer>(frames: &mut Frames<OwnedReadHalf>) -> Result<A> {
    match frames.next().await? {
        Some(Kind::Message) => answered(frames.payload()),
        Some(_) => Err(Error::Guest("data instead of an answer")),
        None => Err(Error::HangUp),
    }
}

/// Decodes the answer in a message.
pub(crate) fn answered<A: Answer>(payload: &[u8]) -> Result<A> {
    frame::decode::<Reply<A>>(payload)?.map_err(|Refusal(why)| Error::Refused(tame(&why)))
}

/// Text from the guest, made safe for a message: bounded, without control characters and those that turn the
/// direction of the text that follows.
pub(crate) fn tame(text: &str) -> String {
    // UAX #9, section 2: the directional formatting characters.
    let turns = |c| matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    text.chars().filter(|c| !c.is_control() && !turns(*c)).take(MAX_WORDS).collect()
}

/// Makes the guest's text in a failure safe for a message.
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
    use guest_protocol::FileReply;
    use proptest::prelude::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;
    use crate::agent::frames::read_frame;
    use crate::fake::{cases, data, run};

    async fn program_after(bytes: &[u8]) -> ProgramStream {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(bytes).await.unwrap();
        ProgramStream::new(ours)
    }

    fn exited() -> Vec<u8> {
        frame::encode_reply(&ProgramEvent::Exited(Exit::Signal(9), Usage::default())).unwrap()
    }

    #[test]
    fn events_in_order() {
        run(async {
            let bytes = [
                frame::encode_reply(&ProgramEvent::Started).unwrap(),
                data(Kind::Stdout, b"out"),
                data(Kind::Stderr, b"err"),
                exited(),
            ];
            let mut program = program_after(&bytes.concat()).await;
            assert_eq!(program.output.next().await.unwrap(), Event::Started);
            assert_eq!(program.output.next().await.unwrap(), Event::Stdout(b"out"));
            assert_eq!(program.output.next().await.unwrap(), Event::Stderr(b"err"));
            assert_eq!(
                program.output.next().await.unwrap(),
                Event::Exited(Exit::Signal(9), Usage::default())
            );
            assert!(matches!(program.output.next().await, Err(Error::HangUp)));
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
                (frame::encode_reply(&Pong).unwrap(), "unasked pong"),
                (vec![2, 5, 0, 0, 0, 1], "cut frame"),
                (vec![2, 5], "cut head"),
                (data(Kind::Stdout, b"x"), "output before the start"),
                (exited(), "end before the start"),
            ];
            for (bytes, what) in cases {
                let mut program = program_after(&bytes).await;
                assert!(program.output.next().await.is_err(), "{what}");
                assert!(program.output.frames.room() <= 2 * frame::MAX_PAYLOAD, "{what}");
            }
            let started = frame::encode_reply(&ProgramEvent::Started).unwrap();
            let mut program = program_after(&[&started[..], &exited(), &exited()].concat()).await;
            assert_eq!(program.output.next().await.unwrap(), Event::Started);
            assert!(matches!(program.output.next().await, Ok(Event::Exited(..))));
            assert!(matches!(program.output.next().await, Err(Error::Guest(_))), "two ends");
        });
    }

    #[test]
    fn words_for_a_message_move_no_cursor_and_turn_no_text() {
        assert_eq!(tame("a\u{1b}[2J\n\u{202e}b\u{2066}\u{61c}ü😀"), "a[2Jbü😀");
    }

    #[test]
    fn input_is_cut_into_frames() {
        run(async {
            let (ours, theirs) = UnixStream::pair().unwrap();
            let mut program = ProgramStream::new(ours);
            let sender = async {
                program.input.stdin(&vec![7; DATA_CHUNK + 1]).await.unwrap();
                program.input.stdin(&[]).await.unwrap();
                program.input.end().await.unwrap();
                drop(program);
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

    #[test]
    fn a_cancelled_program_is_waited_for() {
        run(async {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let guest = async {
                theirs.write_all(&data(Kind::Stdout, b"last words")).await.unwrap();
                assert_eq!(theirs.read(&mut [0]).await.unwrap(), 0, "the host hangs up");
                tokio::task::yield_now().await;
                drop(theirs);
                true
            };
            let ((), gone) = tokio::join!(ProgramStream::new(ours).cancel(), guest);
            assert!(gone);
        });
    }

    fn said() -> impl Strategy<Value = Vec<u8>> {
        let failed = ProgramEvent::Failed(ExecFailure::Other("\x1b[2J".repeat(2000)));
        prop_oneof![
            4 => prop::sample::select(vec![
                frame::encode_reply(&ProgramEvent::Started).unwrap(),
                frame::encode_reply(&failed).unwrap(),
                frame::encode_reply(&FileReply::Ok(())).unwrap(),
                exited(),
                data(Kind::Stdout, b"data"),
                data(Kind::Stderr, b""),
            ]),
            1 => prop::collection::vec(any::<u8>(), 0..20),
            1 => prop::collection::vec(any::<u8>(), 0..20).prop_map(|bytes| data(Kind::Message, &bytes)),
        ]
    }

    proptest! {
        #![proptest_config(cases(300))]

        #[test]
        fn events_are_sensible_or_an_error(said in prop::collection::vec(said(), 0..8)) {
            run(async {
                let mut program = program_after(&said.concat()).await;
                let (mut starts, mut ends) = (0, 0);
                while let Ok(event) = program.output.next().await {
                    match event {
                        Event::Started => starts += 1,
                        Event::Exited(..) => ends += 1,
                        Event::Failed(ExecFailure::Other(text)) => {
                            assert!(starts == 0 && text.len() <= MAX_WORDS && !text.contains('\x1b'));
                        }
                        Event::Failed(_) => {}
                        Event::Stdout(_) | Event::Stderr(_) => assert_eq!(starts, 1),
                    }
                }
                assert!(starts <= 1 && ends <= starts);
            });
        }
    }
}
