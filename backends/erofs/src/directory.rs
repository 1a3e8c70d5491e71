//! Directory contents: blocks, each of which holds entries and then their names.
//!
//! Entries are in byte order over the whole directory, `.` and `..` among them, so that a lookup is a binary search,
//! first for the block, then within it. An entry and its name are always in the same block.

use crate::BLOCK_SIZE;
use crate::format::DIRENT_SIZE;

/// The file type of a directory in a directory entry.
pub(crate) const TYPE_DIR: u8 = 2;

/// One directory entry.
#[derive(Clone, Copy)]
pub(crate) struct Dirent<'a> {
    pub(crate) name: &'a [u8],
    pub(crate) nid: u64,
    pub(crate) file_type: u8,
}

/// Groups entries, which must be in order, into blocks; calls `emit` for each.
fn pack<'a>(entries: &[Dirent<'a>], mut emit: impl FnMut(&[Dirent<'a>], usize)) {
    let (mut first, mut used) = (0, 0);
    for (index, entry) in entries.iter().enumerate() {
        let need = DIRENT_SIZE + entry.name.len();
        if used + need > BLOCK_SIZE {
            emit(entries.get(first..index).unwrap_or_default(), used);
            (first, used) = (index, 0);
        }
        used += need;
    }
    emit(entries.get(first..).unwrap_or_default(), used);
}

/// Length of a directory's contents, of which only the last block may be a part of one.
pub(crate) fn size(entries: &[Dirent<'_>]) -> u64 {
    let (mut blocks, mut last) = (0u64, 0);
    pack(entries, |_, used| {
        blocks += 1;
        last = used;
    });
    (blocks - 1) * BLOCK_SIZE as u64 + last as u64
}

/// A directory's contents, [`size`] bytes.
pub(crate) fn encode(entries: &[Dirent<'_>]) -> Vec<u8> {
    let mut out = Vec::new();
    pack(entries, |block, _| {
        out.resize(out.len().next_multiple_of(BLOCK_SIZE), 0);
        let mut name_offset = block.len() * DIRENT_SIZE;
        for entry in block {
            out.extend_from_slice(&entry.nid.to_le_bytes());
            // The offset is below 4096, as `pack` ensures.
            out.extend_from_slice(&u16::try_from(name_offset).unwrap_or(u16::MAX).to_le_bytes());
            out.extend_from_slice(&[entry.file_type, 0]);
            name_offset += entry.name.len();
        }
        for entry in block {
            out.extend_from_slice(entry.name);
        }
    });
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(count: usize, len: usize) -> Vec<Vec<u8>> {
        (0..count).map(|i| format!("{i:0len$}").into_bytes()).collect()
    }

    fn dirents(names: &[Vec<u8>]) -> Vec<Dirent<'_>> {
        names.iter().map(|name| Dirent { name, nid: 7, file_type: 1 }).collect()
    }

    #[test]
    fn size_is_what_encode_makes() {
        for count in [1, 2, 15, 16, 17, 200, 1000] {
            for len in [1, 12, 116, 244, 255] {
                let names = names(count, len);
                let entries = dirents(&names);
                assert_eq!(encode(&entries).len() as u64, size(&entries), "{count} names of {len}");
            }
        }
    }

    #[test]
    fn a_block_can_be_exactly_full() {
        // 16 entries of 12 + 244 bytes are 4096.
        let names = names(17, 244);
        assert_eq!(size(&dirents(&names[..16])), 4096);
        assert_eq!(size(&dirents(&names)), 4096 + 256);
    }
}
