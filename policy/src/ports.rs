//! The ports that are forwarded, and the addresses of their listeners.
//!
//! Not here: the listeners.

use std::net::{IpAddr, Ipv4Addr};

/// The address of listeners unless the user says otherwise.
pub const DEFAULT_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Most ports that are forwarded together; each is a listener.
pub const MAX_PORTS: usize = 256;

/// A port of the host and the guest's port that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortPair {
    /// The listener's own address; `None` = the common ones.
    pub address: Option<IpAddr>,
    /// The host's port.
    pub local_port: u16,
    /// The guest's port.
    pub remote_port: u16,
}

/// A forward that is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// The text is not `[[ADDRESS:]LOCAL:]REMOTE[/tcp]`.
    #[error(
        "invalid port-forward specification {0:?}: expected [[ADDRESS:]LOCAL:]REMOTE with ports from 1 to 65535 or ranges"
    )]
    Spec(String),
    /// The protocol is not forwarded.
    #[error("invalid port-forward specification {0:?}: {1} is not forwarded, only tcp is")]
    Protocol(String, String),
    /// The ranges have different lengths.
    #[error("invalid port-forward specification {0:?}: the ranges differ in length")]
    Ranges(String),
    /// Two forwards would listen on one port.
    #[error("invalid port-forward specification {0:?}: local port {1} is taken by another one")]
    Duplicate(String, u16),
    /// There are more ports than may be forwarded together.
    #[error("invalid port-forward specification {0:?}: more than {MAX_PORTS} ports")]
    TooMany(String),
    /// The text is neither an address nor `localhost`.
    #[error("invalid port-forward bind address {0:?}: expected an IP address or localhost")]
    Address(String),
}

/// Parses `8080` (the same port on both sides), `18080:8080`, ranges of the same length in place of both
/// (`8080-8082:80-82`), an address of the host before them (`127.0.0.1:8080:80`, `[::1]:8080:80`), and `/tcp` at the
/// end.
pub fn spec(text: &str) -> Result<Vec<PortPair>, PortError> {
    let bad = || PortError::Spec(text.into());
    let (rest, protocol) = text.rsplit_once('/').unwrap_or((text, "tcp"));
    match protocol.to_ascii_lowercase().as_str() {
        "tcp" => {}
        other @ ("udp" | "sctp") => return Err(PortError::Protocol(text.into(), other.into())),
        _ => return Err(bad()),
    }
    let (rest, remote) = rest.rsplit_once(':').map_or((None, rest), |(rest, remote)| (Some(rest), remote));
    let (host, local) =
        match rest.map(|rest| rest.rsplit_once(':').map_or((None, rest), |(a, b)| (Some(a), b))) {
            Some((host, local)) => (host, local),
            None => (None, remote),
        };
    let address = host.map(|host| address_before_ports(host).ok_or_else(bad)).transpose()?;
    let (local, remote) = (range(local).ok_or_else(bad)?, range(remote).ok_or_else(bad)?);
    if local.len() != remote.len() {
        return Err(PortError::Ranges(text.into()));
    }
    if local.len() > MAX_PORTS {
        return Err(PortError::TooMany(text.into()));
    }
    let pair = |(local_port, remote_port)| PortPair { address, local_port, remote_port };
    Ok(local.zip(remote).map(pair).collect())
}

/// The address before the ports, if there is one. An IPv6 address is in brackets, since it has colons of its own.
fn address_before_ports(text: &str) -> Option<IpAddr> {
    match text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        Some(inner) => inner.parse().ok().map(IpAddr::V6),
        None if text == "localhost" => Some(DEFAULT_ADDRESS),
        None => text.parse().ok().map(IpAddr::V4),
    }
}

/// One port, or the ports from one to another.
fn range(text: &str) -> Option<std::ops::RangeInclusive<u16>> {
    let port = |digits: &str| {
        // `parse` alone would also take a sign.
        let plain = digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse::<u16>().ok().filter(|port| plain && *port != 0)
    };
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let (first, last) = (port(first)?, port(last)?);
    (first <= last).then_some(first..=last)
}

/// Parses several forwards, no two of which may listen on one port.
pub fn specs<S: AsRef<str>>(texts: &[S]) -> Result<Vec<PortPair>, PortError> {
    let mut pairs: Vec<PortPair> = Vec::with_capacity(texts.len());
    for text in texts.iter().map(AsRef::as_ref) {
        for pair in spec(text)? {
            let same =
                |other: &PortPair| other.local_port == pair.local_port && other.address == pair.address;
            if pairs.iter().any(same) {
                return Err(PortError::Duplicate(text.into(), pair.local_port));
            }
            if pairs.len() == MAX_PORTS {
                return Err(PortError::TooMany(text.into()));
            }
            pairs.push(pair);
        }
    }
    Ok(pairs)
}

/// Parses addresses to listen on: IP addresses or `localhost`, each once; none = [`DEFAULT_ADDRESS`].
pub fn addresses<S: AsRef<str>>(texts: &[S]) -> Result<Vec<IpAddr>, PortError> {
    let mut addresses = Vec::with_capacity(texts.len());
    for text in texts.iter().map(|text| text.as_ref().trim()) {
        let address = match text {
            "localhost" => DEFAULT_ADDRESS,
            text => text.parse().map_err(|_| PortError::Address(text.into()))?,
        };
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        addresses.push(DEFAULT_ADDRESS);
    }
    Ok(addresses)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pair(local_port: u16, remote_port: u16) -> PortPair {
        PortPair { address: None, local_port, remote_port }
    }

    #[test]
    fn port_pairs() {
        assert_eq!(spec("8080"), Ok(vec![pair(8080, 8080)]));
        assert_eq!(spec("18080:8080"), Ok(vec![pair(18080, 8080)]));
        assert_eq!(spec("1:65535/tcp"), Ok(vec![pair(1, 65535)]));
        assert_eq!(spec("80/TCP"), Ok(vec![pair(80, 80)]));
        assert_eq!(spec("80-81"), Ok(vec![pair(80, 80), pair(81, 81)]));
        assert_eq!(spec("8080-8082:80-82"), Ok(vec![pair(8080, 80), pair(8081, 81), pair(8082, 82)]));
        assert_eq!(spec("8080:80-80"), Ok(vec![pair(8080, 80)]));
        assert_eq!(spec("65535-65535:1"), Ok(vec![pair(65535, 1)]));
        let at = |address: &str| PortPair { address: Some(address.parse().unwrap()), ..pair(8080, 80) };
        for (text, address) in [
            ("127.0.0.1:8080:80", "127.0.0.1"),
            ("0.0.0.0:8080:80/tcp", "0.0.0.0"),
            ("localhost:8080:80", "127.0.0.1"),
            ("[::1]:8080:80", "::1"),
        ] {
            assert_eq!(spec(text), Ok(vec![at(address)]), "{text}");
        }
        for text in [
            "",
            ":",
            "0",
            "65536",
            "-1",
            "+1",
            "a",
            "1:",
            ":1",
            "0:1",
            "1:0",
            "1:2:3",
            " 1",
            "1 ",
            "１",
            "/",
            "/tcp",
            "80/",
            "80/x",
            "80/tcp/tcp",
            "127.0.0.1::80",
            "127.0.0.1:80",
            ":8080:80",
            "::1:8080:80",
            "[::1]:80",
            "[127.0.0.1]:8080:80",
            "host:8080:80",
            "2-1",
            "1-",
            "-",
            "1-2-3",
            "1-65536",
            "0-1",
            "[]:1:2",
            "[:1:2",
        ] {
            assert_eq!(spec(text), Err(PortError::Spec(text.into())), "{text}");
        }
        for text in ["80/udp", "127.0.0.1:53:53/UDP"] {
            assert_eq!(spec(text), Err(PortError::Protocol(text.into(), "udp".into())));
        }
        for text in ["1-2:1-3", "8080-8082:80", "1-2:3"] {
            assert_eq!(spec(text), Err(PortError::Ranges(text.into())));
        }
        assert_eq!(spec("1-256").unwrap().len(), MAX_PORTS);
        assert_eq!(spec("1-65535"), Err(PortError::TooMany("1-65535".into())));
    }

    #[test]
    fn a_local_port_is_taken_once() {
        assert_eq!(specs(&["1:80", "2:80"]).unwrap().len(), 2);
        assert_eq!(specs(&["127.0.0.1:1:80", "127.0.0.2:1:80"]).unwrap().len(), 2);
        for (second, text) in [("80:81", "80:81"), ("79-81", "79-81")] {
            let error = specs(&["80", second]).unwrap_err();
            assert_eq!(error, PortError::Duplicate(text.into(), 80));
            assert!(error.to_string().starts_with("invalid port-forward specification"));
        }
        assert_eq!(specs(&["1-256", "300"]), Err(PortError::TooMany("300".into())));
    }

    proptest::proptest! {
        #[test]
        fn no_text_is_too_strange(text in "[0-9a-z:./\\[\\]-]{0,30}") {
            let _ = spec(&text);
        }
    }

    #[test]
    fn bind_addresses() {
        assert_eq!(addresses::<&str>(&[]), Ok(vec![DEFAULT_ADDRESS]));
        let several = ["localhost", "127.0.0.1", "::1", " 0.0.0.0"];
        let expected = vec![DEFAULT_ADDRESS, "::1".parse().unwrap(), "0.0.0.0".parse().unwrap()];
        assert_eq!(addresses(&several), Ok(expected));
        for text in ["", "example.com", "127.0.0.1:80", "[::1]", "127.1"] {
            assert_eq!(addresses(&[text]), Err(PortError::Address(text.into())));
        }
    }
}
