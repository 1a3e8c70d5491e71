//! Extended attributes, all of them inline after their inode.

use std::collections::BTreeMap;

use crate::{Error, Result};

/// Size of the header before the entries.
pub(crate) const HEADER_SIZE: usize = 12;

/// Longest encoding: the inode counts the length in 16 bits.
const MAX_ENCODED: usize = HEADER_SIZE + 4 * (u16::MAX as usize - 1);

/// Prefixes that the format knows, by their index. A name may consist of the prefix alone.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// Splits a name into the index of its prefix and the rest.
pub(crate) fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    let (prefix, index) = PREFIXES.iter().find(|(prefix, _)| name.starts_with(prefix))?;
    let rest = name.get(prefix.len()..)?;
    // The two ACLs are whole names; the other prefixes need a rest.
    let valid = rest.is_empty() != prefix.ends_with(b".") && name.len() <= 255 && !rest.contains(&0);
    valid.then_some((*index, rest))
}

/// The prefix with this index.
pub(crate) fn prefix(index: u8) -> Option<&'static [u8]> {
    PREFIXES.iter().find(|(_, known)| *known == index).map(|(prefix, _)| *prefix)
}

/// Encodes extended attributes in the form in which they follow the inode; without attributes the result is empty.
pub(crate) fn encode(xattrs: &BTreeMap<Vec<u8>, Vec<u8>>) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    if xattrs.is_empty() {
        return Ok(out);
    }
    out.resize(HEADER_SIZE, 0);
    for (name, value) in xattrs {
        let (index, rest) = split_name(name).ok_or_else(|| Error::XattrName(name.clone()))?;
        let value_len = u16::try_from(value.len()).map_err(|_| Error::XattrValue(value.len()))?;
        let name_len = u8::try_from(rest.len()).map_err(|_| Error::XattrName(name.clone()))?;
        out.extend_from_slice(&[name_len, index]);
        out.extend_from_slice(&value_len.to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(value);
        out.resize(out.len().next_multiple_of(4), 0);
        if out.len() > MAX_ENCODED {
            return Err(Error::XattrTotal(out.len()));
        }
    }
    Ok(out)
}
