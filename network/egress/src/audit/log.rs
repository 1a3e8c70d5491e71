//! An audit's file: one event a line, as JSON, only ever appended to.
//!
//! An event that cannot be written, since the disk is full or the file has its size, is counted as lost; the count is a
//! line of its own as soon as there is room for one.

use std::io::Write;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use egress_policy::{Name, Protocol, Reason};
use hickory_proto::rr::RecordType;
use serde::Serialize;

use super::{Dns, DnsOutcome, End, Event, Events, Fault, Flow, FlowOutcome, Request, RequestOutcome, Told};

/// Largest file.
pub const MAX_FILE: u64 = 64 << 20;

/// Room that is kept for the count of lost events.
const LAST_LINE: u64 = 256;

/// Most events of one write.
const BATCH: usize = 64;

/// A file that is being appended to.
#[derive(Debug)]
pub struct Log<W> {
    file: W,
    written: u64,
    /// Whether the last line was cut off.
    is_torn: bool,
    lost: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    time: String,
    #[serde(flatten)]
    what: What<'a>,
}

#[derive(Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
enum What<'a> {
    Dns(DnsLine<'a>),
    Flow(FlowLine<'a>),
    Request(RequestLine<'a>),
    Lost { count: u64 },
}

#[derive(Serialize)]
struct Because {
    reason: &'static str,
    rule: String,
}

#[derive(Serialize)]
struct DnsLine<'a> {
    name: &'a str,
    record: String,
    outcome: &'static str,
    #[serde(flatten)]
    because: Because,
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    addresses: &'a [IpAddr],
    #[serde(skip_serializing_if = "Vec::is_empty")]
    dropped: Vec<Dropped>,
}

#[derive(Serialize)]
struct Dropped {
    address: IpAddr,
    #[serde(flatten)]
    because: Because,
}

#[derive(Serialize)]
struct FlowLine<'a> {
    flow: u64,
    protocol: &'static str,
    source: SocketAddr,
    destination: SocketAddr,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    names: Vec<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host: Option<&'a str>,
    outcome: &'static str,
    #[serde(flatten)]
    because: Because,
    #[serde(flatten)]
    ended: Option<Ended>,
}

#[derive(Serialize)]
struct RequestLine<'a> {
    flow: u64,
    scheme: &'static str,
    version: &'static str,
    method: &'a str,
    host: &'a str,
    path: &'a str,
    outcome: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    status: Option<u16>,
    #[serde(flatten)]
    because: Because,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<&'a str>,
    sent: u64,
    received: u64,
    milliseconds: u64,
}

#[derive(Serialize)]
struct Ended {
    end: &'static str,
    sent: u64,
    received: u64,
}

impl Because {
    fn new(reason: &Reason) -> Self {
        Self { reason: reason.words(), rule: reason.id().to_string() }
    }
}

impl<'a> From<&'a Event> for What<'a> {
    fn from(event: &'a Event) -> Self {
        match event {
            Event::Dns(event) => Self::Dns(dns(event)),
            Event::Flow(event) => Self::Flow(flow(event)),
            Event::Request(event) => Self::Request(request(event)),
        }
    }
}

fn dns(event: &Dns) -> DnsLine<'_> {
    let Dns { name, record, outcome, reason, addresses, dropped } = event;
    let outcome = match outcome {
        DnsOutcome::Answered => "answered",
        DnsOutcome::Denied => "denied",
        DnsOutcome::Filtered => "filtered",
        DnsOutcome::Failed => "failed",
    };
    let dropped =
        dropped.iter().map(|(address, reason)| Dropped { address: *address, because: Because::new(reason) });
    DnsLine {
        name,
        record: RecordType::from(*record).to_string(),
        outcome,
        because: Because::new(reason),
        addresses,
        dropped: dropped.collect(),
    }
}

fn flow(event: &Flow) -> FlowLine<'_> {
    let (outcome, ended) = match event.outcome {
        FlowOutcome::Denied => ("denied", None),
        FlowOutcome::NotLookedInto => ("not_looked_into", None),
        FlowOutcome::LookedInto => ("looked_into", None),
        FlowOutcome::TooMany => ("too_many", None),
        FlowOutcome::Unreachable(Fault::Refused) => ("refused_by_server", None),
        FlowOutcome::Unreachable(Fault::Silent) => ("server_silent", None),
        FlowOutcome::Unreachable(Fault::NoWay) => ("no_way", None),
        FlowOutcome::Unreachable(Fault::TooMany) => ("too_many", None),
        FlowOutcome::Opened => ("opened", None),
        FlowOutcome::Ended { end, sent, received } => {
            ("ended", Some(Ended { end: self::end(end), sent, received }))
        }
    };
    FlowLine {
        flow: event.number,
        protocol: match event.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        },
        source: event.source,
        destination: event.destination,
        names: event.names.iter().map(Name::as_str).collect(),
        host: event.host.as_deref(),
        outcome,
        because: Because::new(&event.reason),
        ended,
    }
}

fn end(end: End) -> &'static str {
    match end {
        End::Closed => "closed",
        End::Reset => "reset",
        End::Idle => "idle",
        End::Reclaimed => "reclaimed",
        End::Policy => "policy",
        End::Distrusted => "distrusted",
        End::Handshake => "handshake",
        End::Malformed => "malformed",
    }
}

fn request(event: &Request) -> RequestLine<'_> {
    RequestLine {
        flow: event.flow,
        scheme: if event.tls { "https" } else { "http" },
        version: if event.http2 { "2" } else { "1.1" },
        method: &event.method,
        host: &event.host,
        path: &event.path,
        outcome: match event.outcome {
            RequestOutcome::Answered => "answered",
            RequestOutcome::BrokenOff => "broken_off",
            RequestOutcome::Denied => "denied",
            RequestOutcome::Malformed => "malformed",
            RequestOutcome::Failed => "failed",
            RequestOutcome::TooMany => "too_many",
        },
        status: event.status,
        because: Because::new(&event.reason),
        fault: event.fault.as_deref(),
        sent: event.sent,
        received: event.received,
        milliseconds: u64::try_from(event.duration.as_millis()).unwrap_or(u64::MAX),
    }
}

fn line(time: SystemTime, what: What<'_>) -> Option<Vec<u8>> {
    let time = jiff::Timestamp::try_from(time).ok()?;
    let mut bytes = serde_json::to_vec(&Line { time: format!("{time:.3}"), what }).ok()?;
    bytes.push(b'\n');
    Some(bytes)
}

impl<W: Write> Log<W> {
    /// A log at the end of a file that has this many bytes.
    #[must_use]
    pub fn new(file: W, len: u64) -> Self {
        Self { file, written: len, is_torn: false, lost: 0 }
    }

    /// Writes events until nobody puts any in, and returns the file. For a thread of its own: a slow disk must delay
    /// nothing else.
    pub fn run(mut self, mut events: Events) -> W {
        let mut batch = Vec::new();
        while events.take(&mut batch, BATCH) {
            self.lost += events.lost();
            self.write(&batch);
            batch.clear();
        }
        self.lost += events.lost();
        self.tell_lost(MAX_FILE);
        self.file
    }

    fn write(&mut self, batch: &[Told]) {
        self.tell_lost(MAX_FILE - LAST_LINE);
        for told in batch {
            let line = line(told.time, What::from(&told.event));
            let is_written = line.is_some_and(|line| self.append(&line, MAX_FILE - LAST_LINE));
            self.lost += u64::from(!is_written);
        }
    }

    fn tell_lost(&mut self, most: u64) {
        if self.lost == 0 {
            return;
        }
        let what = What::Lost { count: self.lost };
        if line(SystemTime::now(), what).is_some_and(|line| self.append(&line, most)) {
            self.lost = 0;
        }
    }

    /// Appends a line, after the end of one that was cut off.
    fn append(&mut self, line: &[u8], most: u64) -> bool {
        let line = if self.is_torn { [b"\n", line].concat() } else { line.to_vec() };
        if self.written.saturating_add(line.len() as u64) > most {
            return false;
        }
        let mut rest = line.as_slice();
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(0) => return false,
                Ok(len) => {
                    self.written += len as u64;
                    rest = &rest[len..];
                    self.is_torn = !rest.is_empty();
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(_) => return false,
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::audit::queue;

    fn told() -> Vec<Event> {
        let reason = Reason::Allowed("ok.test".into());
        let address: IpAddr = [203, 0, 113, 10].into();
        let closed = Reason::Closed(egress_policy::Class::Loopback);
        let flow = |outcome| {
            Event::Flow(Flow {
                number: 7,
                protocol: Protocol::Tcp,
                source: ([198, 18, 0, 2], 40000).into(),
                destination: (address, 443).into(),
                names: vec!["ok.test".parse().unwrap()],
                host: Some("ok.test".to_owned()),
                outcome,
                reason: reason.clone(),
            })
        };
        let dns = Event::Dns(Dns {
            name: "ok.test".to_owned(),
            record: 28,
            outcome: DnsOutcome::Answered,
            reason: reason.clone(),
            addresses: vec![address],
            dropped: vec![([127, 0, 0, 1].into(), closed)],
        });
        vec![dns, flow(FlowOutcome::Ended { end: End::Closed, sent: 5, received: 6 })]
    }

    fn lines(bytes: &[u8]) -> Vec<Value> {
        let lines = bytes.split_inclusive(|byte| *byte == b'\n');
        lines.filter(|line| line.ends_with(b"\n")).map(|line| serde_json::from_slice(line).unwrap()).collect()
    }

    #[test]
    fn an_event_is_a_line() {
        let (queue, events) = queue(10);
        told().into_iter().for_each(|event| queue.put(event));
        drop(queue);
        let mut lines = lines(&Log::new(Vec::new(), 0).run(events));
        for line in &mut lines {
            let time = line.as_object_mut().unwrap().remove("time").unwrap();
            assert!(time.as_str().unwrap().parse::<jiff::Timestamp>().is_ok());
        }
        let allowed = "allowed by the allow list";
        let closed = "addresses of this class are closed";
        assert_eq!(
            lines,
            [
                json!({"event": "dns", "name": "ok.test", "record": "AAAA", "outcome": "answered", "reason": allowed,
                    "rule": "allow:ok.test", "addresses": ["203.0.113.10"],
                    "dropped": [{"address": "127.0.0.1", "reason": closed, "rule": "class:loopback"}]}),
                json!({"event": "flow", "flow": 7, "protocol": "tcp", "source": "198.18.0.2:40000",
                    "destination": "203.0.113.10:443", "names": ["ok.test"], "host": "ok.test", "outcome": "ended",
                    "reason": allowed, "rule": "allow:ok.test", "end": "closed", "sent": 5, "received": 6}),
            ]
        );
    }

    #[test]
    fn a_request_is_a_line() {
        let (queue, events) = queue(1);
        queue.put(Event::Request(Request {
            flow: 7,
            tls: true,
            http2: true,
            method: "GET".into(),
            host: "ok.test".into(),
            path: "/v1/x".into(),
            outcome: RequestOutcome::Failed,
            status: Some(502),
            reason: Reason::Open,
            fault: Some("the server refuses connections".into()),
            sent: 5,
            received: 6,
            duration: std::time::Duration::from_millis(12),
        }));
        drop(queue);
        let mut line = lines(&Log::new(Vec::new(), 0).run(events)).remove(0);
        line.as_object_mut().unwrap().remove("time").unwrap();
        let expected = json!({"event": "request", "flow": 7, "scheme": "https", "version": "2", "method": "GET",
            "host": "ok.test", "path": "/v1/x", "outcome": "failed", "status": 502, "reason": "the public internet is open",
            "rule": "default:open", "fault": "the server refuses connections", "sent": 5, "received": 6,
            "milliseconds": 12});
        assert_eq!(line, expected);
    }

    #[test]
    fn what_is_lost_is_told_once() {
        let (queue, events) = queue(1);
        told().into_iter().for_each(|event| queue.put(event));
        drop(queue);
        let lines = lines(&Log::new(Vec::new(), 0).run(events));
        assert_eq!((lines.len(), &lines[0]["event"], &lines[0]["count"]), (2, &json!("lost"), &json!(1)));
    }

    #[test]
    fn a_file_has_a_largest_size() {
        let (queue, events) = queue(10);
        (0..5).flat_map(|_| told()).for_each(|event| queue.put(event));
        drop(queue);
        // Room for two lines or three.
        let start = MAX_FILE - LAST_LINE - 800;
        let bytes = Log::new(Vec::new(), start).run(events);
        let lines = lines(&bytes);
        assert!(start + bytes.len() as u64 <= MAX_FILE);
        let (last, before) = lines.split_last().unwrap();
        assert!(!before.is_empty());
        assert_eq!(last["count"], json!(10 - before.len()));
    }

    /// A disk that has room for this many bytes, and for more after as many failures.
    struct Disk {
        bytes: Vec<u8>,
        room: usize,
        failures: usize,
    }

    impl Write for Disk {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let len = bytes.len().min(self.room);
            if len == 0 {
                self.failures -= 1;
                self.room = if self.failures == 0 { usize::MAX } else { 0 };
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            self.room -= len;
            self.bytes.extend(&bytes[..len]);
            Ok(len)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_tears_one_line_and_no_other() {
        let (queue, events) = queue(10);
        (0..5).flat_map(|_| told()).for_each(|event| queue.put(event));
        drop(queue);
        let disk = Log::new(Disk { bytes: Vec::new(), room: 500, failures: 3 }, 0).run(events);
        let lines: Vec<_> = disk.bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
        let parsed: Vec<Value> = lines.iter().filter_map(|line| serde_json::from_slice(line).ok()).collect();
        assert_eq!(parsed.len(), lines.len() - 1);
        let (last, events) = parsed.split_last().unwrap();
        assert_eq!(last["count"], json!(10 - events.len()));
    }
}
