//! The first bytes of a connection: a TLS `ClientHello` or the head of an HTTP request, with the host that it states.
//!
//! Bytes are read up to a limit and for a time; all that was read is kept for the server. Not here: judgements.

use std::io;
use std::time::Duration;

use egress_policy::{Host, Name};
use rustls::server::Acceptor;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::time::{Instant, timeout_at};

/// Most first bytes.
pub(crate) const MAX_FIRST: usize = 16 << 10;

/// How long first bytes may take.
pub(crate) const LIMIT: Duration = Duration::from_secs(10);

/// Most headers of a request.
const MAX_HEADERS: usize = 128;

/// Longest method of a request: all that are registered are shorter.
const MAX_METHOD: usize = 20;

/// The first byte of a TLS handshake (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;

/// First bytes, and what they are.
#[derive(Debug, Clone, Default)]
pub(crate) struct First {
    pub(crate) bytes: Vec<u8>,
    pub(crate) kind: Kind,
}

/// The kind of first bytes.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) enum Kind {
    /// A `ClientHello`, with the server's name if it states one.
    Tls(Option<Name>),
    /// A request, with its authority's host; one of HTTP/1.0 need not have any.
    Http(Option<Host>),
    /// One of the two, whose host is not to be made out.
    NoHost(Speaks),
    /// A request whose head is too large.
    TooLarge,
    /// Something else, or less.
    #[default]
    Other,
}

/// A protocol that is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Speaks {
    Tls,
    Http,
}

impl First {
    /// The stated host.
    pub(crate) fn host(&self) -> Option<String> {
        match &self.kind {
            Kind::Tls(name) => name.as_ref().map(ToString::to_string),
            Kind::Http(host) => host.as_ref().map(|host| match host {
                Host::Name(name) => name.to_string(),
                Host::Address(address) => address.to_string(),
            }),
            Kind::NoHost(_) | Kind::TooLarge | Kind::Other => None,
        }
    }
}

/// Reads until it is clear what the bytes are.
pub(crate) async fn read(stream: &mut (impl AsyncRead + Unpin)) -> First {
    let end = Instant::now() + LIMIT;
    let mut reader = Reader::default();
    let mut buffer = [0; 4096];
    while reader.kind.is_none() {
        let room = buffer.len().min(MAX_FIRST - reader.bytes.len());
        match timeout_at(end, stream.read(&mut buffer[..room])).await {
            Ok(Ok(len)) if len > 0 => reader.take(&buffer[..len]),
            _ => break,
        }
    }
    First { kind: reader.kind.unwrap_or_default(), bytes: reader.bytes }
}

/// Bytes so far.
#[derive(Default)]
pub(crate) struct Reader {
    bytes: Vec<u8>,
    hello: Acceptor,
    /// Set once it is clear.
    pub(crate) kind: Option<Kind>,
}

impl Reader {
    /// Takes more bytes, no more than there is room for.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        let old = self.bytes.len();
        self.bytes.extend_from_slice(bytes);
        self.kind = match self.bytes.first() {
            Some(&HANDSHAKE) => self.tls(old),
            Some(first) if first.is_ascii_uppercase() => self.http(old),
            Some(_) => Some(Kind::Other),
            None => None,
        };
        if self.kind.is_none() && self.bytes.len() >= MAX_FIRST {
            let is_http = self.bytes.first().is_some_and(u8::is_ascii_uppercase);
            self.kind = Some(if is_http { Kind::TooLarge } else { Kind::Other });
        }
    }

    fn tls(&mut self, old: usize) -> Option<Kind> {
        let mut rest = &self.bytes[old..];
        while !rest.is_empty() {
            match self.hello.read_tls(&mut rest) {
                Ok(0) => return Some(Kind::Other),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Some(Kind::Other),
            }
            match self.hello.accept() {
                Ok(None) => {}
                Ok(Some(accepted)) => {
                    let hello = accepted.client_hello();
                    return Some(match hello.server_name().map(Name::parse) {
                        None => Kind::Tls(None),
                        Some(Ok(name)) => Kind::Tls(Some(name)),
                        Some(Err(_)) => Kind::NoHost(Speaks::Tls),
                    });
                }
                Err(_) => return Some(Kind::Other),
            }
        }
        None
    }

    fn http(&self, old: usize) -> Option<Kind> {
        let method = self.bytes.iter().position(|byte| *byte == b' ').unwrap_or(self.bytes.len());
        let is_letter = |byte: &u8| byte.is_ascii_uppercase() || *byte == b'-';
        if method > MAX_METHOD || !self.bytes[..method].iter().all(is_letter) {
            return Some(Kind::Other);
        }
        // The end of a head: an empty line. Until it is there nothing is parsed, however small the pieces are.
        let from = old.saturating_sub(3);
        let new = &self.bytes[from..];
        let has_end = |end: &[u8]| new.windows(end.len()).any(|window| window == end);
        if !has_end(b"\n\r\n") && !has_end(b"\n\n") {
            return None;
        }
        let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(&self.bytes) {
            Ok(httparse::Status::Complete(_)) => Some(host(&request)),
            Ok(httparse::Status::Partial) => None,
            Err(httparse::Error::TooManyHeaders) => Some(Kind::TooLarge),
            Err(httparse::Error::HeaderName | httparse::Error::HeaderValue | httparse::Error::NewLine) => {
                Some(Kind::NoHost(Speaks::Http))
            }
            Err(_) => Some(Kind::Other),
        }
    }
}

/// The host of a request: its one `Host`, which an absolute target must not contradict.
fn host(request: &httparse::Request<'_, '_>) -> Kind {
    let none = Kind::NoHost(Speaks::Http);
    let mut hosts = request.headers.iter().filter(|header| header.name.eq_ignore_ascii_case("host"));
    let host = match (hosts.next(), hosts.next()) {
        (Some(header), None) => {
            let text = std::str::from_utf8(header.value).ok();
            match text.and_then(|text| Host::of_authority(text.trim()).ok()) {
                Some(host) => Some(host),
                None => return none,
            }
        }
        (None, _) if request.version == Some(0) => None,
        _ => return none,
    };
    match request.path.and_then(authority) {
        None => Kind::Http(host),
        Some(target) => match Host::of_authority(target) {
            Ok(target) if host.as_ref().is_none_or(|host| *host == target) => Kind::Http(Some(target)),
            _ => none,
        },
    }
}

/// The authority of an absolute target, or of one that is an authority alone.
fn authority(target: &str) -> Option<&str> {
    if target.starts_with('/') || target == "*" {
        return None;
    }
    let rest = target.split_once("://").map_or(target, |(_, rest)| rest);
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    Some(authority.rsplit('@').next().unwrap_or_default())
}

#[cfg(test)]
pub(crate) mod tests {
    use rustls::pki_types::ServerName;

    use super::*;

    /// The `ClientHello` of a real client.
    pub(crate) fn hello(name: &str) -> Vec<u8> {
        let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(rustls::RootCertStore::empty())
            .with_no_client_auth();
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let mut client = rustls::ClientConnection::new(config.into(), name).unwrap();
        let mut bytes = Vec::new();
        client.write_tls(&mut bytes).unwrap();
        bytes
    }

    fn kind(bytes: &[u8], piece: usize) -> Kind {
        let mut reader = Reader::default();
        for piece in bytes.chunks(piece) {
            reader.take(piece);
            if let Some(kind) = reader.kind.take() {
                return kind;
            }
        }
        Kind::Other
    }

    fn name(text: &str) -> Name {
        text.parse().unwrap()
    }

    #[test]
    fn a_hello_in_any_pieces() {
        let bytes = hello("OK.test");
        for piece in [1, 2, 5, 100, 4096] {
            assert_eq!(kind(&bytes, piece), Kind::Tls(Some(name("ok.test"))), "{piece}");
        }
        assert_eq!(kind(&hello("203.0.113.1"), 4096), Kind::Tls(None));
        assert_eq!(kind(&bytes[..bytes.len() - 1], 7), Kind::Other);
    }

    #[test]
    fn a_hello_over_many_records() {
        let bytes = hello("ok.test");
        // Records of ten bytes each, with the header of the first.
        let records: Vec<u8> = bytes[5..]
            .chunks(10)
            .flat_map(|part| [&bytes[..3], &[0, u8::try_from(part.len()).unwrap()], part].concat())
            .collect();
        assert!(bytes.len() > 205);
        assert_eq!(kind(&records, 3), Kind::Tls(Some(name("ok.test"))));
    }

    #[test]
    fn requests_and_their_hosts() {
        let some = |text: &str| Kind::Http(Some(Host::parse(text).unwrap()));
        let none = Kind::NoHost(Speaks::Http);
        for (head, expected) in [
            ("GET / HTTP/1.1\r\nHost: OK.test:80\r\n\r\nrest", some("ok.test")),
            ("GET / HTTP/1.1\nhost:ok.test\n\n", some("ok.test")),
            ("GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", some("2001:db8::1")),
            ("GET http://ok.test/x HTTP/1.1\r\nHost: ok.test\r\n\r\n", some("ok.test")),
            ("CONNECT ok.test:443 HTTP/1.1\r\nHost: ok.test:443\r\n\r\n", some("ok.test")),
            ("OPTIONS * HTTP/1.1\r\nHost: ok.test\r\n\r\n", some("ok.test")),
            ("GET / HTTP/1.0\r\n\r\n", Kind::Http(None)),
            ("GET / HTTP/1.1\r\n\r\n", none.clone()),
            ("GET / HTTP/1.1\r\nHost: ok.test\r\nHost: ok.test\r\n\r\n", none.clone()),
            ("GET / HTTP/1.1\r\nHost: ok.test, evil.test\r\n\r\n", none.clone()),
            ("GET http://evil.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n", none.clone()),
            ("GET http://ok.test@evil.test/ HTTP/1.1\r\nHost: ok.test\r\n\r\n", none.clone()),
            ("GET / HTTP/1.1\r\nHost: \u{fc}\u{ff}.test:x\r\n\r\n", none.clone()),
            ("GET / HTTP/1.1\r\nHost : ok.test\r\n\r\n", none.clone()),
            ("GET / HTTP/1.1\r\nHost: ok.test\r\n x\r\n\r\n", none.clone()),
            ("M-SEARCH * HTTP/1.1\r\nHost: ok.test\r\n\r\n", some("ok.test")),
            ("SSH-2.0-x\r\n\r\n", Kind::Other),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Kind::Other),
            ("\u{1}\u{2}", Kind::Other),
        ] {
            for piece in [1, 3, 4096] {
                assert_eq!(kind(head.as_bytes(), piece), expected, "{head:?} by {piece}");
            }
        }
    }

    #[test]
    fn other_protocols_are_known_at_once() {
        for bytes in ["SSH-2.0-x", "EHLO\r\n", "NOTAMETHODOFANYREQUESTATALL", "\u{80}"] {
            let mut reader = Reader::default();
            reader.take(bytes.as_bytes());
            assert_eq!(reader.kind, Some(Kind::Other), "{bytes:?}");
        }
    }

    #[test]
    fn first_bytes_end() {
        let long = [b"GET / HTTP/1.1\r\n".as_slice(), &[b'a'; MAX_FIRST]].concat();
        let mut reader = Reader::default();
        for piece in long[..MAX_FIRST].chunks(1000) {
            reader.take(piece);
        }
        assert_eq!(reader.kind, Some(Kind::TooLarge));
        let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(MAX_HEADERS + 1));
        assert_eq!(kind(many.as_bytes(), 4096), Kind::TooLarge);
        let mut reader = Reader::default();
        reader.take(&[[22, 3, 1, 0x3f, 0xff, 1, 0, 0x3f].as_slice(), &[0xff; MAX_FIRST - 8]].concat());
        assert_eq!(reader.kind, Some(Kind::Other));
    }
}
