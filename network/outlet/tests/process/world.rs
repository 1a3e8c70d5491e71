//! The world outside: a network namespace with servers, whose addresses count as public, and the process that carries a
//! guest's network there.

use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::path::Path;
use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use arrival::Sockets;
use hickory_proto::op::{Message, MessageType, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA};
use hickory_proto::rr::{RData, Record, RecordType};
use nix::sched::{CloneFlags, unshare};
use outlet::{Outlet, Spec, StartError};
use tempfile::NamedTempFile;

use super::guest::apart;

pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_matchlock-egress");

/// The addresses of the world.
pub(crate) const ADDRESSES: [&str; 6] =
    ["203.0.113.10", "203.0.113.20", "203.0.113.30", "10.0.0.1", "2001:db8::5", "fd00::5"];

/// The names that its DNS server knows.
const NAMES: [(&str, &str); 6] = [
    ("ok.test.", "203.0.113.10"),
    ("ok.test.", "2001:db8::5"),
    ("evil.test.", "203.0.113.20"),
    ("cdn.test.", "203.0.113.30"),
    ("inside.test.", "10.0.0.1"),
    ("own.test.", "203.0.113.53"),
];

/// The address of the DNS server, which is one of the host's own.
const RESOLVER: &str = "203.0.113.53:53";

/// The world, as a test sees it from its guest's side.
pub(crate) struct World {
    pub(crate) outlet: Outlet,
    pub(crate) audit: NamedTempFile,
    seen: Arc<Seen>,
}

/// All that the servers saw.
#[derive(Default)]
struct Seen {
    /// Names that were asked for.
    asked: Mutex<Vec<String>>,
    /// Connections and datagrams that reached a server.
    reached: AtomicUsize,
}

/// Runs `test` as the guest of a sandbox whose network is such.
pub(crate) fn within(spec: Spec, test: impl FnOnce(World) + Send + 'static) {
    apart(move |sockets| {
        let (sender, receiver) = mpsc::channel();
        // The servers end with this process.
        std::thread::spawn(move || sender.send(begin(spec, sockets)).unwrap());
        test(receiver.recv().unwrap());
    });
}

fn begin(spec: Spec, sockets: Sockets) -> World {
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let resolver = RESOLVER.parse::<SocketAddr>().unwrap();
    ip("link set lo up");
    for address in ADDRESSES.iter().map(|address| address.parse().unwrap()).chain([resolver.ip()]) {
        match address {
            IpAddr::V4(address) => ip(&format!("addr add {address}/32 dev lo")),
            IpAddr::V6(address) => ip(&format!("addr add {address}/128 dev lo nodad")),
        }
    }
    let seen = Arc::new(Seen::default());
    for address in ADDRESSES {
        for port in [22, 80, 443, 7000, 8443] {
            echo((address.parse::<IpAddr>().unwrap(), port).into(), &seen);
        }
    }
    answer(UdpSocket::bind(resolver).unwrap(), &seen);
    let spec = Spec { resolvers: vec![resolver], ..spec };
    let (outlet, audit) = started(Path::new(PROGRAM), &spec, sockets);
    World { outlet: outlet.unwrap(), audit, seen }
}

/// Starts the process with a file for its audit.
pub(crate) fn started(
    program: &Path,
    spec: &Spec,
    sockets: Sockets,
) -> (Result<Outlet, StartError>, NamedTempFile) {
    let audit = NamedTempFile::new().unwrap();
    let file = File::options().append(true).open(audit.path()).unwrap();
    (Outlet::start(program, spec, sockets.into(), &file, None), audit)
}

pub(crate) fn ip(command: &str) {
    assert!(Command::new("ip").args(command.split(' ')).status().unwrap().success(), "ip {command}");
}

/// A server that says everything back, over TCP and UDP.
fn echo(address: SocketAddr, seen: &Arc<Seen>) {
    let (tcp, udp) = (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap());
    let counted = Arc::clone(seen);
    std::thread::spawn(move || {
        for stream in tcp.incoming().map(Result::unwrap) {
            counted.reached.fetch_add(1, Ordering::Relaxed);
            let mut reader = stream.try_clone().unwrap();
            std::thread::spawn(move || std::io::copy(&mut reader, &mut &stream));
        }
    });
    let counted = Arc::clone(seen);
    std::thread::spawn(move || {
        let mut bytes = [0; 65_536];
        loop {
            let (len, from) = udp.recv_from(&mut bytes).unwrap();
            counted.reached.fetch_add(1, Ordering::Relaxed);
            udp.send_to(&bytes[..len], from).unwrap();
        }
    });
}

/// The DNS server.
fn answer(socket: UdpSocket, seen: &Arc<Seen>) {
    let seen = Arc::clone(seen);
    std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        loop {
            let (len, from) = socket.recv_from(&mut bytes).unwrap();
            let mut message = Message::from_vec(&bytes[..len]).unwrap();
            let query = message.queries[0].clone();
            seen.asked.lock().unwrap().push(query.name().to_ascii());
            let records = NAMES.iter().filter(|(name, _)| *name == query.name().to_ascii());
            let records: Vec<_> = records.map(|(_, address)| address.parse::<IpAddr>().unwrap()).collect();
            if records.is_empty() {
                message.metadata.response_code = ResponseCode::NXDomain;
            }
            let data = records.into_iter().filter_map(|address| match (address, query.query_type()) {
                (IpAddr::V4(address), RecordType::A) => Some(RData::A(A(address))),
                (IpAddr::V6(address), RecordType::AAAA) => Some(RData::AAAA(AAAA(address))),
                _ => None,
            });
            let data: Vec<_> = data.map(|data| Record::from_rdata(query.name().clone(), 60, data)).collect();
            message.insert_answers(data);
            message.metadata.message_type = MessageType::Response;
            socket.send_to(&message.to_vec().unwrap(), from).unwrap();
        }
    });
}

impl World {
    /// The number of connections and datagrams that reached a server so far.
    pub(crate) fn reached(&self) -> usize {
        self.seen.reached.load(Ordering::Relaxed)
    }

    /// The names that the DNS server was asked for so far.
    pub(crate) fn asked(&self) -> Vec<String> {
        self.seen.asked.lock().unwrap().clone()
    }

    /// Ends the process, and gives the whole audit: a map of members for each line, as text.
    pub(crate) fn end(self) -> Vec<BTreeMap<String, String>> {
        let Self { outlet, audit, .. } = self;
        drop(outlet);
        let text = std::fs::read_to_string(audit.path()).unwrap();
        let line = |line: &str| {
            let members: serde_json::Map<String, serde_json::Value> = serde_json::from_str(line).unwrap();
            let text = |value: serde_json::Value| match value {
                serde_json::Value::String(text) => text,
                other => other.to_string(),
            };
            members.into_iter().map(|(name, value)| (name, text(value))).collect()
        };
        text.lines().map(line).collect()
    }
}

/// Shows a line of an audit.
pub(crate) fn show(line: &BTreeMap<String, String>, names: &[&str]) -> String {
    let members: Vec<_> = names.iter().map(|name| line.get(*name).map_or("-", String::as_str)).collect();
    members.join(" ")
}
