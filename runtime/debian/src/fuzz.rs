//! Fuzz bodies: packages, and a mirror's files about them. Each takes any bytes, and panics only on a defect.
//!
//! `cargo test` runs them a fixed number of times with fixed seeds; `fuzz/` has the targets for libFuzzer. Not here:
//! HTTP, and the output of apt, which is the host's own.

use std::cmp::Ordering;
use std::io::{self, Read};
use std::path::{Component, Path};
use std::sync::OnceLock;

use crate::archive;
use crate::deb::{self, EntryKind};
use crate::keys::Keys;
use crate::mirror;
use crate::release::{Release, is_sha256};
use crate::version::compare;

/// Most bytes that are read of a package's files, since a few packed bytes may unpack to many.
const MAX_BYTES: u64 = 1 << 20;

/// Unpacks a package. Every path stays inside it.
pub fn package(data: &[u8]) {
    let mut total = 0;
    let _ = deb::members(data, Path::new("fuzz"), &mut |entry| {
        let inside = entry.path.components().all(|part| matches!(part, Component::Normal(_)));
        assert!(inside && entry.mode <= 0o7777, "{:?} {:o}", entry.path, entry.mode);
        if entry.kind == EntryKind::File {
            total += io::copy(&mut entry.data.take(MAX_BYTES), &mut io::sink())?;
        }
        if total > MAX_BYTES { Err(io::ErrorKind::FileTooLarge.into()) } else { Ok(()) }
    });
}

/// Searches an index of packages: a result is a file below the mirror, with a digest.
pub fn index(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let name = text.lines().find_map(|line| line.strip_prefix("Package: ")).unwrap_or("a");
    let Ok(Some(record)) = mirror::find(data, name, Path::new("fuzz")) else { return };
    assert!(is_sha256(&record.sha256) && record.sha256 == record.sha256.to_ascii_lowercase());
    if let Some((place, expected)) = record.file() {
        assert_eq!(expected.sha256, record.sha256);
        let inside = Path::new(place).components().all(|part| matches!(part, Component::Normal(_)));
        assert!(inside && !place.contains(['%', '?', '#', ':', '\\']), "{place:?}");
    }
    for name in record.depends.split([',', '|']).filter_map(|item| item.split_whitespace().next()) {
        let _ = archive::check(name);
    }
}

/// Compares versions, separated by line breaks: they have one order.
pub fn versions(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let versions: Vec<&str> = text.lines().take(6).collect();
    for a in &versions {
        assert_eq!(compare(a, a), Ordering::Equal, "{a:?}");
        for b in &versions {
            assert_eq!(compare(a, b), compare(b, a).reverse(), "{a:?} {b:?}");
            for c in &versions {
                let in_order = compare(a, b).is_le() && compare(b, c).is_le();
                assert!(!in_order || compare(a, c).is_le(), "{a:?} {b:?} {c:?}");
            }
        }
    }
}

/// Reads a signed release, which fuzzing cannot sign; and its text as if it were signed.
pub fn release(data: &[u8]) {
    static KEYS: OnceLock<Option<Keys>> = OnceLock::new();
    let Some(keys) = KEYS.get_or_init(|| Keys::debian().ok()) else { return };
    const NOW: u64 = 1_767_268_800;
    assert!(Release::open(data, "test", keys, NOW).is_err(), "signed by nobody");
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(release) = Release::read(text, "test", NOW) else { return };
    if let Ok(expected) = release.expected("main/binary-amd64/Packages.xz") {
        assert!(is_sha256(&expected.sha256));
    }
    let date = release.date;
    assert!(release.not_before(date, date).is_ok_and(|release| release.not_before(date + 1, 0).is_err()));
}

#[cfg(test)]
mod tests {
    /// Archives of one member, compressed in each way.
    fn packages() -> Vec<Vec<u8>> {
        let mut tar = tar::Builder::new(Vec::new());
        for (path, kind, data) in [
            ("./bin", tar::EntryType::Directory, &b""[..]),
            ("./bin/x", tar::EntryType::Regular, b"hi"),
            ("./bin/y", tar::EntryType::Symlink, b""),
        ] {
            let mut header = tar::Header::new_gnu();
            header.set_entry_type(kind);
            header.set_size(data.len() as u64);
            header.set_mode(0o755);
            header.set_link_name("x").unwrap();
            tar.append_data(&mut header, path, data).unwrap();
        }
        let tar = tar.into_inner().unwrap();
        let (mut xz, mut gzip) = (Vec::new(), Vec::new());
        std::io::copy(&mut liblzma::read::XzEncoder::new(&tar[..], 1), &mut xz).unwrap();
        std::io::copy(&mut flate2::read::GzEncoder::new(&tar[..], flate2::Compression::fast()), &mut gzip)
            .unwrap();
        let zst = zstd::encode_all(&tar[..], 1).unwrap();
        [("data.tar", tar), ("data.tar.xz", xz), ("data.tar.gz", gzip), ("data.tar.zst", zst)]
            .into_iter()
            .map(|(name, member)| {
                let mut builder = ar::Builder::new(Vec::new());
                for (name, member) in [("debian-binary", &b"2.0\n"[..]), (name, &member)] {
                    builder.append(&ar::Header::new(name.into(), member.len() as u64), member).unwrap();
                }
                builder.into_inner().unwrap()
            })
            .collect()
    }

    #[test]
    fn package() {
        let words = ["../", "/", "data.tar", ".xz", "`\n", "#1/20", "0000", "x", "L", "2", "5", "g"];
        fuzzed::run("debian_package", 1500, &packages(), &words, super::package);
    }

    #[test]
    fn index() {
        let text = format!(
            "Package: ab\nVersion: 1:2-3\nDepends: b (= 1), c | d\nFilename: pool/main/a/ab_1_amd64.deb\nSize: 9\n\
             SHA256: {}\n\nPackage: b\nVersion: 1\n",
            "a".repeat(64)
        );
        let words =
            ["Package: ", "Filename: ", "SHA256: ", "Size: ", "\n", "\n\n", "../", "/", "%2e", "Version: "];
        fuzzed::run("debian_index", 4000, &[text.into_bytes()], &words, super::index);
    }

    #[test]
    fn versions() {
        let examples = ["1:2.0~rc1-1\n2.0\n2.0-0+deb12u1", "1.0-1\n1.0\n1.00-1.0\n0:1.0-1\na~\na"];
        let examples = examples.map(|text| text.as_bytes().to_vec());
        fuzzed::run(
            "debian_versions",
            3000,
            &examples,
            &["\n", "~", "-", ":", "0", "+", "."],
            super::versions,
        );
    }

    #[test]
    fn release() {
        let signed = include_str!("../tests/gpg/InRelease");
        let text =
            signed.split("\n\n").nth(1).unwrap_or_default().split("-----BEGIN").next().unwrap_or_default();
        let examples = [signed.as_bytes().to_vec(), text.as_bytes().to_vec()];
        let words = [
            "Date: ",
            "SHA256:\n ",
            "Codename: test\n",
            "-----BEGIN PGP SIGNATURE-----\n",
            "- ",
            "\r\n",
            "UTC",
        ];
        fuzzed::run("debian_release", 1000, &examples, &words, super::release);
        assert!(crate::release::Release::read(text, "test", 1_767_268_860).is_ok());
    }
}
