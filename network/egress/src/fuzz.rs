//! Fuzz bodies: bytes of guests and of servers. Each takes any bytes, and panics only on a defect.
//!
//! `cargo test` runs them a fixed number of times with fixed seeds; `fuzz/` has the targets for libFuzzer.

use std::net::IpAddr;
use std::time::Instant;

use egress_policy::{Class, Host, Policy, Reason, WantedPolicy, class};
use hickory_proto::op::{Message, MessageType, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use hyper::{Method, Version};

use crate::dns::chain::{Chain, MAX_ANSWERS, MAX_LINKS, Step};
use crate::dns::message::{self, Asked, Extended, MAX_MESSAGE, Outgoing, Question, Reply};
use crate::flow::first::{MAX_FIRST, Reader};
use crate::http::head::{self, Form};
use crate::{Dns, DnsSettings, Shared, audit};

/// The bytes of a guest: each reply is a message of DNS with the number and the question of what was asked, in the size
/// that the guest takes.
pub fn dns_questions(data: &[u8]) {
    match message::asked(data) {
        Asked::Nothing => {}
        Asked::Refused(reply) => assert_eq!(parsed(&reply).metadata.id.to_be_bytes(), data[..2]),
        Asked::Question(question) => {
            if let Ok(name) = question.host() {
                let sent = message::name(&name).expect("a host's name is one of DNS");
                assert_eq!(message::host(&sent), Ok(name));
            }
            let blocked = Extended::Blocked(Reason::NotListed);
            for reply in [Reply::no_data(), Reply::error(ResponseCode::NXDomain, blocked)] {
                let bytes = question.encode(&reply, question.datagram()).expect("fits");
                let message = parsed(&bytes);
                assert!(bytes.len() <= question.datagram() && !message.metadata.truncation);
                assert_eq!(message.metadata.id.to_be_bytes(), data[..2]);
                assert_eq!(message.queries[0].name, *question.name());
            }
        }
    }
}

/// The bytes of a server, after two for the type that is asked for: a guest gets records of that type and aliases, bounded
/// in number, and no address of a closed class, which is what it is pinned to.
pub fn dns_answers(data: &[u8]) {
    let Some((record, bytes)) = data.split_first_chunk() else { return };
    let record = RecordType::from(u16::from_be_bytes(*record));
    let host: egress_policy::Name = "ok.test".parse().expect("a name");
    let name = message::name(&host).expect("a host's name is one of DNS");
    let id = bytes.first_chunk().map_or(0, |id| u16::from_be_bytes(*id));
    let outgoing = Outgoing { id, query: Query::query(name.clone(), record) };
    let Some(answer) = outgoing.answer(bytes) else { return };
    let Ok(Step::Found(found)) = Chain::new(name, record).walk(answer) else { return };
    let given = found.records.iter().filter_map(message::address).collect::<Vec<_>>();
    assert!(found.links.len() <= MAX_LINKS && found.records.len() <= MAX_ANSWERS);

    let (queue, _events) = audit::queue(1);
    let policy = Policy::new(&WantedPolicy::default()).expect("the default");
    let shared = Shared::new(policy, Vec::new(), queue);
    let dns = Dns::new(shared.clone(), DnsSettings { servers: Vec::new(), ipv6: true });
    let asked = asked_by_guest(record);
    let reply = dns.given(&asked, &host, *found).reply;
    let Some(bytes) = asked.encode(&reply, MAX_MESSAGE) else { return };
    let message = parsed(&bytes);
    for record in &message.answers {
        let address = message::address(record);
        assert!(address.is_none_or(|address| class(address) == Class::Public), "{record}");
        assert!((5..=300).contains(&record.ttl), "{record}");
    }
    let is_pinned = |address: &IpAddr| !shared.pins().names(*address, Instant::now()).is_empty();
    for address in given.iter().filter(|address| is_pinned(address)) {
        assert_eq!(class(*address), Class::Public);
    }
}

/// The first bytes of a connection, after one for the size of pieces: they mean the same in any pieces, and what is unclear
/// ends at the limit.
pub fn first_bytes(data: &[u8]) {
    let Some((piece, bytes)) = data.split_first() else { return };
    let bytes = &bytes[..bytes.len().min(MAX_FIRST)];
    let kind = |piece: usize| {
        let mut reader = Reader::default();
        for piece in bytes.chunks(piece) {
            reader.take(piece);
            if reader.kind.is_some() {
                break;
            }
        }
        reader.kind
    };
    let whole = kind(MAX_FIRST);
    assert!(whole.is_some() || bytes.len() < MAX_FIRST);
    assert_eq!(kind(usize::from(*piece).max(1)), whole);
}

/// The head of a request, after one byte for its way: what is sent on names the host and the path that were judged, once,
/// and nothing that is for one connection alone.
pub fn request_heads(data: &[u8]) {
    let Some((way, bytes)) = data.split_first() else { return };
    let (tls, form) =
        (way & 1 == 1, if way & 2 == 2 { Form::Http2 } else { Form::Http1 { chunked: way & 4 == 4 } });
    let Some(mut parts) = head_of(bytes) else { return };
    let Ok(heard) = head::read(&parts, tls, ([203, 0, 113, 10], 80).into()) else { return };
    assert_eq!(Host::of_authority(&heard.authority).as_ref(), Ok(&heard.host));
    assert!(parts.method != Method::CONNECT && parts.method != Method::TRACE);
    let target = parts.uri.path_and_query().map_or("/", |target| target.as_str()).to_owned();
    if head::send_on(&mut parts, &heard, tls, form).is_err() {
        return;
    }
    assert_eq!(egress_policy::Path::parse(&target).as_ref(), Ok(&heard.path));
    let hosts: Vec<_> = parts.headers.get_all("host").iter().map(|host| host.as_bytes().to_vec()).collect();
    let sent = parts.uri.path_and_query().map_or("/", |target| target.as_str());
    assert_eq!(sent, target);
    match form {
        Form::Http2 => {
            assert_eq!(
                parts.uri.authority().map(|authority| authority.as_str()),
                Some(heard.authority.as_str())
            );
            assert!(hosts.is_empty() && !parts.headers.contains_key("connection"));
        }
        Form::Http1 { chunked } => {
            assert_eq!(hosts, [heard.authority.as_bytes()]);
            assert!(parts.uri.authority().is_none());
            assert_eq!(parts.headers.get_all("transfer-encoding").iter().count(), usize::from(chunked));
            assert_eq!(parts.headers.contains_key("upgrade"), heard.upgrade);
        }
    }
    for name in ["keep-alive", "proxy-connection", "http2-settings", "proxy-authorization"] {
        assert!(!parts.headers.contains_key(name), "{name}");
    }
}

/// A head as it comes from a connection of HTTP/1.
fn head_of(bytes: &[u8]) -> Option<hyper::http::request::Parts> {
    let mut headers = [httparse::EMPTY_HEADER; 64];
    let mut request = httparse::Request::new(&mut headers);
    request.parse(bytes).ok().filter(httparse::Status::is_complete)?;
    let version = if request.version == Some(0) { Version::HTTP_10 } else { Version::HTTP_11 };
    let mut builder = hyper::Request::builder().method(request.method?).uri(request.path?).version(version);
    for header in request.headers.iter() {
        builder = builder.header(header.name, header.value);
    }
    Some(builder.body(()).ok()?.into_parts().0)
}

fn parsed(bytes: &[u8]) -> Message {
    let message = Message::from_vec(bytes).expect("a message of DNS");
    assert_eq!(message.metadata.message_type, MessageType::Response);
    message
}

fn asked_by_guest(record: RecordType) -> Question {
    let mut message = Message::query();
    message.add_query(Query::query(Name::from_ascii("OK.test.").expect("a name"), record));
    let mut bytes = message.to_vec().expect("a message");
    // Types that no guest may ask for are asked for here nonetheless.
    let end = bytes.len() - 4;
    bytes[end..end + 2].copy_from_slice(&1_u16.to_be_bytes());
    let Asked::Question(question) = message::asked(&bytes) else { panic!("a question") };
    question
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use hickory_proto::op::{Edns, OpCode};
    use hickory_proto::rr::rdata::{A, AAAA, CNAME, MX, TXT};
    use hickory_proto::rr::{RData, Record};

    use super::*;

    fn name(text: &str) -> Name {
        Name::from_ascii(text).unwrap()
    }

    #[test]
    fn dns_questions() {
        let example = |text: &str, record, edns: bool| {
            let mut message = Message::query();
            message.add_query(Query::query(name(text), record));
            if edns {
                message.set_edns(Edns::new());
            }
            message.to_vec().unwrap()
        };
        let examples = [
            example("OK.test.", RecordType::A, true),
            example("_x._tcp.ok.test.", RecordType::SRV, false),
            example("1.113.0.203.in-addr.arpa.", RecordType::PTR, true),
            example(".", RecordType::NS, true),
        ];
        let words =
            ["\0\x1c\0\x01", "\0\x41\0\x01", "\u{3}www", "\u{3f}", "\0\0\x29", "\x01.", "\0\0\0\0\0\0"];
        fuzzed::run("egress_dns_questions", 6000, &examples, &words, super::dns_questions);
    }

    #[test]
    fn first_bytes() {
        let hello = crate::flow::first::tests::hello("ok.test");
        let record = |part: &[u8]| [&hello[..3], &[0, u8::try_from(part.len()).unwrap()], part].concat();
        let examples = [
            [vec![1], hello.clone(), b"more".to_vec()].concat(),
            [vec![7], hello[5..].chunks(40).flat_map(record).collect()].concat(),
            b"\x03GET /x HTTP/1.1\r\nHost: OK.test:80\r\nA: b\r\n\r\nmore".to_vec(),
            b"\x09POST http://ok.test/ HTTP/1.0\nHost: ok.test\n\n".to_vec(),
        ];
        let words =
            ["\r\n", "\n", "\r\n\r\n", "Host: evil.test\r\n", "\x16\x03\x01", "\x01\0", "\0\0", "://", "@"];
        fuzzed::run("egress_first_bytes", 4000, &examples, &words, super::first_bytes);
    }

    #[test]
    fn request_heads() {
        let examples = [
            b"\x00GET /x?y HTTP/1.1\r\nHost: OK.test:80\r\nConnection: te, x-own\r\nTE: trailers\r\nX-Own: 1\r\n\r\n".to_vec(),
            b"\x03GET https://ok.test/ HTTP/1.1\r\nHost: ok.test\r\nCookie: a=b\r\nCookie: c\r\n\r\n".to_vec(),
            b"\x04POST / HTTP/1.1\r\nHost: [2001:db8::1]:8080\r\nExpect: 100-continue\r\n\r\n".to_vec(),
            b"\x00GET / HTTP/1.1\r\nHost: ok.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n".to_vec(),
            b"\x00OPTIONS * HTTP/1.0\r\nKeep-Alive: 1\r\n\r\n".to_vec(),
        ];
        let words = [
            "\r\n",
            "Host: evil.test\r\n",
            "http://",
            "@",
            "connection: host\r\n",
            "upgrade: h2c\r\n",
            ":80",
            "*",
            "%2f",
        ];
        fuzzed::run("egress_request_heads", 6000, &examples, &words, super::request_heads);
    }

    #[test]
    fn dns_answers() {
        let record = |owner: &str, data| Record::from_rdata(name(owner), 7, data);
        let a = |last| RData::A(A(Ipv4Addr::new(203, 0, 113, last)));
        let example = |kind: RecordType, records: Vec<Record>| {
            let mut message = Message::response(7, OpCode::Query);
            message.add_query(Query::query(name("ok.test."), kind));
            message.insert_answers(records);
            [u16::from(kind).to_be_bytes().to_vec(), message.to_vec().unwrap()].concat()
        };
        let alias = record("ok.test.", RData::CNAME(CNAME(name("c.test."))));
        let closed = RData::A(A(Ipv4Addr::LOCALHOST));
        let mail = RData::MX(MX::new(1, name("m.test.")));
        let examples = [
            example(RecordType::A, vec![alias, record("c.test.", a(1)), record("c.test.", closed)]),
            example(RecordType::AAAA, vec![record("ok.test.", RData::AAAA(AAAA(Ipv6Addr::LOCALHOST)))]),
            example(RecordType::MX, vec![record("ok.test.", mail)]),
            example(RecordType::TXT, vec![record("ok.test.", RData::TXT(TXT::new(vec!["t".into()])))]),
        ];
        let words =
            ["\u{c0}\x0c", "\0\x01\0\x01", "\0\x1c\0\x01", "\x7f\0\0\x01", "\u{2}ok\u{4}test\0", "\0\x04"];
        fuzzed::run("egress_dns_answers", 4000, &examples, &words, super::dns_answers);
    }
}
