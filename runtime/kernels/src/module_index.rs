//! The index files in which kmod's modprobe(8) looks up names, such as `modules.dep.bin`.
//!
//! The format is that of kmod's `libkmod/libkmod-index.h`: a trie of the keys' bytes, integers big-endian, each node
//! after its children.
//!
//! ```text
//! magic, version, offset of the root
//! node: prefix (NUL-terminated) | first, last, an offset for each byte in first..=last | count, (priority, value NUL)…
//! ```
//!
//! The top bits of an offset tell which of the three parts its node has. Not here: the meaning of keys and values.

use std::collections::BTreeMap;

const MAGIC: u32 = 0xb007_f457;
const VERSION: u32 = 0x0002_0001;

/// The node has a prefix, children, values.
const PREFIX: u32 = 0x8000_0000;
const VALUES: u32 = 0x4000_0000;
const CHILDREN: u32 = 0x2000_0000;

/// Offsets have 28 bits.
const MAX_BYTES: usize = 1 << 28;

/// Bytes of keys: the format has room for ASCII.
const BYTES: u8 = 128;

/// Longest key: no alias of Linux is half as long, and each byte may be a node below another.
const MAX_KEY_BYTES: usize = 1024;

/// Values of each key, in their order of precedence.
#[derive(Debug, Default)]
pub(crate) struct Index(BTreeMap<Vec<u8>, Vec<Vec<u8>>>);

impl Index {
    /// Adds a value. A key that is too long, or has a byte that the format has no room for, is left out.
    pub(crate) fn add(&mut self, key: &str, value: &str) {
        if key.len() <= MAX_KEY_BYTES
            && key.is_ascii()
            && ![key, value].iter().any(|text| text.contains('\0'))
        {
            self.0.entry(key.into()).or_default().push(value.into());
        }
    }

    /// The file's bytes; `None` if they are more than the format can address.
    pub(crate) fn encode(&self) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        for word in [MAGIC, VERSION, 0] {
            out.extend_from_slice(&word.to_be_bytes());
        }
        let entries: Vec<Entry<'_>> = self.0.iter().map(|(key, values)| (&**key, &**values)).collect();
        let root = node(&mut out, &entries);
        out.get_mut(8..12)?.copy_from_slice(&root.to_be_bytes());
        (out.len() <= MAX_BYTES).then_some(out)
    }
}

/// The rest of a key below a node, and the key's values.
type Entry<'a> = (&'a [u8], &'a [Vec<u8>]);

/// Writes the node of these sorted entries after those below it. Returns its offset, with its flags.
fn node(out: &mut Vec<u8>, entries: &[Entry<'_>]) -> u32 {
    let common = common_prefix(entries);
    let below: Vec<Entry<'_>> =
        entries.iter().map(|(key, values)| (key.get(common..).unwrap_or_default(), *values)).collect();
    // Sorted, so the key that ends here is the first.
    let (values, longer) = match below.split_first() {
        Some((([], values), rest)) => (*values, rest),
        _ => (&[][..], &*below),
    };
    let children: Vec<(u8, u32)> = longer
        .chunk_by(|(one, _), (other, _)| one.first() == other.first())
        .filter_map(|group| {
            let byte = *group.first()?.0.first()?;
            let rest: Vec<Entry<'_>> =
                group.iter().map(|(key, values)| (key.get(1..).unwrap_or_default(), *values)).collect();
            Some((byte, node(out, &rest)))
        })
        .collect();
    let mut offset = u32::try_from(out.len()).unwrap_or(0);
    let prefix = entries.first().and_then(|(key, _)| key.get(..common)).unwrap_or_default();
    if !prefix.is_empty() {
        offset |= PREFIX;
        out.extend_from_slice(prefix);
        out.push(0);
    }
    if let (Some((first, _)), Some((last, _))) = (children.first(), children.last()) {
        offset |= CHILDREN;
        out.extend_from_slice(&[*first, *last]);
        let offsets: BTreeMap<u8, u32> = children.iter().copied().collect();
        for byte in *first..=(*last).min(BYTES - 1) {
            out.extend_from_slice(&offsets.get(&byte).copied().unwrap_or(0).to_be_bytes());
        }
    }
    if !values.is_empty() {
        offset |= VALUES;
        out.extend_from_slice(&u32::try_from(values.len()).unwrap_or(0).to_be_bytes());
        for (priority, value) in (0_u32..).zip(values) {
            out.extend_from_slice(&priority.to_be_bytes());
            out.extend_from_slice(value);
            out.push(0);
        }
    }
    offset
}

/// The length of the common beginning of all keys. They are sorted, so the first and the last have it.
fn common_prefix(entries: &[Entry<'_>]) -> usize {
    let (Some((first, _)), Some((last, _))) = (entries.first(), entries.last()) else { return 0 };
    first.iter().zip(*last).take_while(|(one, other)| one == other).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn text(bytes: &[u8], at: usize) -> &[u8] {
        bytes[at..].split(|byte| *byte == 0).next().unwrap()
    }

    /// Looks up the values of a key as kmod does.
    fn look_up(bytes: &[u8], key: &str) -> Vec<String> {
        assert_eq!((word(bytes, 0), word(bytes, 4)), (MAGIC, VERSION));
        let (mut offset, mut key) = (word(bytes, 8), key.as_bytes());
        loop {
            let mut at = (offset & 0x0fff_ffff) as usize;
            if offset & PREFIX != 0 {
                let prefix = text(bytes, at);
                let Some(rest) = key.strip_prefix(prefix) else { return Vec::new() };
                (key, at) = (rest, at + prefix.len() + 1);
            }
            let mut children = Vec::new();
            if offset & CHILDREN != 0 {
                let (first, last) = (bytes[at], bytes[at + 1]);
                children =
                    (first..=last).map(|byte| (byte, at + 2 + 4 * usize::from(byte - first))).collect();
                at += 2 + 4 * children.len();
            }
            let Some((byte, rest)) = key.split_first() else {
                let count = if offset & VALUES == 0 { 0 } else { word(bytes, at) };
                at += 4;
                let value = |priority| {
                    assert_eq!(word(bytes, at), priority);
                    let value = text(bytes, at + 4);
                    at += 4 + value.len() + 1;
                    String::from_utf8(value.to_vec()).unwrap()
                };
                return (0..count).map(value).collect();
            };
            let child = children.into_iter().find(|(first, _)| first == byte);
            offset = child.map_or(0, |(_, at)| word(bytes, at));
            if offset == 0 {
                return Vec::new();
            }
            key = rest;
        }
    }

    #[test]
    fn every_key_is_found_and_no_other() {
        let mut index = Index::default();
        let keys = ["fuse", "fus", "bridge", "br_netfilter", "b", "", "pci:v00001AF4d*sv*", "fuse2"];
        for key in keys {
            index.add(key, &format!("one of {key}"));
            index.add(key, &format!("two of {key}"));
        }
        index.add("\u{e4}", "no room");
        index.add("nul", "a\0b");
        let bytes = index.encode().unwrap();
        for key in keys {
            assert_eq!(look_up(&bytes, key), [format!("one of {key}"), format!("two of {key}")], "{key}");
        }
        for key in ["fu", "fuse22", "bridg", "c", "nul", "pci:"] {
            assert_eq!(look_up(&bytes, key), Vec::<String>::new(), "{key}");
        }
    }

    #[test]
    fn an_empty_index_has_a_root() {
        assert_eq!(look_up(&Index::default().encode().unwrap(), "anything"), Vec::<String>::new());
    }
}
