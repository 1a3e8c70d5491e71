//! A file of the guest, in the form that clients get.

use guest_protocol::FileEntry;
use wire::rpc::FileInfo;

/// Stands for a time that no calendar can hold.
const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

// Linux's file types and special bits, whatever the host is, and their bits in Go (io/fs).
pub(crate) const S_IFMT: u32 = 0o170_000;
const TYPES: [(u32, u32); 7] = [
    (0o100_000, 0),
    (0o040_000, 0x8000_0000),
    (0o120_000, 0x0800_0000),
    (0o060_000, 0x0400_0000),
    (0o020_000, 0x0400_0000 | 0x0020_0000),
    (0o010_000, 0x0200_0000),
    (0o140_000, 0x0100_0000),
];
const BITS: [(u32, u32); 3] = [(0o4000, 0x0080_0000), (0o2000, 0x0040_0000), (0o1000, 0x0010_0000)];
const IRREGULAR: u32 = 0x0008_0000;
const DIRECTORY: u32 = 0x8000_0000;

pub(super) fn info(entry: &FileEntry) -> FileInfo {
    let mode = go_mode(entry.mode);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    FileInfo {
        name: text(&entry.name),
        size: entry.size,
        mode,
        mod_time: time(entry.mtime_s, entry.mtime_ns),
        is_dir: mode & DIRECTORY != 0,
        uid: entry.uid,
        gid: entry.gid,
        target: (!entry.target.is_empty()).then(|| text(&entry.target)),
    }
}

/// A mode of Linux's in Go's bits.
pub(crate) fn go_mode(mode: u32) -> u32 {
    let kind = TYPES.iter().find(|(kind, _)| mode & S_IFMT == *kind).map_or(IRREGULAR, |(_, go)| *go);
    let bits = BITS.iter().filter(|(bit, _)| mode & bit != 0);
    bits.fold(kind | mode & 0o777, |mode, (_, go)| mode | go)
}

fn time(seconds: i64, nanoseconds: u32) -> String {
    let nanoseconds = i32::try_from(nanoseconds).unwrap_or(i32::MAX);
    let timestamp = jiff::Timestamp::new(seconds, nanoseconds).ok();
    // RFC 3339 §1: "All dates and times are assumed to be in the 'current era', somewhere between 0000AD and 9999AD."
    let years = |text: &String| !text.starts_with('-') && !text.starts_with('+');
    timestamp.map(|timestamp| timestamp.to_string()).filter(years).unwrap_or_else(|| ZERO_TIME.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modes() {
        for (mode, expected) in [
            (0o100_644, 420),
            (0o040_755, 2_147_484_141),
            (0o041_777, 0x8010_01ff),
            (0o104_755, 0x0080_01ed),
            (0o102_755, 0x0040_01ed),
            (0o120_777, 0x0800_01ff),
            (0o060_660, 0x0400_01b0),
            (0o020_620, 0x0420_0190),
            (0o010_600, 0x0200_0180),
            (0o140_600, 0x0100_0180),
            (0o644, 0x0008_01a4),
            (u32::MAX, IRREGULAR | 0o777 | 0x0080_0000 | 0x0040_0000 | 0x0010_0000),
        ] {
            assert_eq!(go_mode(mode), expected, "{mode:o}");
        }
    }

    #[test]
    fn times() {
        for (seconds, nanoseconds, expected) in [
            (0, 0, "1970-01-01T00:00:00Z"),
            (1_700_000_000, 120_000_000, "2023-11-14T22:13:20.12Z"),
            (-1, 0, "1969-12-31T23:59:59Z"),
            (i64::MAX, 0, ZERO_TIME),
            (i64::MIN, 999_999_999, ZERO_TIME),
            (0, u32::MAX, ZERO_TIME),
            (-70_000_000_000, 0, ZERO_TIME),
        ] {
            assert_eq!(time(seconds, nanoseconds), expected, "{seconds}");
        }
    }

    #[test]
    fn names_that_are_no_text() {
        let entry = FileEntry {
            name: b"a\xff".to_vec(),
            size: 3,
            mode: 0o120_777,
            uid: 1,
            gid: 2,
            mtime_s: 0,
            mtime_ns: 0,
            target: b"\xfe".to_vec(),
        };
        let info = info(&entry);
        assert_eq!(
            (info.name.as_str(), info.target.as_deref(), info.is_dir),
            ("a\u{fffd}", Some("\u{fffd}"), false)
        );
    }
}
