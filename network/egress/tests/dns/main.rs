//! A guest's DNS against real servers on the loopback interface, honest and hostile ones.

#![allow(clippy::unwrap_used, reason = "tests")]

mod server;

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use egress::audit::{self, DnsOutcome, Event, Events};
use egress::{Dns, DnsSettings, Shared, Via};
use egress_policy::{Policy, WantedPolicy};
use hickory_proto::op::{Edns, Message, OpCode, Query, ResponseCode};
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, TXT};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};
use server::{Answer, Server};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// A guest with its DNS.
struct Guest {
    dns: Arc<Dns>,
    shared: Arc<Shared>,
    events: Events,
}

fn policy(allow: &[&str]) -> Policy {
    let allow = allow.iter().map(ToString::to_string).collect();
    Policy::new(&WantedPolicy { allow, ..WantedPolicy::default() }).unwrap()
}

fn guest_with(allow: &[&str], hosts: &[(&str, &str)], settings: DnsSettings) -> Guest {
    let (queue, events) = audit::queue(1000);
    let hosts = hosts.iter().map(|(name, address)| (name.parse().unwrap(), address.parse().unwrap()));
    let shared = Shared::new(policy(allow), hosts.collect(), queue);
    Guest { dns: Arc::new(Dns::new(shared.clone(), settings)), shared, events }
}

fn guest(allow: &[&str], servers: &[SocketAddr]) -> Guest {
    guest_with(allow, &[], DnsSettings { servers: servers.to_vec(), ipv6: true })
}

fn name(text: &str) -> Name {
    Name::from_ascii(text).unwrap()
}

fn question(text: &str, record: RecordType) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name(text), record));
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    message.set_edns(edns);
    message
}

fn record(owner: &str, data: RData) -> Record {
    Record::from_rdata(name(owner), 60, data)
}

fn address(owner: &str, address: &str) -> Record {
    match address.parse().unwrap() {
        IpAddr::V4(address) => record(owner, RData::A(A(address))),
        IpAddr::V6(address) => record(owner, RData::AAAA(AAAA(address))),
    }
}

fn alias(owner: &str, target: &str) -> Record {
    record(owner, RData::CNAME(CNAME(name(target))))
}

impl Guest {
    async fn send(&self, message: &Message) -> Message {
        let reply = self.dns.reply(&message.to_vec().unwrap(), Via::Udp).await.expect("a reply");
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!((reply.metadata.id, &reply.queries), (message.metadata.id, &message.queries));
        reply
    }

    async fn ask(&self, text: &str, record: RecordType) -> Message {
        self.send(&question(text, record)).await
    }

    async fn event(&mut self) -> audit::Dns {
        let Some(audit::Told { event: Event::Dns(event), .. }) = self.events.next().await else {
            panic!("no event of DNS")
        };
        event
    }
}

fn addresses(message: &Message) -> Vec<String> {
    let text = |record: &Record| match &record.data {
        RData::A(address) => Some(address.to_string()),
        RData::AAAA(address) => Some(address.to_string()),
        _ => None,
    };
    message.answers.iter().filter_map(text).collect()
}

/// Code and text of the extended error.
fn extended(message: &Message) -> Option<(u16, String)> {
    match message.edns.as_ref()?.option(EdnsCode::Unknown(15))? {
        EdnsOption::Unknown(_, bytes) => {
            let (code, text) = bytes.split_first_chunk()?;
            Some((u16::from_be_bytes(*code), String::from_utf8(text.to_vec()).unwrap()))
        }
        _ => None,
    }
}

#[tokio::test]
async fn an_allowed_name_is_answered_and_pinned() {
    let server = Server::start(|_| Answer::records(vec![address("ok.test.", "203.0.113.10")])).await;
    let mut guest = guest(&["ok.test"], &[server.address]);
    let pointer = "10.113.0.203.in-addr.arpa.";
    assert_eq!(guest.ask(pointer, RecordType::PTR).await.metadata.response_code, ResponseCode::NXDomain);
    let reply = guest.ask("Ok.TEST.", RecordType::A).await;
    assert_eq!((reply.metadata.response_code, extended(&reply)), (ResponseCode::NoError, None));
    assert_eq!(addresses(&reply), ["203.0.113.10"]);
    // The guest's spelling comes back; what was judged went out.
    assert_eq!(reply.answers[0].name.to_ascii(), "Ok.TEST.");
    assert_eq!(server.asked(), ["ok.test. A"]);
    assert!(reply.metadata.recursion_available && !reply.metadata.truncation);
    let reply = guest.ask(pointer, RecordType::PTR).await;
    assert_eq!(reply.answers[0].data.to_string(), "ok.test.");
    assert_eq!(server.asked().len(), 1);
    guest.event().await;
    let event = guest.event().await;
    assert_eq!((event.name.as_str(), event.record, event.outcome), ("ok.test", 1, DnsOutcome::Answered));
    assert_eq!(event.reason.to_string(), "allowed by the allow list [allow:ok.test]");
    assert_eq!(event.addresses, ["203.0.113.10".parse::<IpAddr>().unwrap()]);
}

#[tokio::test]
async fn nothing_leaves_for_a_name_that_is_denied() {
    let server = Server::start(|_| Answer::records(vec![])).await;
    let mut guest = guest(&["ok.test"], &[server.address]);
    for text in ["deadbeef.evil.test.", "a.ok.test.", "localhost.", ".", "a\\.ok.test.", "2130706433."] {
        for kind in [RecordType::A, RecordType::TXT, RecordType::AAAA, RecordType::HTTPS] {
            let reply = guest.ask(text, kind).await;
            assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{text} {kind}");
            let (code, words) = extended(&reply).unwrap();
            let event = guest.event().await;
            assert_eq!((code, words, event.outcome), (15, event.reason.to_string(), DnsOutcome::Denied));
        }
    }
    let reply = guest.ask("evil.test.", RecordType::A).await;
    assert_eq!(extended(&reply), Some((15, "host not in allowlist [default:closed]".to_owned())));
    assert!(reply.answers.is_empty() && server.asked().is_empty());
    // A guest that does not speak EDNS gets no option.
    let mut plain = question("evil.test.", RecordType::A);
    plain.edns = None;
    assert_eq!(guest.send(&plain).await.edns, None);
}

#[tokio::test]
async fn records_that_hide_names_are_not_there() {
    let server = Server::start(|_| Answer::records(vec![])).await;
    let guest = guest(&["*"], &[server.address]);
    for kind in [RecordType::HTTPS, RecordType::SVCB, RecordType::PTR, RecordType::Unknown(4711)] {
        let reply = guest.ask("ok.test.", kind).await;
        assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::NoError, 0), "{kind}");
    }
    for kind in [RecordType::ANY, RecordType::AXFR, RecordType::IXFR, RecordType::NULL, RecordType::TSIG] {
        assert_eq!(guest.ask("ok.test.", kind).await.metadata.response_code, ResponseCode::NotImp, "{kind}");
    }
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn private_addresses_are_kept_from_the_guest() {
    let server = Server::start(|query| {
        Answer::records(match query.name.to_ascii().as_str() {
            "mixed.test." => {
                vec![address("mixed.test.", "203.0.113.10"), address("mixed.test.", "127.0.0.1")]
            }
            "alias.test." => vec![alias("alias.test.", "in.lan."), address("in.lan.", "10.0.0.1")],
            "meta.test." => vec![address("meta.test.", "169.254.169.254")],
            "mapped.test." => vec![address("mapped.test.", "::ffff:127.0.0.1")],
            _ => vec![],
        })
    })
    .await;
    let mut guest = guest(&[], &[server.address]);
    let reply = guest.ask("mixed.test.", RecordType::A).await;
    assert_eq!(addresses(&reply), ["203.0.113.10"]);
    assert_eq!(
        guest.event().await.dropped[0].1.to_string(),
        "addresses of this class are closed [class:loopback]"
    );
    for (text, kind, class) in [
        ("alias.test.", RecordType::A, "private"),
        ("meta.test.", RecordType::A, "link-local"),
        ("mapped.test.", RecordType::AAAA, "loopback"),
    ] {
        let reply = guest.ask(text, kind).await;
        let words = format!("addresses of this class are closed [class:{class}]");
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain, "{text}");
        assert_eq!((extended(&reply), reply.answers.len()), (Some((17, words)), 0), "{text}");
        assert_eq!(guest.event().await.outcome, DnsOutcome::Filtered);
    }
    // An address that was kept from the guest is not pinned.
    for pointer in ["1.0.0.127.in-addr.arpa.", "1.0.0.10.in-addr.arpa."] {
        assert!(guest.ask(pointer, RecordType::PTR).await.answers.is_empty());
    }
}

#[tokio::test]
async fn an_address_that_changes_is_judged_each_time() {
    let turn = std::sync::atomic::AtomicUsize::new(0);
    let server = Server::start(move |_| {
        let is_first = turn.fetch_add(1, std::sync::atomic::Ordering::Relaxed) == 0;
        Answer::records(vec![address("ok.test.", if is_first { "203.0.113.10" } else { "127.0.0.1" })])
    })
    .await;
    let guest = guest(&["ok.test"], &[server.address]);
    assert_eq!(addresses(&guest.ask("ok.test.", RecordType::A).await), ["203.0.113.10"]);
    assert_eq!(extended(&guest.ask("ok.test.", RecordType::A).await).unwrap().0, 17);
}

#[tokio::test]
async fn aliases_are_followed_and_strangers_left_out() {
    let server = Server::start(|query| {
        Answer::records(match query.name.to_ascii().as_str() {
            "a.test." => vec![alias("a.test.", "b.test."), address("evil.test.", "203.0.113.66")],
            "b.test." => vec![address("b.test.", "203.0.113.10")],
            "loop.test." => vec![alias("loop.test.", "loop2.test.")],
            "loop2.test." => vec![alias("loop2.test.", "loop.test.")],
            _ => vec![],
        })
    })
    .await;
    let guest = guest(&["a.test", "loop.test"], &[server.address]);
    let reply = guest.ask("a.test.", RecordType::A).await;
    assert_eq!((addresses(&reply), reply.answers.len()), (vec!["203.0.113.10".to_owned()], 2));
    assert_eq!(server.asked(), ["a.test. A", "b.test. A"]);
    // The address belongs to the name that was asked for.
    let pointer = guest.ask("10.113.0.203.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(pointer.answers.len(), 1);
    assert_eq!(pointer.answers[0].data.to_string(), "a.test.");
    let reply = guest.ask("loop.test.", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
}

#[tokio::test]
async fn a_truncated_answer_is_asked_for_by_tcp() {
    let text = || RData::TXT(TXT::new(vec!["x".repeat(200)]));
    let server =
        Server::start(move |_| Answer::records(vec![record("ok.test.", text()); 20]).by_tcp_only()).await;
    let guest = guest(&["ok.test"], &[server.address]);
    let reply = guest.ask("ok.test.", RecordType::TXT).await;
    // Too large for the guest's datagram as well.
    assert!(reply.metadata.truncation && reply.answers.is_empty());
    assert_eq!(server.asked(), ["ok.test. TXT", "tcp ok.test. TXT"]);
    let bytes = question("ok.test.", RecordType::TXT).to_vec().unwrap();
    let reply = Message::from_vec(&guest.dns.reply(&bytes, Via::Tcp).await.unwrap()).unwrap();
    assert_eq!((reply.metadata.truncation, reply.answers.len()), (false, 20));
}

#[tokio::test]
async fn forged_answers_are_not_taken() {
    let honest = || Answer::records(vec![address("ok.test.", "203.0.113.10")]);
    let lie = || vec![address("ok.test.", "203.0.113.66")];
    // A wrong number, another question, another type, no answer at all, noise: then the true one.
    let server = Server::start(move |_| {
        honest().after(vec![
            Answer::records(lie()).with(|message| message.metadata.id ^= 1),
            Answer::records(lie()).with(|message| message.queries[0].name = name("no.test.")),
            Answer::records(lie()).with(|message| message.queries[0].query_type = RecordType::AAAA),
            Answer::records(lie()).with(|message| message.queries.clear()),
            Answer::records(lie())
                .with(|message| message.metadata.message_type = hickory_proto::op::MessageType::Query),
            Answer::noise(b"\0"),
        ])
    })
    .await;
    let guest = guest(&["ok.test"], &[server.address]);
    assert_eq!(addresses(&guest.ask("ok.test.", RecordType::A).await), ["203.0.113.10"]);
    assert_eq!(server.asked(), ["ok.test. A"]);
}

#[tokio::test]
async fn a_flood_of_forged_answers_leads_to_tcp() {
    let server = Server::start(move |_| {
        let forged = |_| {
            Answer::records(vec![address("ok.test.", "203.0.113.66")])
                .with(|message| message.metadata.id ^= 1)
        };
        Answer::records(vec![address("ok.test.", "203.0.113.10")]).after((0..50).map(forged).collect())
    })
    .await;
    let guest = guest(&["ok.test"], &[server.address]);
    assert_eq!(addresses(&guest.ask("ok.test.", RecordType::A).await), ["203.0.113.10"]);
    assert_eq!(server.asked(), ["ok.test. A", "tcp ok.test. A"]);
}

#[tokio::test]
async fn the_next_server_is_asked_where_one_fails() {
    let closed = {
        let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
        socket.local_addr().unwrap()
    };
    let broken = Server::start(|_| Answer::code(ResponseCode::ServFail)).await;
    let works = Server::start(|_| Answer::records(vec![address("ok.test.", "203.0.113.10")])).await;
    let mut guest = guest(&["ok.test"], &[closed, broken.address, works.address]);
    let start = std::time::Instant::now();
    assert_eq!(addresses(&guest.ask("ok.test.", RecordType::A).await), ["203.0.113.10"]);
    // None of them is waited for.
    assert!(start.elapsed().as_millis() < 1500);
    guest = self::guest(&["ok.test"], &[broken.address]);
    let reply = guest.ask("ok.test.", RecordType::A).await;
    assert_eq!(reply.metadata.response_code, ResponseCode::ServFail);
    let words = "the DNS servers of the host could not answer".to_owned();
    assert_eq!(extended(&reply), Some((23, words)));
    assert_eq!(guest.event().await.outcome, DnsOutcome::Failed);
}

#[tokio::test(start_paused = true)]
async fn silence_ends() {
    let silent = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let guest = guest(&["ok.test"], &[silent.local_addr().unwrap(); 3]);
    let start = tokio::time::Instant::now();
    let reply = guest.ask("ok.test.", RecordType::A).await;
    assert_eq!(extended(&reply), Some((23, "no DNS server of the host answered".to_owned())));
    assert!(start.elapsed().as_secs() <= 8);
}

#[tokio::test]
async fn who_asks_the_same_shares_an_answer() {
    let server = Server::start(|_| Answer::records(vec![address("ok.test.", "203.0.113.10")])).await;
    let guest = Arc::new(guest(&["ok.test"], &[server.address]));
    let ask = || guest.ask("ok.test.", RecordType::A);
    let replies = tokio::join!(ask(), ask(), ask(), ask());
    for reply in [replies.0, replies.1, replies.2, replies.3] {
        assert_eq!(addresses(&reply), ["203.0.113.10"]);
    }
    assert_eq!(server.asked().len(), 1);
    ask().await;
    assert_eq!(server.asked().len(), 2);
}

#[tokio::test]
async fn a_guest_cannot_flood_the_servers() {
    let server = Server::start(|_| Answer::records(vec![])).await;
    let guest = guest(&["*"], &[server.address]);
    let mut failed = 0;
    for number in 0..150 {
        let reply = guest.ask(&format!("n{number}.test."), RecordType::A).await;
        failed += usize::from(extended(&reply) == Some((0, "too many DNS questions".to_owned())));
    }
    let asked = server.asked().len();
    assert!(failed > 0 && asked >= 100, "{failed} failed, {asked} asked");
    assert_eq!(failed + asked, 150);
}

#[tokio::test]
async fn the_table_of_hosts_is_judged_like_any_answer() {
    let server = Server::start(|_| Answer::records(vec![])).await;
    let hosts = [
        ("t.test", "203.0.113.7"),
        ("t.test", "2001:db8::7"),
        ("lan.test", "10.0.0.1"),
        ("no.test", "203.0.113.8"),
    ];
    let settings = DnsSettings { servers: vec![server.address], ipv6: true };
    let guest = guest_with(&["t.test", "lan.test"], &hosts, settings);
    assert_eq!(addresses(&guest.ask("t.test.", RecordType::A).await), ["203.0.113.7"]);
    assert_eq!(addresses(&guest.ask("t.test.", RecordType::AAAA).await), ["2001:db8::7"]);
    assert!(guest.ask("t.test.", RecordType::MX).await.answers.is_empty());
    assert_eq!(extended(&guest.ask("lan.test.", RecordType::A).await).unwrap().0, 17);
    assert_eq!(extended(&guest.ask("no.test.", RecordType::A).await).unwrap().0, 15);
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn without_ipv6_no_such_address_is_looked_for() {
    let server = Server::start(|_| Answer::records(vec![])).await;
    let guest = guest_with(&["*"], &[], DnsSettings { servers: vec![server.address], ipv6: false });
    let reply = guest.ask("ok.test.", RecordType::AAAA).await;
    assert_eq!((reply.metadata.response_code, reply.answers.len()), (ResponseCode::NoError, 0));
    assert!(server.asked().is_empty());
}

#[tokio::test]
async fn a_change_of_the_policy_holds_at_once() {
    let server = Server::start(|_| Answer::records(vec![address("ok.test.", "203.0.113.10")])).await;
    let guest = guest(&["ok.test"], &[server.address]);
    assert_eq!(guest.ask("ok.test.", RecordType::A).await.answers.len(), 1);
    guest.shared.set_policy(policy(&["other.test"]));
    assert_eq!(extended(&guest.ask("ok.test.", RecordType::A).await).unwrap().0, 15);
    // Nor is the name told that the guest has an address for.
    let pointer = guest.ask("10.113.0.203.in-addr.arpa.", RecordType::PTR).await;
    assert_eq!(pointer.metadata.response_code, ResponseCode::NXDomain);
}

#[tokio::test]
async fn malformed_messages_get_an_error_or_nothing() {
    let guest = guest(&["*"], &[]);
    let bytes = question("ok.test.", RecordType::A).to_vec().unwrap();
    let reply = |bytes: Vec<u8>| {
        let dns = guest.dns.clone();
        async move { Some(Message::from_vec(&dns.reply(&bytes, Via::Udp).await?).unwrap().metadata.response_code) }
    };
    let with = |edit: fn(&mut Message)| {
        let mut message = question("ok.test.", RecordType::A);
        edit(&mut message);
        message.to_vec().unwrap()
    };
    assert_eq!(reply(bytes[..11].to_vec()).await, None);
    assert_eq!(
        reply(with(|message| message.metadata.message_type = hickory_proto::op::MessageType::Response)).await,
        None
    );
    assert_eq!(reply(bytes[..20].to_vec()).await, Some(ResponseCode::FormErr));
    let two = with(|message| {
        message.add_query(Query::query(name("b.test."), RecordType::A));
    });
    assert_eq!(reply(two).await, Some(ResponseCode::FormErr));
    let mut many = bytes.clone();
    many[4..6].copy_from_slice(&[0xff, 0xff]);
    assert_eq!(reply(many).await, Some(ResponseCode::FormErr));
    // A pointer to itself.
    let mut pointer = bytes[..12].to_vec();
    pointer.extend([0xc0, 12, 0, 1, 0, 1]);
    pointer[11] = 0;
    assert_eq!(reply(pointer).await, Some(ResponseCode::FormErr));
    let padded = [bytes.clone(), vec![0; 5000]].concat();
    assert_eq!(reply(padded).await, Some(ResponseCode::FormErr));
    assert_eq!(
        reply(with(|message| message.queries[0].query_class = DNSClass::CH)).await,
        Some(ResponseCode::NotImp)
    );
    assert_eq!(
        reply(with(|message| message.metadata.op_code = OpCode::Status)).await,
        Some(ResponseCode::NotImp)
    );
    let version = |message: &mut Message| {
        message.edns.as_mut().unwrap().set_version(1);
    };
    // One number stands for BADVERS and BADSIG.
    assert_eq!(reply(with(version)).await.map(u16::from), Some(ResponseCode::BADVERS.into()));
}

#[tokio::test]
async fn a_connection_has_questions_one_after_the_other() {
    let server = Server::start(|_| Answer::records(vec![address("ok.test.", "203.0.113.10")])).await;
    let guest = guest(&["ok.test"], &[server.address]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let mut client = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    let (accepted, _) = listener.accept().await.unwrap();
    let dns = guest.dns.clone();
    let served = tokio::spawn(async move { dns.serve(accepted).await });
    let framed = |message: &Message| {
        let bytes = message.to_vec().unwrap();
        [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes.as_slice()].concat()
    };
    let (first, second) = (question("ok.test.", RecordType::A), question("evil.test.", RecordType::A));
    client.write_all(&[framed(&first), framed(&second)].concat()).await.unwrap();
    for (message, code) in [(first, ResponseCode::NoError), (second, ResponseCode::NXDomain)] {
        let mut reply = vec![0; client.read_u16().await.unwrap().into()];
        client.read_exact(&mut reply).await.unwrap();
        let reply = Message::from_vec(&reply).unwrap();
        assert_eq!((reply.metadata.id, reply.metadata.response_code), (message.metadata.id, code));
    }
    // A question that is longer than any.
    client.write_all(&[0xff, 0xff]).await.unwrap();
    served.await.unwrap();
    assert_eq!(client.read(&mut [0; 1]).await.unwrap_or_default(), 0);
}
