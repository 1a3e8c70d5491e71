//! A program whose output goes to the client as it comes, and whose input the client sends: the common part of
//! `exec_stream`, `exec_pipe` and `exec_tty`.

use std::convert::Infallible;

use guest_protocol::Stdio;
use sandbox::{Event, Exec, ProgramStream};
use wire::rpc::{IdParams, StdinAckParams, StreamResult};

use super::program::Ended;
use super::{Answer, Call, Inside, Result};
use crate::encode;
use crate::outbox::Outbox;
use crate::stdin::{Input, Stdin};
use crate::utf8::Whole;

/// The names of a method's notifications.
pub(super) struct Names {
    /// Announces that input is taken from now on.
    pub(super) ready: Option<&'static str>,
    /// Reports how much of the input has gone to the program, if the client wants to know.
    pub(super) ack: Option<&'static str>,
    pub(super) stdout: &'static str,
    /// Carries standard error, which a terminal does not have.
    pub(super) stderr: Option<&'static str>,
}

/// Output on its way to the client.
pub(super) struct Sink {
    outbox: Outbox,
    id: u64,
    stdout: (&'static str, Whole),
    stderr: Option<(&'static str, Whole)>,
}

impl Sink {
    pub(super) fn new(call: &Call, names: &Names) -> Self {
        Self {
            outbox: call.outbox.clone(),
            // The session refuses these methods without an id.
            id: call.id.unwrap_or_default(),
            stdout: (names.stdout, Whole::default()),
            stderr: names.stderr.map(|name| (name, Whole::default())),
        }
    }

    async fn stdout(&mut self, piece: &[u8]) {
        let bytes = self.stdout.1.next(piece);
        Self::send(&self.outbox, self.stdout.0, self.id, &bytes).await;
    }

    pub(super) async fn stderr(&mut self, piece: &[u8]) {
        if let Some((name, whole)) = &mut self.stderr {
            let bytes = whole.next(piece);
            Self::send(&self.outbox, name, self.id, &bytes).await;
        }
    }

    /// Sends the rest once no more output comes.
    pub(super) async fn end(&mut self) {
        let rest = self.stdout.1.end();
        Self::send(&self.outbox, self.stdout.0, self.id, &rest).await;
        if let Some((name, whole)) = &mut self.stderr {
            let rest = whole.end();
            Self::send(&self.outbox, name, self.id, &rest).await;
        }
    }

    async fn send(outbox: &Outbox, name: &'static str, id: u64, bytes: &[u8]) {
        if !bytes.is_empty() {
            outbox.notify(encode::data(name, id, bytes)).await;
        }
    }
}

/// Runs the program.
pub(super) async fn run(
    call: &Call,
    inside: &Inside,
    exec: Exec,
    names: &Names,
    sink: &mut Sink,
) -> Result<Ended> {
    let terminal = matches!(exec.stdio, Stdio::Terminal(_));
    if let Some(ready) = names.ready {
        call.outbox.notify(encode::notification(ready, &IdParams { id: call.id })).await;
    }
    let ProgramStream { mut output, mut input } = match inside.guest.exec(exec).await {
        Ok(program) => program,
        Err(error) => return Err(inside.exec_failure(error).await),
    };
    let feed = async {
        if let Some(stdin) = &call.stdin {
            let ack = names.ack.map(|name| Ack { outbox: &call.outbox, name, id: call.id, bytes: 0 });
            feed(&mut input, stdin, terminal, ack).await;
        }
        // The stream stays open: its end would cancel the program.
        std::future::pending::<Infallible>().await
    };
    let relay = async {
        loop {
            match output.next().await {
                Ok(Event::Started) => {}
                Ok(Event::Stdout(piece)) => sink.stdout(piece).await,
                Ok(Event::Stderr(piece)) => sink.stderr(piece).await,
                Ok(Event::Exited(exit, _)) => return Ok(Ended::Exited(exit)),
                Ok(Event::Failed(failure)) => return Ok(Ended::Failed(failure)),
                Err(error) => return Err(error),
            }
        }
    };
    let ended = tokio::select! {
        ended = relay => ended,
        never = feed => match never {},
    };
    sink.end().await;
    match ended {
        Ok(ended) => Ok(ended),
        Err(error) => Err(inside.exec_failure(error).await),
    }
}

/// Tells the client how much of the input has gone to the program.
struct Ack<'a> {
    outbox: &'a Outbox,
    name: &'static str,
    id: Option<u64>,
    bytes: u64,
}

impl Ack<'_> {
    async fn add(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        let params = StdinAckParams { id: self.id.unwrap_or_default(), bytes: self.bytes };
        self.outbox.notify(encode::notification(self.name, &params)).await;
    }
}

/// Passes input on, until the program takes no more.
async fn feed(input: &mut sandbox::Input, stdin: &Stdin, terminal: bool, mut ack: Option<Ack<'_>>) {
    loop {
        let taken = match stdin.next().await {
            Input::Data(bytes) => {
                let taken = input.stdin(&bytes).await;
                if let (Ok(()), Some(ack)) = (&taken, &mut ack) {
                    ack.add(bytes.len()).await;
                }
                taken
            }
            // The end of the client's input is no ^D and no hang-up: an interactive program goes on.
            Input::End if terminal => Ok(()),
            Input::End => input.end().await,
            Input::Resize(size) if terminal => input.resize(size).await,
            Input::Resize(_) => Ok(()),
        };
        if taken.is_err() {
            return;
        }
    }
}

/// The answer once the program has ended.
pub(super) fn answer(call: &Call, exit_code: u8) -> Answer {
    call.answer(&StreamResult { exit_code, duration_ms: call.millis() })
}
