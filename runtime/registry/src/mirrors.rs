//! The places to request images from: locations, mirrors and blocks of `containers-registries.conf(5)`.
//!
//! ```text
//! [[registry]]                  of the tables whose prefix the name has, the longest counts
//! prefix = "docker.io"          may be "*.example.org"
//! location = "hub.example.org"  stands in the prefix's place
//! insecure, blocked
//! [[registry.mirror]]           asked first, in their order
//! location, insecure, pull-from-mirror = "all" | "digest-only" | "tag-only"
//! ```
//!
//! Not here: short names; a name without a registry is Docker's.

use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::trust::{bounded, is_there};
use crate::{Error, Name};

/// Most mirrors of one image.
pub(crate) const MAX_MIRRORS: usize = 16;

/// A place to request an image from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) name: Name,
    /// Whether plain HTTP is allowed.
    pub(crate) insecure: bool,
}

#[derive(Debug, Default, Deserialize)]
struct File {
    #[serde(default)]
    registry: Vec<Table>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Table {
    prefix: String,
    location: String,
    insecure: bool,
    blocked: bool,
    #[serde(rename = "mirror-by-digest-only")]
    mirror_by_digest_only: bool,
    mirror: Vec<Mirror>,
}

#[derive(Debug, Deserialize)]
struct Mirror {
    location: String,
    #[serde(default)]
    insecure: bool,
    #[serde(default, rename = "pull-from-mirror")]
    pull_from_mirror: Which,
}

/// The names that a mirror is for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum Which {
    #[default]
    All,
    DigestOnly,
    TagOnly,
}

/// The user's own file or else the system's, and the files that either adds.
pub(crate) fn files(home: &Path) -> (Option<PathBuf>, Vec<PathBuf>) {
    let places = [PathBuf::from("/etc/containers"), home.join(".config/containers")];
    let file = places.iter().rev().map(|place| place.join("registries.conf")).find(|path| is_there(path));
    (file, places.map(|place| place.join("registries.conf.d")).into())
}

/// The places to request `name` from, in order. Later files win.
pub(crate) fn places(files: &[PathBuf], name: &Name) -> Result<Vec<Place>, Error> {
    places_in(files.iter().map(|path| Ok((path.as_path(), bounded(path)?))), name)
}

/// The places, from the contents of the files.
pub(crate) fn places_in<'a>(
    files: impl Iterator<Item = Result<(&'a Path, Vec<u8>), Error>>,
    name: &Name,
) -> Result<Vec<Place>, Error> {
    let mut chosen: Option<(&Path, Table)> = None;
    for file in files {
        let (path, bytes) = file?;
        let wrong = |why: &dyn std::fmt::Display| Error::Host(format!("{}: {why}", path.display()));
        let text = String::from_utf8(bytes).map_err(|error| wrong(&error))?;
        let file: File = toml::from_str(&text).map_err(|error| wrong(&error.message()))?;
        for mut table in file.registry {
            if table.prefix.is_empty() {
                table.prefix.clone_from(&table.location);
            }
            let longest = chosen.as_ref().map_or(0, |(_, table)| table.prefix.len());
            if matched(&table.prefix, name).is_some() && table.prefix.len() >= longest {
                chosen = Some((path, table));
            }
        }
    }
    match chosen {
        None => Ok(vec![Place { name: name.clone(), insecure: false }]),
        Some((path, table)) => {
            table.places(name).map_err(|why| Error::Host(format!("{}: {why}", path.display())))
        }
    }
}

impl Table {
    fn places(&self, name: &Name) -> Result<Vec<Place>, String> {
        if self.blocked {
            return Err(format!("{} is blocked", self.prefix));
        }
        let rest = matched(&self.prefix, name).unwrap_or_default();
        let at = |location: &str, insecure: bool| match location {
            "" => Ok(Place { name: name.clone(), insecure }),
            _ => Name::parse(&format!("{location}{rest}"))
                .map(|name| Place { name, insecure })
                .map_err(|error| error.to_string()),
        };
        let by_digest = name.digest().is_some();
        let wanted = |mirror: &&Mirror| match mirror.pull_from_mirror {
            Which::All => by_digest || !self.mirror_by_digest_only,
            Which::DigestOnly => by_digest,
            Which::TagOnly => !by_digest,
        };
        let mirrors = self.mirror.iter().filter(wanted).take(MAX_MIRRORS);
        let mirrors = mirrors.map(|mirror| at(&mirror.location, mirror.insecure));
        mirrors.chain([at(&self.location, self.insecure)]).collect()
    }
}

/// The rest of the whole name after `prefix`, if the name begins with it.
fn matched(prefix: &str, name: &Name) -> Option<String> {
    let whole = name.to_string();
    if let Some(domain) = prefix.strip_prefix("*.") {
        // The prefix is a host, which the location replaces.
        let host = name.registry();
        let below = host.strip_suffix(domain).is_some_and(|label| label.ends_with('.'));
        return below.then(|| whole.get(host.len()..).unwrap_or_default().to_owned());
    }
    let rest = whole.strip_prefix(prefix).filter(|_| !prefix.is_empty())?;
    (rest.is_empty() || rest.starts_with(['/', ':', '@'])).then(|| rest.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(text: &str, name: &str) -> Result<Vec<String>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), text).unwrap();
        let places = places(&[file.path().to_owned()], &Name::parse(name).unwrap());
        let places = places.map_err(|error| error.to_string().split_once(": ").unwrap().1.to_owned())?;
        let insecure = |place: &Place| if place.insecure { "http " } else { "" };
        Ok(places.iter().map(|place| format!("{}{}", insecure(place), place.name)).collect())
    }

    #[test]
    fn the_longest_prefix_decides_where() {
        let text = r#"
            unqualified-search-registries = ["docker.io"]
            [[registry]]
            prefix = "docker.io"
            [[registry.mirror]]
            location = "one.example/hub"
            [[registry.mirror]]
            location = "two.example:5000"
            insecure = true
            pull-from-mirror = "digest-only"
            [[registry]]
            prefix = "docker.io/library/secret"
            location = "own.example/secret"
            [[registry]]
            location = "plain.example:80"
            insecure = true
            [[registry]]
            prefix = "*.bad.example"
            blocked = true
            [[registry]]
            prefix = "*.corp.example"
            location = "cache.example/corp"
        "#;
        let digest = format!("@sha256:{}", "0".repeat(64));
        for (name, wanted) in [
            ("alpine", vec!["one.example/hub/library/alpine:latest", "docker.io/library/alpine:latest"]),
            ("secret:1", vec!["own.example/secret:1"]),
            ("secrets", vec!["one.example/hub/library/secrets:latest", "docker.io/library/secrets:latest"]),
            ("plain.example:80/a/b", vec!["http plain.example:80/a/b:latest"]),
            ("plain.example/a/b", vec!["plain.example/a/b:latest"]),
            ("a.corp.example/x/y:2", vec!["cache.example/corp/x/y:2"]),
            ("corp.example/x", vec!["corp.example/x:latest"]),
        ] {
            assert_eq!(asked(text, name).unwrap(), wanted, "{name}");
        }
        let by_digest = asked(text, &format!("x/y{digest}")).unwrap();
        assert_eq!(by_digest[1], format!("http two.example:5000/x/y{digest}"));
        assert_eq!(by_digest.len(), 3);
        assert_eq!(asked(text, "a.bad.example/x").unwrap_err(), "*.bad.example is blocked");
        assert_eq!(asked("", "x").unwrap(), ["docker.io/library/x:latest"]);
    }

    #[test]
    fn what_makes_no_sense_is_an_error_and_not_the_default() {
        for (text, wanted) in [
            ("[[registry", "unclosed array table"),
            ("registry = 1", "invalid type"),
            ("[[registry]]\nprefix = \"docker.io\"\nlocation = \"UPPER/../x\"", "is not an image reference"),
            ("[[registry]]\nprefix = \"docker.io\"\n[[registry.mirror]]\n", "missing field `location`"),
        ] {
            let error = asked(text, "x").unwrap_err();
            assert!(error.contains(wanted), "{error}");
        }
    }
}
