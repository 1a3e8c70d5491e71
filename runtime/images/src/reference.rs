//! Image references: their syntax, and their normal form.

use crate::{Error, Result};

/// Longest reference: a registry name, a repository, a tag and a digest fit.
const MAX_LEN: usize = 512;

/// Checks a reference from outside: names, tags and digests have no other characters, and do not begin like an
/// option.
pub fn check(reference: &str) -> Result<()> {
    let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"._-/:@+".contains(&byte);
    let first = reference.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && reference.len() <= MAX_LEN && reference.bytes().all(valid) {
        Ok(())
    } else {
        Err(Error::Reference(reference.chars().take(MAX_LEN).collect()))
    }
}

/// The short form of a reference with its tag: `docker.io/library/busybox` is `busybox:latest`. A prefix without
/// which the reference would mean another registry or repository stays.
pub(crate) fn normalized(reference: &str) -> String {
    let below = reference.strip_prefix("docker.io/").or_else(|| reference.strip_prefix("index.docker.io/"));
    let named = |rest: &&str| rest.starts_with(|first: char| first.is_ascii_alphanumeric());
    let short = match below.filter(named) {
        None => reference.to_owned(),
        Some(rest) if names_registry(rest) => format!("docker.io/{rest}"),
        Some(rest) => {
            let official = rest.strip_prefix("library/").filter(|name| named(name) && !name.contains('/'));
            official.unwrap_or(rest).to_owned()
        }
    };
    // A colon before the last slash is a registry's port.
    let name = short.rsplit('/').next().unwrap_or(&short);
    if name.contains([':', '@']) { short } else { format!("{short}:latest") }
}

/// Whether a reference begins with a registry, as Docker reads it.
fn names_registry(reference: &str) -> bool {
    reference.split_once('/').is_some_and(|(first, _)| first.contains(['.', ':']) || first == "localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_means_the_same() {
        for (reference, wanted) in [
            ("busybox", "busybox:latest"),
            ("docker.io/library/busybox", "busybox:latest"),
            ("docker.io/library/busybox:1.36", "busybox:1.36"),
            ("docker.io/alpine/git", "alpine/git:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("localhost:5000/x:1", "localhost:5000/x:1"),
            ("x@sha256:00", "x@sha256:00"),
            // The short forms of these mean something else.
            ("docker.io/ghcr.io/x", "docker.io/ghcr.io/x:latest"),
            ("index.docker.io/index.docker.io/x", "docker.io/index.docker.io/x:latest"),
            ("docker.io/localhost/x:1", "docker.io/localhost/x:1"),
            ("docker.io/library/alpine/git", "library/alpine/git:latest"),
            ("docker.io/library/", "library/:latest"),
            ("docker.io/", "docker.io/:latest"),
        ] {
            assert_eq!(normalized(reference), wanted);
        }
    }

    #[test]
    fn what_is_none() {
        for reference in ["", "-x", "a b", "a\n", "/x", ".", "ä", &"a".repeat(513)] {
            assert!(check(reference).is_err(), "{reference:?}");
        }
        assert!(check("ghcr.io/a/b_c.d:1.2-3+x@sha256:00").is_ok());
    }
}
