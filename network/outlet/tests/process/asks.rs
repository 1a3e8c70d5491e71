//! Questions of a guest to its network.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::time::Duration;

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::{Name, RData, RecordType};

use super::guest::PATIENCE;

/// An answer of DNS.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Addresses(Vec<IpAddr>),
    /// There is no such name, with the reason.
    Nothing(String),
    /// None at all, or an error.
    Failed,
}

/// Connects. A refusal may be quick enough to be an error of this.
pub(crate) fn connect(address: &str) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address.parse().unwrap(), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    Ok(stream)
}

/// A connection that is carried: a byte has come back over it.
pub(crate) fn connected(address: &str) -> TcpStream {
    let mut stream = connect(address).unwrap();
    assert_eq!(said_back(&mut stream, 1), 1, "{address}");
    stream
}

/// Whether a connection is carried.
pub(crate) fn open(address: &str) -> Result<(), ErrorKind> {
    let asked = connect(address).and_then(|mut stream| {
        stream.write_all(b"x")?;
        stream.read_exact(&mut [0])
    });
    asked.map_err(|error| match error.kind() {
        // The reset came before the byte was written.
        ErrorKind::BrokenPipe => ErrorKind::ConnectionReset,
        kind => kind,
    })
}

/// Sends bytes, and counts those that come back.
pub(crate) fn said_back(stream: &mut TcpStream, len: usize) -> usize {
    let mut writer = stream.try_clone().unwrap();
    let sender = std::thread::spawn(move || writer.write_all(&vec![7; len]));
    let mut back = vec![0; len];
    let read = stream.read_exact(&mut back);
    sender.join().unwrap().and(read).map_or(0, |()| back.iter().filter(|byte| **byte == 7).count())
}

/// Sends a datagram, and returns the length of the answer.
pub(crate) fn send(address: &str, len: usize) -> Result<usize, ErrorKind> {
    let address: SocketAddr = address.parse().unwrap();
    let socket = UdpSocket::bind(if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let asked = socket.connect(address).and_then(|()| socket.send(&vec![7; len]));
    asked.and_then(|_| socket.recv(&mut [0; 65_536])).map_err(|error| error.kind())
}

/// Asks any DNS server for an address of this version of IP.
pub(crate) fn look_up(name: &str, version: u8) -> Answer {
    let record = if version == 4 { RecordType::A } else { RecordType::AAAA };
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), record));
    message.set_edns(Edns::new());
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    let mut bytes = [0; 4096];
    let asked = socket.send_to(&message.to_vec().unwrap(), "8.8.8.8:53");
    let Ok(len) = asked.and_then(|_| socket.recv(&mut bytes)) else { return Answer::Failed };
    let reply = Message::from_vec(&bytes[..len]).unwrap();
    let address = |data: &RData| match data {
        RData::A(address) => Some(IpAddr::V4(address.0)),
        RData::AAAA(address) => Some(IpAddr::V6(address.0)),
        _ => None,
    };
    match reply.metadata.response_code {
        ResponseCode::NoError => {
            Answer::Addresses(reply.answers.iter().filter_map(|record| address(&record.data)).collect())
        }
        ResponseCode::NXDomain => Answer::Nothing(reason(&reply)),
        _ => Answer::Failed,
    }
}

/// The words of an extended error (RFC 8914).
fn reason(reply: &Message) -> String {
    let Some(EdnsOption::Unknown(_, bytes)) = reply.edns.as_ref().unwrap().option(EdnsCode::Unknown(15))
    else {
        return String::new();
    };
    String::from_utf8(bytes[2..].to_vec()).unwrap()
}
