//! Debian's archive, read from a mirror without apt.
//!
//! The chain has three links: `InRelease`, signed by one of [`Keys`], has the digest of `Packages.xz`, which has the
//! digest of every package file. No byte of a link is parsed before the link above has vouched for all of it. Not
//! here: the packages' use, and the precedence of apt (`archive`).

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use liblzma::read::XzDecoder;
use liblzma::stream::Stream;
use sha2::{Digest, Sha256};
use tokio::sync::Mutex;
use waiting::{CancellationToken, Wanted};

use crate::http::Server;
use crate::keys::Keys;
use crate::record::Record;
use crate::release::{Expected, MAX_RELEASE_BYTES, Release, ReleaseError};
use crate::{Error, MAX_PACKAGE_BYTES, Package, Result, version};

/// The default mirror.
const DEFAULT_URL: &str = "https://deb.debian.org/debian";

/// The variable that names another mirror.
const URL_VARIABLE: &str = "MATCHLOCK_DEBIAN_MIRROR";

/// The release whose packages are used, whose kernel's features are known.
const SUITE: &str = "bookworm";

/// The release's security updates, and their place on a mirror.
const SECURITY_SUITE: &str = "bookworm-security";
const SECURITY_SUFFIX: &str = "-security";

/// The date of the newest Debian 12 release, without updates, at the time of writing. A mirror with an older one
/// would take a host back to kernels with known faults, and signatures would not tell.
const NOT_BEFORE: u64 = 1_783_764_997; // Sat, 11 Jul 2026 10:16:37 UTC

/// How long a mirror may send nothing.
const SILENCE_LIMIT: Duration = Duration::from_secs(20);

/// Largest index, packed and unpacked. Debian 12 has 9 MB and 46 MB.
const MAX_PACKED_INDEX_BYTES: u64 = 64 << 20;
const MAX_INDEX_BYTES: u64 = 512 << 20;

/// Most memory for unpacking an index.
const MAX_UNPACKING_BYTES: u64 = 128 << 20;

/// Longest paragraph of an index.
const MAX_RECORD_BYTES: usize = 1 << 20;

/// A mirror, and the keys that its releases are signed with.
#[derive(Debug, Clone)]
pub struct Mirror {
    /// The suites of the release.
    pub suites: Vec<Suite>,
    /// The keys that sign the suites.
    pub keys: Keys,
    /// How long the mirror may send nothing.
    pub silence: Duration,
}

/// One suite of a mirror.
#[derive(Debug, Clone)]
pub struct Suite {
    /// The URL above `dists` and `pool`: `https://host/path`.
    pub url: String,
    /// The suite's code name.
    pub name: String,
    /// Whether the mirror is useless without this suite. An optional suite that is missing, not signed or expired
    /// only causes a warning; any other fault of it is an error.
    pub required: bool,
    /// The date of the oldest acceptable release, in seconds since 1970.
    pub not_before: u64,
}

impl Mirror {
    /// Debian's suites at this URL. Security updates are looked for beside it.
    pub fn of_debian(url: &str) -> Result<Self> {
        let url = url.trim_end_matches('/');
        let suite = |url, name: &str, required| {
            let (name, not_before) = (name.to_owned(), NOT_BEFORE);
            Suite { url, name, required, not_before }
        };
        let main = suite(url.to_owned(), SUITE, true);
        let security = suite(format!("{url}{SECURITY_SUFFIX}"), SECURITY_SUITE, false);
        Ok(Self { suites: vec![main, security], keys: Keys::debian()?, silence: SILENCE_LIMIT })
    }

    /// The mirror that the user has chosen with `MATCHLOCK_DEBIAN_MIRROR`, if any.
    pub(crate) fn chosen() -> Result<Option<Self>> {
        let url = std::env::var(URL_VARIABLE).ok().filter(|url| !url.is_empty());
        url.map(|url| Self::of_debian(&url)).transpose()
    }

    /// The default mirror, which has security updates.
    pub(crate) fn usual() -> Result<Self> {
        let mut mirror = Self::of_debian(DEFAULT_URL)?;
        mirror.suites.iter_mut().for_each(|suite| suite.required = true);
        Ok(mirror)
    }
}

/// The verified indexes of a mirror, in a directory of their own.
#[derive(Debug)]
pub(crate) struct Indexes(Vec<Index>);

impl Indexes {
    /// Fetches the indexes into `directory`. Beside it, `directory.<suite>.seen` remembers the newest release so far.
    pub(crate) fn fetch(mirror: &Mirror, directory: &Path, given_up: &CancellationToken) -> Result<Self> {
        let mut indexes = Vec::new();
        for suite in &mirror.suites {
            match Index::fetch(suite, mirror, directory, given_up) {
                Ok(index) => indexes.push(index),
                Err(error) if !suite.required && is_absent(&error) => {
                    tracing::warn!("without {}: {error}", suite.name);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(Self(indexes))
    }

    /// The record of the newest package of this name, and its suite; `None` = there is no such package.
    pub(crate) fn record(
        &self,
        name: &str,
        given_up: &CancellationToken,
    ) -> Result<Option<(Record, &Index)>> {
        let mut newest: Option<(Record, &Index)> = None;
        for index in &self.0 {
            let Some(record) = index.record(name, given_up)? else { continue };
            let newer = |(known, _): &(Record, _)| version::compare(&record.version, &known.version).is_gt();
            if newest.as_ref().is_none_or(newer) {
                newest = Some((record, index));
            }
        }
        Ok(newest)
    }

    /// The error for a package that no suite has.
    pub(crate) fn unknown(&self, name: String) -> Error {
        let host = self.0.first().map(|index| index.server.host().to_owned()).unwrap_or_default();
        Error::UnknownOn { name, host }
    }
}

/// Whether the updates are missing, unreachable or expired. An attacker on the network can cause that too, but not
/// that updates with a broken signature are ignored.
fn is_absent(error: &Error) -> bool {
    use ReleaseError::{Expired, Malformed};
    matches!(error, Error::Mirror { .. } | Error::Release { source: Expired(_) | Malformed, .. })
}

/// The index of one suite.
#[derive(Debug)]
pub(crate) struct Index {
    server: Server,
    path: PathBuf,
    /// Allows one lookup at a time: two would only unpack the same index side by side.
    looking: Mutex<()>,
}

impl Index {
    fn fetch(suite: &Suite, mirror: &Mirror, directory: &Path, given_up: &CancellationToken) -> Result<Self> {
        let server = Server::new(&suite.url, mirror.silence)?;
        let seen = directory.with_extension(format!("{}.seen", suite.name));
        let release = release(suite, mirror, &server, &seen, given_up)?;
        let wrong = |source| Error::Release { host: server.host().to_owned(), source };
        let name = format!("main/binary-{}/Packages.xz", architecture());
        let expected = release.expected(&name).map_err(wrong)?;
        if expected.len > MAX_PACKED_INDEX_BYTES {
            return Err(Error::Format("the mirror's index is over the size limit"));
        }
        // A file stays available under its digest while the mirror takes in the next release.
        let (folder, file) = name.rsplit_once('/').unwrap_or_default();
        let place = match release.by_hash {
            true => format!("{folder}/by-hash/SHA256/{}", expected.sha256),
            false => name.clone(),
        };
        let path = directory.join(format!("{}-{file}", suite.name));
        let place = format!("dists/{}/{place}", suite.name);
        download(&server, &place, file, &expected, &path, given_up)?;
        remember(&seen, release.date)?;
        Ok(Self { server, path, looking: Mutex::const_new(()) })
    }

    /// The record of a package; `None` = there is none.
    fn record(&self, name: &str, given_up: &CancellationToken) -> Result<Option<Record>> {
        let looking = waiting::wait_for(given_up, self.looking.lock());
        let _looking = looking.map_err(Error::io(&self.path))?;
        let file = File::open(&self.path).map_err(Error::io(&self.path))?;
        let decoder = Stream::new_stream_decoder(MAX_UNPACKING_BYTES, 0)
            .map_err(|_| Error::Format("the mirror's index cannot be unpacked"))?;
        let text = XzDecoder::new_stream(BufReader::new(file), decoder).take(MAX_INDEX_BYTES);
        let text = Wanted::new(text, given_up);
        find(BufReader::with_capacity(64 << 10, text), name, &self.path)
    }

    /// Fetches a package into `directory`.
    pub(crate) fn package(
        &self,
        name: &str,
        record: &Record,
        directory: &Path,
        given_up: &CancellationToken,
    ) -> Result<Package> {
        let (place, expected) = record.file().ok_or(Error::Format("its record names no file"))?;
        if expected.len > MAX_PACKAGE_BYTES {
            return Err(Error::Format("it is over the size limit"));
        }
        fs::create_dir_all(directory).map_err(Error::io(directory))?;
        let path = directory.join(format!("{name}.deb"));
        download(&self.server, place, name, &expected, &path, given_up)?;
        let Record { version, sha256, .. } = record.clone();
        Ok(Package { name: name.to_owned(), version, sha256, path })
    }
}

/// Debian's name of this host's architecture, which is also its guests'.
fn architecture() -> &'static str {
    if std::env::consts::ARCH == "aarch64" { "arm64" } else { "amd64" }
}

fn release(
    suite: &Suite,
    mirror: &Mirror,
    server: &Server,
    seen: &Path,
    given_up: &CancellationToken,
) -> Result<Release> {
    let path = format!("dists/{}/InRelease", suite.name);
    let bytes = server.bytes(&path, MAX_RELEASE_BYTES, given_up)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    let release = Release::open(&bytes, &suite.name, &mirror.keys, now);
    let newest = last_seen(seen)?;
    let release = release.and_then(|release| release.not_before(newest, suite.not_before));
    release.map_err(|source| Error::Release { host: server.host().to_owned(), source })
}

/// The date of the newest release that was seen; 0 = none was.
fn last_seen(path: &Path) -> Result<u64> {
    let mut text = String::new();
    match File::open(path).and_then(|file| file.take(32).read_to_string(&mut text)) {
        // A file that was cut off by a power failure counts as missing.
        Ok(_) => Ok(text.trim().parse().unwrap_or(0)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(Error::io(path)(error)),
    }
}

fn remember(path: &Path, date: u64) -> Result<()> {
    let staged = path.with_extension("new");
    let written = File::create(&staged)
        .and_then(|mut file| writeln!(file, "{date}").and_then(|()| file.sync_data()))
        .and_then(|()| fs::rename(&staged, path));
    written.map_err(Error::io(path))
}

/// Fetches a file and verifies it; a bad file is removed.
fn download(
    server: &Server,
    place: &str,
    name: &str,
    expected: &Expected,
    path: &Path,
    given_up: &CancellationToken,
) -> Result<()> {
    let result = download_unchecked(server, place, expected.len, path, given_up).and_then(|(sha256, len)| {
        let Expected { sha256: wanted, len: wanted_len } = expected.clone();
        match (sha256 == wanted, len == wanted_len) {
            (_, false) => Err(Error::Size { name: name.to_owned(), expected: wanted_len, actual: len }),
            (false, _) => Err(Error::Digest { name: name.to_owned(), expected: wanted, actual: sha256 }),
            (true, true) => Ok(()),
        }
    });
    if result.is_err() {
        // A later run must not take a bad file for a good one.
        let _ = fs::remove_file(path);
    }
    result
}

/// Fetches a file; returns its digest and length.
fn download_unchecked(
    server: &Server,
    place: &str,
    max_bytes: u64,
    path: &Path,
    given_up: &CancellationToken,
) -> Result<(String, u64)> {
    let mut file = File::create(path).map_err(Error::io(path))?;
    let (mut hasher, mut len) = (Sha256::new(), 0);
    server.read(place, max_bytes, given_up, &mut |chunk| {
        hasher.update(chunk);
        len += chunk.len() as u64;
        file.write_all(chunk).map_err(Error::io(path))
    })?;
    Ok((hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect(), len))
}

/// The paragraph about this package.
pub(crate) fn find(mut text: impl BufRead, name: &str, path: &Path) -> Result<Option<Record>> {
    let wanted = format!("Package: {name}\n");
    let mut paragraph = Vec::new();
    loop {
        let before = paragraph.len();
        let room = MAX_RECORD_BYTES.saturating_sub(before) as u64;
        let count = Read::by_ref(&mut text).take(room).read_until(b'\n', &mut paragraph);
        let count = count.map_err(Error::io(path))?;
        let ended = count == 0 || paragraph.get(before..) == Some(b"\n");
        if !ended {
            if paragraph.len() == MAX_RECORD_BYTES {
                return Err(Error::Format("a record of the mirror's index is over the size limit"));
            }
            continue;
        }
        if paragraph.starts_with(wanted.as_bytes()) {
            return Ok(Record::parse(&String::from_utf8_lossy(&paragraph)));
        }
        if count == 0 {
            return Ok(None);
        }
        paragraph.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_found_by_their_whole_name() {
        let sha256 = "a".repeat(64);
        let text = format!(
            "Package: ab\nVersion: 1\nSHA256: {sha256}\n\nPackage: a\nVersion: 2\nSHA256: {sha256}\n\nPackage: c\nVersion: 3\n"
        );
        let version =
            |name: &str| find(text.as_bytes(), name, Path::new("x")).unwrap().map(|record| record.version);
        assert_eq!(version("a").as_deref(), Some("2"));
        assert_eq!(version("ab").as_deref(), Some("1"));
        // A record without a digest counts for nothing.
        assert_eq!(version("c"), None);
        assert_eq!(version("b"), None);
    }

    #[test]
    fn a_paragraph_without_end_is_refused() {
        for endless in [vec![b'x'; 3 << 20], b"x\n".repeat(2 << 20)] {
            let error = find(endless.as_slice(), "a", Path::new("x")).unwrap_err();
            assert!(matches!(error, Error::Format(_)), "{error}");
        }
    }

    #[test]
    fn debians_own_mirror_has_updates() {
        for (mirror, required) in [(Mirror::usual(), true), (Mirror::of_debian("http://x"), false)] {
            let suites = mirror.unwrap().suites;
            assert_eq!(suites.iter().map(|suite| suite.required).collect::<Vec<_>>(), [true, required]);
            assert!(suites.iter().all(|suite| suite.not_before == NOT_BEFORE));
        }
    }

    #[test]
    fn what_was_seen_is_remembered() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("seen");
        assert_eq!(last_seen(&path).unwrap(), 0);
        remember(&path, 1_783_764_997).unwrap();
        assert_eq!(last_seen(&path).unwrap(), 1_783_764_997);
        fs::write(&path, "").unwrap();
        assert_eq!(last_seen(&path).unwrap(), 0);
    }
}
