//! The relay between a guest program and this program's standard streams.
//!
//! Standard streams may block for as long as their other ends like, so each direction has a thread of its own, and
//! signals are handled all the same. Not here: starting the program.

use std::io::{self, Read, Write};

use guest_protocol::{ExecFailure, Exit, Stdio};
use sandbox::{AgentError, Event, Input, Output, ProgramStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, oneshot};

use crate::failure::NotRun;
use crate::streams::{Stderr, Stdin, Stdout};
use crate::terminal;

/// Largest piece of input read at once.
const CHUNK: usize = 32 << 10;

/// Pieces on their way between a thread and the loop.
const IN_FLIGHT: usize = 4;

/// The program's streams, from the flags.
pub(crate) fn mode(interactive: bool, tty: bool) -> anyhow::Result<Stdio> {
    match (interactive, tty) {
        (true, true) if !terminal::is_interactive() => anyhow::bail!("-it requires a TTY"),
        (true, true) => Ok(Stdio::Terminal(terminal::size())),
        (true, false) => Ok(Stdio::Pipe),
        (false, _) => Ok(Stdio::Null),
    }
}

/// Observes a program while it runs.
pub(crate) trait Watch {
    /// The program runs.
    fn started(&mut self) {}
    /// The program wrote these bytes.
    fn output(&mut self, bytes: &[u8]) {
        let _ = bytes;
    }
}

/// Observes nothing.
#[derive(Debug)]
pub(crate) struct Unwatched;

impl Watch for Unwatched {}

/// Connects the program with the standard streams until it ends, and returns its exit status.
pub(crate) async fn relay(program: ProgramStream, mode: Stdio, watch: &mut impl Watch) -> anyhow::Result<u8> {
    let ProgramStream { mut output, mut input } = program;
    let raw = matches!(mode, Stdio::Terminal(_)).then(terminal::Raw::enter).transpose()?;
    let feeding = async {
        let fed = match mode {
            Stdio::Null => Ok(()),
            Stdio::Pipe => feed(&mut input).await,
            Stdio::Terminal(_) => feed_terminal(&mut input).await,
        };
        // A program that does not read its input ends like any other; its exit says how.
        if let Err(error) = fed {
            tracing::debug!("standard input: {error}");
        }
        std::future::pending::<()>().await;
    };
    let result = tokio::select! {
        result = drain(&mut output, watch) => result,
        () = feeding => unreachable!("it stays pending"),
    };
    drop(raw);
    result
}

enum Piece {
    Stdout(Vec<u8>),
    Stderr(Vec<u8>),
}

async fn drain(output: &mut Output, watch: &mut impl Watch) -> anyhow::Result<u8> {
    let (pieces, queue) = mpsc::channel(IN_FLIGHT);
    let (finished, written) = oneshot::channel();
    std::thread::spawn(move || finished.send(write_all(queue)));
    loop {
        let piece = match output.next().await? {
            Event::Started => {
                watch.started();
                continue;
            }
            Event::Stdout(bytes) => {
                watch.output(bytes);
                Piece::Stdout(bytes.to_vec())
            }
            Event::Stderr(bytes) => {
                watch.output(bytes);
                Piece::Stderr(bytes.to_vec())
            }
            Event::Exited(exit, _) => {
                drop(pieces);
                return match written.await {
                    Ok(Err(error)) => closed(error),
                    _ => Ok(exit.status()),
                };
            }
            Event::Failed(failure) => return Err(not_run(failure).into()),
        };
        if pieces.send(piece).await.is_err() {
            return match written.await {
                Ok(Err(error)) => closed(error),
                _ => Ok(Exit::Code(1).status()),
            };
        }
    }
}

/// The status of a program that wrote to a closed pipe, as nobody reads the output any more.
fn closed(error: io::Error) -> anyhow::Result<u8> {
    const SIGPIPE: u8 = 13;
    match error.kind() {
        io::ErrorKind::BrokenPipe => Ok(Exit::Signal(SIGPIPE).status()),
        _ => Err(anyhow::anyhow!("writing the command's output: {error}")),
    }
}

fn write_all(mut queue: mpsc::Receiver<Piece>) -> io::Result<()> {
    // One thread for both streams, so that output appears in its order.
    while let Some(piece) = queue.blocking_recv() {
        match piece {
            Piece::Stdout(bytes) => Stdout.write_all(&bytes)?,
            Piece::Stderr(bytes) => Stderr.write_all(&bytes)?,
        }
    }
    Ok(())
}

/// A program that never ran, with a shell's exit status for it.
fn not_run(failure: ExecFailure) -> NotRun {
    let (message, status) = match failure {
        ExecFailure::NotFound(what) | ExecFailure::User(what) => (what, 127),
        ExecFailure::NotExecutable(what) => (what, 126),
        ExecFailure::WorkingDir(what) => (format!("working directory {what}"), 1),
        ExecFailure::Other(what) => (what, 1),
    };
    NotRun { message, status }
}

async fn feed(input: &mut Input) -> Result<(), AgentError> {
    let mut pieces = read_stdin();
    while let Some(piece) = pieces.recv().await {
        input.stdin(&piece).await?;
    }
    input.end().await
}

async fn feed_terminal(input: &mut Input) -> Result<(), AgentError> {
    let mut pieces = read_stdin();
    let mut resized = signal(SignalKind::window_change()).ok();
    // The window may have changed since the program was requested.
    input.resize(terminal::size()).await?;
    loop {
        let window_change = async {
            match &mut resized {
                Some(resized) => resized.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            piece = pieces.recv() => match piece {
                Some(piece) => input.stdin(&piece).await?,
                None => return input.end().await,
            },
            _ = window_change => input.resize(terminal::size()).await?,
        }
    }
}

/// Standard input, read by a thread that ends with it or with the program.
fn read_stdin() -> mpsc::Receiver<Vec<u8>> {
    let (pieces, queue) = mpsc::channel(IN_FLIGHT);
    std::thread::spawn(move || {
        let mut buffer = vec![0; CHUNK];
        loop {
            match Stdin.read(&mut buffer) {
                Ok(0) => return,
                Err(error) => {
                    // A terminal reports its hang-up as an error, which needs no message.
                    if !terminal::is_interactive() {
                        tracing::warn!("standard input: {error}");
                    }
                    return;
                }
                Ok(length) => {
                    if pieces.blocking_send(buffer[..length].to_vec()).is_err() {
                        return;
                    }
                }
            }
        }
    });
    queue
}
