//! The head of a request: the host and the path that it means, and the form in which it is sent on.
//!
//! A head is sent on in one form, which says what was judged. Not here: judgements.

use std::fmt::Write as _;
use std::net::SocketAddr;

use egress_policy::{BadPath, Host, Path};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::{Authority, PathAndQuery, Scheme};
use hyper::{Method, StatusCode, Uri, Version};

/// Headers of one connection (RFC 9110 §7.6.1), and of ways that are not taken here.
const OF_CONNECTION: [HeaderName; 8] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("http2-settings"),
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// A request as it is judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Heard {
    pub(crate) host: Host,
    /// The host with the port that was said.
    pub(crate) authority: String,
    pub(crate) path: Path,
    /// Whether the connection is to become another one.
    pub(crate) upgrade: bool,
}

/// A request that cannot be judged.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Bad {
    /// The method is for proxies, or for loops.
    Method,
    /// There is no host, or more than one.
    Host,
    /// The scheme is not the connection's.
    Scheme,
    /// There is no path that can be judged.
    Path(BadPath),
}

impl Bad {
    pub(crate) fn status(self) -> StatusCode {
        match self {
            Self::Method => StatusCode::METHOD_NOT_ALLOWED,
            Self::Host | Self::Scheme | Self::Path(_) => StatusCode::BAD_REQUEST,
        }
    }

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::Method => "CONNECT and TRACE are not carried",
            Self::Host => "the request names no host, or more than one",
            Self::Scheme => "the request names another scheme than its connection",
            Self::Path(_) => "the request has no path that can be judged",
        }
    }
}

/// Reads a head that came on a connection for this address, in TLS or not.
pub(crate) fn read(head: &Parts, tls: bool, destination: SocketAddr) -> Result<Heard, Bad> {
    if head.method == Method::CONNECT || head.method == Method::TRACE {
        return Err(Bad::Method);
    }
    let scheme = if tls { Scheme::HTTPS } else { Scheme::HTTP };
    match (head.uri.scheme(), head.uri.authority()) {
        (Some(own), _) if *own != scheme => return Err(Bad::Scheme),
        // A target that is an authority alone is for CONNECT.
        (None, Some(_)) => return Err(Bad::Path(BadPath::Relative)),
        _ => {}
    }
    let (host, port) = host(head, destination)?;
    let target = head.uri.path_and_query().map_or("/", PathAndQuery::as_str);
    let path = Path::parse(target).map_err(Bad::Path)?;
    if head.uri.path() == "*" && head.method != Method::OPTIONS {
        return Err(Bad::Path(BadPath::Relative));
    }
    Ok(Heard { authority: authority(&host, port), host, path, upgrade: upgrades(head) })
}

/// The one host of a request: its target's and its header's, which must not contradict each other.
fn host(head: &Parts, destination: SocketAddr) -> Result<(Host, Option<u16>), Bad> {
    let mut headers = head.headers.get_all(header::HOST).iter();
    let stated = match (headers.next(), headers.next()) {
        (Some(value), None) => {
            let text = std::str::from_utf8(value.as_bytes()).map_err(|_| Bad::Host)?;
            Some(host_and_port(text)?)
        }
        (None, _) => None,
        (Some(_), Some(_)) => return Err(Bad::Host),
    };
    let targeted = head.uri.authority().map(|authority| host_and_port(authority.as_str())).transpose()?;
    match (targeted, stated) {
        (Some(targeted), Some(stated)) if targeted != stated => Err(Bad::Host),
        (Some(host), _) | (None, Some(host)) => Ok(host),
        (None, None) if head.version < Version::HTTP_11 => {
            Ok((Host::Address(destination.ip().to_canonical()), None))
        }
        (None, None) => Err(Bad::Host),
    }
}

fn host_and_port(text: &str) -> Result<(Host, Option<u16>), Bad> {
    let host = Host::of_authority(text).map_err(|_| Bad::Host)?;
    // A host's own colons stand in brackets.
    let port = text.rsplit_once(':').filter(|(host, _)| host.ends_with(']') || !host.contains(':'));
    Ok((host, port.and_then(|(_, port)| port.parse().ok())))
}

fn authority(host: &Host, port: Option<u16>) -> String {
    let mut text = match host {
        Host::Name(name) => name.to_string(),
        Host::Address(std::net::IpAddr::V6(address)) => format!("[{address}]"),
        Host::Address(address) => address.to_string(),
    };
    if let Some(port) = port {
        // Writing to a string does not fail.
        let _ = write!(text, ":{port}");
    }
    text
}

/// Whether a connection is to become another one, that is none of HTTP/2.
fn upgrades(head: &Parts) -> bool {
    let is_asked =
        tokens(&head.headers, &header::CONNECTION).any(|token| token.eq_ignore_ascii_case("upgrade"));
    let mut to = tokens(&head.headers, &header::UPGRADE).peekable();
    head.version == Version::HTTP_11
        && is_asked
        && to.peek().is_some()
        && !to.any(|token| token.eq_ignore_ascii_case("h2c"))
}

/// The words of a header that is a list of them.
fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    let texts = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).map(str::trim).filter(|token| !token.is_empty())
}

/// Takes away what is for one connection alone.
fn strip(headers: &mut HeaderMap) {
    let named = tokens(headers, &header::CONNECTION).filter_map(|token| token.parse().ok());
    let named: Vec<HeaderName> = named.collect();
    for name in OF_CONNECTION.iter().chain(&named) {
        headers.remove(name);
    }
}

/// The form of a request that is sent on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// HTTP/1.1, with a body whose end its head does not tell or not.
    Http1 {
        /// Whether the body is of unknown length.
        chunked: bool,
    },
    /// HTTP/2.
    Http2,
}

/// Puts the head of a request into the form in which it is sent on.
pub(crate) fn send_on(head: &mut Parts, heard: &Heard, tls: bool, form: Form) -> Result<(), Bad> {
    let upgrade = head.headers.get(header::UPGRADE).filter(|_| heard.upgrade).cloned();
    let takes_trailers =
        tokens(&head.headers, &header::TE).any(|token| token.eq_ignore_ascii_case("trailers"));
    let was_http2 = head.version == Version::HTTP_2;
    let headers = &mut head.headers;
    strip(headers);
    headers.remove(header::HOST);
    if takes_trailers {
        headers.insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if was_http2 || form == Form::Http2 {
        headers.remove(header::EXPECT);
    }
    let path = head.uri.path_and_query().cloned().unwrap_or_else(|| PathAndQuery::from_static("/"));
    match form {
        Form::Http1 { chunked } => {
            if was_http2 {
                join_cookies(headers);
            }
            if chunked {
                headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            match upgrade {
                Some(upgrade) => {
                    headers.insert(header::UPGRADE, upgrade);
                    let names = if takes_trailers { "upgrade, te" } else { "upgrade" };
                    headers.insert(header::CONNECTION, HeaderValue::from_static(names));
                }
                None if takes_trailers => {
                    headers.insert(header::CONNECTION, HeaderValue::from_static("te"));
                }
                None => {}
            }
            let host = HeaderValue::from_str(&heard.authority).map_err(|_| Bad::Host)?;
            headers.insert(header::HOST, host);
            head.uri = Uri::from(path);
            head.version = Version::HTTP_11;
        }
        Form::Http2 => {
            let mut parts = hyper::http::uri::Parts::default();
            parts.scheme = Some(if tls { Scheme::HTTPS } else { Scheme::HTTP });
            parts.authority = Some(heard.authority.parse::<Authority>().map_err(|_| Bad::Host)?);
            parts.path_and_query = Some(path);
            head.uri = Uri::from_parts(parts).map_err(|_| Bad::Host)?;
            head.version = Version::HTTP_2;
        }
    }
    Ok(())
}

/// HTTP/2 splits cookies into headers of their own (RFC 9113 §8.2.3); HTTP/1.1 has one.
fn join_cookies(headers: &mut HeaderMap) {
    let cookies: Vec<&[u8]> =
        headers.get_all(header::COOKIE).into_iter().map(HeaderValue::as_bytes).collect();
    if cookies.len() > 1
        && let Ok(mut joined) = HeaderValue::from_bytes(&cookies.join(b"; ".as_slice()))
    {
        let is_sensitive = headers.get_all(header::COOKIE).into_iter().any(HeaderValue::is_sensitive);
        joined.set_sensitive(is_sensitive);
        headers.insert(header::COOKIE, joined);
    }
}

/// Puts the head of a response into the form in which the guest gets it.
pub(crate) fn send_back(head: &mut hyper::http::response::Parts) {
    let upgrade =
        head.headers.get(header::UPGRADE).filter(|_| head.status == StatusCode::SWITCHING_PROTOCOLS).cloned();
    strip(&mut head.headers);
    // It leads to other ports and to QUIC, neither of which is judged by requests.
    head.headers.remove(header::ALT_SVC);
    if let Some(upgrade) = upgrade {
        head.headers.insert(header::UPGRADE, upgrade);
        head.headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    }
    head.version = Version::HTTP_11;
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parts(request: hyper::http::request::Builder) -> Parts {
        request.body(()).unwrap().into_parts().0
    }

    fn heard(head: &Parts) -> Result<Heard, Bad> {
        read(head, true, ([203, 0, 113, 10], 443).into())
    }

    #[test]
    fn http2_states_its_host_in_its_target_or_in_a_header() {
        let request = |uri: &str, host: Option<&str>| {
            let builder = hyper::Request::get(uri).version(Version::HTTP_2);
            parts(match host {
                Some(host) => builder.header("host", host),
                None => builder,
            })
        };
        for (uri, host, authority) in [
            ("https://OK.test./x", None, "ok.test"),
            ("https://ok.test:443/", Some("OK.test:443"), "ok.test:443"),
            ("/x", Some("ok.test"), "ok.test"),
            ("https://[2001:db8::1]:8443/", None, "[2001:db8::1]:8443"),
        ] {
            assert_eq!(
                heard(&request(uri, host)).map(|heard| heard.authority),
                Ok(authority.to_owned()),
                "{uri}"
            );
        }
        for (uri, host, bad) in [
            ("https://ok.test/", Some("evil.test"), Bad::Host),
            ("https://ok.test/", Some("ok.test:443"), Bad::Host),
            ("https://user@ok.test/", None, Bad::Host),
            ("/x", None, Bad::Host),
            ("http://ok.test/", None, Bad::Scheme),
        ] {
            assert_eq!(heard(&request(uri, host)), Err(bad), "{uri} {host:?}");
        }
    }

    #[test]
    fn what_is_of_one_connection_stays_there() {
        let request = || {
            let builder =
                hyper::Request::get("/x").header("host", "ok.test").header("te", "trailers, gzip;q=0.5");
            let builder = builder.header("connection", "close, X-Own, upgrade").header("connection", "te");
            let builder =
                builder.header("x-own", "1").header("upgrade", "websocket").header("keep-alive", "1");
            parts(
                builder
                    .header("proxy-authorization", "x")
                    .header("transfer-encoding", "chunked")
                    .header("a", "b"),
            )
        };
        let names = |form| {
            let mut head = request();
            let heard = heard(&head).unwrap();
            assert!(heard.upgrade);
            send_on(&mut head, &heard, true, form).unwrap();
            let text =
                |(name, value): (&HeaderName, &HeaderValue)| format!("{name}: {}", value.to_str().unwrap());
            let mut names: Vec<String> = head.headers.iter().map(text).collect();
            names.sort_unstable();
            (names, head.uri.to_string())
        };
        let plain =
            ["a: b", "connection: upgrade, te", "host: ok.test", "te: trailers", "upgrade: websocket"];
        assert_eq!(
            names(Form::Http1 { chunked: false }),
            (plain.map(str::to_owned).to_vec(), "/x".to_owned())
        );
        let (http2, target) = names(Form::Http2);
        assert_eq!(
            (http2, target.as_str()),
            (vec!["a: b".to_owned(), "te: trailers".to_owned()], "https://ok.test/x")
        );
    }
}
