//! One paragraph of a `Packages` index.

use crate::release::{Expected, is_sha256};

/// The record of one package in a signed index.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Record {
    pub(crate) version: String,
    pub(crate) sha256: String,
    pub(crate) depends: String,
    /// The file's path below the mirror's root; empty if apt knows it.
    filename: String,
    /// Length of the package file.
    size: Option<u64>,
}

impl Record {
    /// Parses the first paragraph of a text.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let record = text.split("\n\n").next()?;
        let field = |name: &str| {
            let value = record.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
            value.map(|value| value.trim().to_owned())
        };
        Some(Self {
            version: field("Version")?,
            sha256: field("SHA256").filter(|hex| is_sha256(hex))?.to_ascii_lowercase(),
            depends: field("Depends").unwrap_or_default(),
            filename: field("Filename").unwrap_or_default(),
            size: field("Size").and_then(|size| size.parse().ok()),
        })
    }

    /// The package file's path on a mirror, and its digest and length.
    pub(crate) fn file(&self) -> Option<(&str, Expected)> {
        // The path becomes part of a URL.
        let valid = |byte: u8| byte.is_ascii_alphanumeric() || b"+-._~/".contains(&byte);
        let inside = self.filename.split('/').all(|part| !matches!(part, "" | "." | ".."));
        let good = inside && self.filename.bytes().all(valid);
        let expected = Expected { sha256: self.sha256.clone(), len: self.size? };
        good.then_some((self.filename.as_str(), expected))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RECORD: &str = "Package: linux-image-cloud-amd64\nVersion: 6.1.192-2\n\
        Depends: linux-image-6.1.0-56-cloud-amd64 (= 6.1.192-2), foo | bar\n\
        Filename: pool/main/l/linux-signed-amd64/linux-image-cloud-amd64_6.1.192-2_amd64.deb\nSize: 1480\n\
        SHA256: 00be21c0c17f08ddf26e82d3b53fe7a41efa4a288938da6bb69e89c4b25c281d\n\nPackage: other\nVersion: 1\n";

    #[test]
    fn first_record_is_taken() {
        let record = Record::parse(RECORD).unwrap();
        assert_eq!(record.version, "6.1.192-2");
        assert!(record.sha256.starts_with("00be21c0"));
        assert!(record.depends.starts_with("linux-image-6.1.0-56-cloud-amd64"));
        let (filename, expected) = record.file().unwrap();
        assert_eq!(
            (filename.rsplit('/').next().unwrap(), expected.len),
            ("linux-image-cloud-amd64_6.1.192-2_amd64.deb", 1480)
        );
    }

    #[test]
    fn record_without_digest_is_none() {
        for text in ["Package: a\nVersion: 1\n", "Package: a\nVersion: 1\nSHA256: zz\n", ""] {
            assert_eq!(Record::parse(text), None);
        }
    }

    #[test]
    fn files_stay_below_the_mirror() {
        let good = Record::parse(RECORD).unwrap();
        for filename in ["", "/a", "a/../b", "a//b", "a?b", "a b", "http://x", "a/./b", "a%2e"] {
            assert_eq!(Record { filename: filename.to_owned(), ..good.clone() }.file(), None, "{filename}");
        }
        assert_eq!(Record { size: None, ..good }.file(), None);
    }
}
