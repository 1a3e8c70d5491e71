//! Requests of a guest's on port 80, each judged by itself.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use egress::audit::{End, RequestOutcome};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::Command;

use crate::guest::{Guest, Policies, server};
use crate::namespace::within;
use crate::origin::{ask, message, scripted};
use crate::rest;

pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const GET: &str = "GET /a HTTP/1.1\r\nHost: ok.test\r\n\r\n";

/// Two names that share an address, of which one is allowed.
const SHARED: Policies<'static> = Policies {
    allow: &["ok.test", "GET some.test/v1/**"],
    passthrough: &[],
    intercept: false,
    hosts: &[("ok.test", "203.0.113.10"), ("some.test", "203.0.113.10"), ("evil.test", "203.0.113.10")],
};

fn origin() -> SocketAddr {
    ([203, 0, 113, 10], 80).into()
}

#[test]
fn each_request_of_a_connection_is_judged() {
    within("requests::each_request_of_a_connection_is_judged", async {
        let (address, served) = scripted("203.0.113.10:80", &[OK, OK]).await;
        let mut guest = Guest::new(&SHARED).await;
        let mut stream = guest.connect(address).await;
        let first = ask(
            &mut stream,
            "GET /a?q=1 HTTP/1.1\r\nHOST: OK.test.:80\r\nX-Own: 1\r\nConnection: x-own\r\n\r\n",
        )
        .await;
        assert_eq!((first.status(), first.body.as_str()), (200, "ok"));
        let event = guest.request_event().await;
        let told = (event.method.as_str(), event.host.as_str(), event.path.as_str(), event.status);
        assert_eq!(told, ("GET", "ok.test:80", "/a", Some(200)));
        assert_eq!((event.outcome, event.sent, event.received), (RequestOutcome::Answered, 0, 2));
        assert_eq!(event.reason.to_string(), "allowed by the allow list [allow:ok.test]");

        let denied = ask(&mut stream, "GET /a HTTP/1.1\r\nHost: evil.test\r\n\r\n").await;
        let closed = "host not in allowlist [default:closed]";
        assert_eq!((denied.status(), denied.body), (403, format!("Blocked by policy: {closed}\n")));
        let event = guest.request_event().await;
        assert_eq!((event.outcome, event.host.as_str()), (RequestOutcome::Denied, "evil.test"));
        assert_eq!(event.reason.to_string(), closed);

        let posted =
            ask(&mut stream, "POST /v1/x HTTP/1.1\r\nHost: some.test\r\nContent-Length: 2\r\n\r\nhi").await;
        assert_eq!(posted.body, "Blocked by policy: method or path not in allowlist [default:closed]\n");
        guest.request_event().await;
        let mut stream = guest.connect(address).await;
        let allowed = ask(&mut stream, "GET /v1/x HTTP/1.1\r\nHost: some.test\r\n\r\n").await;
        assert_eq!(allowed.status(), 200);
        let requests = served.await.unwrap();
        assert_eq!(requests.len(), 2);
        assert!(requests[0].head.starts_with("GET /a?q=1 HTTP/1.1\r\n"), "{requests:?}");
        assert_eq!(requests[0].header("host"), ["ok.test:80"]);
        assert!(requests[0].header("x-own").is_empty() && requests[0].header("connection").is_empty());
    });
}

#[test]
fn bodies_and_trailers_go_both_ways() {
    within("requests::bodies_and_trailers_go_both_ways", async {
        const RESPONSE: &str = "HTTP/1.1 201 Made here\r\nTransfer-Encoding: chunked\r\nTrailer: x-sum\r\nX-CaSe: 1\r\n\
            Alt-Svc: h3=\":443\"\r\n\r\n3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n";
        let (address, served) =
            scripted("203.0.113.10:80", &[RESPONSE, "HTTP/1.1 204 No Content\r\n\r\n", OK]).await;
        let mut guest = Guest::new(&SHARED).await;
        let mut stream = guest.connect(address).await;
        let request = "PUT /a HTTP/1.1\r\nHost: ok.test\r\nTE: trailers\r\nConnection: te\r\nTrailer: x-own\r\n\
            Transfer-Encoding: chunked\r\n\r\n2\r\nde\r\n1\r\nf\r\n0\r\nx-own: 8\r\n\r\n";
        let response = ask(&mut stream, request).await;
        assert!(
            response.head.starts_with("HTTP/1.1 201 Made here\r\n")
                && response.head.contains("\r\nX-CaSe: 1\r\n")
        );
        assert!(response.header("alt-svc").is_empty());
        assert_eq!(response.body, "3\r\nabc\r\n0\r\nx-sum: 7\r\n\r\n");
        let event = guest.request_event().await;
        assert_eq!((event.outcome, event.sent, event.received), (RequestOutcome::Answered, 3, 3));
        // A body of no length, and one that a GET has.
        assert_eq!(ask(&mut stream, GET).await.status(), 204);
        let chunked =
            "GET /a HTTP/1.1\r\nHost: ok.test\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n\r\n";
        assert_eq!(ask(&mut stream, chunked).await.body, "ok");
        let requests = served.await.unwrap();
        let sent = &requests[0].body;
        assert!(
            sent.contains("de") && sent.contains('f') && sent.ends_with("0\r\nx-own: 8\r\n\r\n"),
            "{sent:?}"
        );
        assert_eq!(requests[2].body, "1\r\nx\r\n0\r\n\r\n");
    });
}

#[test]
fn a_body_waits_until_the_server_wants_it() {
    within("requests::a_body_waits_until_the_server_wants_it", async {
        let (listener, address) = server("203.0.113.10:80").await;
        let guest = Guest::new(&SHARED).await;
        let mut stream = guest.connect(address).await;
        let head = "PUT /a HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        let (mut outside, _) = listener.accept().await.unwrap();
        let mut got = vec![0; 4096];
        let len = outside.read(&mut got).await.unwrap();
        assert!(got[..len].ends_with(b"\r\n\r\n"));
        outside.write_all(b"HTTP/1.1 100 Continue\r\n\r\n").await.unwrap();
        assert_eq!(message(&mut stream).await.unwrap().status(), 100);
        stream.write_all(b"hi").await.unwrap();
        let mut body = [0; 2];
        outside.read_exact(&mut body).await.unwrap();
        outside.write_all(OK.as_bytes()).await.unwrap();
        assert_eq!((&body, message(&mut stream).await.unwrap().status()), (b"hi", 200));

        // A server that does not want it.
        let refused = async {
            let mut len = 0;
            while !got[..len].ends_with(b"\r\n\r\n") {
                len += outside.read(&mut got[len..]).await.unwrap();
            }
            outside.write_all(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        };
        let (response, ()) = tokio::join!(ask(&mut stream, head), refused);
        assert_eq!(response.status(), 413);
    });
}

#[test]
fn events_of_a_server_arrive_as_they_are_sent() {
    within("requests::events_of_a_server_arrive_as_they_are_sent", async {
        let (listener, address) = server("203.0.113.10:80").await;
        let mut guest = Guest::new(&SHARED).await;
        let mut stream = guest.connect(address).await;
        stream.write_all(GET.as_bytes()).await.unwrap();
        let (mut outside, _) = listener.accept().await.unwrap();
        message(&mut outside).await.unwrap();
        // Without a length: the end of the connection is the end of the body.
        outside.write_all(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n").await.unwrap();
        for number in 0..3 {
            let event = format!("data: {number}\n\n");
            outside.write_all(event.as_bytes()).await.unwrap();
            let mut got = String::new();
            while !got.contains(&event) {
                got.push(char::from(stream.read_u8().await.unwrap()));
            }
            // The end of a chunk.
            assert_eq!(stream.read_u16().await.unwrap(), 0x0d0a);
        }
        drop(outside);
        let mut end = [0; 5];
        stream.read_exact(&mut end).await.unwrap();
        assert_eq!(&end, b"0\r\n\r\n");
        let event = guest.request_event().await;
        assert_eq!((event.outcome, event.received), (RequestOutcome::Answered, 27));
    });
}

#[test]
fn an_upgraded_connection_is_carried() {
    within("requests::an_upgraded_connection_is_carried", async {
        let (listener, address) = server("203.0.113.10:80").await;
        let mut guest = Guest::new(&SHARED).await;
        let asked = |host: &str, to: &str| {
            format!(
                "GET /v1/x HTTP/1.1\r\nHost: {host}\r\nConnection: keep-alive, Upgrade\r\nUpgrade: {to}\r\n\r\n"
            )
        };
        let mut stream = guest.connect(address).await;
        stream.write_all(asked("ok.test", "websocket").as_bytes()).await.unwrap();
        let (mut outside, _) = listener.accept().await.unwrap();
        let request = message(&mut outside).await.unwrap();
        assert_eq!(
            (request.header("connection"), request.header("upgrade")),
            (vec!["upgrade"], vec!["websocket"])
        );
        let switch =
            "HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nhello";
        outside.write_all(switch.as_bytes()).await.unwrap();
        let response = message(&mut stream).await.unwrap();
        assert_eq!((response.status(), response.header("upgrade")), (101, vec!["websocket"]));
        let mut greeting = [0; 5];
        stream.read_exact(&mut greeting).await.unwrap();
        stream.write_all(b"\0\xff").await.unwrap();
        let mut frame = [0; 2];
        outside.read_exact(&mut frame).await.unwrap();
        assert_eq!((&greeting, &frame), (b"hello", b"\0\xff"));
        stream.shutdown().await.unwrap();
        assert_eq!(outside.read(&mut frame).await.unwrap(), 0);
        drop(outside);
        assert_eq!(rest(&mut stream).await.unwrap(), b"");
        let event = guest.request_event().await;
        assert_eq!((event.status, event.sent, event.received), (Some(101), 2, 5));

        // Where methods and paths are judged, a connection stays one of requests; and HTTP/2 is no other protocol.
        let mut stream = guest.connect(address).await;
        let denied = ask(&mut stream, &asked("some.test", "websocket")).await;
        assert_eq!(denied.status(), 403);
        assert!(
            denied.body.contains("an upgraded connection is not held to methods and paths"),
            "{denied:?}"
        );
        stream.write_all(asked("some.test", "h2c").as_bytes()).await.unwrap();
        let (mut outside, _) = listener.accept().await.unwrap();
        let request = message(&mut outside).await.unwrap();
        assert!(request.header("connection").is_empty() && request.header("upgrade").is_empty());
        // A server that changes the protocol unasked.
        outside.write_all(switch.as_bytes()).await.unwrap();
        assert_eq!(message(&mut stream).await.unwrap().status(), 502);
    });
}

#[test]
fn servers_that_fail_are_said_to() {
    within("requests::servers_that_fail_are_said_to", async {
        let mut guest = Guest::new(&SHARED).await;
        let mut stream = guest.connect(origin()).await;
        let failed = ask(&mut stream, GET).await;
        assert_eq!(
            (failed.status(), failed.body.as_str()),
            (502, "Failed to connect: the server refuses connections\n")
        );
        let event = guest.request_event().await;
        assert_eq!((event.outcome, event.status), (RequestOutcome::Failed, Some(502)));
        assert_eq!(event.fault.as_deref(), Some("Failed to connect: the server refuses connections"));

        for response in [
            "SSH-2.0-x\r\n\r\n",
            "HTTP/1.1 200 OK\r\nA: b\r\n c\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        ] {
            let (listener, _) = server("203.0.113.10:80").await;
            let serve = async {
                let (mut outside, _) = listener.accept().await.unwrap();
                message(&mut outside).await.unwrap();
                outside.write_all(response.as_bytes()).await.unwrap();
                outside
            };
            let (failed, _outside) = tokio::join!(ask(&mut stream, GET), serve);
            assert_eq!(failed.status(), 502, "{response:?}");
            assert!(failed.body.starts_with("Failed to get a response: "), "{failed:?}");
        }
    });
}

#[test]
fn a_response_that_is_cut_short_does_not_look_whole() {
    within("requests::a_response_that_is_cut_short_does_not_look_whole", async {
        let mut guest = Guest::new(&SHARED).await;
        // To HTTP/1.0 only the end of the connection says that a body is whole.
        for version in ["1.0", "1.1"] {
            let response = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhel";
            let (listener, address) = server("203.0.113.10:80").await;
            let mut stream = guest.connect(address).await;
            stream
                .write_all(format!("GET / HTTP/{version}\r\nHost: ok.test\r\n\r\n").as_bytes())
                .await
                .unwrap();
            let (mut outside, _) = listener.accept().await.unwrap();
            message(&mut outside).await.unwrap();
            outside.write_all(response.as_bytes()).await.unwrap();
            drop(outside);
            let end = rest(&mut stream).await;
            assert!(end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset), "{version}");
            assert_eq!(guest.request_event().await.outcome, RequestOutcome::BrokenOff);
        }
        guest.empty().await;
    });
}

#[test]
fn a_connection_to_a_server_is_used_again_and_again_where_it_has_ended() {
    within("requests::a_connection_to_a_server_is_used_again_and_again_where_it_has_ended", async {
        // The empty response ends the connection that two guests' connections have shared, while a request is on it.
        let (address, served) = scripted("203.0.113.10:80", &[OK, OK, "", OK]).await;
        let guest = Guest::new(&SHARED).await;
        for _ in 0..2 {
            let mut stream = guest.connect(address).await;
            assert_eq!(ask(&mut stream, GET).await.status(), 200);
        }
        let mut stream = guest.connect(address).await;
        assert_eq!(ask(&mut stream, GET).await.status(), 200);
        assert_eq!(served.await.unwrap().len(), 4);

        // A request that changes something is sent once.
        drop(stream);
        let (address, served) = scripted("203.0.113.10:80", &[OK, ""]).await;
        let mut stream = guest.connect(address).await;
        assert_eq!(ask(&mut stream, GET).await.status(), 200);
        let post = "POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(ask(&mut stream, post).await.status(), 502);
        assert_eq!(served.await.unwrap().len(), 2);
    });
}

#[test]
fn a_guest_that_gives_up_is_noticed_by_the_server() {
    within("requests::a_guest_that_gives_up_is_noticed_by_the_server", async {
        let (listener, address) = server("203.0.113.10:80").await;
        let mut guest = Guest::new(&SHARED).await;
        let mut stream = guest.connect(address).await;
        stream.write_all(GET.as_bytes()).await.unwrap();
        let (mut outside, _) = listener.accept().await.unwrap();
        message(&mut outside).await.unwrap();
        drop(stream);
        assert_eq!(outside.read(&mut [0; 1]).await.unwrap(), 0);
        let event = guest.request_event().await;
        assert_eq!((event.outcome, event.status), (RequestOutcome::BrokenOff, None));
        guest.empty().await;
    });
}

#[test]
fn a_request_that_is_under_way_ends_with_what_allowed_it() {
    within("requests::a_request_that_is_under_way_ends_with_what_allowed_it", async {
        let (listener, address) = server("203.0.113.10:80").await;
        let mut guest = Guest::new(&SHARED).await;
        let mut stream = guest.connect(address).await;
        stream.write_all(b"GET /v1/x HTTP/1.1\r\nHost: some.test\r\n\r\n").await.unwrap();
        let (mut outside, _) = listener.accept().await.unwrap();
        message(&mut outside).await.unwrap();
        guest.allow(&["ok.test", "GET some.test/v1/**", "more.test"]);
        outside.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhe").await.unwrap();
        while stream.read_u8().await.unwrap() != b'e' {}
        // The host is still allowed, but not this path.
        guest.allow(&["ok.test", "GET some.test/v2/**"]);
        let end = rest(&mut stream).await;
        assert!(end.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset));
        assert_eq!(outside.read(&mut [0; 1]).await.unwrap_or_default(), 0);
        assert_eq!(guest.end_event().await, End::Policy);
        guest.empty().await;
    });
}

#[test]
fn heads_are_bounded_in_size_and_time() {
    within("requests::heads_are_bounded_in_size_and_time", async {
        let (address, served) = scripted("203.0.113.10:80", &[OK]).await;
        let mut guest = Guest::new(&SHARED).await;
        let large = format!("GET / HTTP/1.1\r\nHost: ok.test\r\nA: {}\r\n\r\n", "a".repeat(40 << 10));
        let many = format!("GET / HTTP/1.1\r\nHost: ok.test\r\n{}\r\n", "a: b\r\n".repeat(200));
        let long = format!("GET /{} HTTP/1.1\r\nHost: ok.test\r\n\r\n", "a".repeat(9 << 10));
        for (head, status) in [(&large, 431), (&many, 431), (&long, 400)] {
            let mut stream = guest.connect(address).await;
            assert_eq!(ask(&mut stream, head).await.status(), status);
        }
        let mut stream = guest.connect(address).await;
        assert_eq!(ask(&mut stream, GET).await.status(), 200);
        for (head, status) in [(&large, 431), (&many, 431), (&long, 400)] {
            let mut stream = guest.connect(address).await;
            let first = "GET /denied HTTP/1.1\r\nHost: some.test\r\n\r\n";
            assert_eq!(ask(&mut stream, first).await.status(), 403);
            assert_eq!(ask(&mut stream, head).await.status(), status);
        }
        assert_eq!(served.await.unwrap().len(), 1);
        // One that is never whole.
        stream.write_all(b"GET / HT").await.unwrap();
        tokio::time::pause();
        let start = tokio::time::Instant::now();
        assert_eq!(rest(&mut stream).await.unwrap(), b"");
        assert!((29..=31).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        assert_eq!(guest.end_event().await, End::Closed);
    });
}

#[test]
fn a_page_is_read_though_the_body_is_not() {
    within("requests::a_page_is_read_though_the_body_is_not", async {
        let guest = Guest::new(&SHARED).await;
        let head = "PUT /v1/x HTTP/1.1\r\nHost: some.test\r\nContent-Length: 8388608\r\n\r\n";
        for first in [None, Some("PUT /denied HTTP/1.1\r\nHost: some.test\r\nContent-Length: 0\r\n\r\n")] {
            let mut stream = guest.connect(origin()).await;
            if let Some(first) = first {
                assert_eq!(ask(&mut stream, first).await.status(), 403);
            }
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&vec![7; 8 << 20]).await.unwrap();
            let page = message(&mut stream).await.unwrap();
            assert!(page.body.contains("method or path not in allowlist"), "{page:?}");
        }
    });
}

#[test]
fn long_bodies_take_little_memory() {
    const LEN: usize = 48 << 20;
    within("requests::long_bodies_take_little_memory", async {
        let (listener, address) = server("203.0.113.10:80").await;
        let mut guest = Guest::new(&SHARED).await;
        let stream = guest.connect(address).await;
        let (mut reads, mut writes) = stream.into_split();
        let head = format!("POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: {LEN}\r\n\r\n");
        let send = async move {
            writes.write_all(head.as_bytes()).await.unwrap();
            for _ in 0..LEN / 65_536 {
                writes.write_all(&[7; 65_536]).await.unwrap();
            }
            writes
        };
        let echo = async {
            let (outside, _) = listener.accept().await.unwrap();
            let (mut reads, mut writes) = outside.into_split();
            while reads.read_u8().await.unwrap() != b'\n' || reads.read_u16().await.unwrap() != 0x0d0a {}
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {LEN}\r\n\r\n");
            writes.write_all(head.as_bytes()).await.unwrap();
            tokio::io::copy(&mut (&mut reads).take(LEN as u64), &mut writes).await.unwrap();
            (reads, writes)
        };
        let receive = async {
            let mut count = 0;
            let mut buffer = vec![0; 65_536];
            while count < LEN {
                match reads.read(&mut buffer).await.unwrap() {
                    0 => break,
                    len => count += len,
                }
            }
            count
        };
        let before = resident();
        let (_outside, _inside, count) = tokio::join!(echo, send, receive);
        assert!(count >= LEN, "{count}");
        let grown = resident().saturating_sub(before);
        assert!(grown < 8 << 20, "{grown} bytes");
        let event = guest.request_event().await;
        assert_eq!((event.sent, event.received), (LEN as u64, LEN as u64));
    });
}

/// Bytes of memory of this process.
fn resident() -> usize {
    let text = std::fs::read_to_string("/proc/self/statm").unwrap();
    text.split(' ').nth(1).unwrap().parse::<usize>().unwrap() * 4096
}

#[test]
fn many_idle_connections_take_little_memory() {
    const COUNT: usize = 1000;
    within("requests::many_idle_connections_take_little_memory", async {
        let (listener, address) = server("203.0.113.10:80").await;
        let guest = Guest::new(&SHARED).await;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                while message(&mut stream).await.is_some() {
                    stream.write_all(OK.as_bytes()).await.unwrap();
                }
            }
        });
        let before = resident();
        let mut streams = Vec::new();
        for _ in 0..COUNT {
            let mut stream = guest.connect(address).await;
            assert_eq!(ask(&mut stream, GET).await.status(), 200);
            streams.push(stream);
        }
        let grown = resident().saturating_sub(before);
        assert!(grown < 16 << 20, "{grown} bytes");
        // Some stay for more requests; the others have ended.
        let (mut kept, mut ended) = (0, 0);
        for stream in &mut streams {
            let asked = stream.write_all(GET.as_bytes()).await;
            let answered = asked.is_ok() && message(stream).await.is_some();
            *(if answered { &mut kept } else { &mut ended }) += 1;
        }
        assert_eq!((kept, ended), (256, COUNT - 256));
    });
}

#[test]
fn a_real_client_sees_pages_and_bodies() {
    within("requests::a_real_client_sees_pages_and_bodies", async {
        let (address, served) = scripted("203.0.113.10:80", &[OK, OK]).await;
        let guest = Guest::new(&SHARED).await;
        let port = guest.port(address).await;
        let curl = async |host: &str, more: &[&str]| {
            let to = format!("{host}:80:127.0.0.1:{port}");
            let mut command = Command::new("curl");
            command.args(["-sS", "-w", "%{http_code}", "--connect-to", &to]).args(more);
            match command.arg(format!("http://{host}/x")).output().await {
                Ok(output) => Some(String::from_utf8([output.stdout, output.stderr].concat()).unwrap()),
                Err(error) => {
                    skip::skip("curl", error);
                    None
                }
            }
        };
        let Some(allowed) = curl("ok.test", &["-d", "hello"]).await else { return };
        assert_eq!(allowed, "ok200");
        let denied = curl("evil.test", &[]).await.unwrap();
        assert_eq!(denied, "Blocked by policy: host not in allowlist [default:closed]\n403");
        assert_eq!(curl("ok.test", &["--http2"]).await.unwrap(), "ok200");
        assert_eq!(served.await.unwrap()[0].body, "hello");
        drop(tokio::time::timeout(Duration::from_secs(60), guest.empty()).await);
    });
}
