//! Fuzz bodies: what a guest says on its streams, and other processes on the control socket. Each takes any bytes, cut
//! anywhere, and panics only on a defect.
//!
//! `cargo test` runs them a fixed number of times with fixed seeds; `fuzz/` has the targets for libFuzzer. Not here: the
//! packets below the streams (`virtio`), and the messages' encoding (`guest_protocol`).

use std::future::Future;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::task::{Context, Poll};

use guest_protocol::frame::{HEAD, MAX_PAYLOAD, Splitter};
use guest_protocol::{BootConfig, ExecFailure, FileEntry, FileFailure, UpperDisk, VERSION, WriteAt};
use rustix::net::SendFlags;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt, ReadBuf};
use tokio::net::UnixStream;
use virtio::vsock::{PortMessage, channel};

use crate::Files;
use crate::agent::boot::Control;
use crate::agent::frames::{Frames, read_frame};
use crate::agent::ports::Ports;
use crate::agent::program::{Event, ProgramStream};
use crate::control::owner;
use crate::records::console::{self, printable};
use crate::{AgentError, Error, GuestError, stand_in};

/// Most characters of a guest's words in a message.
const MAX_WORDS: usize = 1000;

/// Runs a future to its end. Nothing in here waits for longer than the stream is there.
fn run<F: Future>(future: F) -> Option<F::Output> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().ok()?;
    Some(runtime.block_on(future))
}

/// A stream on which these bytes have come, and the other end has hung up, or is there to be hung up with.
fn stream_of(bytes: &[u8]) -> Option<(UnixStream, std::os::unix::net::UnixStream)> {
    let (ours, mut theirs) = std::os::unix::net::UnixStream::pair().ok()?;
    theirs.set_nonblocking(true).ok()?;
    ours.set_nonblocking(true).ok()?;
    theirs.write_all(bytes).ok()?;
    theirs.shutdown(std::net::Shutdown::Write).ok()?;
    Some((UnixStream::from_std(ours).ok()?, theirs))
}

/// A guest's words: on one line, of a bounded length.
fn is_tame(text: &str) -> bool {
    !text.contains(char::is_control) && text.chars().count() <= MAX_WORDS
}

fn is_tame_failure(failure: &ExecFailure) -> bool {
    use ExecFailure::{NotExecutable, NotFound, Other, User, WorkingDir};
    let (NotFound(text) | NotExecutable(text) | User(text) | WorkingDir(text) | Other(text)) = failure;
    is_tame(text)
}

/// An error quotes the guest only in tamed words.
fn check(error: impl Into<Error>) {
    let error = error.into();
    let tame = match &error {
        Error::Agent(AgentError::NotStarted(failure)) => is_tame_failure(failure),
        Error::Guest(GuestError::File(FileFailure::System { text, .. })) => is_tame(text),
        Error::Agent(AgentError::Boot { step, error }) => is_tame(step) && is_tame(error),
        error => is_tame(&error.to_string()),
    };
    assert!(tame, "{error:?}");
}

/// Bytes that arrive in pieces of one length.
struct Pieces<'a>(&'a [u8], usize);

impl AsyncRead for Pieces<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
        room: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let (now, later) = self.0.split_at(self.0.len().min(self.1).min(room.remaining()));
        room.put_slice(now);
        self.0 = later;
        Poll::Ready(Ok(()))
    }
}

/// Frames are read as the guest's side splits them, however the bytes are cut.
async fn frames(bytes: &[u8], piece: usize) {
    let (mut ours, mut theirs) = (Frames::new(Pieces(bytes, piece)), Splitter::default());
    theirs.push(bytes);
    loop {
        let (ours_next, theirs_next) = (ours.next().await, theirs.next_frame());
        match (ours_next, theirs_next) {
            (Ok(Some(kind)), Ok(Some(frame))) => assert_eq!((kind, ours.payload()), frame),
            (Ok(None), Ok(None)) => break assert!(theirs.at_boundary()),
            (Err(AgentError::HangUp), Ok(None)) => break assert!(!theirs.at_boundary()),
            (Err(AgentError::Frame(one)), Err(other)) => break assert_eq!(one, other),
            other => panic!("{other:?}"),
        }
        assert!(ours.room() <= HEAD + MAX_PAYLOAD, "{} bytes of room", ours.room());
    }
}

/// A program's events: the first byte is the length of the pieces that the rest arrives in.
pub fn program(data: &[u8]) {
    let Some((&piece, bytes)) = data.split_first() else { return };
    run(async {
        frames(bytes, usize::from(piece).max(1)).await;
        let Some((stream, _theirs)) = stream_of(bytes) else { return };
        let mut program = ProgramStream::new(stream);
        let (mut starts, mut ends, mut output) = (0, 0, 0);
        let error = loop {
            match program.output.next().await {
                Ok(Event::Started) => starts += 1,
                Ok(Event::Exited(..)) => ends += 1,
                Ok(Event::Failed(failure)) => {
                    assert!(starts == 0 && is_tame_failure(&failure), "{failure:?}")
                }
                Ok(Event::Stdout(bytes) | Event::Stderr(bytes)) => {
                    assert_eq!(starts, 1, "output before the start");
                    output += bytes.len();
                }
                Err(error) => break error,
            }
            assert!(starts <= 1 && ends <= starts && output <= bytes.len());
        };
        check(error);
    });
}

/// Answers to an act on files, of which the first byte names one.
pub fn files(data: &[u8]) {
    let Some((&act, bytes)) = data.split_first() else { return };
    let answer = bytes.to_vec();
    run(async {
        let guest = stand_in::guest(move |mut stream| {
            let answer = answer.clone();
            tokio::spawn(async move {
                // A spare stream ends unused.
                if let Ok(Some(_)) = read_frame(&mut stream, &mut Vec::new()).await {
                    let _ = stream.write_all(&answer).await;
                    let _ = stream.shutdown().await;
                    let _ = stream.read_to_end(&mut Vec::new()).await;
                }
            });
        });
        let done = match act {
            0 => guest.connect(80).await.map(drop),
            act => file_act(&guest.files(), act).await,
        };
        if let Err(error) = done {
            check(error);
        }
    });
}

async fn file_act(files: &Files, act: u8) -> Result<(), GuestError> {
    match act % 6 {
        0 => files.remove("/x", false).await,
        1 => {
            let mut reader = files.read("/x", 0, 7, None).await?;
            let mut len = 0;
            while let Some(piece) = reader.next().await? {
                len += piece.len();
                assert!(!piece.is_empty() && len <= 7, "{len} bytes were read");
            }
            assert_eq!(reader.next().await?, None);
            Ok(())
        }
        2 => {
            for FileEntry { name, mtime_ns, .. } in files.list("/x").await? {
                let proper = !matches!(name.as_slice(), b"" | b"." | b"..");
                assert!(proper && !name.contains(&b'/') && !name.contains(&0) && mtime_ns < 1_000_000_000);
            }
            Ok(())
        }
        3 => files.stat("/d/x", true).await.map(|entry| assert_eq!(entry.name, b"x")),
        4 => {
            let mut watch = files.watch("/d", true).await?;
            loop {
                let path = watch.next().await?.path;
                let below = path == b"/d" || path.starts_with(b"/d/");
                let mut parts = path.split(|byte| *byte == b'/').skip(1);
                assert!(below && parts.all(|part| !matches!(part, b"" | b"." | b"..")), "{path:?}");
            }
        }
        _ => {
            let mut writer = files.write("/x", 0o644, WriteAt::Truncate).await?;
            writer.data(b"data").await?;
            writer.finish().await
        }
    }
}

/// The last words of a guest's console: one line, without anything that moves a cursor.
pub fn console(data: &[u8]) {
    let said = console::last_words(data);
    for text in [Some(printable(data)), said].into_iter().flatten() {
        assert!(text.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' '), "{text:?}");
        assert!(text.len() <= data.len() && is_tame(&text), "{} characters", text.len());
    }
    let panic = data.split(|byte| *byte == b'\n').map(printable).any(|line| line.contains("Kernel panic"));
    assert!(!panic || console::last_words(data).is_some_and(|said| said.contains("Kernel panic")));
}

/// Messages of a device on the port channel, of 9 bytes each. The message that opens a stream brings one; so may any
/// other.
pub fn ports(data: &[u8]) {
    run(async {
        let (Ok((ports, device)), Ok(null)) = (Ports::pair(), std::fs::File::open("/dev/null")) else {
            return;
        };
        let Ok((stream, _kept)) = std::os::unix::net::UnixStream::pair() else { return };
        let mut opened = Vec::new();
        for said in data.chunks(9).take(64) {
            let (odd, bytes) = said.split_first().map_or((0, said), |(odd, bytes)| (*odd, bytes));
            let sent = match PortMessage::decode(bytes) {
                // A message without its stream is an error, and the end of this device.
                Some(message) if odd == 0xff => channel::send(device.as_fd(), message, null.as_fd()),
                Some(message) => channel::send(device.as_fd(), message, stream.as_fd()),
                None => rustix::net::send(&device, said, SendFlags::DONTWAIT).map(drop).map_err(Into::into),
            };
            match PortMessage::decode(bytes) {
                Some(PortMessage::Accept { port }) if sent.is_ok() => opened.push(port),
                _ => {}
            }
        }
        drop(device);
        let mut expected = opened.into_iter();
        while let Ok(Some((port, _))) = ports.accept().await {
            assert_eq!(Some(port), expected.next());
        }
    });
}

/// The messages by which a guest becomes ready.
pub fn ready(data: &[u8]) {
    run(async {
        let Some((stream, _theirs)) = stream_of(data) else { return };
        let ready = match Control::hello(stream).await {
            Ok((mut control, _)) => control.boot(config()).await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = ready {
            check(error);
        }
    });
}

fn config() -> BootConfig {
    BootConfig {
        version: VERSION,
        wall_clock_ns: 0,
        entropy: [0; 32],
        layers: 1,
        modules: None,
        directories: Vec::new(),
        upper: UpperDisk::Memory,
        hostname: String::new(),
        hosts: Vec::new(),
        network: None,
        nameservers: Vec::new(),
        cpu_quota_milli: 0,
        check_timer: false,
        disks: Vec::new(),
        shares: Vec::new(),
    }
}

/// A request of another process. A request that is understood means the same when it is sent again.
pub fn request(data: &[u8]) {
    run(async {
        let mut said = data.to_vec();
        for round in 0..2 {
            let Some((mut stream, _theirs)) = stream_of(&said) else { return };
            match owner::requested(&mut stream).await {
                Ok(request) => {
                    let Ok(again) = owner::greeted(&request) else { panic!("{request:?}") };
                    assert!(round == 0 || again == said, "{request:?}");
                    said = again;
                }
                Err(error) => {
                    assert_eq!(round, 0, "{error}");
                    return check(error);
                }
            }
        }
    });
}

#[cfg(test)]
mod tests {
    use guest_protocol::frame::Kind;
    use guest_protocol::{
        BootFailure, Change, ChangeKind, ConnectReply, ControlFromGuest, Exit, FileReply, ProgramEvent,
        Ready, Usage, WatchEvent, frame,
    };

    use super::*;
    use crate::fake::{data, entry, exec};

    fn message(message: &impl serde::Serialize) -> Vec<u8> {
        frame::encode(message).unwrap()
    }

    fn reply(answer: &impl guest_protocol::Answer) -> Vec<u8> {
        frame::encode_reply(answer).unwrap()
    }

    #[test]
    fn program() {
        let exited = ProgramEvent::Exited(Exit::Signal(9), Usage::default());
        let ran = [&[5][..], &reply(&ProgramEvent::Started), &data(Kind::Stdout, b"out"), &reply(&exited)];
        let failed = ProgramEvent::Failed(ExecFailure::NotFound("no\x1b[2J such program".into()));
        let examples = [ran.concat(), [&[1][..], &reply(&failed), &data(Kind::Stderr, b"err")].concat()];
        fuzzed::run("sandbox_program", 500, &examples, &["\x02\x01\0\0\0", "\0\x01\0\0\0"], super::program);
    }

    #[test]
    fn files() {
        let entry = FileEntry { target: b"b".to_vec(), ..entry("a") };
        let change = Change { kind: ChangeKind::Created, path: b"/d/x".to_vec() };
        let text = "open /x: No such file\x1b[2J or directory".into();
        let done = reply(&FileReply::Ok(()));
        let end = reply(&FileReply::Ok(Vec::<FileEntry>::new()));
        let examples = [
            [&[0][..], &reply(&ConnectReply::Ok(()))].concat(),
            [&[6][..], &reply(&FileReply::<()>::Err(FileFailure::System { errno: 2, text }))].concat(),
            [&[7][..], &data(Kind::Stdout, b"hello"), &done].concat(),
            [&[2][..], &reply(&FileReply::Ok(vec![entry.clone()])), &end].concat(),
            [&[3][..], &reply(&FileReply::Ok(entry))].concat(),
            [
                &[4][..],
                &reply(&FileReply::Ok(WatchEvent::Watching)),
                &reply(&FileReply::Ok(WatchEvent::Change(change))),
            ]
            .concat(),
            [&[5][..], &done].concat(),
        ];
        fuzzed::run("sandbox_files", 500, &examples, &["..", "/", "\0", "/d/../", "\x1b"], super::files);
    }

    #[test]
    fn console() {
        let text = "[    0.1] booting\r\nmatchlock: no driver\n[    1.2] Kernel panic - not syncing\r\n[ 1.3] CPU: 0\n";
        let words = ["\x1b[2J", "[1.2] ", "\n", "matchlock: ", "Kernel panic", "reboot: ", "\u{202e}"];
        fuzzed::run("sandbox_console", 1500, &[text.as_bytes().to_vec()], &words, super::console);
    }

    #[test]
    fn ports() {
        let accept = |port| [&[0][..], &PortMessage::Accept { port }.encode()].concat();
        let connect = [&[0][..], &PortMessage::Connect { port: 7 }.encode()].concat();
        let examples = [[accept(1024), connect, accept(1024)].concat(), accept(1025)];
        fuzzed::run("sandbox_ports", 1200, &examples, &["\0\x02\0\0\0", "\x01"], super::ports);
    }

    #[test]
    fn ready() {
        let hello = message(&ControlFromGuest::Hello { version: VERSION, agent_start_us: 7 });
        let ready = ControlFromGuest::Ready(Ready { modules_us: 1, root_us: 2, ready_us: 3 });
        let failed = BootFailure { step: "mount\n".into(), error: "no \x1b[2J\u{202e}".repeat(99) };
        let examples = [
            [&hello[..], &message(&ready)].concat(),
            [&hello[..], &message(&ControlFromGuest::Failed(failed))].concat(),
        ];
        fuzzed::run("sandbox_ready", 2000, &examples, &["\x1b", "[1.2] ", "\u{202e}"], super::ready);
    }

    #[test]
    fn request() {
        use crate::control::dialogue::{Kill, Output, Request, Run, Service, Signal, Stop, Wait};
        let exec = exec(&["sh", "-c", "true"]);
        let requests: [Request; 7] = [
            Run { exec }.into(),
            Service {}.into(),
            Stop {}.into(),
            Wait { program: 1 }.into(),
            Signal { program: 1, signal: 15 }.into(),
            Kill { program: 300 }.into(),
            Output { program: u32::MAX }.into(),
        ];
        let examples = requests.map(|request| owner::greeted(&request).unwrap());
        fuzzed::run("sandbox_request", 2000, &examples, &["\x01", "\x02"], super::request);
    }
}
