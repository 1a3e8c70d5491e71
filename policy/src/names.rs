//! Checks of names and addresses that the user gives a guest.
//!
//! Not here: their use.

use std::net::IpAddr;

/// Longest host name that Linux takes (`__NEW_UTS_LEN`).
pub const MAX_HOSTNAME: usize = 64;

/// Longest label of a host name (RFC 1035 §2.3.4).
const MAX_LABEL: usize = 63;

/// A name that is not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name is empty, or has a character that no variable's name can have.
    #[error("invalid environment variable {0:?}")]
    Env(String),
    /// The value has a NUL byte.
    #[error("invalid environment variable {0:?}: its value has a NUL character")]
    EnvValue(String),
    /// The text is no host name by RFC 1123.
    #[error(
        "invalid hostname {0:?}: letters, digits and hyphens in labels of 1 to 63, {MAX_HOSTNAME} in all"
    )]
    Hostname(String),
    /// The text is not `host:ip`.
    #[error("invalid add-host mapping {0:?}: expected host:ip")]
    AddHost(String),
}

/// Checks the name and value of an environment variable.
pub fn env(name: &str, value: &str) -> Result<(), NameError> {
    if name.is_empty() || name.contains(|c: char| c == '=' || c.is_control() || c.is_whitespace()) {
        return Err(NameError::Env(name.into()));
    }
    if value.contains('\0') {
        return Err(NameError::EnvValue(name.into()));
    }
    Ok(())
}

/// Checks a host name.
pub fn hostname(name: &str) -> Result<(), NameError> {
    // RFC 1123 §2.1: "the first character is relaxed to allow either a letter or a digit"; RFC 952: the last character
    // is no hyphen.
    let label = |label: &str| {
        (1..=MAX_LABEL).contains(&label.len())
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if name.len() <= MAX_HOSTNAME && name.split('.').all(label) {
        Ok(())
    } else {
        Err(NameError::Hostname(name.into()))
    }
}

/// Splits `host:ip` at the first colon, so that the address may be IPv6.
pub fn add_host(mapping: &str) -> Result<(&str, IpAddr), NameError> {
    let error = || NameError::AddHost(mapping.into());
    let (host, ip) = mapping.split_once(':').ok_or_else(error)?;
    // /etc/hosts would split the line at blanks and comments.
    let plain =
        !host.is_empty() && host.len() <= 253 && host.chars().all(|c| c.is_ascii_graphic() && c != '#');
    let ip = ip.parse().map_err(|_| error())?;
    if plain { Ok((host, ip)) } else { Err(error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn env_names() {
        for name in ["A", "_", "foo.bar", "A1", "Ünï"] {
            assert_eq!(env(name, "any = thing\n"), Ok(()), "{name}");
        }
        for name in ["", "A=B", "A B", "A\0", "A\n"] {
            assert_eq!(env(name, ""), Err(NameError::Env(name.into())));
        }
        assert_eq!(env("A", "x\0"), Err(NameError::EnvValue("A".into())));
    }

    #[test]
    fn hostnames() {
        let long = "a".repeat(63);
        for name in ["vm-0123abcd", "a", "3com", "a.b-c.d", "A1", &long] {
            assert_eq!(hostname(name), Ok(()), "{name}");
        }
        let longer = "a".repeat(64);
        let many = format!("{long}.{long}");
        for name in ["", ".", "a.", ".a", "-a", "a-", "a_b", "a b", "a\nb", "ä", &longer, &many] {
            assert_eq!(hostname(name), Err(NameError::Hostname(name.into())));
        }
    }

    #[test]
    fn add_host_mappings() {
        assert_eq!(add_host("db:10.0.0.1"), Ok(("db", [10, 0, 0, 1].into())));
        assert_eq!(add_host("six:fe80::1"), Ok(("six", "fe80::1".parse().unwrap())));
        for mapping in
            ["", "db", "db:", ":10.0.0.1", "d b:10.0.0.1", "db:10.0.0", "db:10.0.0.1\n", "#x:10.0.0.1"]
        {
            assert_eq!(add_host(mapping), Err(NameError::AddHost(mapping.into())), "{mapping:?}");
        }
    }
}
