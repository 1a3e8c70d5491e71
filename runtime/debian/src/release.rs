//! A suite's `InRelease`: its signatures, its period, and the digests that it vouches for.
//!
//! Debian's repository format: <https://wiki.debian.org/DebianRepository/Format>. Only the signed text is ever read.
//! Not here: fetching the file.

use jiff::civil::DateTime;
use pgp::composed::CleartextSignedMessage;

use crate::keys::Keys;

/// Largest `InRelease`. Debian 12 has 151 kB in 1,600 lines.
pub(crate) const MAX_RELEASE_BYTES: u64 = 512 << 10;

/// Most lines of an `InRelease`: the time for finding the signature in hostile text grows with their square.
const MAX_LINES: usize = 8192;

/// Most signatures that are checked; each costs a public-key operation for every key.
const MAX_SIGNATURES: usize = 8;

/// How far this host's clock may be behind the signer's.
pub(crate) const MAX_AHEAD_SECONDS: u64 = 24 * 3600;

/// A release that a trusted key has signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Release {
    /// The release's date, in seconds since 1970.
    pub(crate) date: u64,
    /// Whether files can be requested by their digest.
    pub(crate) by_hash: bool,
    text: String,
}

/// The digest and length that a file must have.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Expected {
    /// SHA-256 in hex.
    pub(crate) sha256: String,
    /// Length in bytes.
    pub(crate) len: u64,
}

/// The reason why a release is not trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReleaseError {
    /// The file is no signed text.
    #[error("not a signed release")]
    Malformed,
    /// No signature is by a trusted key that is valid now.
    #[error("no valid signature of a known key")]
    Signature,
    /// The signed text is about another suite.
    #[error("it is of {0:?}, not of {1}")]
    Suite(String, String),
    /// A field is missing or not understood.
    #[error("its field {0} is missing or broken")]
    Field(&'static str),
    /// The release has expired.
    #[error("it was valid until {0} only")]
    Expired(String),
    /// The release is from the future.
    #[error("it is of {0}, which has not come yet by this host's clock")]
    Future(String),
    /// The release is older than one that was seen before.
    #[error("it is older than one that was here before: {0}")]
    Older(String),
    /// The release is older than the oldest acceptable one.
    #[error("it is of {0}, and newer ones are known to this program")]
    Outdated(String),
    /// The release does not list a needed file.
    #[error("it has no digest for {0}")]
    NotListed(String),
}

impl Release {
    /// Reads and verifies an `InRelease` of `suite`.
    pub(crate) fn open(bytes: &[u8], suite: &str, keys: &Keys, now: u64) -> Result<Self, ReleaseError> {
        let text = std::str::from_utf8(bytes).map_err(|_| ReleaseError::Malformed)?;
        if bytes.len() as u64 > MAX_RELEASE_BYTES || text.lines().count() > MAX_LINES {
            return Err(ReleaseError::Malformed);
        }
        let (message, _) = CleartextSignedMessage::from_string(text).map_err(|_| ReleaseError::Malformed)?;
        let text = message.signed_text();
        let mut signatures = message.signatures().iter().take(MAX_SIGNATURES);
        if !signatures.any(|signature| keys.have_signed(signature, &text, now)) {
            return Err(ReleaseError::Signature);
        }
        Self::read(&text, suite, now)
    }

    /// Reads the signed text.
    pub(crate) fn read(text: &str, suite: &str, now: u64) -> Result<Self, ReleaseError> {
        // The signature is over CRLF, which belongs to no name or digest.
        let text = text.replace("\r\n", "\n");
        let codename = field(&text, "Codename").unwrap_or_default();
        if codename != suite {
            return Err(ReleaseError::Suite(codename.chars().take(64).collect(), suite.to_owned()));
        }
        let said = field(&text, "Date").ok_or(ReleaseError::Field("Date"))?;
        let date = seconds(said).ok_or(ReleaseError::Field("Date"))?;
        if date > now + MAX_AHEAD_SECONDS {
            return Err(ReleaseError::Future(said.to_owned()));
        }
        if let Some(said) = field(&text, "Valid-Until") {
            let until = seconds(said).ok_or(ReleaseError::Field("Valid-Until"))?;
            if until < now {
                return Err(ReleaseError::Expired(said.to_owned()));
            }
        }
        let by_hash = field(&text, "Acquire-By-Hash") == Some("yes");
        Ok(Self { date, by_hash, text })
    }

    /// Refuses a release that is older than `seen` or `floor`, so that nobody takes Debian back behind its own fixes.
    pub(crate) fn not_before(self, seen: u64, floor: u64) -> Result<Self, ReleaseError> {
        let said = || field(&self.text, "Date").unwrap_or_default().to_owned();
        if self.date < floor {
            return Err(ReleaseError::Outdated(said()));
        }
        if self.date < seen {
            return Err(ReleaseError::Older(said()));
        }
        Ok(self)
    }

    /// The digest and length of the file at this path.
    pub(crate) fn expected(&self, path: &str) -> Result<Expected, ReleaseError> {
        let lines = self.text.lines().skip_while(|line| *line != "SHA256:").skip(1);
        let lines = lines.take_while(|line| line.starts_with(' '));
        for line in lines {
            let mut words = line.split_whitespace();
            let (Some(sha256), Some(len), Some(name)) = (words.next(), words.next(), words.next()) else {
                continue;
            };
            if name == path {
                let len = len.parse().ok().filter(|_| is_sha256(sha256));
                let len = len.ok_or(ReleaseError::Field("SHA256"))?;
                return Ok(Expected { sha256: sha256.to_ascii_lowercase(), len });
            }
        }
        Err(ReleaseError::NotListed(path.to_owned()))
    }
}

/// Whether a text is a SHA-256 in hex.
pub(crate) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// A one-line field of the first paragraph.
fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
}

/// Parses a date as in Debian policy: RFC 5322, always UTC.
fn seconds(date: &str) -> Option<u64> {
    let time = DateTime::strptime("%a, %d %b %Y %H:%M:%S UTC", date).ok()?;
    let time = time.to_zoned(jiff::tz::TimeZone::UTC).ok()?;
    u64::try_from(time.timestamp().as_second()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates() {
        assert_eq!(seconds("Sat, 11 Jul 2026 10:16:37 UTC"), Some(1_783_764_997));
        assert_eq!(seconds("Sat, 1 Aug 2026 00:00:00 UTC"), Some(1_785_542_400));
        for wrong in [
            "",
            "yesterday",
            "2026-07-11",
            "Sat, 11 Jul 2026 10:16:37 +0200",
            "Mon, 11 Jul 2026 10:16:37 UTC",
        ] {
            assert_eq!(seconds(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn digests_are_of_the_right_list() {
        let (md5, sha256) = ("1".repeat(32), "a".repeat(64));
        let text = format!(
            "Date: x\nMD5Sum:\n {md5} 1 a\nSHA256:\n {sha256} 17 a\n short 1 b\nSHA512:\n {sha256} 1 c\n"
        );
        let release = Release { date: 0, by_hash: false, text };
        assert_eq!(release.expected("a"), Ok(Expected { sha256, len: 17 }));
        assert_eq!(release.expected("b"), Err(ReleaseError::Field("SHA256")));
        assert_eq!(release.expected("c"), Err(ReleaseError::NotListed("c".into())));
    }

    /// GnuPG wrote key and text, as it does Debian's.
    #[test]
    fn what_gnupg_signs_is_believed_while_it_holds() {
        let keys = Keys::parse([include_str!("../tests/gpg/key.asc")]).unwrap();
        let text = include_str!("../tests/gpg/InRelease");
        let open = |text: &str, now| Release::open(text.as_bytes(), "test", &keys, now);
        let made = 1_767_268_800;
        let release = open(text, made + 60).unwrap();
        assert_eq!((release.date, release.by_hash), (made, true));
        assert_eq!(release.expected("main/binary-amd64/Packages.xz").unwrap().len, 1);
        assert_eq!(open(&text.replace('\n', "\r\n"), made).unwrap().text, release.text);
        assert_eq!(open(&text.replace("Origin: Test", "Origin: Rest"), made), Err(ReleaseError::Signature));
        assert!(matches!(open(text, made + 31 * 24 * 3600), Err(ReleaseError::Expired(_))));
        // The key has expired.
        assert_eq!(open(text, made + 3 * 365 * 24 * 3600), Err(ReleaseError::Signature));
        assert_eq!(open(text, made - 2 * MAX_AHEAD_SECONDS), Err(ReleaseError::Signature));
        assert_eq!(
            Release::open(text.as_bytes(), "test", &Keys::debian().unwrap(), made),
            Err(ReleaseError::Signature)
        );
    }

    /// Every truncation and many single-byte changes: an error, or the same text, never a panic.
    #[test]
    fn what_is_believed_is_what_was_signed() {
        let keys = Keys::parse([include_str!("../tests/gpg/key.asc")]).unwrap();
        let good = include_str!("../tests/gpg/InRelease").as_bytes();
        let made = 1_767_268_800;
        let signed = Release::open(good, "test", &keys, made).unwrap();
        let check = |bytes: &[u8]| match Release::open(bytes, "test", &keys, made) {
            Ok(release) => {
                assert_eq!(release, signed);
                1
            }
            Err(_) => 0,
        };
        let cut: usize = (0..good.len()).map(|end| check(&good[..end])).sum();
        let changes = (0..good.len()).flat_map(|at| [0x01, 0x20, 0x80].map(|bit| (at, bit)));
        let changed: usize = changes
            .map(|(at, bit)| {
                let mut changed = good.to_vec();
                changed[at] ^= bit;
                check(&changed)
            })
            .sum();
        // Only the last line break, and parts of the armor and of the unhashed area, may change without effect.
        assert!(cut <= 1 && changed < good.len() / 10, "{cut} {changed}");
    }

    #[test]
    fn hostile_texts_are_errors_soon() {
        let keys = Keys::debian().unwrap();
        let begin = "-----BEGIN PGP SIGNED MESSAGE-----\nHash: SHA256\n\n";
        let signature = "-----BEGIN PGP SIGNATURE-----\n\nAAAA\n-----END PGP SIGNATURE-----\n";
        let lines = |count| format!("{begin}{}{signature}", "x\n".repeat(count));
        for text in [
            String::new(),
            "x".to_owned(),
            begin.to_owned(),
            format!("{begin}{signature}"),
            format!("junk\n{begin}x\n{signature}"),
            lines(8000),
            lines(200_000),
            "\n".repeat(500_000),
            format!("{begin}{}", "-".repeat(500_000)),
        ] {
            let error = Release::open(text.as_bytes(), "bookworm", &keys, 0).unwrap_err();
            assert!(matches!(error, ReleaseError::Malformed | ReleaseError::Signature), "{error}");
        }
        assert_eq!(Release::open(b"\xff", "bookworm", &keys, 0), Err(ReleaseError::Malformed));
    }
}
