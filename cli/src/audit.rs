//! `matchlock audit`: what a sandbox's guest sent outside and what was denied, for people or as JSON.
//!
//! Names and paths in it are the guest's: a terminal is shown nothing that it would act on. Not here: the events
//! themselves (`egress`), and reading them (`sandbox`).

use sandbox::{Home, Id, audit};
use serde_json::Value;
use tokio::task::spawn_blocking;

use crate::args::AuditArgs;
use crate::block_on;
use crate::failure::Interrupted;
use crate::say::{self, say};
use crate::signals::{SIGINT, Signals};

/// Longest line that is printed; an event is far shorter.
const MAX_LINE: usize = 64 << 10;

/// The words of outcomes that let nothing through.
const DENIED: [&str; 3] = ["denied", "filtered", "not_looked_into"];

/// Prints the events; with `--follow` until ^C, or until the sandbox is removed.
pub(crate) fn audit(args: &AuditArgs, home: &Home) -> anyhow::Result<u8> {
    let id: Id = args.id.parse()?;
    let printer = Printer { denied: args.denied, json: args.json };
    if args.follow {
        return block_on(follow(home, &id, printer))?;
    }
    let mut lines = Lines::default();
    lines.add(&audit::read(home, &id)?, |line| printer.print(line))?;
    Ok(0)
}

async fn follow(home: &Home, id: &Id, printer: Printer) -> anyhow::Result<u8> {
    let mut signals = Signals::catch()?;
    let mut audit = audit::follow(home, id)?;
    let print = async {
        let mut lines = Lines::default();
        while let Some(more) = audit.next().await? {
            let mut whole = Vec::new();
            lines.add(more, |line| {
                whole.push(line.to_vec());
                Ok(())
            })?;
            // On a thread of its own: an output that blocks must not keep ^C waiting.
            spawn_blocking(move || whole.iter().try_for_each(|line| printer.print(line))).await??;
        }
        anyhow::Ok(())
    };
    tokio::select! {
        biased;
        signal = signals.next() => match signal {
            SIGINT => Ok(0),
            signal => Err(Interrupted(signal).into()),
        },
        result = print => result.map(|()| 0),
    }
}

/// Whole lines out of pieces.
#[derive(Debug, Default)]
struct Lines {
    held: Vec<u8>,
    /// Whether the line that is coming is too long, and left out.
    is_long: bool,
}

impl Lines {
    fn add(&mut self, bytes: &[u8], mut take: impl FnMut(&[u8]) -> anyhow::Result<()>) -> anyhow::Result<()> {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            let room = MAX_LINE.saturating_sub(self.held.len());
            self.is_long |= piece.len() > room;
            self.held.extend_from_slice(piece.get(..room).unwrap_or(piece));
            if piece.ends_with(b"\n") {
                let line = std::mem::take(&mut self.held);
                if !std::mem::take(&mut self.is_long) {
                    take(&line)?;
                }
            }
        }
        Ok(())
    }
}

/// Prints lines of an audit.
#[derive(Debug, Clone, Copy)]
struct Printer {
    denied: bool,
    json: bool,
}

impl Printer {
    /// Prints a line, if it is an event that is wanted. A line that was cut off is none.
    fn print(self, line: &[u8]) -> anyhow::Result<()> {
        let Ok(event) = serde_json::from_slice::<Value>(line) else { return Ok(()) };
        if self.denied && !is_denied(&event) {
            return Ok(());
        }
        if self.json {
            return say::json_line(&event);
        }
        say!("{}", words(&event));
        Ok(())
    }
}

fn text<'a>(event: &'a Value, member: &str) -> &'a str {
    event[member].as_str().unwrap_or_default()
}

fn is_denied(event: &Value) -> bool {
    DENIED.contains(&text(event, "outcome")) || event["end"] == "policy" || event["dropped"].is_array()
}

/// An event on one line.
fn words(event: &Value) -> String {
    let subject = match text(event, "event") {
        "dns" => format!("dns {} {} {}", text(event, "outcome"), text(event, "record"), text(event, "name")),
        "flow" => flow(event),
        "request" => request(event),
        "lost" => return format!("{} {} events were lost", text(event, "time"), event["count"]),
        // Events of a later release.
        _ => return event.to_string(),
    };
    let reason = match (text(event, "reason"), text(event, "rule")) {
        ("", _) => String::new(),
        (reason, rule) => format!(": {reason} [{rule}]"),
    };
    format!("{} {subject}{reason}{}{}", text(event, "time"), given(event), kept(event))
}

fn flow(event: &Value) -> String {
    let names = event["names"].as_array();
    let first_name = names.and_then(|names| names.first()).and_then(Value::as_str);
    let host = event["host"].as_str().or(first_name).map(|host| format!("{host} ")).unwrap_or_default();
    let ended = match event["end"].as_str() {
        Some(end) => format!(" ({end}; {} bytes sent, {} received)", event["sent"], event["received"]),
        None => String::new(),
    };
    let (protocol, outcome) = (text(event, "protocol"), text(event, "outcome"));
    format!("{protocol} {outcome} {host}{}{ended}", text(event, "destination"))
}

fn request(event: &Value) -> String {
    let status = event["status"].as_u64().map(|status| format!(" {status}")).unwrap_or_default();
    let [outcome, method, scheme, host, path] =
        ["outcome", "method", "scheme", "host", "path"].map(|member| text(event, member));
    let bytes = format!("({} bytes sent, {} received)", event["sent"], event["received"]);
    format!("request {outcome} {method} {scheme}://{host}{path}{status} {bytes}")
}

/// The addresses that a guest was given.
fn given(event: &Value) -> String {
    let addresses: Vec<_> =
        event["addresses"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
    if addresses.is_empty() { String::new() } else { format!(" ({})", addresses.join(", ")) }
}

/// The addresses that were kept from a guest.
fn kept(event: &Value) -> String {
    let dropped = event["dropped"].as_array().into_iter().flatten();
    let dropped = dropped.map(|one| {
        format!("; kept back {}: {} [{}]", text(one, "address"), text(one, "reason"), text(one, "rule"))
    });
    dropped.collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn lines_come_whole_or_not_at_all() {
        let mut lines = Lines::default();
        let mut seen = Vec::new();
        let long = vec![b'x'; MAX_LINE + 1];
        for piece in [&b"a\nb"[..], b"c\n", &long, &long, b"\nd", b"\n", b"cut off"] {
            lines
                .add(piece, |line| {
                    seen.push(String::from_utf8(line.to_vec()).unwrap());
                    Ok(())
                })
                .unwrap();
        }
        assert_eq!(seen, ["a\n", "bc\n", "d\n"]);
        assert!(lines.held.len() <= MAX_LINE);
    }

    #[test]
    fn an_event_is_a_line_of_words() {
        let time = "2026-01-02T03:04:05.678Z";
        let denied = json!({"time": time, "event": "dns", "name": "evil.test", "record": "A", "outcome": "denied",
            "reason": "host not in allowlist", "rule": "default:closed"});
        let answered = json!({"time": time, "event": "dns", "name": "ok.test", "record": "A", "outcome": "answered",
            "reason": "r", "rule": "allow:ok.test", "addresses": ["203.0.113.10"],
            "dropped": [{"address": "10.0.0.1", "reason": "closed", "rule": "class:private"}]});
        let ended = json!({"time": time, "event": "flow", "flow": 7, "protocol": "tcp", "source": "198.18.0.2:40000",
            "destination": "203.0.113.10:443", "names": ["ok.test"], "outcome": "ended", "reason": "r",
            "rule": "allow:ok.test", "end": "policy", "sent": 5, "received": 6});
        let request = json!({"time": time, "event": "request", "flow": 7, "scheme": "https", "version": "1.1",
            "method": "GET", "host": "ok.test", "path": "/a", "outcome": "denied", "status": 403, "reason": "r",
            "rule": "default:closed", "sent": 0, "received": 9, "milliseconds": 3});
        let lost = json!({"time": time, "event": "lost", "count": 3});
        let later = json!({"event": "later", "x": 1});
        for (event, expected, denied) in [
            (denied, "dns denied A evil.test: host not in allowlist [default:closed]", true),
            (
                answered,
                "dns answered A ok.test: r [allow:ok.test] (203.0.113.10); kept back 10.0.0.1: closed [class:private]",
                true,
            ),
            (
                ended,
                "tcp ended ok.test 203.0.113.10:443 (policy; 5 bytes sent, 6 received): r [allow:ok.test]",
                true,
            ),
            (
                request,
                "request denied GET https://ok.test/a 403 (0 bytes sent, 9 received): r [default:closed]",
                true,
            ),
            (lost, "3 events were lost", false),
        ] {
            assert_eq!(words(&event), format!("{time} {expected}"));
            assert_eq!(is_denied(&event), denied, "{expected}");
        }
        assert_eq!(words(&later), r#"{"event":"later","x":1}"#);
    }
}
