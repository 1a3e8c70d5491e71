//! Fuzz bodies: the parts of an image. Each takes any bytes, and panics only on a defect.
//!
//! `cargo test` runs them a fixed number of times with fixed seeds; `fuzz/` has the targets for libFuzzer. Not here:
//! the store, which sees only data that passed these decoders.

use std::fs::File;
use std::io::{Read, Write};
use std::path::Path;

use erofs::reader::{self, Inode};
use erofs::{Image, Options};
use waiting::CancellationToken;

use crate::archive::Archive;
use crate::complete::{Below, complete};
use crate::disk_image::{DiskImageError, SUPERBLOCK_LEN, check_superblock};
use crate::layer::{GAP_XATTR, Gaps, IMPLIED, LINK, Limits, convert};
use crate::manifest::{self, Document, MAX_LAYERS, PlannedImage, Source};
use crate::stream::{self, decompressed};
use crate::tar_stream::{TarKind, TarStream};
use crate::{Digest, Error, Form, Quiet, Result, reference, volume};

/// Limits on a layer, low enough to be reached soon.
const LIMITS: Limits = Limits {
    bytes: 4 << 20,
    import_bytes: 8 << 20,
    entries: 1000,
    metadata_bytes: 1 << 20,
    walked_parts: 1 << 16,
};

/// Largest sparse file that is read back: a hole costs the writer nothing, and the reader its length.
const MAX_READ_BACK: u64 = 1 << 20;

/// A tar whose headers have correct checksums; else almost every changed byte would fail that check only.
fn summed(data: &[u8]) -> Vec<u8> {
    let mut data = data.to_vec();
    for block in data.chunks_exact_mut(512).filter(|block| block[257..262] == *b"ustar") {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    data
}

/// Converts a layer's tar. The result is a valid image, the same each time, with nothing outside its root.
pub fn layer(data: &[u8]) {
    let data = &*summed(data);
    let convert = || convert(&mut &*data, Vec::new(), [7; 16], LIMITS);
    let Ok((image, converted)) = convert() else { return };
    assert_eq!(converted.len, image.len() as u64);
    assert!(converted.len <= LIMITS.bytes, "{} bytes", converted.len);
    let again = convert().map(|(again, converted)| (again == image, converted));
    assert!(matches!(again, Ok((true, same)) if same == converted), "not the same again");
    if largest_hole(data) > MAX_READ_BACK {
        return;
    }
    // The reader checks blocks, checksums, link counts and the order of names.
    for (path, inode) in reader::read(&image) {
        let proper = |part: &[u8]| !matches!(part, b"" | b"." | b"..") && !part.contains(&0);
        assert!(path.is_empty() || path.split(|byte| *byte == b'/').all(proper), "{path:?}");
        plain(&inode);
    }
}

/// Checks that no attribute for overlayfs comes from an image.
fn plain(inode: &Inode) {
    for (name, value) in &inode.attributes.xattrs {
        let ours = match name.as_slice() {
            b"trusted.overlay.opaque" => value == b"y",
            b"trusted.overlay.origin" => value.is_empty(),
            GAP_XATTR => value == IMPLIED || value == LINK && inode.st_mode >> 12 == 0o12,
            name => !name.starts_with(b"trusted.overlay.") && !name.starts_with(b"user.overlay."),
        };
        assert!(ours, "{name:?} = {value:?}");
    }
}

/// Length of the longest sparse file of a tar.
fn largest_hole(data: &[u8]) -> u64 {
    let (mut tar, mut largest) = (TarStream::new(data), 0);
    while let Ok(Some(entry)) = tar.next() {
        if let TarKind::Sparse(size, _) = entry.kind {
            largest = largest.max(size);
        }
    }
    largest
}

/// Completes a damaged stored layer by another: the upper one's length, then both. A result is a valid image.
pub fn stored(data: &[u8]) {
    let Some((len, both)) = data.split_first_chunk() else { return };
    let at = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX).min(both.len());
    let (above, below) = both.split_at(at);
    let Ok(base) = Image::open(above, above.len() as u64) else { return };
    let layers: Vec<_> = Image::open(below, below.len() as u64).ok().into_iter().collect();
    for links in [true, false] {
        let (gaps, mut lookups) = (Gaps { directories: true, links }, 10_000);
        let given_up = CancellationToken::new();
        let (lookups, metadata_bytes) = (&mut lookups, LIMITS.metadata_bytes);
        let below = Below { layers: &layers, lookups, metadata_bytes, given_up: &given_up };
        let options = Options { uuid: [0; 16], max_len: LIMITS.bytes };
        let completed = complete(&base, gaps, below, Vec::new(), options);
        let Ok(Some((image, converted))) = completed else { continue };
        assert_eq!((converted.len, converted.gaps), (image.len() as u64, Gaps::default()));
        let again = Image::open(image.as_slice(), converted.len).map(|image| image.root().is_ok());
        assert!(again.unwrap_or_default(), "nobody can open it");
    }
}

/// Reads a layer's blob, compressed or not: the digests are those of the bytes, even if the tar is wrong.
pub fn blob(data: &[u8]) {
    let run = stream::run(data, LIMITS.bytes, &Quiet, |tar| convert(tar, Vec::new(), [0; 16], LIMITS));
    let digests = match run {
        Ok((_, digests)) => digests,
        Err(broken) => match broken.digests {
            Some(digests) => digests,
            None => return,
        },
    };
    assert_eq!(digests.blob, Digest::of_content(data));
    let mut tar = Vec::new();
    let unpacked = decompressed(data).and_then(|plain| plain.take(LIMITS.bytes + 1).read_to_end(&mut tar));
    assert!(matches!(unpacked, Ok(len) if len as u64 <= LIMITS.bytes), "{unpacked:?}");
    assert_eq!(digests.diff_id, Digest::of_content(&tar));
}

/// Reads an archive that is not compressed: its form and its images. Every member that a plan names exists in it.
pub fn archive(data: &[u8]) {
    let data = &*summed(data);
    let opened = tempfile::tempfile().and_then(|mut file| file.write_all(data).map(|()| file));
    let opened: Option<Archive> = opened.ok().and_then(|file| read_archive(file, data.len()).ok());
    let Some(archive) = opened else { return };
    let form = manifest::form(&archive);
    let Ok(form @ (Form::DockerArchive | Form::OciLayout)) = form else { return };
    let Ok(plans) = manifest::plans(&archive, form) else { return };
    for plan in plans {
        check(&plan);
        for layer in &plan.layers {
            // The layers of a docker-archive are looked up only when they are read.
            let Ok(Some(mut member)) = archive.find(&layer.member) else { continue };
            let (len, mut bytes) = (member.len(), Vec::new());
            assert!(member.read_to_end(&mut bytes).is_ok() && bytes.len() as u64 == len);
            assert!(bytes.is_empty() || data.windows(bytes.len()).any(|window| window == bytes));
        }
    }
}

fn read_archive(file: File, len: usize) -> Result<Archive> {
    Archive::tar("fuzz".to_owned(), file, 0, len as u64)
}

fn check(plan: &PlannedImage) {
    assert!(plan.layers.len() <= MAX_LAYERS, "{} layers", plan.layers.len());
    assert!(manifest::fits(&plan.config), "a configuration over the limit");
    assert_eq!(Digest::parse(plan.digest.as_str()).ok().as_ref(), Some(&plan.digest));
}

/// Resolves documents of a registry, which may name one another. NUL bytes separate them, the first is the one that a
/// name stands for, and in each of them `$1` and `#1` are digest and length of the first document after it.
pub fn documents(data: &[u8]) {
    let mut documents: Vec<Vec<u8>> = Vec::new();
    for text in data.split(|byte| *byte == 0).take(8).collect::<Vec<_>>().into_iter().rev() {
        let filled = fill_in(text, &documents);
        documents.insert(0, filled);
    }
    let Some(first) = documents.first() else { return };
    let (digest, len) = (Digest::of_content(first), first.len() as u64);
    let media_type = manifest::media_type(first);
    let registry = Registry { documents: &documents };
    let Ok(plan) = manifest::named_image(&registry, media_type.clone(), &digest, len) else { return };
    check(&plan);
    assert_eq!(plan.digest, digest);
    for layer in &plan.layers {
        assert_eq!(layer.blob.as_ref().map(Digest::as_str), Some(layer.member.as_str()));
    }
    let other = Digest::of_content(b"other");
    assert!(manifest::named_image(&registry, media_type, &other, len).is_err(), "not what was asked for");
}

/// Fills in a document's references to those after it.
fn fill_in(text: &[u8], behind: &[Vec<u8>]) -> Vec<u8> {
    let mut filled = Vec::new();
    let mut bytes = text.iter().copied().peekable();
    while let Some(byte) = bytes.next() {
        let of = |digit: &u8| behind.get(usize::from(digit.checked_sub(b'1')?));
        match (byte, bytes.peek().and_then(of)) {
            (b'$', Some(document)) => filled.extend(Digest::of_content(document).as_str().bytes()),
            (b'#', Some(document)) => filled.extend(document.len().to_string().bytes()),
            _ => {
                filled.push(byte);
                continue;
            }
        }
        bytes.next();
    }
    filled
}

struct Registry<'a> {
    documents: &'a [Vec<u8>],
}

impl Source for Registry<'_> {
    fn document(&self, _: Document, digest: &Digest, max_bytes: u64) -> Result<Vec<u8>> {
        let found = self.documents.iter().find(|document| Digest::of_content(document) == *digest);
        // A document that does not exist is answered with another one.
        let found = found.or(self.documents.last()).filter(|document| document.len() as u64 <= max_bytes);
        found.cloned().ok_or_else(|| self.error("too long".to_owned()))
    }

    fn layer(&self, digest: &Digest, _: u64) -> Result<String> {
        Ok(digest.to_string())
    }

    fn error(&self, why: String) -> Error {
        Error::archive("fuzz", why)
    }
}

/// Parses names that users and archives give: images, digests, volumes.
pub fn names(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if reference::check(text).is_ok() {
        let normalized = reference::normalized(text);
        assert!(reference::check(&normalized).is_ok() || text.len() > 500, "{normalized}");
        assert_eq!(reference::normalized(&normalized), normalized, "{text}");
        assert!(!normalized.starts_with('-') && !normalized.contains(char::is_whitespace), "{normalized}");
    }
    if let Ok(digest) = Digest::parse(text) {
        assert_eq!((digest.as_str(), digest.hex().len()), (text, 64));
    }
    if volume::valid(text) {
        let path = Path::new("volumes").join(format!("{text}.ext4"));
        assert_eq!(path.parent(), Some(Path::new("volumes")), "{text}");
        assert!(path.file_name().is_some_and(|name| name.len() < 256), "{text}");
    }
}

/// Checks an ext4 superblock, given with the length of its file.
pub fn superblock(data: &[u8]) {
    let Some((len, bytes)) = data.split_first_chunk() else { return };
    let len = u64::from_le_bytes(*len);
    let mut superblock = [0; SUPERBLOCK_LEN];
    let used = bytes.len().min(SUPERBLOCK_LEN);
    superblock[..used].copy_from_slice(&bytes[..used]);
    let written = check_superblock(&superblock, len, true);
    let read = check_superblock(&superblock, len, false);
    match (&written, &read) {
        (Err(DiskImageError::Feature(one)), Err(DiskImageError::Feature(other))) => assert_eq!(one, other),
        (Err(DiskImageError::WritableFeature(_)), Ok(()) | Err(DiskImageError::Unclean)) => {}
        (Ok(()), Ok(()) | Err(DiskImageError::Unclean)) => {
            assert!(check_superblock(&superblock, u64::MAX, true).is_ok(), "a longer file is refused");
        }
        (Err(DiskImageError::NotExt4), Err(DiskImageError::NotExt4)) => {}
        (Err(DiskImageError::Cut { expected, actual }), Err(DiskImageError::Cut { .. })) => {
            assert!(expected > actual && *actual == len);
        }
        other => panic!("{other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tar::EntryType;

    use super::*;
    use crate::fixtures::{self, ImageFixture, LayerBuilder};
    use crate::manifest::host_architecture;

    const NAMES: &[&str] = &[
        "../",
        "/",
        ".wh.",
        ".wh..wh..opq",
        ".wh..wh.",
        "a/b",
        "ustar",
        "GNU.sparse.map",
        "GNU.sparse.major",
        "SCHILY.xattr.user.x=",
        "trusted.overlay.",
        "path=",
        "0000000",
        "x",
        "g",
        "L",
        "S",
        "1",
        "2",
        "5",
    ];

    /// A layer with one of each kind of entry.
    fn layers() -> Vec<Vec<u8>> {
        let layer = LayerBuilder::default;
        let xattr = ("SCHILY.xattr.user.comment", &b"\0\xff"[..]);
        let sparse: [(&str, &[u8]); 4] = [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", b"holes"),
            ("GNU.sparse.realsize", b"9000"),
        ];
        let map = [&b"1\n8192\n4\n"[..], &[0; 503], b"data"].concat();
        let old: [(&str, &[u8]); 2] = [("GNU.sparse.size", b"600"), ("GNU.sparse.map", b"0,2,599,1")];
        vec![
            layer().dir("a", 0o755).file("a/b", 0o4755, b"hello").symlink("l", "/a/../a/b").build(),
            layer().file("a/.wh.x", 0o644, b"").file("a/.wh..wh..opq", 0o644, b"").dir("a/x", 0o700).build(),
            layer().file("f", 0o644, &[9; 5000]).hard_link("g", "f").file("f", 0o600, b"").build(),
            layer().pax(&[("path", &[b'n'; 300]), xattr, ("mtime", b"-1.5")]).file("x", 0o644, b"1").build(),
            layer().pax(&sparse).file("x", 0o644, &map).pax(&old).file("y", 0o644, b"abc").build(),
            layer()
                .entry(EntryType::Char, "null", 0o666, b"", None)
                .entry(EntryType::Fifo, "p", 0, b"", None)
                .build(),
            layer().entry(EntryType::GNULongName, "@", 0, &[b'l'; 200], None).file("x", 0o644, b"").build(),
        ]
    }

    fn packed(tar: &[u8]) -> [Vec<u8>; 3] {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(tar).unwrap();
        [tar.to_vec(), gzip.finish().unwrap(), zstd::encode_all(tar, 1).unwrap()]
    }

    #[test]
    fn layer() {
        fuzzed::run("images_layer", 1500, &layers(), NAMES, super::layer);
    }

    #[test]
    fn blob() {
        let examples: Vec<_> = layers().iter().take(3).flat_map(|tar| packed(tar)).collect();
        fuzzed::run("images_blob", 300, &examples, &[], super::blob);
    }

    #[test]
    fn archive() {
        let image = ImageFixture::new(layers().into_iter().take(2).collect());
        let examples = [
            image.docker_archive(&["busybox:1"]),
            fixtures::archive(&image.oci_members("x")),
            layers().concat(),
        ];
        fuzzed::run("images_archive", 1500, &examples, NAMES, super::archive);
    }

    #[test]
    fn documents() {
        let layer = |media_type: &str| json!({ "mediaType": media_type, "digest": "$1", "size": 3 });
        let sized = |value: serde_json::Value| value.to_string().replace("\"size\":0", "\"size\":#1");
        let config = json!({
            "architecture": host_architecture(), "os": "linux",
            "config": { "Cmd": ["sh"], "Env": ["A=b"], "User": "1:1", "WorkingDir": "/", "Entrypoint": null },
            "rootfs": { "diff_ids": ["$1"] },
        });
        let manifest = json!({
            "config": { "digest": "$1", "size": 0 },
            "layers": [layer("application/vnd.oci.image.layer.v1.tar+gzip")],
        });
        let index = json!({
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{ "digest": "$1", "size": 0, "platform": { "os": "linux", "architecture": host_architecture() } }],
        });
        let manifest = format!("{}\0{config}\0abc", sized(manifest));
        let examples = [format!("{}\0{manifest}", sized(index)).into_bytes(), manifest.into_bytes()];
        let words =
            ["$1", "$2", "#1", "\"size\":", "{", "}", "null", "[", "\0", "\"platform\":", "\"linux\"", ","];
        fuzzed::run("images_documents", 3000, &examples, &words, super::documents);
        // The examples must be images.
        let texts: Vec<_> = examples[1].split(|byte| *byte == 0).map(<[u8]>::to_vec).collect();
        let (layer, config) = (texts[2].clone(), fill_in(&texts[1], &texts[2..]));
        let documents = [fill_in(&texts[0], &[config.clone(), layer.clone()]), config, layer];
        let digest = Digest::of_content(&documents[0]);
        let plan = manifest::named_image(
            &Registry { documents: &documents },
            None,
            &digest,
            documents[0].len() as u64,
        );
        assert_eq!(plan.unwrap().layers.len(), 1);
    }

    #[test]
    fn stored() {
        let made =
            |layer: LayerBuilder| convert(&mut &*layer.build(), Vec::new(), [0; 16], LIMITS).unwrap().0;
        let above = made(
            LayerBuilder::default()
                .file("a/b/f", 0o644, &[1; 5000])
                .hard_link("l", "s/f")
                .hard_link("m", "d/g")
                .file("x/.wh.y", 0, b""),
        );
        let below = made(
            LayerBuilder::default()
                .dir("a", 0o700)
                .pax(&[("SCHILY.xattr.user.x", b"y")])
                .dir("a/b", 0o1777)
                .symlink("s", "/d")
                .dir("d", 0o755)
                .file("d/f", 0o600, &[2; 9000])
                .file("d/g", 0o600, b"g"),
        );
        let len = u32::try_from(above.len()).unwrap().to_le_bytes();
        let example = [&len[..], &above, &below].concat();
        fuzzed::run("images_stored", 2000, &[example], &["trusted.", "\0\0\0\0"], super::stored);
    }

    #[test]
    fn names() {
        let digest = format!("x@sha256:{}", "0".repeat(64));
        let examples =
            ["docker.io/library/busybox:1.36", "localhost:5000/x", &digest, &digest[2..], "data.1", "a"];
        let examples = examples.map(|example| example.as_bytes().to_vec());
        let words = ["docker.io/", "library/", "index.docker.io/", ":", "/", "@", "..", "-", " "];
        fuzzed::run("images_names", 4000, &examples, &words, super::names);
    }

    #[test]
    fn superblock() {
        let mut example = (16u64 << 20).to_le_bytes().to_vec();
        example.resize(8 + SUPERBLOCK_LEN, 0);
        for (at, bytes) in
            [(0x4, &16384u32.to_le_bytes()[..]), (0x38, &[0x53, 0xef]), (0x60, &[0xc0, 2, 0, 0])]
        {
            example[8 + at..8 + at + bytes.len()].copy_from_slice(bytes);
        }
        fuzzed::run("images_superblock", 4000, &[example], &["\x53"], super::superblock);
    }
}
