//! Patterns of the lists that users write: for whom, on which ports, with which methods and paths.
//!
//! ```text
//! [METHOD[,METHOD]… ]HOST[:PORT[-PORT]][/PATH]
//! ```
//!
//! HOST is `*`, a name, a name with `*` in it, an address, or a network (`10.0.0.0/8`); IPv6 stands in brackets before a
//! port. PATH is a glob, in which `/**` at the end is everything below. A pattern that is not understood is an error.
//! Not here: looking for the patterns that match.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::name::{self, MAX_NAME, Name, NotAName};
use crate::path::Glob;

/// Longest pattern.
pub const MAX_PATTERN: usize = 1_024;

/// A pattern that cannot be taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("invalid host pattern {pattern:?}: {fault}")]
pub struct PatternError {
    /// The pattern, or its beginning.
    pub pattern: String,
    /// The fault.
    pub fault: Fault,
}

/// The fault of a pattern.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// There is no host.
    #[error("names no host")]
    Empty,
    /// The pattern is longer than [`MAX_PATTERN`].
    #[error("is longer than {MAX_PATTERN} bytes")]
    TooLong,
    /// A URL was given.
    #[error("is a URL; write the host alone, or HOST/PATH")]
    Url,
    /// The host is no name.
    #[error("{0}")]
    Name(#[from] NotAName),
    /// A label with `*` is beyond ASCII.
    #[error("a label with * has to be ASCII")]
    International,
    /// A `*` in place of a part of an address.
    #[error("a network is written as ADDRESS/LENGTH, such as 10.0.0.0/8")]
    AddressWildcard,
    /// The address has bits behind the network's length.
    #[error("the network is {0}")]
    HostBits(IpNet),
    /// No port or range of ports.
    #[error("a port is a number from 1 to 65535, or a range of them")]
    Port,
    /// No name of a method.
    #[error("methods are words in upper case between commas, before the host")]
    Method,
    /// The glob is malformed.
    #[error("the path is no glob that begins with /")]
    Path,
    /// Methods and paths are those of requests, which go to names.
    #[error("an address takes no method and no path, and a network is written as ADDRESS/LENGTH")]
    RequestOfAddress,
    /// Methods and paths are of no use here.
    #[error("takes no methods and no path")]
    Request,
}

/// The hosts of a pattern.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Hosts {
    /// `*`: every name and every address.
    Any,
    /// One name.
    Name(Name),
    /// `*.example.com`: names below this one.
    Below(String),
    /// `example.*`: names that go on behind this.
    Before(String),
    /// Names that have these pieces in this order, the first at their start and the last at their end.
    Pieces(Vec<String>),
    /// Addresses.
    Network(Network),
}

/// Addresses with the same beginning. An address of IPv4 is never in a network of IPv6.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Network {
    pub(crate) is_v4: bool,
    pub(crate) first: u128,
    pub(crate) last: u128,
}

/// A range of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ports {
    pub(crate) first: u16,
    pub(crate) last: u16,
}

impl Ports {
    pub(crate) const ALL: Self = Self { first: 0, last: u16::MAX };
    pub(crate) const HTTP: Self = Self::one(80);
    pub(crate) const HTTPS: Self = Self::one(443);

    const fn one(port: u16) -> Self {
        Self { first: port, last: port }
    }

    pub(crate) fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

/// Requests, by method and path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requests {
    /// In upper case; empty = all.
    pub(crate) methods: Vec<String>,
    pub(crate) path: Option<PathGlob>,
}

impl Requests {
    pub(crate) fn has_method(&self, method: &str) -> bool {
        self.methods.is_empty() || self.methods.iter().any(|own| own.eq_ignore_ascii_case(method))
    }

    pub(crate) fn has_path(&self, path: &str) -> bool {
        self.path.as_ref().is_none_or(|glob| glob.matches(path))
    }
}

/// A glob, and whether it means the path or what is below it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PathGlob {
    pub(crate) glob: Glob,
    below: bool,
}

impl PathGlob {
    /// As rules for requests have it, where `**` is `*`.
    pub(crate) fn of_rule(text: &str) -> Option<Self> {
        Some(Self { glob: Glob::parse(text)?, below: false })
    }

    fn of_pattern(text: &str) -> Option<Self> {
        let (glob, below) = text.strip_suffix("/**").map_or((text, false), |above| (above, true));
        (!glob.contains("**")).then_some(())?;
        Some(Self { glob: Glob::parse(glob)?, below })
    }

    fn matches(&self, path: &str) -> bool {
        if self.below {
            path.match_indices('/').any(|(at, _)| self.glob.matches(&path[..at]))
        } else {
            self.glob.matches(path)
        }
    }
}

/// A pattern of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    text: Arc<str>,
    pub(crate) hosts: Hosts,
    /// `None` = those that are usual for the list.
    pub(crate) ports: Option<Ports>,
    /// `None` = all, and traffic that is no request.
    pub(crate) requests: Option<Requests>,
}

impl Pattern {
    /// Takes a pattern.
    ///
    /// # Errors
    ///
    /// If any part of it is not understood.
    pub fn parse(text: &str) -> Result<Self, PatternError> {
        let text = text.trim();
        parse(text).map_err(|fault| PatternError { pattern: text.chars().take(MAX_PATTERN).collect(), fault })
    }

    /// As it was written, without blanks around it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn text(&self) -> Arc<str> {
        Arc::clone(&self.text)
    }

    /// The same pattern, if it is for hosts and ports alone.
    pub(crate) fn without_requests(self) -> Result<Self, PatternError> {
        match self.requests {
            None => Ok(self),
            Some(_) => Err(PatternError { pattern: self.text.as_ref().to_owned(), fault: Fault::Request }),
        }
    }
}

fn parse(text: &str) -> Result<Pattern, Fault> {
    if text.len() > MAX_PATTERN {
        return Err(Fault::TooLong);
    }
    let (methods, rest) = match text.split_once(char::is_whitespace) {
        Some((methods, rest)) => {
            (methods.split(',').map(upper_method).collect::<Result<_, _>>()?, rest.trim_start())
        }
        None => (Vec::new(), text),
    };
    if rest.contains("://") {
        return Err(Fault::Url);
    }
    let (host, ports, path) = split(rest)?;
    let hosts = hosts(host)?;
    let path = path.map(|path| PathGlob::of_pattern(path).ok_or(Fault::Path)).transpose()?;
    let requests = (path.is_some() || !methods.is_empty()).then_some(Requests { methods, path });
    if requests.is_some() && matches!(hosts, Hosts::Network(_)) {
        return Err(Fault::RequestOfAddress);
    }
    Ok(Pattern { text: text.into(), hosts, ports, requests })
}

/// A method as patterns have it: two names of hosts, by mistake in one pattern, are none.
fn upper_method(text: &str) -> Result<String, Fault> {
    method(text).and_then(|upper| if upper == text { Ok(upper) } else { Err(Fault::Method) })
}

/// A method, in upper case.
pub(crate) fn method(text: &str) -> Result<String, Fault> {
    let is_word = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'-');
    if is_word { Ok(text.to_ascii_uppercase()) } else { Err(Fault::Method) }
}

/// Host, ports and path.
fn split(text: &str) -> Result<(&str, Option<Ports>, Option<&str>), Fault> {
    let is_address = |text: &str| text.parse::<IpAddr>().is_ok() || text.parse::<IpNet>().is_ok();
    if is_address(text) {
        return Ok((text, None, None));
    }
    if let Some((host, port)) =
        text.rsplit_once(':').filter(|(host, _)| is_address(host) && !host.contains(':'))
    {
        return Ok((host, Some(ports(port)?), None));
    }
    let (host, behind) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, behind)) if is_address(host) => (host, behind),
        Some(_) => return Err(Fault::Name(NotAName::Character('['))),
        None => text.split_at(text.find([':', '/']).unwrap_or(text.len())),
    };
    let (port, path) = behind.split_at(behind.find('/').unwrap_or(behind.len()));
    let port = match port.strip_prefix(':') {
        Some(port) => Some(ports(port)?),
        None if port.is_empty() => None,
        None => return Err(Fault::Port),
    };
    Ok((host, port, Some(path).filter(|path| !path.is_empty())))
}

fn ports(text: &str) -> Result<Ports, Fault> {
    let port = |text: &str| name::port(text).filter(|port| *port != 0).ok_or(Fault::Port);
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let ports = Ports { first: port(first)?, last: port(last)? };
    if ports.first <= ports.last { Ok(ports) } else { Err(Fault::Port) }
}

fn hosts(text: &str) -> Result<Hosts, Fault> {
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(Hosts::Network(Network::of(IpNet::from(address))));
    }
    if let Ok(network) = text.parse::<IpNet>() {
        let is_whole = network.addr() == network.network();
        return if is_whole {
            Ok(Hosts::Network(Network::of(network)))
        } else {
            Err(Fault::HostBits(network.trunc()))
        };
    }
    if text.is_empty() {
        return Err(Fault::Empty);
    }
    if !text.contains('*') {
        return Ok(Hosts::Name(Name::parse(text)?));
    }
    let has_digit = text.bytes().any(|byte| byte.is_ascii_digit());
    if has_digit && text.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'*' | b':')) {
        return Err(Fault::AddressWildcard);
    }
    let text = name_with_stars(text)?;
    if text == "*" {
        return Ok(Hosts::Any);
    }
    if let Some(below) = text.strip_prefix("*.").filter(|rest| !rest.contains('*')) {
        return Ok(Hosts::Below(Name::parse(below)?.as_str().to_owned()));
    }
    if let Some(before) = text.strip_suffix(".*").filter(|rest| !rest.contains('*')) {
        return Ok(Hosts::Before(before.to_owned()));
    }
    Ok(Hosts::Pieces(text.split('*').map(ToOwned::to_owned).collect()))
}

/// The text with its labels in the form of a [`Name`]'s, and without stars behind stars, which say nothing more.
fn name_with_stars(text: &str) -> Result<String, Fault> {
    if text.len() > 4 * MAX_NAME {
        return Err(Fault::Name(NotAName::TooLong));
    }
    let text = text.strip_suffix('.').unwrap_or(text);
    let mut form = String::new();
    for (index, label) in text.split('.').enumerate() {
        if index > 0 {
            form.push('.');
        }
        if !label.contains('*') {
            form.push_str(&name::labels(label)?);
            continue;
        }
        if !label.is_ascii() {
            return Err(Fault::International);
        }
        let literal: String = label.chars().filter(|c| *c != '*').collect();
        if !literal.is_empty() {
            name::labels(&literal)?;
        }
        form.push_str(&label.to_ascii_lowercase());
    }
    while form.contains("**") {
        form = form.replace("**", "*");
    }
    if form.len() > MAX_NAME { Err(Fault::Name(NotAName::TooLong)) } else { Ok(form) }
}

impl Network {
    fn of(network: IpNet) -> Self {
        let (first, last) = (network.network(), network.broadcast());
        let mapped =
            matches!(first.to_canonical(), IpAddr::V4(_)) && matches!(last.to_canonical(), IpAddr::V4(_));
        let (first, last) = if mapped { (first.to_canonical(), last.to_canonical()) } else { (first, last) };
        Self { is_v4: mapped, first: number(first), last: number(last) }
    }
}

/// The number that an address is.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(address) => u128::from(u32::from(address)),
        IpAddr::V6(address) => u128::from(address),
    }
}

/// Whether a text has the pieces in their order: the first at its start, the last at its end.
pub(crate) fn has_pieces(pieces: &[String], text: &str) -> bool {
    let [first, middle @ .., last] = pieces else { return false };
    let Some(mut rest) = text.strip_prefix(first.as_str()).and_then(|rest| rest.strip_suffix(last.as_str()))
    else {
        return false;
    };
    middle.iter().all(|piece| match rest.split_once(piece.as_str()) {
        Some((_, behind)) => {
            rest = behind;
            true
        }
        None => false,
    })
}

#[cfg(test)]
mod tests;
