//! Connections and datagrams of a guest's to servers in a network namespace of each test's own, whose addresses count as public.

#![allow(clippy::unwrap_used, reason = "tests")]

mod datagrams;
mod guest;
mod namespace;
mod origin;
mod requests;
mod smuggling;
mod tls;

use std::io::ErrorKind;
use std::time::Duration;

use egress::audit::{End, Fault, FlowOutcome};
use guest::{Guest, Policies, hello, pieces, server};
use namespace::within;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

/// All that comes until the end.
pub(crate) async fn rest(stream: &mut TcpStream) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.map(|_| bytes)
}

async fn is_reset(stream: &mut TcpStream) -> bool {
    rest(stream).await.is_err_and(|error| error.kind() == ErrorKind::ConnectionReset)
}

const ALERT: &[u8] = &[21, 3, 3, 0, 2, 2, 49];

#[test]
fn every_byte_arrives_and_each_half_ends_by_itself() {
    within("every_byte_arrives_and_each_half_ends_by_itself", async {
        let (listener, address) = server("203.0.113.10:7000").await;
        let mut guest = Guest::new(&Policies::default()).await;
        let serve = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let got = rest(&mut stream).await.unwrap();
            // The guest has ended its half; ours goes on.
            stream.write_all(&got).await.unwrap();
            got
        });
        let mut stream = guest.connect(address).await;
        let sent = pieces(8 << 20);
        stream.write_all(&sent).await.unwrap();
        stream.shutdown().await.unwrap();
        let back = rest(&mut stream).await.unwrap();
        assert!(back == sent && serve.await.unwrap() == sent);
        let opened = guest.flow_event().await;
        assert_eq!(opened.outcome, FlowOutcome::Opened);
        assert_eq!(opened.reason.to_string(), "the public internet is open [default:open]");
        let (end, len) = (End::Closed, 8 << 20);
        let ended = guest.flow_event().await;
        assert_eq!(ended.outcome, FlowOutcome::Ended { end, sent: len, received: len });
        assert_eq!((ended.number, ended.destination), (opened.number, address));
        guest.empty().await;
    });
}

#[test]
fn a_reset_is_carried_as_a_reset() {
    within("a_reset_is_carried_as_a_reset", async {
        let (listener, address) = server("203.0.113.10:7000").await;
        let mut guest = Guest::new(&Policies::default()).await;
        for by_guest in [true, false] {
            let mut inside = guest.connect(address).await;
            let (mut outside, _) = listener.accept().await.unwrap();
            inside.write_all(b"x").await.unwrap();
            assert_eq!(outside.read_u8().await.unwrap(), b'x');
            let (one, other) = if by_guest { (inside, &mut outside) } else { (outside, &mut inside) };
            one.set_zero_linger().unwrap();
            drop(one);
            assert!(is_reset(other).await);
            assert_eq!(guest.flow_event().await.outcome, FlowOutcome::Opened);
            let end = End::Reset;
            assert_eq!(guest.flow_event().await.outcome, FlowOutcome::Ended { end, sent: 1, received: 0 });
        }
        guest.empty().await;
    });
}

#[test]
fn many_connections_at_once_to_one_server_are_all_carried() {
    within("many_connections_at_once_to_one_server_are_all_carried", async {
        let (listener, address) = server("203.0.113.10:7000").await;
        let guest = Guest::new(&Policies::default()).await;
        let mut all = guest.connect_at_once(address, 100).await;
        for (number, stream) in all.iter_mut().enumerate() {
            stream.write_all(&[u8::try_from(number).unwrap()]).await.unwrap();
        }
        let mut servers = Vec::new();
        for _ in 0..100 {
            let accepted = tokio::time::timeout(Duration::from_secs(60), listener.accept()).await;
            servers.push(accepted.expect("a connection in time").unwrap().0);
        }
        assert_eq!(guest.count(), 100);
        for mut outside in servers {
            let byte = outside.read_u8().await.unwrap();
            outside.write_u8(byte).await.unwrap();
        }
        for (number, stream) in all.iter_mut().enumerate() {
            assert_eq!(rest(stream).await.unwrap(), [u8::try_from(number).unwrap()]);
        }
        drop(all);
        guest.empty().await;
    });
}

#[test]
fn many_short_connections_leave_nothing() {
    within("many_short_connections_leave_nothing", async {
        let (listener, address) = server("203.0.113.10:7000").await;
        let guest = Guest::new(&Policies::default()).await;
        for _ in 0..200 {
            // The guest ends before anything is said; the server is idle until then.
            let mut stream = guest.connect(address).await;
            stream.shutdown().await.unwrap();
            let (mut outside, _) = listener.accept().await.unwrap();
            assert_eq!(rest(&mut outside).await.unwrap(), b"");
            drop(outside);
            assert_eq!(rest(&mut stream).await.unwrap(), b"");
        }
        guest.empty().await;
    });
}

#[test]
fn a_server_that_refuses_is_a_reset() {
    within("a_server_that_refuses_is_a_reset", async {
        let mut guest = Guest::new(&Policies::default()).await;
        let mut stream = guest.connect("203.0.113.10:9".parse().unwrap()).await;
        assert!(is_reset(&mut stream).await);
        assert_eq!(guest.flow_event().await.outcome, FlowOutcome::Unreachable(Fault::Refused));
        // No network has this address.
        let mut stream = guest.connect("192.0.2.1:9".parse().unwrap()).await;
        assert!(is_reset(&mut stream).await);
        assert_eq!(guest.flow_event().await.outcome, FlowOutcome::Unreachable(Fault::NoWay));
        guest.empty().await;
    });
}

#[test]
fn what_is_denied_reaches_nobody_and_says_why() {
    within("what_is_denied_reaches_nobody_and_says_why", async {
        let closed = "host not in allowlist [default:closed]";
        let mut guest = Guest::new(&Policies { allow: &["ok.test"], ..Policies::default() }).await;
        let (http, http_address) = server("203.0.113.20:80").await;
        let (https, https_address) = server("203.0.113.20:443").await;
        let (other, other_address) = server("203.0.113.20:22").await;

        let mut stream = guest.connect(http_address).await;
        stream.write_all(b"GET / HTTP/1.1\r\nHost: evil.test\r\n\r\n").await.unwrap();
        let page = String::from_utf8(rest(&mut stream).await.unwrap()).unwrap();
        assert!(page.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{page}");
        assert!(page.ends_with(&format!("\r\n\r\nBlocked by policy: {closed}\n")), "{page}");
        let event = guest.flow_event().await;
        assert_eq!((event.outcome, event.host.as_deref()), (FlowOutcome::Denied, Some("evil.test")));
        assert_eq!(event.reason.to_string(), closed);
        drop(stream);

        let mut stream = guest.connect(https_address).await;
        stream.write_all(&hello("evil.test")).await.unwrap();
        assert_eq!(rest(&mut stream).await.unwrap(), ALERT);
        assert_eq!(guest.flow_event().await.host.as_deref(), Some("evil.test"));
        drop(stream);

        let mut stream = guest.connect(other_address).await;
        assert!(is_reset(&mut stream).await);
        assert_eq!(guest.flow_event().await.reason.to_string(), closed);

        // The name is allowed, but was not given out with this address.
        let mut stream = guest.connect(https_address).await;
        stream.write_all(&hello("ok.test")).await.unwrap();
        assert_eq!(rest(&mut stream).await.unwrap(), ALERT);
        guest.flow_event().await;
        drop(stream);

        for listener in [http, https, other] {
            let accepted = tokio::time::timeout(Duration::ZERO, listener.accept()).await;
            assert!(accepted.is_err(), "a server was reached");
        }
        guest.empty().await;
    });
}

#[test]
fn closed_classes_are_reached_in_no_form() {
    within("closed_classes_are_reached_in_no_form", async {
        let (listener, own) = server("127.0.0.1:7000").await;
        let mut guest = Guest::new(&Policies { allow: &["*"], ..Policies::default() }).await;
        for (address, class) in [
            (own.to_string().as_str(), "loopback"),
            ("[::ffff:127.0.0.1]:7000", "loopback"),
            ("[64:ff9b::7f00:1]:7000", "loopback"),
            ("169.254.169.254:7000", "link-local"),
            ("10.0.0.1:7000", "private"),
        ] {
            let mut stream = guest.connect(address.parse().unwrap()).await;
            assert!(is_reset(&mut stream).await);
            let event = guest.flow_event().await;
            assert_eq!(event.outcome, FlowOutcome::Denied);
            let words = format!("addresses of this class are closed [class:{class}]");
            assert_eq!(event.reason.to_string(), words, "{address}");
        }
        assert!(tokio::time::timeout(Duration::ZERO, listener.accept()).await.is_err());
    });
}

#[test]
fn a_passthrough_host_gets_the_very_bytes() {
    within("a_passthrough_host_gets_the_very_bytes", async {
        let (listener, address) = server("203.0.113.10:443").await;
        let policies = Policies {
            allow: &["ok.test"],
            passthrough: &["ok.test"],
            hosts: &[("ok.test", "203.0.113.10")],
            ..Policies::default()
        };
        let mut guest = Guest::new(&policies).await;
        let hello = hello("ok.test");
        let mut stream = guest.connect(address).await;
        // In two pieces, with more behind.
        stream.write_all(&hello[..50]).await.unwrap();
        tokio::task::yield_now().await;
        stream.write_all(&[&hello[50..], b"more"].concat()).await.unwrap();
        stream.shutdown().await.unwrap();
        let (mut outside, _) = listener.accept().await.unwrap();
        assert_eq!(rest(&mut outside).await.unwrap(), [hello.as_slice(), b"more"].concat());
        outside.write_all(b"answer").await.unwrap();
        drop(outside);
        assert_eq!(rest(&mut stream).await.unwrap(), b"answer");
        let opened = guest.flow_event().await;
        assert_eq!(opened.reason.to_string(), "passed through without a look [passthrough:ok.test]");
        assert_eq!((opened.host.as_deref(), opened.names.len()), (Some("ok.test"), 1));
        guest.flow_event().await;

        // Another name on the same address, and no name at all.
        for bytes in [self::hello("evil.test"), self::hello("203.0.113.10"), b"SSH-2.0-x\r\n".to_vec()] {
            let mut stream = guest.connect(address).await;
            stream.write_all(&bytes).await.unwrap();
            let end = rest(&mut stream).await;
            assert!(end.is_err() || end.unwrap() == ALERT);
            assert_eq!(guest.flow_event().await.outcome, FlowOutcome::Denied);
        }
        assert!(tokio::time::timeout(Duration::ZERO, listener.accept()).await.is_err());
        guest.empty().await;
    });
}

#[test]
fn first_bytes_are_judged_by_the_policy_at_their_time() {
    within("first_bytes_are_judged_by_the_policy_at_their_time", async {
        let (listener, address) = server("203.0.113.10:443").await;
        let both = ["ok.test", "other.test"];
        let hosts = &[("ok.test", "203.0.113.10"), ("other.test", "203.0.113.10")];
        let mut guest =
            Guest::new(&Policies { allow: &both, passthrough: &both, hosts, ..Policies::default() }).await;
        let hello = hello("ok.test");
        let mut stream = guest.connect(address).await;
        stream.write_all(&hello[..50]).await.unwrap();
        while guest.count() == 0 {
            tokio::task::yield_now().await;
        }
        guest.allow(&["other.test"]);
        stream.write_all(&hello[50..]).await.unwrap();
        assert_eq!(rest(&mut stream).await.unwrap(), ALERT);
        let event = guest.flow_event().await;
        assert_eq!((event.outcome, event.host.as_deref()), (FlowOutcome::Denied, Some("ok.test")));
        assert!(tokio::time::timeout(Duration::ZERO, listener.accept()).await.is_err());
    });
}

/// The fastest of some exchanges of three pieces: two of `one`'s, and an answer.
async fn exchange(one: &mut TcpStream, other: &mut TcpStream) -> Duration {
    let mut fastest = Duration::MAX;
    for _ in 0..20 {
        let start = std::time::Instant::now();
        for _ in 0..2 {
            one.write_all(b"x").await.unwrap();
            other.read_u8().await.unwrap();
        }
        other.write_all(b"y").await.unwrap();
        one.read_u8().await.unwrap();
        fastest = fastest.min(start.elapsed());
    }
    fastest
}

#[test]
fn small_pieces_are_not_held_back() {
    within("small_pieces_are_not_held_back", async {
        let (listener, address) = server("203.0.113.10:7000").await;
        let guest = Guest::new(&Policies::default()).await;
        let mut inside = guest.connect(address).await;
        let (mut outside, _) = listener.accept().await.unwrap();
        inside.set_nodelay(true).unwrap();
        outside.set_nodelay(true).unwrap();
        // A kernel that holds the second piece back waits for the acknowledgement of the first, which takes 40 ms once
        // there were a few answers.
        for _ in 0..2 {
            let up = exchange(&mut inside, &mut outside).await;
            let down = exchange(&mut outside, &mut inside).await;
            assert!(up.max(down) < Duration::from_millis(30), "{up:?} {down:?}");
        }
    });
}

#[test]
fn requests_that_need_a_judgement_each_do_not_pass_without() {
    within("requests_that_need_a_judgement_each_do_not_pass_without", async {
        let (listener, address) = server("203.0.113.10:443").await;
        let hosts = &[("ok.test", "203.0.113.10")];
        let mut guest = Guest::new(&Policies { allow: &["ok.test"], hosts, ..Policies::default() }).await;
        let mut stream = guest.connect(address).await;
        stream.write_all(&hello("ok.test")).await.unwrap();
        assert_eq!(rest(&mut stream).await.unwrap(), ALERT);
        let event = guest.flow_event().await;
        assert_eq!(event.outcome, FlowOutcome::NotLookedInto);
        assert_eq!(event.reason.to_string(), "allowed by the allow list [allow:ok.test]");
        assert!(tokio::time::timeout(Duration::ZERO, listener.accept()).await.is_err());
    });
}

#[test]
fn a_guest_that_says_nothing_is_reset() {
    within("a_guest_that_says_nothing_is_reset", async {
        let mut guest = Guest::new(&Policies { allow: &["ok.test"], ..Policies::default() }).await;
        let start = tokio::time::Instant::now();
        let mut stream = guest.connect("203.0.113.10:443".parse().unwrap()).await;
        tokio::time::pause();
        assert!(is_reset(&mut stream).await);
        // The host's own slowness before the pause is in it.
        assert!((10..15).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
        assert_eq!(guest.flow_event().await.outcome, FlowOutcome::Denied);
    });
}

#[test]
fn an_open_connection_ends_with_what_allowed_it() {
    within("an_open_connection_ends_with_what_allowed_it", async {
        let (listener, address) = server("203.0.113.10:7000").await;
        let mut guest = Guest::new(&Policies { allow: &["203.0.113.0/24"], ..Policies::default() }).await;
        let mut inside = guest.connect(address).await;
        let (mut outside, _) = listener.accept().await.unwrap();
        assert_eq!(guest.flow_event().await.outcome, FlowOutcome::Opened);
        guest.allow(&["203.0.113.0/24", "ok.test"]);
        inside.write_all(b"x").await.unwrap();
        assert_eq!(outside.read_u8().await.unwrap(), b'x');
        guest.allow(&["ok.test"]);
        assert!(is_reset(&mut inside).await && is_reset(&mut outside).await);
        let event = guest.flow_event().await;
        assert_eq!(event.outcome, FlowOutcome::Ended { end: End::Policy, sent: 1, received: 0 });
        assert_eq!(event.reason.to_string(), "host not in allowlist [default:closed]");
        guest.empty().await;
    });
}

#[test]
fn a_change_of_the_policy_ends_when_what_it_denies_is_cut() {
    within("a_change_of_the_policy_ends_when_what_it_denies_is_cut", async {
        let servers = [server("203.0.113.10:7000").await, server("203.0.113.20:7000").await];
        let guest = Guest::new(&Policies { allow: &["203.0.113.0/24"], ..Policies::default() }).await;
        let mut ends = Vec::new();
        for _ in 0..100 {
            for (listener, address) in &servers {
                let (mut inside, mut outside) =
                    (guest.connect(*address).await, listener.accept().await.unwrap().0);
                inside.write_all(b"x").await.unwrap();
                assert_eq!(outside.read_u8().await.unwrap(), b'x');
                ends.push((inside, outside));
            }
        }
        guest.change(&["203.0.113.10"]).await;
        assert_eq!(guest.count(), 100);
        for pair in ends.chunks_mut(2) {
            let [(kept, other), (cut, server)] = pair else { unreachable!("pairs") };
            kept.write_all(b"x").await.unwrap();
            assert_eq!(other.read_u8().await.unwrap(), b'x');
            assert!(is_reset(cut).await && is_reset(server).await);
        }
        // Nobody is at the policy before the last.
        guest.change(&["203.0.113.10", "203.0.113.20"]).await;
        guest.change(&["203.0.113.20"]).await;
        assert_eq!(guest.count(), 0);
    });
}
