//! Paths in a directory: names, from the directory on.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Most bytes of a path: as many as a program may name a file by.
pub const MAX_PLACE: usize = 4095;

/// Most bytes of a name.
const MAX_NAME: usize = 255;

/// Names, each of a file in the directory before: none is empty, `.` or `..`, and there is at least one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "Vec<u8>", into = "Vec<u8>")]
pub struct Place(Vec<u8>);

impl Place {
    /// The path that these bytes are, with `/` between names.
    #[must_use]
    pub fn new(path: &[u8]) -> Option<Self> {
        let is_name = |name: &[u8]| {
            !name.is_empty() && name != b"." && name != b".." && name.len() <= MAX_NAME && !name.contains(&0)
        };
        let is_place = path.len() <= MAX_PLACE && path.split(|byte| *byte == b'/').all(is_name);
        is_place.then(|| Self(path.to_vec()))
    }

    /// The path of a name in this directory, if it is not too long.
    #[must_use]
    pub fn join(&self, name: &[u8]) -> Option<Self> {
        Self::new(&[&self.0[..], b"/", name].concat())
    }

    /// The bytes, with `/` between names.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The directory that the last name is in; none if that is the first one, too.
    #[must_use]
    pub fn parent(&self) -> Option<Self> {
        self.last_slash().map(|at| Self(self.0.get(..at).unwrap_or_default().to_vec()))
    }

    /// The last name.
    #[must_use]
    pub fn name(&self) -> &[u8] {
        let start = self.last_slash().map_or(0, |at| at + 1);
        self.0.get(start..).unwrap_or_default()
    }

    /// The names in order.
    pub fn names(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/')
    }

    /// Whether this is `above`, or in it.
    #[must_use]
    pub fn is_within(&self, above: &Self) -> bool {
        let rest = self.0.strip_prefix(&above.0[..]);
        rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
    }

    fn last_slash(&self) -> Option<usize> {
        self.0.iter().rposition(|byte| *byte == b'/')
    }
}

impl TryFrom<Vec<u8>> for Place {
    type Error = &'static str;

    fn try_from(path: Vec<u8>) -> Result<Self, Self::Error> {
        Self::new(&path).ok_or("not a path")
    }
}

impl From<Place> for Vec<u8> {
    fn from(place: Place) -> Self {
        place.0
    }
}

/// As text; bytes that are none are shown as what they are.
impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.utf8_chunks().try_for_each(|chunk| {
            f.write_str(chunk.valid())?;
            chunk.invalid().iter().try_for_each(|byte| write!(f, "\\x{byte:02x}"))
        })
    }
}

impl fmt::Debug for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_names() {
        let long = [b'a'; 256];
        for path in [&b""[..], b"/", b"/a", b"a/", b"a//b", b".", b"a/./b", b"..", b"a/..", b"a\0", &long] {
            assert_eq!(Place::new(path), None, "{}", path.escape_ascii());
        }
        assert_eq!(Place::new(&b"a/".repeat(2100)[..4199]), None);
        let place = Place::new(b"a/...b/\xffc").unwrap();
        assert_eq!((place.name(), place.to_string().as_str()), (&b"\xffc"[..], "a/...b/\\xffc"));
        let parent = place.parent().unwrap();
        assert_eq!((parent.name(), parent.join(b"\xffc")), (&b"...b"[..], Some(place.clone())));
        assert_eq!((parent.join(b".."), parent.join(&long)), (None, None));
        assert_eq!(Place::new(b"a").unwrap().parent(), None);
        let within =
            |path: &[u8], above: &[u8]| Place::new(path).unwrap().is_within(&Place::new(above).unwrap());
        assert!(within(b"a/b", b"a") && within(b"a", b"a") && !within(b"ab", b"a") && !within(b"a", b"a/b"));
    }
}
