//! The part of QEMU's control protocol that a machine needs: `stop`, `cont`, and the events that tell how the guest
//! ended.
//!
//! A thread reads QEMU's messages for as long as QEMU runs, so that events for which nobody waits do not pile up. QEMU
//! is not trusted here: a guest may have taken it over. Its lines are bounded, and it has a bounded time to answer.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net;
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

/// Longest line taken from QEMU.
pub(crate) const MAX_LINE: u64 = 64 * 1024;
/// Most answers kept until somebody takes them; more than there are commands at a time.
pub(crate) const MAX_ANSWERS: usize = 8;
/// How long a command may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The supervisor's end of a QMP connection.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    commands: u64,
    answers: Receiver<Answer>,
    reader: Option<JoinHandle<Option<Shutdown>>>,
}

/// The answer to a command.
#[derive(Debug)]
pub(crate) struct Answer {
    command: u64,
    error: Option<String>,
}

/// QEMU's reason for the guest's end (QAPI `ShutdownCause`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shutdown {
    /// `guest-shutdown`
    PowerOff,
    /// `guest-reset`
    Reset,
    /// Any other reason, in QEMU's words.
    Other(String),
}

impl Qmp {
    /// Opens the conversation, and starts the vCPUs of a QEMU that was told to wait (`-S`), so that no event is missed.
    /// Does not wait: QEMU may not even run yet.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let (answer, answers) = sync_channel(MAX_ANSWERS);
        let lines = BufReader::new(stream.try_clone()?);
        let reader = thread::Builder::new().name("qmp".to_owned()).spawn(move || read(lines, &answer))?;
        let mut qmp = Self { stream, commands: 0, answers, reader: Some(reader) };
        // QEMU docs/interop/qmp-spec: this command comes before all others, and before any event.
        qmp.send("qmp_capabilities")?;
        qmp.send("cont")?;
        Ok(qmp)
    }

    /// Runs a command without arguments and waits for its answer.
    pub(crate) fn execute(&mut self, command: &str) -> io::Result<()> {
        // Answers for which nobody waited are dropped.
        while self.answers.try_recv().is_ok() {}
        let sent = self.send(command)?;
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let answer =
                self.answers.recv_timeout(left).map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?;
            match answer.error {
                _ if answer.command != sent => {}
                None => return Ok(()),
                Some(error) => return Err(io::Error::other(format!("QEMU refused {command}: {error}"))),
            }
        }
    }

    /// QEMU's reason for the guest's end, if it has given one. The call ends the conversation.
    pub(crate) fn shutdown(&mut self) -> Option<Shutdown> {
        // Messages that have arrived are still read; after them the reader finds the end.
        let _ = self.stream.shutdown(net::Shutdown::Both);
        self.reader.take()?.join().ok().flatten()
    }

    fn send(&mut self, command: &str) -> io::Result<u64> {
        self.commands += 1;
        let mut line = json!({ "execute": command, "id": self.commands }).to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes())?;
        Ok(self.commands)
    }
}

impl Drop for Qmp {
    fn drop(&mut self) {
        self.shutdown();
    }
}

/// Reads until QEMU closes its end, or sends a malformed message.
pub(crate) fn read(mut lines: impl BufRead, answers: &SyncSender<Answer>) -> Option<Shutdown> {
    let mut shutdown = None;
    let mut line = Vec::new();
    loop {
        line.clear();
        let Ok(1..) = lines.by_ref().take(MAX_LINE).read_until(b'\n', &mut line) else { return shutdown };
        let Ok(message) = serde_json::from_slice::<Value>(&line) else { return shutdown };
        if message.get("event").and_then(Value::as_str) == Some("SHUTDOWN") {
            let reason = message.pointer("/data/reason").and_then(Value::as_str).unwrap_or("no reason");
            shutdown = Some(match reason {
                "guest-shutdown" => Shutdown::PowerOff,
                "guest-reset" => Shutdown::Reset,
                other => Shutdown::Other(other.to_owned()),
            });
        }
        if let Some(command) = message.get("id").and_then(Value::as_u64) {
            let error = message
                .get("error")
                .map(|error| error.get("desc").and_then(Value::as_str).unwrap_or("unnamed error").to_owned());
            // Answers beyond the number of commands are dropped.
            let _ = answers.try_send(Answer { command, error });
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";

    fn pair() -> (Qmp, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Qmp::new(ours).unwrap(), theirs)
    }

    #[test]
    fn answers_are_told_from_events_and_from_other_answers() {
        let (mut qmp, mut qemu) = pair();
        let server = thread::spawn(move || {
            qemu.write_all(GREETING.as_bytes()).unwrap();
            let mut commands = BufReader::new(qemu.try_clone().unwrap()).lines();
            assert_eq!(commands.next().unwrap().unwrap(), r#"{"execute":"qmp_capabilities","id":1}"#);
            qemu.write_all(b"{\"return\": {}, \"id\": 1}\r\n").unwrap();
            assert_eq!(commands.next().unwrap().unwrap(), r#"{"execute":"cont","id":2}"#);
            qemu.write_all(b"{\"return\": {}, \"id\": 2}\r\n").unwrap();
            assert_eq!(commands.next().unwrap().unwrap(), r#"{"execute":"stop","id":3}"#);
            qemu.write_all(b"{\"event\": \"STOP\"}\r\n{\"return\": {}, \"id\": 3}\r\n").unwrap();
            assert_eq!(commands.next().unwrap().unwrap(), r#"{"execute":"cont","id":4}"#);
            qemu.write_all(b"{\"id\": 4, \"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}}\r\n")
                .unwrap();
            qemu.write_all(
                b"{\"event\":\"SHUTDOWN\",\"data\":{\"guest\":true,\"reason\":\"guest-reset\"}}\r\n",
            )
            .unwrap();
        });
        qmp.execute("stop").unwrap();
        assert_eq!(qmp.execute("cont").unwrap_err().to_string(), "QEMU refused cont: no");
        server.join().unwrap();
        assert_eq!(qmp.shutdown(), Some(Shutdown::Reset));
    }

    #[test]
    fn a_qemu_that_is_gone_or_talks_nonsense_is_an_error() {
        let (mut qmp, qemu) = pair();
        drop(qemu);
        assert!(qmp.execute("stop").is_err());
        assert_eq!(qmp.shutdown(), None);

        let (mut qmp, mut qemu) = pair();
        qemu.write_all(b"this is not JSON\n").unwrap();
        assert!(qmp.execute("stop").is_err());

        let (mut qmp, mut qemu) = pair();
        let talker = thread::spawn(move || qemu.write_all(&vec![b'x'; 200_000]));
        assert!(qmp.execute("stop").is_err());
        drop(qmp);
        let _ = talker.join().unwrap();
    }
}
