//! Requests that servers might take for other ones: refused, or sent on in the one form that was judged.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;

use crate::guest::{Guest, Policies, server};
use crate::namespace::within;
use crate::origin::{ask, message};
use crate::requests::OK;
use crate::rest;

const POLICIES: Policies<'static> = Policies {
    allow: &["ok.test", "POST some.test"],
    passthrough: &[],
    intercept: false,
    hosts: &[("ok.test", "203.0.113.10"), ("some.test", "203.0.113.10"), ("evil.test", "203.0.113.10")],
};

/// Denied, on a connection that stays.
const FIRST: &str = "GET /first HTTP/1.1\r\nHost: some.test\r\n\r\n";

#[test]
fn what_is_unclear_is_refused() {
    within("smuggling::what_is_unclear_is_refused", async {
        let (listener, address) = server("203.0.113.10:80").await;
        let guest = Guest::new(&POLICIES).await;
        for (request, status) in [
            ("GET / HTTP/1.1\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: ok.test\r\nHost: ok.test\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: ok.test\r\nHost: evil.test\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: ok.test, evil.test\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost : ok.test\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: ok.test\r\nA: b\r\n c\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: ok.test\r\n Host: evil.test\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: ok.test\r\nA\0: b\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: ok.test\r\nA: b\0c\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: ok.test\r\nA: b\rc\r\n\r\n", 400),
            ("GET http://evil.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n", 400),
            ("GET http://ok.test/ HTTP/1.1\r\nHost: evil.test\r\n\r\n", 400),
            ("GET http://ok.test@evil.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n", 400),
            ("GET https://ok.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n", 400),
            ("GET ftp://ok.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n", 400),
            ("GET ok.test HTTP/1.1\r\nHost: ok.test\r\n\r\n", 400),
            ("GET * HTTP/1.1\r\nHost: ok.test\r\n\r\n", 400),
            ("GET /%zz HTTP/1.1\r\nHost: ok.test\r\n\r\n", 400),
            ("CONNECT ok.test:443 HTTP/1.1\r\nHost: ok.test:443\r\n\r\n", 405),
            ("TRACE / HTTP/1.1\r\nHost: ok.test\r\n\r\n", 405),
            ("POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400),
            ("POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 1, 2\r\n\r\nab", 400),
            ("POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: +1\r\n\r\na", 400),
            (
                "POST / HTTP/1.1\r\nHost: ok.test\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
                400,
            ),
            ("POST / HTTP/1.1\r\nHost: ok.test\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n", 400),
            ("POST / HTTP/1.0\r\nHost: ok.test\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
            ("GET / HTTP/1.1\r\nHost: other.test\r\n\r\n", 403),
            ("GET / HTTP/1.1\r\nHost: 203.0.113.20\r\n\r\n", 403),
        ] {
            // As the first request of a connection, and behind another one.
            for first in [None, Some(FIRST)] {
                let mut stream = guest.connect(address).await;
                if let Some(first) = first {
                    assert_eq!(ask(&mut stream, first).await.status(), 403);
                }
                stream.write_all(request.as_bytes()).await.unwrap();
                let got = message(&mut stream).await.map(|message| message.status());
                assert_eq!(got, Some(status), "{request:?} {first:?}");
            }
        }
        assert!(timeout(Duration::ZERO, listener.accept()).await.is_err(), "the server was reached");
    });
}

/// The bytes that a server gets of all that a guest sends at once.
async fn got(guest: &Guest, listener: &tokio::net::TcpListener, sent: &str, end: &str) -> String {
    let mut stream = guest.connect(listener.local_addr().unwrap()).await;
    stream.write_all(sent.as_bytes()).await.unwrap();
    let (mut outside, _) = listener.accept().await.unwrap();
    let mut got = String::new();
    while !got.ends_with(end) {
        got.push(char::from(outside.read_u8().await.unwrap()));
    }
    outside.write_all(OK.as_bytes()).await.unwrap();
    outside.shutdown().await.unwrap();
    assert!(rest(&mut stream).await.unwrap().starts_with(b"HTTP/1."));
    // More than that, no server gets.
    got.push_str(&String::from_utf8(rest(&mut outside).await.unwrap()).unwrap());
    got
}

#[test]
fn what_is_sent_on_has_one_form() {
    within("smuggling::what_is_sent_on_has_one_form", async {
        let (listener, _) = server("203.0.113.10:80").await;
        let guest = Guest::new(&POLICIES).await;
        // Line feeds alone, an absolute target, white space around values.
        let sent = "GET http://OK.test/x?y=//z HTTP/1.1\nHost:\t ok.test  \nA:b \nConnection: close\n\n";
        let plain = got(&guest, &listener, sent, "\r\n\r\n").await;
        let mut lines: Vec<&str> = plain.split("\r\n").collect();
        lines.sort_unstable();
        assert_eq!(lines, ["", "", "A: b", "GET /x?y=//z HTTP/1.1", "Host: ok.test"]);

        // Both lengths: the chunks count, and what is behind them is no request.
        let sent = "POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n\
            1;ext=\"x\"\r\na\r\n0\r\n\r\nGET /smuggled HTTP/1.1\r\nHost: evil.test\r\n\r\n";
        let chunked = got(&guest, &listener, sent, "0\r\n\r\n").await;
        assert!(!chunked.to_lowercase().contains("content-length"), "{chunked}");
        assert!(
            chunked.ends_with("\r\n\r\n1\r\na\r\n0\r\n\r\n") && !chunked.contains("smuggled"),
            "{chunked}"
        );

        // Two equal lengths are one.
        let sent = "POST / HTTP/1.1\r\nHost: ok.test\r\nContent-Length: 2\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab";
        let lengths = got(&guest, &listener, sent, "ab").await;
        assert_eq!(lengths.to_lowercase().matches("content-length: 2\r\n").count(), 1, "{lengths}");

        // HTTP/1.0 without a host is for the address.
        let guest = Guest::new(&Policies { intercept: true, ..Policies::default() }).await;
        let old = got(&guest, &listener, "GET /old HTTP/1.0\r\n\r\n", "\r\n\r\n").await;
        assert!(old.starts_with("GET /old HTTP/1.1\r\n") && old.contains("ost: 203.0.113.10\r\n"), "{old}");
    });
}
