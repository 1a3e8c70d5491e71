//! Names of images: `[host[:port]/]repository[:tag][@digest]`, read as Docker reads them.
//!
//! A name is valid by construction, so that its parts fit into a URL unchanged. Not here: mirrors, and requests.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};

use images::Digest;

/// Longest name of a registry and repository together; Docker's own registry has the same limit.
const MAX_REPOSITORY_LEN: usize = 255;

/// Longest tag. OCI distribution specification, pulling manifests: a tag is "at most 128 characters in length".
const MAX_TAG_LEN: usize = 128;

/// The registry of names without one, and the host that serves it.
const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_HOST: &str = "registry-1.docker.io";

/// A registry, a repository in it, and a tag or digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Name {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// The reason why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an image reference: {why}")]
pub struct NameError {
    /// The text, shortened.
    text: String,
    /// The reason.
    why: &'static str,
}

impl Name {
    /// Parses a name.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        read(text).map_err(|why| NameError { text: text.chars().take(MAX_REPOSITORY_LEN).collect(), why })
    }

    /// The registry's name; `docker.io` if none was given.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The host, with its port, that serves the registry.
    #[must_use]
    pub fn host(&self) -> &str {
        if self.registry == DOCKER_HUB { DOCKER_HUB_HOST } else { &self.registry }
    }

    /// The repository, `library/alpine` for `alpine`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The digest if there is one, else the tag: the part of a request for the manifest.
    #[must_use]
    pub fn version(&self) -> &str {
        match (&self.digest, &self.tag) {
            (Some(digest), _) => digest.as_str(),
            (None, Some(tag)) => tag,
            (None, None) => "latest",
        }
    }

    /// The digest that the manifest must have.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Whether the registry is on this host, and may use plain HTTP without further configuration.
    #[must_use]
    pub fn is_loopback(&self) -> bool {
        let (host, _) = host_and_port(&self.registry);
        host == "localhost"
            || host.parse().is_ok_and(|ip: Ipv4Addr| ip.is_loopback())
            || bracketed(host).is_some_and(|ip| ip.is_loopback())
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match (&self.digest, &self.tag) {
            (Some(digest), _) => write!(f, "@{digest}"),
            (None, _) => write!(f, ":{}", self.version()),
        }
    }
}

fn read(text: &str) -> Result<Name, &'static str> {
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => {
            (rest, Some(Digest::parse(digest).map_err(|_| "its digest is not a sha256 digest")?))
        }
        None => (text, None),
    };
    // A colon before the last slash is a registry's port.
    let (rest, tag) = match rest.rsplit_once(':') {
        Some((rest, tag)) if !tag.contains('/') => (rest, Some(tag)),
        _ => (rest, None),
    };
    if tag.is_some_and(|tag| !is_tag(tag)) {
        return Err("its tag has characters that tags do not have");
    }
    let (registry, repository) = match rest.split_once('/') {
        Some((first, rest)) if first.contains(['.', ':']) || first == "localhost" => (first, rest),
        _ => (DOCKER_HUB, rest),
    };
    let registry = if registry == "index.docker.io" { DOCKER_HUB } else { registry };
    if !is_registry(registry) {
        return Err("its registry is not a host name or address");
    }
    if !repository.split('/').all(is_component) {
        return Err("its repository is not lower-case words");
    }
    let repository = if registry == DOCKER_HUB && !repository.contains('/') {
        format!("library/{repository}")
    } else {
        repository.to_owned()
    };
    if registry.len() + repository.len() > MAX_REPOSITORY_LEN {
        return Err("it is too long");
    }
    Ok(Name { registry: registry.to_owned(), repository, tag: tag.map(str::to_owned), digest })
}

/// OCI distribution specification, pulling manifests: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
fn is_tag(tag: &str) -> bool {
    let first = tag.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    first && tag.len() <= MAX_TAG_LEN && tag.bytes().all(valid)
}

/// OCI distribution specification, pulling manifests: `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(component: &str) -> bool {
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = [component.bytes().next(), component.bytes().next_back()];
    let separators = component.split(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit());
    let separator = |text: &str| {
        matches!(text, "" | "." | "_" | "__") || !text.is_empty() && text.bytes().all(|byte| byte == b'-')
    };
    ends.iter().all(|end| end.is_some_and(word)) && separators.into_iter().all(separator)
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = host_and_port(registry);
    let label = |label: &str| {
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty() && !label.starts_with('-') && !label.ends_with('-') && label.bytes().all(valid)
    };
    let digits = |port: &str| port.bytes().all(|byte| byte.is_ascii_digit());
    port.is_none_or(|port| digits(port) && port.parse::<u16>().is_ok_and(|port| port > 0))
        && (bracketed(host).is_some() || host.split('.').all(label))
}

fn host_and_port(registry: &str) -> (&str, Option<&str>) {
    match registry.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (registry, None),
    }
}

/// RFC 3986 §3.2.2: an IPv6 address is "distinguished by enclosing the IP literal within square brackets".
fn bracketed(host: &str) -> Option<Ipv6Addr> {
    host.strip_prefix('[')?.strip_suffix(']')?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_names_mean() {
        let hex = "0".repeat(64);
        for (text, host, whole) in [
            ("alpine", "registry-1.docker.io", "docker.io/library/alpine:latest"),
            ("index.docker.io/alpine", "registry-1.docker.io", "docker.io/library/alpine:latest"),
            ("alpine/git:2", "registry-1.docker.io", "docker.io/alpine/git:2"),
            ("localhost/x", "localhost", "localhost/x:latest"),
            ("[::1]:5000/a/b__c:V_1", "[::1]:5000", "[::1]:5000/a/b__c:V_1"),
            ("ghcr.io/a/b---c.d", "ghcr.io", "ghcr.io/a/b---c.d:latest"),
            (&format!("r.io:1/x:1@sha256:{hex}"), "r.io:1", &format!("r.io:1/x@sha256:{hex}")),
        ] {
            let name = Name::parse(text).unwrap();
            assert_eq!((name.host(), name.to_string().as_str()), (host, whole));
        }
    }

    #[test]
    fn the_longest_name_can_be_read_again() {
        let repository = "a".repeat(MAX_REPOSITORY_LEN - "docker.io".len() - "library/".len());
        let whole = Name::parse(&repository).unwrap().to_string();
        assert_eq!(Name::parse(&whole).unwrap().to_string(), whole);
        assert!(Name::parse(&format!("{repository}a")).is_err());
    }

    #[test]
    fn what_is_no_name() {
        let long = "a".repeat(300);
        for text in [
            "",
            "A",
            "a//b",
            "a/",
            "/a",
            "a:",
            "a:-",
            "a___b",
            "-a",
            "a..b",
            "a/../b",
            "a@sha256:0",
            "r.io:0/a",
            "r.io:99999/a",
            "r.io:+1/a",
            "-r.io/a",
            "r.io?/a",
            "u@r.io/a",
            "[::g]:1/a",
            "a b",
            "ä",
            &long,
        ] {
            assert!(Name::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_is_on_this_host() {
        for (text, wanted) in [
            ("localhost:5000/x", true),
            ("127.8.0.1:5000/x", true),
            ("[::1]:5000/x", true),
            ("localhost.example.org/x", false),
            ("127.0.0.1.example.org/x", false),
            ("10.0.0.1:5000/x", false),
            ("x", false),
        ] {
            assert_eq!(Name::parse(text).unwrap().is_loopback(), wanted, "{text}");
        }
    }
}
