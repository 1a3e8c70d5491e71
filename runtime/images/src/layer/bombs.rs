//! Layers that are small as archives and large in memory or in time.
//!
//! A child process for each layer converts it and measures its memory.

use std::io::{self, Read};
use std::process::{Command, Stdio};

use tar::EntryType;

use super::*;
use crate::fixtures::LayerBuilder;

/// The variable that names the bomb for the child.
const BOMB: &str = "MATCHLOCK_TEST_BOMB";

/// The child's limit, and the bytes over it that a measurement may show: buffers, and memory that the allocator
/// keeps.
const METADATA_BYTES: u64 = 16 << 20;
const TOLERANCE: u64 = 4 << 20;

/// Adds an entry by its number.
type Entries = fn(LayerBuilder, u32) -> LayerBuilder;

/// The bombs, by the use of memory that each drives up.
const BOMBS: [(&str, Entries); 7] = [
    ("names", |layer, index| layer.entry(EntryType::Fifo, &format!("{index:x}"), 0o644, &[], None)),
    ("names in their own directories", |layer, index| {
        layer.entry(EntryType::Fifo, &format!("{index:x}/x"), 0o644, &[], None)
    }),
    ("directories", |layer, index| {
        let path = format!("{index}/{}", ["a"; 1000].join("/"));
        layer.pax(&[("path", path.as_bytes())]).dir("x", 0o755)
    }),
    ("whiteouts in their own directories", |layer, index| {
        layer.file(&format!("{index:x}/.wh.x"), 0o644, b"")
    }),
    ("opaque directories", |layer, index| layer.file(&format!("{index:x}/.wh..wh..opq"), 0o644, b"")),
    ("symbolic links", |layer, index| layer.symlink(&format!("{index:x}"), "a")),
    ("attributes of directories", |layer, index| {
        let names = ["a", "b", "c"].map(|name| format!("SCHILY.xattr.user.{name}"));
        layer.pax(&names.each_ref().map(|name| (name.as_str(), &b"1"[..]))).dir(&format!("{index:x}"), 0o755)
    }),
];

/// A tar with as many entries as are read of it.
struct Stream {
    entries: Entries,
    next: u32,
    end: u32,
    bytes: Vec<u8>,
    at: usize,
}

impl Stream {
    fn new(entries: Entries, end: u32) -> Self {
        Self { entries, next: 0, end, bytes: Vec::new(), at: 0 }
    }
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.at == self.bytes.len() && self.next < self.end {
            self.bytes = (self.entries)(LayerBuilder::default(), self.next).build();
            // The end marker is cut off.
            self.bytes.truncate(self.bytes.len() - 1024);
            (self.next, self.at) = (self.next + 1, 0);
        }
        let len = (&self.bytes[self.at..]).read(buffer)?;
        self.at += len;
        Ok(len)
    }
}

impl Source for Stream {
    fn skip(&mut self, len: u64) -> io::Result<()> {
        let skipped = io::copy(&mut self.take(len), &mut io::sink())?;
        if skipped == len { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }
}

/// The most memory that this process has had since the last call.
pub(crate) fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    // proc(5), /proc/pid/clear_refs: "5 … Reset the peak resident set size ("high water mark")"
    std::fs::write("/proc/self/clear_refs", "5").unwrap();
    peak.trim().strip_suffix(" kB").unwrap().parse::<u64>().unwrap() << 10
}

#[test]
#[ignore = "the child's side of another test"]
fn in_the_child() {
    let bomb = std::env::var(BOMB).unwrap();
    let (_, entries) = BOMBS.into_iter().find(|(name, _)| *name == bomb).unwrap();
    let limits = Limits { metadata_bytes: METADATA_BYTES, ..Limits::default() };
    peak();
    let before = peak();
    let convert = |stream: &mut Stream| {
        let result = convert(stream, tempfile::tempfile().unwrap(), [0; 16], limits).map(drop);
        (result, peak() - before)
    };
    let mut stream = Stream::new(entries, u32::MAX);
    let (result, refused) = convert(&mut stream);
    let error = result.unwrap_err().to_string();
    assert!(error.ends_with("bytes of memory for the names of a layer"), "{error}");
    // As many entries as the limit allows, so that the directories are written as well.
    let (result, taken) = convert(&mut Stream::new(entries, stream.next - 1));
    result.unwrap();
    assert!(refused.max(taken) < METADATA_BYTES + TOLERANCE, "{} and {} KiB", refused >> 10, taken >> 10);
}

#[test]
fn memory_is_what_the_limit_says() {
    for (name, _) in BOMBS {
        let mut child = Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", "layer::bombs::in_the_child", "--ignored"]).env(BOMB, name);
        let output = child.stderr(Stdio::inherit()).output().unwrap();
        assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

fn refusal(mut stream: impl Source, limits: Limits) -> String {
    let converted = convert(&mut stream, Vec::new(), [0; 16], limits);
    converted.map(drop).unwrap_err().to_string()
}

#[test]
fn extended_headers_are_counted_together() {
    let comments = |layer: LayerBuilder, _| layer.pax(&[("comment", &[b'x'; 1000])]);
    let error = refusal(Stream::new(comments, u32::MAX), Limits::default());
    assert_eq!(error, "more than 1048576 bytes in the extended headers of an entry");
    let names = |layer: LayerBuilder, _| layer.entry(EntryType::GNULongName, "x", 0, &[b'x'; 1000], None);
    let error = refusal(Stream::new(names, u32::MAX), Limits::default());
    assert_eq!(error, "more than 1048576 bytes in the extended headers of an entry");
    let records = |layer: LayerBuilder, _| layer.pax(&[("a", &b""[..]); 100]);
    let error = refusal(Stream::new(records, u32::MAX), Limits::default());
    assert_eq!(error, "more than 4096 extended records of an entry");
    // Read anew for each entry.
    let entries = |layer: LayerBuilder, _| layer.pax(&[("comment", &[b'x'; 1 << 19])]).dir("x", 0o755);
    convert(&mut Stream::new(entries, 4), Vec::new(), [0; 16], Limits::default()).unwrap();
}

/// A chain of links, each of which leads to the next one by as many steps as fit into it.
fn chain(len: u32) -> LayerBuilder {
    (0..len).fold(LayerBuilder::default().dir("d", 0o755), |layer, index| {
        let last = if index + 1 == len { "d".to_owned() } else { format!("s{}", index + 1) };
        let target = "d/../".repeat(800) + &last;
        layer.pax(&[("linkpath", target.as_bytes())]).symlink(&format!("s{index}"), "")
    })
}

#[test]
fn steps_through_symbolic_links_are_counted() {
    let error = refusal(chain(39).file("s0/x", 0o644, b"").build().as_slice(), Limits::default());
    assert!(error.ends_with("has too many directories on the way to it"), "{error}");
    let limits = Limits { walked_parts: 100_000, ..Limits::default() };
    let entries = (0..100).fold(chain(2), |layer, index| layer.file(&format!("s0/{index}"), 0o644, b""));
    let error = refusal(entries.build().as_slice(), limits);
    assert_eq!(error, "more than 100000 parts of names in a layer");
}
