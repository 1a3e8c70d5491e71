//! Names and addresses of hosts, as guests state them, in one form.
//!
//! A [`Name`] is made once, where its text comes in; afterwards names are compared byte by byte. Not here: patterns.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;
use std::sync::Arc;

/// Longest name, without the dot of the root (RFC 1035 §2.3.4, as text).
pub const MAX_NAME: usize = 253;

/// Longest label of a name (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;

/// Longest text that is turned into a name: characters beyond ASCII are longer before than after.
const MAX_TEXT: usize = 4 * MAX_NAME;

/// The name of a host: lower case, A-labels, no dot at the end, labels of letters, digits, `-` and `_`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Arc<str>);

/// The reason for which a text is no name of a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotAName {
    /// Nothing stands between two dots, or there is nothing at all.
    #[error("has an empty label")]
    Empty,
    /// The name or a label of it is too long.
    #[error("is longer than {MAX_NAME} characters, or has a label longer than {MAX_LABEL}")]
    TooLong,
    /// A character that is in no name.
    #[error("has the character {0:?}")]
    Character(char),
    /// IDNA has no such name.
    #[error("is not valid under IDNA")]
    International,
    /// Resolvers take it for an address, written in an unusual way.
    #[error("ends in a number and is no address")]
    Number,
}

impl Name {
    /// Takes a name in any of its forms: upper case, U-labels, a dot at the end.
    ///
    /// # Errors
    ///
    /// If the text is no name.
    pub fn parse(text: &str) -> Result<Self, NotAName> {
        let name = labels(text)?;
        let last = name.rsplit('.').next().unwrap_or_default();
        // As browsers and libc read it: `127.1`, `2130706433` and `0x7f000001` are addresses there.
        let is_number = last.bytes().all(|byte| byte.is_ascii_digit())
            || last.strip_prefix("0x").is_some_and(|rest| rest.bytes().all(|byte| byte.is_ascii_hexdigit()));
        if is_number { Err(NotAName::Number) } else { Ok(Self(name.into())) }
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        Self::parse(text)
    }
}

/// The labels of a name or of a part of one, in the form of a [`Name`].
pub(crate) fn labels(text: &str) -> Result<String, NotAName> {
    if text.len() > MAX_TEXT {
        return Err(NotAName::TooLong);
    }
    let mut name = text.to_ascii_lowercase();
    if !name.is_ascii() || name.contains("xn--") {
        let ascii = idna::domain_to_ascii_cow(name.as_bytes(), idna::AsciiDenyList::EMPTY);
        name = ascii.map_err(|_| NotAName::International)?.into_owned();
    }
    if name.ends_with('.') {
        name.pop();
    }
    let bad = |c: &char| !(c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.'));
    if let Some(bad) = name.chars().find(bad) {
        return Err(NotAName::Character(bad));
    }
    if name.split('.').any(str::is_empty) {
        return Err(NotAName::Empty);
    }
    if name.len() > MAX_NAME || name.split('.').any(|label| label.len() > MAX_LABEL) {
        return Err(NotAName::TooLong);
    }
    Ok(name)
}

/// A host, as a request or a secret's destination states it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// By name.
    Name(Name),
    /// By address; one of IPv4 that is mapped into IPv6 is that address of IPv4.
    Address(IpAddr),
}

impl Host {
    /// Takes a name or an address, the latter in brackets or without.
    ///
    /// # Errors
    ///
    /// If the text is neither.
    pub fn parse(text: &str) -> Result<Self, NotAName> {
        if let Some(inside) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            let address: Ipv6Addr = inside.parse().map_err(|_| NotAName::Character('['))?;
            return Ok(Self::Address(IpAddr::V6(address).to_canonical()));
        }
        match text.parse::<IpAddr>() {
            Ok(address) => Ok(Self::Address(address.to_canonical())),
            Err(_) => Name::parse(text).map(Self::Name),
        }
    }

    /// The host of an HTTP authority, whose port is left aside.
    ///
    /// # Errors
    ///
    /// If the text is no `host` or `host:port`.
    pub fn of_authority(text: &str) -> Result<Self, NotAName> {
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if host.ends_with(']') || !host.contains(':') => (host, Some(port)),
            _ => (text, None),
        };
        if port.is_some_and(|port| self::port(port).is_none()) {
            return Err(NotAName::Character(':'));
        }
        Self::parse(host)
    }

    /// The name, if the host is stated by one.
    #[must_use]
    pub fn name(&self) -> Option<&Name> {
        match self {
            Self::Name(name) => Some(name),
            Self::Address(_) => None,
        }
    }
}

/// A port: digits and nothing else.
pub(crate) fn port(text: &str) -> Option<u16> {
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Result<String, NotAName> {
        Name::parse(text).map(|name| name.as_str().to_owned())
    }

    #[test]
    fn one_form_of_each_name() {
        for (text, form) in [
            ("ok.test", "ok.test"),
            ("OK.Test.", "ok.test"),
            ("_sip._tcp.ok.test", "_sip._tcp.ok.test"),
            ("r3---sn-x.ok.test", "r3---sn-x.ok.test"),
            ("BÜCHER.test", "xn--bcher-kva.test"),
            ("xn--BCHER-kva.test", "xn--bcher-kva.test"),
            ("bücher\u{3002}test\u{3002}", "xn--bcher-kva.test"),
            ("localhost", "localhost"),
            ("1.0x.test", "1.0x.test"),
        ] {
            assert_eq!(name(text).as_deref(), Ok(form), "{text}");
        }
        let longest = format!("{0}.{0}.{0}.{1}", "a".repeat(63), "b".repeat(61));
        assert_eq!(name(&longest).map(|name| name.len()), Ok(MAX_NAME));
    }

    #[test]
    fn no_names() {
        let long = format!("{}.test", "a".repeat(64));
        let longer = "a.".repeat(127) + "b";
        for (text, error) in [
            ("", NotAName::Empty),
            (".", NotAName::Empty),
            ("a..b", NotAName::Empty),
            ("ok.test..", NotAName::Empty),
            (".ok.test", NotAName::Empty),
            (&long, NotAName::TooLong),
            (&longer, NotAName::TooLong),
            (&"ü".repeat(600), NotAName::TooLong),
            ("ok%2etest", NotAName::Character('%')),
            ("ok test", NotAName::Character(' ')),
            ("a@ok.test", NotAName::Character('@')),
            ("ok.test:80", NotAName::Character(':')),
            ("ok.te*t", NotAName::Character('*')),
            ("ok\0.test", NotAName::Character('\0')),
            ("xn--\u{7f}.test", NotAName::International),
            ("xn--zz--.test", NotAName::International),
            ("127.1", NotAName::Number),
            ("2130706433", NotAName::Number),
            ("ok.0x7f", NotAName::Number),
            ("10.0.0.1", NotAName::Number),
        ] {
            assert_eq!(name(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn hosts_and_authorities() {
        let address = |text: &str| Ok(Host::Address(text.parse().expect("an address")));
        assert_eq!(Host::parse("[::1]"), address("::1"));
        assert_eq!(Host::parse("::1"), address("::1"));
        assert_eq!(Host::parse("[::ffff:127.0.0.1]"), address("127.0.0.1"));
        assert_eq!(Host::parse("192.0.2.1"), address("192.0.2.1"));
        for text in ["ok.test", "OK.test:443", "ok.test.:0"] {
            assert_eq!(Host::of_authority(text), Name::parse("ok.test").map(Host::Name), "{text}");
        }
        assert_eq!(Host::of_authority("[2001:db8::1]:443"), address("2001:db8::1"));
        assert_eq!(Host::of_authority("192.0.2.1:80"), address("192.0.2.1"));
        for text in [
            "",
            ":80",
            "ok.test:",
            "ok.test:+1",
            "ok.test:65536",
            "[::1",
            "[fe80::1%25eth0]",
            "[ok.test]",
            "a:b:c",
            "010.0.0.1",
        ] {
            assert!(Host::of_authority(text).is_err(), "{text}");
        }
    }
}
