//! Layers made by hand, and read back from their images.

use std::collections::BTreeMap;
use std::io::Write;
use std::process::{Command, Stdio};

use erofs::reader::{self, Inode};
use tar::EntryType;

use super::*;
use crate::fixtures::LayerBuilder;

type Files = BTreeMap<Vec<u8>, Inode>;

fn layer() -> LayerBuilder {
    LayerBuilder::default()
}

fn convert_all(tar: &[u8]) -> Result<(Files, bool), LayerError> {
    let (image, converted) = convert(&mut &*tar, Vec::new(), [0; 16], Limits::default())?;
    assert_eq!(converted.len, image.len() as u64);
    Ok((reader::read(&image), converted.opaque_root))
}

fn files(layer: LayerBuilder) -> Files {
    convert_all(&layer.build()).unwrap().0
}

fn refusal(layer: LayerBuilder) -> String {
    convert_all(&layer.build()).map(drop).unwrap_err().to_string()
}

fn names(files: &Files) -> Vec<&str> {
    files.keys().map(|name| std::str::from_utf8(name).unwrap()).collect()
}

fn is_whiteout(inode: &Inode) -> bool {
    inode.st_mode >> 12 == 0o02 && inode.device == 0
}

fn is_opaque(inode: &Inode) -> bool {
    inode.attributes.xattrs.get(OPAQUE_XATTR).is_some_and(|value| value == b"y")
}

#[test]
fn whiteouts_become_devices() {
    let files = files(layer().dir("a", 0o755).file("a/.wh.gone", 0o644, b"").file(".wh.top", 0o644, b""));
    assert_eq!(names(&files), ["", "a", "a/gone", "top"]);
    assert!(is_whiteout(&files[&b"a/gone"[..]]) && is_whiteout(&files[&b"top"[..]]));
    assert!(!is_opaque(&files[&b"a"[..]]));
    assert_eq!(files[&b"a"[..]].attributes.xattrs, BTreeMap::from([(ORIGIN_XATTR.to_vec(), Vec::new())]));
}

#[test]
fn opaque_directories_keep_their_own() {
    // The order does not matter; an opaque directory needs no whiteouts for entries below.
    let opaque = |first: bool| {
        let marked = |layer: LayerBuilder| layer.file("a/.wh..wh..opq", 0o600, b"");
        let start = if first { marked(layer()) } else { layer() };
        let all = start
            .dir("a", 0o711)
            .file("a/new", 0o644, b"1")
            .file("a/b/.wh.x", 0o644, b"")
            .file("a/.wh.y", 0o644, b"");
        files(if first { all } else { marked(all) })
    };
    for files in [opaque(true), opaque(false)] {
        assert_eq!(names(&files), ["", "a", "a/b", "a/new"]);
        assert!(is_opaque(&files[&b"a"[..]]) && !is_opaque(&files[&b"a/b"[..]]));
        assert_eq!(files[&b"a"[..]].attributes.mode, 0o711);
    }
}

#[test]
fn a_whiteout_spares_its_own_layer() {
    let files = files(
        layer()
            .file(".wh.dir", 0o644, b"")
            .file("dir/new", 0o644, b"1")
            .file("file", 0o644, b"2")
            .file(".wh.file", 0o644, b""),
    );
    assert_eq!(names(&files), ["", "dir", "dir/new", "file"]);
    assert!(is_opaque(&files[&b"dir"[..]]));
    assert_eq!(files[&b"file"[..]].data, b"2");
}

#[test]
fn an_opaque_root_is_told() {
    let (files, opaque_root) =
        convert_all(&layer().file(".wh..wh..opq", 0o644, b"").file("a", 0o644, b"").build()).unwrap();
    assert!(opaque_root);
    assert_eq!(names(&files), ["", "a"]);
    assert!(!convert_all(&layer().build()).unwrap().1);
}

#[test]
fn aufs_bookkeeping_is_left_out() {
    let files = files(
        layer().file(".wh..wh.aufs", 0o644, b"").file(".wh..wh.plnk/1.2", 0o644, b"x").file("a", 0o644, b"y"),
    );
    assert_eq!(names(&files), ["", "a"]);
}

#[test]
fn nothing_leaves_the_root() {
    for path in ["../x", "a/../../x", "a/../b", ".."] {
        let error = refusal(layer().file(path, 0o644, b""));
        assert!(error.ends_with("has a .. in its name"), "{error}");
    }
    let files = files(
        layer()
            .file("/etc/absolute", 0o644, b"1")
            .symlink("up", "../../../..")
            .file("up/etc/up", 0o644, b"2")
            .symlink("out", "/etc")
            .file("out/absolute2", 0o644, b"3"),
    );
    assert_eq!(names(&files), ["", "etc", "etc/absolute", "etc/absolute2", "etc/up", "out", "up"]);
}

#[test]
fn names_lead_through_symbolic_links() {
    let files = files(
        layer()
            .dir("usr/lib", 0o700)
            .symlink("lib", "usr/lib")
            .symlink("a/b/lib", "../../lib")
            .file("a/b/lib/x", 0o644, b"1")
            .symlink("dangling", "not/there")
            .file("dangling/y", 0o644, b"2")
            // The last part is replaced, not followed.
            .file("lib", 0o644, b"3"),
    );
    assert_eq!(files[&b"usr/lib/x"[..]].data, b"1");
    assert_eq!(files[&b"usr/lib"[..]].attributes.mode, 0o700);
    assert_eq!(files[&b"not/there/y"[..]].data, b"2");
    assert_eq!(files[&b"lib"[..]].data, b"3");
    let error = refusal(layer().symlink("a", "b").symlink("b", "a").file("a/x", 0o644, b""));
    assert!(error.ends_with("is behind a loop of symbolic links"), "{error}");
    let error = refusal(layer().file("a", 0o644, b"").file("a/x", 0o644, b""));
    assert!(error.ends_with("is below something that is not a directory"), "{error}");
}

#[test]
fn the_last_of_a_name_wins() {
    let files = files(
        layer()
            .file("a", 0o644, b"1")
            .file("a", 0o600, b"2")
            .file("d/x", 0o644, b"3")
            .file("d", 0o644, b"4")
            .file("e", 0o644, b"5")
            .dir("e", 0o755)
            .file("f/y", 0o644, b"6")
            .dir("f", 0o711),
    );
    assert_eq!(names(&files), ["", "a", "d", "e", "f", "f/y"]);
    assert_eq!((files[&b"a"[..]].data.as_slice(), files[&b"a"[..]].attributes.mode), (&b"2"[..], 0o600));
    assert_eq!(files[&b"f"[..]].attributes.mode, 0o711);
}

#[test]
fn hard_links() {
    let linked = files(
        layer()
            .file("a/x", 0o644, b"1")
            .hard_link("b", "a/x")
            .hard_link("b", "/a/x")
            .symlink("s", "a")
            .hard_link("c", "s/x"),
    );
    assert_eq!(linked[&b"b"[..]].nid, linked[&b"a/x"[..]].nid);
    assert_eq!(linked[&b"c"[..]].links, 3);
    // The name that was linked to may be removed.
    let left = files(layer().file("a", 0o644, b"1").hard_link("b", "a").file("a", 0o644, b"2"));
    assert_eq!((left[&b"b"[..]].data.as_slice(), left[&b"b"[..]].links), (&b"1"[..], 1));
    for (target, why) in [("../a", "has a .."), ("d", "to a directory"), ("/", "to a directory")] {
        let error = refusal(layer().dir("d", 0o755).hard_link("b", target));
        assert!(error.contains(why), "{error}");
    }
}

/// No tar sets the mark, and a layer without gaps has none.
#[test]
fn what_is_left_open_is_marked() {
    let mark = |inode: &Inode| inode.attributes.xattrs.get(GAP_XATTR).cloned();
    let forged = |layer: LayerBuilder| layer.pax(&[("SCHILY.xattr.trusted.overlay.matchlock", IMPLIED)]);
    let tar = forged(forged(layer()).dir("d", 0o755))
        .file("d/f", 0o644, b"")
        .file("a/b/f", 0o644, b"")
        .file("late/f", 0o644, b"")
        .dir("late", 0o700)
        .file(".wh.new", 0o644, b"")
        .file("new/x/f", 0o644, b"")
        .file("empty/.wh..wh..opq", 0o644, b"")
        .file("empty/x/f", 0o644, b"")
        .file("no/more/f", 0o644, b"")
        .file("no", 0o644, b"")
        .hard_link("one", "d/below")
        .hard_link("two", "./d//below")
        .hard_link("three", "two")
        .build();
    let (image, converted) = convert(&mut &*tar, Vec::new(), [0; 16], Limits::default()).unwrap();
    assert_eq!(converted.gaps, Gaps { directories: true, links: true });
    let files = reader::read(&image);
    let marked = files.iter().filter(|(_, inode)| mark(inode).is_some());
    let marked: Vec<_> = marked.map(|(path, _)| std::str::from_utf8(path).unwrap()).collect();
    assert_eq!(marked, ["", "a", "a/b", "empty", "one", "three", "two"]);
    assert_eq!(files[&b"one"[..]].links, 3);
    assert_eq!(
        (mark(&files[&b"one"[..]]), &*files[&b"one"[..]].data),
        (Some(LINK.to_vec()), &b"d/below"[..])
    );

    let whole =
        layer().dir("./", 0o755).dir("a", 0o755).file("a/f", 0o644, b"").hard_link("g", "a/f").build();
    let (image, converted) = convert(&mut &*whole, Vec::new(), [0; 16], Limits::default()).unwrap();
    assert_eq!(converted.gaps, Gaps::default());
    assert!(reader::read(&image).values().all(|inode| mark(inode).is_none()));
    let gone = layer().dir("./", 0o755).file("a/f", 0o644, b"").file("a", 0o644, b"").build();
    assert_eq!(convert(&mut &*gone, Vec::new(), [0; 16], Limits::default()).unwrap().1.gaps, Gaps::default());
}

#[test]
fn types_and_roots() {
    let mut root = layer().dir("./", 0o711).entry(EntryType::Fifo, "fifo", 0o600, &[], None);
    root = root.entry(EntryType::Continuous, "old", 0o644, b"data", None);
    let files = files(root);
    assert_eq!(files[&b""[..]].attributes.mode, 0o711);
    assert_eq!(files[&b"fifo"[..]].st_mode, 0o010_600);
    assert_eq!(files[&b"old"[..]].data, b"data");
    assert!(refusal(layer().file("./", 0o644, b"")).contains("is the root"));
    assert!(refusal(layer().file(".wh.", 0o644, b"")).contains("whiteout without a name"));
    assert!(refusal(layer().file("a/.wh...", 0o644, b"")).contains("whiteout without a name"));
    assert!(refusal(layer().entry(EntryType::new(b'Q'), "q", 0o644, &[], None)).contains("unknown type 'Q'"));
}

#[test]
fn pax_records() {
    let long = "x".repeat(200);
    let path = format!("{long}/{long}");
    let value: &[u8] = b"\x01\n\0=binary\n";
    let files = files(
        layer()
            .pax(&[
                ("path", path.as_bytes()),
                ("mtime", b"-1.25"),
                ("uid", b"4000000000"),
                ("gid", b"70000"),
                ("SCHILY.xattr.security.capability", value),
                ("SCHILY.xattr.user.empty", b""),
                ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
                ("SCHILY.xattr.btrfs.compression", b"zstd"),
            ])
            .file("short", 0o4755, b"data")
            .file("plain", 0o644, b""),
    );
    let inode = &files[path.as_bytes()];
    let at = &inode.attributes;
    assert_eq!((at.mode, at.uid, at.gid), (0o4755, 4_000_000_000, 70000));
    assert_eq!((at.mtime.seconds, at.mtime.nanoseconds), (-2, 750_000_000));
    let wanted = BTreeMap::from([
        (b"security.capability".to_vec(), value.to_vec()),
        (b"user.empty".to_vec(), Vec::new()),
    ]);
    assert_eq!(at.xattrs, wanted);
    // The records are for one entry only.
    assert!(files.contains_key(&b"plain"[..]));
    assert_eq!(files[&b"plain"[..]].attributes.uid, 0);
    let error = refusal(layer().pax(&[("path", b"a\0b")]).file("x", 0o644, b""));
    assert!(error.contains("is not a file name"), "{error}");
}

#[test]
fn limits_have_names() {
    let convert = |layer: LayerBuilder, limits| {
        let tar = layer.build();
        convert(&mut tar.as_slice(), Vec::new(), [0; 16], limits).map(drop).unwrap_err().to_string()
    };
    let few = Limits { entries: 1, ..Limits::default() };
    assert_eq!(convert(layer().dir("a", 0o755).dir("b", 0o755), few), "more than 1 entries in a layer");
    let small = Limits { metadata_bytes: 200, ..Limits::default() };
    let error = convert(layer().file("a/b/c/d/e", 0o644, b""), small);
    assert_eq!(error, "more than 200 bytes of memory for the names of a layer");
    let short = Limits { bytes: 8192, ..Limits::default() };
    assert_eq!(
        convert(layer().file("a", 0o644, &[1; 9000]), short),
        "the image is over its limit of 8192 bytes"
    );
    let long = vec![b'x'; 5000];
    assert_eq!(
        refusal(layer().pax(&[("path", &long)]).file("x", 0o644, b"")),
        "more than 4096 bytes in a path"
    );
    let huge = vec![b'x'; 2 << 20];
    assert!(refusal(layer().pax(&[("comment", &huge)]).file("x", 0o644, b"")).contains("extended header"));
    let error = refusal(layer().pax(&[("SCHILY.xattr.user.x", &vec![1; 65536])]).file("x", 0o644, b""));
    assert!(error.contains("65536 bytes is too long"), "{error}");
    assert!(
        refusal(
            layer().file(&"x".repeat(100), 0o644, b"").pax(&[("path", &[b'y'; 256])]).file("x", 0o644, b"")
        )
        .contains("is not a file name")
    );
}

#[test]
fn a_deep_tree_needs_no_stack() {
    // Each link leads on from the end of the one before it: deeper than any path may be long.
    let step = "/d".repeat(250);
    let mut builder = layer().dir("p0", 0o755);
    for round in 1..16 {
        let target = format!("p{}{step}", round - 1);
        let path = format!("p{round}/x");
        builder = builder.pax(&[("linkpath", target.as_bytes())]).symlink(&format!("p{round}"), "");
        builder = builder.file(&path, 0o644, b"");
    }
    let deepest = files(builder).keys().map(Vec::len).max();
    assert_eq!(deepest, Some("p0".len() + 15 * step.len() + "/x".len()));
}

#[test]
fn every_truncation_is_an_error_or_an_end() {
    let tar = layer()
        .dir("a", 0o755)
        .file("a/x", 0o644, &[7; 1500])
        .pax(&[("path", b"long")])
        .file("b", 0o644, b"")
        .build();
    // The end marker is two blocks. Without it the tar still ends between entries, and so it does at the end of the
    // last entry's data.
    let whole = tar.len() - 1024;
    let data = [2 * 512 + 1500, 6 * 512 + b"13 path=long\n".len()];
    for len in 0..tar.len() {
        match convert_all(&tar[..len]) {
            Ok(_) => assert!(len % 512 == 0 || len >= whole || data.contains(&len), "cut at {len}"),
            Err(error) => assert!(matches!(error, LayerError::Truncated), "cut at {len}: {error}"),
        }
    }
}

#[test]
fn changed_tars_never_panic() {
    let tar = layer()
        .dir("a", 0o755)
        .file("a/x", 0o644, &[7; 700])
        .symlink("s", "a")
        .hard_link("s/y", "a/x")
        .pax(&[("path", b"s/long"), ("mtime", b"1.5"), ("SCHILY.xattr.user.a", b"b")])
        .file("short", 0o644, b"data")
        .pax(&[("GNU.sparse.major", b"1"), ("GNU.sparse.minor", b"0"), ("GNU.sparse.realsize", b"9000")])
        .file("sparse", 0o644, &[&b"1\n8000\n4\n"[..], &[0; 503], b"data"].concat())
        .file("a/.wh.gone", 0o644, b"")
        .build();
    let intact = convert_all(&tar).unwrap().0;
    assert_eq!(intact[&b"sparse"[..]].data[8000..8004], *b"data");
    let mut random = Random(0x5eed);
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..4000 {
        let mut changed = tar.clone();
        for _ in 0..=random.below(4) {
            let at = random.below(changed.len());
            changed[at] = [b'0', b'7', b'/', b'.', 0, 0xff, b'9', b'\n'][random.below(8)];
        }
        // Half of the headers get correct checksums.
        if random.below(2) == 0 {
            for block in changed.chunks_mut(512).filter(|block| block[257..262] == *b"ustar") {
                let mut header = tar::Header::from_byte_slice(block).clone();
                header.set_cksum();
                block.copy_from_slice(header.as_bytes());
            }
        }
        // A layer that is converted can be read back: `convert_all` does so.
        match convert_all(&changed) {
            Ok(_) => taken += 1,
            Err(_) => refused += 1,
        }
    }
    assert!(taken > 200 && refused > 200, "{taken} taken, {refused} refused");
}

/// A generator that is the same every time (splitmix64).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = (self.0 ^ self.0 >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((mixed ^ mixed >> 31) % limit as u64).unwrap()
    }
}

#[test]
fn gnu_tar_agrees_on_sparse_files() {
    if Command::new("tar").arg("--version").output().is_err() {
        skip::skip("tar", "tar is not installed");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut file = std::fs::File::create(dir.path().join("sparse")).unwrap();
    let mut whole = vec![0; 3 << 20];
    // More pieces than an old header has room for.
    for piece in 0..40 {
        let at = piece * 65536 + 4096;
        whole[at..at + 4096].fill(u8::try_from(piece + 1).unwrap());
        std::os::unix::fs::FileExt::write_all_at(&file, &whole[at..at + 4096], at as u64).unwrap();
    }
    file.set_len(whole.len() as u64).unwrap();
    file.flush().unwrap();
    for format in ["--format=gnu", "--sparse-version=0.0", "--sparse-version=0.1", "--sparse-version=1.0"] {
        let mut tar = Command::new("tar");
        if format.contains("version") {
            tar.arg("--format=posix");
        }
        let tar = tar.args([format, "--sparse", "-cf", "-", "sparse"]).current_dir(dir.path());
        let output = tar.stderr(Stdio::inherit()).output().unwrap();
        assert!(output.stdout.len() < 300_000, "{format} is sparse");
        let (files, _) = convert_all(&output.stdout).unwrap();
        assert_eq!(names(&files), ["", "sparse"]);
        assert!(files[&b"sparse"[..]].data == whole, "{format}");
        assert_eq!(files[&b"sparse"[..]].blocks, 40, "{format}");
    }
}
