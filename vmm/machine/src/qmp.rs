//! QEMU's control protocol, as much of it as a machine needs: `stop`, `cont`, and the events that say how it ended.
//!
//! QEMU is not trusted here: a guest may have taken it over. Its lines are bounded, and it gets a bounded time to
//! answer.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use serde_json::{Value, json};

/// Longest line taken from QEMU.
const MAX_LINE: usize = 64 * 1024;
/// Lines read in search of one answer.
const MAX_LINES: usize = 10_000;
/// How long a command may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// The supervisor's end of a QMP connection.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: UnixStream,
    received: Vec<u8>,
    commands: u64,
    shutdown: Option<Shutdown>,
}

/// Why QEMU said that the guest ended (QAPI `ShutdownCause`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Shutdown {
    /// `guest-shutdown`
    PowerOff,
    /// `guest-reset`
    Reset,
    /// Any other, in QEMU's words.
    Other(String),
}

impl Qmp {
    /// Opens the conversation, and starts the vCPUs of a QEMU that was told to wait for that (`-S`): so no event is
    /// missed. Does not wait: QEMU may not even run yet.
    pub(crate) fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        stream.set_write_timeout(Some(ANSWER_TIMEOUT))?;
        let mut qmp = Self { stream, received: Vec::new(), commands: 0, shutdown: None };
        // QEMU docs/interop/qmp-spec: no command and no event before this one. Its answer is read later.
        qmp.send("qmp_capabilities")?;
        qmp.send("cont")?;
        Ok(qmp)
    }

    /// Runs a command without arguments and waits for its answer.
    pub(crate) fn execute(&mut self, command: &str) -> io::Result<()> {
        let id = self.send(command)?;
        for _ in 0..MAX_LINES {
            let message = self.message()?;
            if message.get("id").and_then(Value::as_u64) != Some(id) {
                continue;
            }
            return match message.get("error") {
                None => Ok(()),
                Some(error) => {
                    let text = error.get("desc").and_then(Value::as_str).unwrap_or("unnamed error");
                    Err(io::Error::other(format!("QEMU refused {command}: {text}")))
                }
            };
        }
        Err(io::Error::other("QEMU does not answer, it only talks"))
    }

    /// How QEMU said that the guest ended, once QEMU has closed its end or has nothing more to say.
    pub(crate) fn shutdown(&mut self) -> Option<Shutdown> {
        // A socket that cannot be made non-blocking would still time out.
        let _ = self.stream.set_nonblocking(true);
        for _ in 0..MAX_LINES {
            if self.message().is_err() {
                break;
            }
        }
        let _ = self.stream.set_nonblocking(false);
        self.shutdown.clone()
    }

    fn send(&mut self, command: &str) -> io::Result<u64> {
        self.commands += 1;
        let mut line = json!({ "execute": command, "id": self.commands }).to_string();
        line.push('\n');
        self.stream.write_all(line.as_bytes())?;
        Ok(self.commands)
    }

    /// The next message; an event that matters is remembered on the way.
    fn message(&mut self) -> io::Result<Value> {
        let line = self.line()?;
        let message: Value = serde_json::from_slice(&line)?;
        if message.get("event").and_then(Value::as_str) == Some("SHUTDOWN") {
            let reason = message.pointer("/data/reason").and_then(Value::as_str).unwrap_or("no reason");
            self.shutdown = Some(match reason {
                "guest-shutdown" => Shutdown::PowerOff,
                "guest-reset" => Shutdown::Reset,
                other => Shutdown::Other(other.to_owned()),
            });
        }
        Ok(message)
    }

    fn line(&mut self) -> io::Result<Vec<u8>> {
        let mut searched = 0;
        loop {
            if let Some(end) = self.received[searched..].iter().position(|byte| *byte == b'\n') {
                let rest = self.received.split_off(searched + end + 1);
                return Ok(std::mem::replace(&mut self.received, rest));
            }
            searched = self.received.len();
            if searched > MAX_LINE {
                return Err(io::Error::other("QEMU sent a line that does not end"));
            }
            let mut chunk = [0; 4096];
            match self.stream.read(&mut chunk) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => self.received.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use std::io::{BufRead, BufReader};

    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\r\n";

    fn pair() -> (Qmp, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        (Qmp::new(ours).unwrap(), theirs)
    }

    #[test]
    fn answers_are_told_from_events_and_from_other_answers() {
        let (mut qmp, mut qemu) = pair();
        let server = std::thread::spawn(move || {
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
        let talker = std::thread::spawn(move || qemu.write_all(&vec![b'x'; 2 * MAX_LINE]));
        assert!(qmp.execute("stop").is_err());
        drop(qmp);
        let _ = talker.join().unwrap();
    }
}
