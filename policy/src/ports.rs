//! Which ports are forwarded, and where they are listened on.
//!
//! Not here: the listeners.

use std::net::{IpAddr, Ipv4Addr};

/// Where forwards listen when nothing is said.
pub const DEFAULT_ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A port of the host and the guest's port that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PortPair {
    /// On the host.
    pub local_port: u16,
    /// In the guest.
    pub remote_port: u16,
}

/// A forward that is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PortError {
    /// Not `[LOCAL:]REMOTE`.
    #[error("invalid port-forward specification {0:?}: expected [LOCAL:]REMOTE with ports from 1 to 65535")]
    Spec(String),
    /// Two forwards would listen on one port.
    #[error("invalid port-forward specification {0:?}: local port {1} is taken by another one")]
    Duplicate(String, u16),
    /// Neither an address nor `localhost`.
    #[error("invalid port-forward bind address {0:?}: expected an IP address or localhost")]
    Address(String),
}

/// Understands `8080` (the same port on both sides) and `18080:8080`.
pub fn spec(text: &str) -> Result<PortPair, PortError> {
    let port = |digits: &str| {
        // `parse` alone would also take a sign.
        let plain = digits.bytes().all(|b| b.is_ascii_digit());
        digits.parse::<u16>().ok().filter(|port| plain && *port != 0)
    };
    let (local, remote) = text.split_once(':').unwrap_or((text, text));
    match (port(local), port(remote)) {
        (Some(local_port), Some(remote_port)) => Ok(PortPair { local_port, remote_port }),
        _ => Err(PortError::Spec(text.into())),
    }
}

/// Understands several, no two of which may listen on one port.
pub fn specs<S: AsRef<str>>(texts: &[S]) -> Result<Vec<PortPair>, PortError> {
    let mut pairs: Vec<PortPair> = Vec::with_capacity(texts.len());
    for text in texts.iter().map(AsRef::as_ref) {
        let pair = spec(text)?;
        if pairs.iter().any(|other| other.local_port == pair.local_port) {
            return Err(PortError::Duplicate(text.into(), pair.local_port));
        }
        pairs.push(pair);
    }
    Ok(pairs)
}

/// Understands addresses to listen on: IP addresses or `localhost`, each once; none = [`DEFAULT_ADDRESS`].
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

    #[test]
    fn port_pairs() {
        let pair = |local_port, remote_port| PortPair { local_port, remote_port };
        assert_eq!(spec("8080"), Ok(pair(8080, 8080)));
        assert_eq!(spec("18080:8080"), Ok(pair(18080, 8080)));
        assert_eq!(spec("1:65535"), Ok(pair(1, 65535)));
        for text in
            ["", ":", "0", "65536", "-1", "+1", "a", "1:", ":1", "0:1", "1:0", "1:2:3", " 1", "1 ", "１"]
        {
            assert_eq!(spec(text), Err(PortError::Spec(text.into())));
        }
    }

    #[test]
    fn a_local_port_is_taken_once() {
        assert_eq!(specs(&["1:80", "2:80"]).unwrap().len(), 2);
        let error = specs(&["80", "80:81"]).unwrap_err();
        assert_eq!(error, PortError::Duplicate("80:81".into(), 80));
        assert!(error.to_string().starts_with("invalid port-forward specification"));
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
