//! Extensions of a request that makes a file: security labels for the file, and groups of its maker.
//!
//! An extension of an unknown kind is skipped, so a newer kernel may send more.

use std::ffi::CStr;

use fuse_abi::linux as abi;
use zerocopy::FromBytes;

use crate::{Errno, Result, XattrName};

/// Most bytes of a request's extensions.
const MAX_LEN: usize = 3 << 10;

/// The unit in which the wire counts the length of all extensions; each extension begins at a multiple of it.
const UNIT: usize = 8;

/// A label that a security module gives to a new file: an extended attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Label<'a> {
    /// The attribute's name, such as `security.selinux`.
    pub name: XattrName<'a>,
    /// The label's value.
    pub value: &'a [u8],
}

/// A request's extensions.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Extensions<'a> {
    /// Labels one after the other, already checked.
    labels: Option<&'a [u8]>,
    /// Numbers of groups, 32 bits each.
    groups: Option<&'a [u8]>,
}

impl<'a> Extensions<'a> {
    /// No extensions.
    pub const NONE: Self = Self { labels: None, groups: None };

    /// Splits the arguments of a request, whose last `units` are the extensions.
    pub(crate) fn split(args: &'a [u8], units: u16) -> Result<(&'a [u8], Self)> {
        let len = usize::from(units) * UNIT;
        if len > MAX_LEN {
            return Err(Errno::E2BIG);
        }
        let at = args.len().checked_sub(len).ok_or(Errno::EINVAL)?;
        let (args, mut rest) = args.split_at(at);
        let mut extensions = Self::default();
        while !rest.is_empty() {
            rest = extensions.add(rest)?;
        }
        Ok((args, extensions))
    }

    /// Takes the first extension of `rest` and returns the bytes after it.
    fn add(&mut self, rest: &'a [u8]) -> Result<&'a [u8]> {
        let (header, _) = abi::fuse_ext_header::read_from_prefix(rest).map_err(|_| Errno::EINVAL)?;
        let size = usize::try_from(header.size).map_err(|_| Errno::EINVAL)?;
        let extension = rest.get(..size).ok_or(Errno::EINVAL)?;
        let body = extension.get(size_of::<abi::fuse_ext_header>()..).ok_or(Errno::EINVAL)?;
        let earlier = match header.type_ {
            // The header of labels has the form of an extension's, with the number of labels in the place of its type.
            count if count <= abi::fuse_ext_type::FUSE_MAX_NR_SECCTX as u32 => {
                self.labels.replace(checked_labels(body, count)?)
            }
            kind if kind == abi::fuse_ext_type::FUSE_EXT_GROUPS as u32 => self.groups.replace(groups(body)?),
            _ => None,
        };
        if earlier.is_some() {
            return Err(Errno::EINVAL);
        }
        rest.get(size.next_multiple_of(UNIT)..).ok_or(Errno::EINVAL)
    }

    /// The labels of the new file.
    pub fn labels(&self) -> impl Iterator<Item = Label<'a>> {
        let mut rest = self.labels.unwrap_or_default();
        std::iter::from_fn(move || {
            let (label, after) = label(rest).ok()?;
            rest = after;
            Some(label)
        })
    }

    /// Groups of the file's maker, as far as they matter for the new file.
    pub fn groups(&self) -> impl Iterator<Item = u32> {
        let (groups, _) = self.groups.unwrap_or_default().as_chunks();
        groups.iter().copied().map(u32::from_ne_bytes)
    }
}

/// The part of `body` that consists of `count` labels.
fn checked_labels(body: &[u8], count: u32) -> Result<&[u8]> {
    let mut rest = body;
    for _ in 0..count {
        rest = label(rest)?.1;
    }
    body.get(..body.len() - rest.len()).ok_or(Errno::EINVAL)
}

/// The first label, and the bytes after it.
fn label(bytes: &[u8]) -> Result<(Label<'_>, &[u8])> {
    let (header, rest) = abi::fuse_secctx::read_from_prefix(bytes).map_err(|_| Errno::EINVAL)?;
    let name = CStr::from_bytes_until_nul(rest).map_err(|_| Errno::EINVAL)?;
    let value = rest.get(name.count_bytes() + 1..).ok_or(Errno::EINVAL)?;
    let size = usize::try_from(header.size).map_err(|_| Errno::EINVAL)?;
    let value = value.get(..size).ok_or(Errno::EINVAL)?;
    let end = size_of::<abi::fuse_secctx>() + name.count_bytes() + 1 + size;
    let after = bytes.get(end.next_multiple_of(UNIT)..).ok_or(Errno::EINVAL)?;
    Ok((Label { name: XattrName::new(name)?, value }, after))
}

/// The part of `body` that consists of numbers of groups.
fn groups(body: &[u8]) -> Result<&[u8]> {
    let (count, groups) = u32::read_from_prefix(body).map_err(|_| Errno::EINVAL)?;
    let len = usize::try_from(count).ok().and_then(|count| count.checked_mul(size_of::<u32>()));
    len.and_then(|len| groups.get(..len)).ok_or(Errno::EINVAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn padded(mut bytes: Vec<u8>) -> Vec<u8> {
        bytes.resize(bytes.len().next_multiple_of(UNIT), 0);
        bytes
    }

    fn extension(kind: u32, body: &[u8]) -> Vec<u8> {
        let size = u32::try_from(8 + body.len()).unwrap();
        padded([&size.to_ne_bytes(), &kind.to_ne_bytes(), body].concat())
    }

    fn one_label(name: &[u8], value: &[u8]) -> Vec<u8> {
        let size = u32::try_from(value.len()).unwrap();
        padded([&size.to_ne_bytes(), &[0; 4], name, value].concat())
    }

    type Found = (Vec<(Vec<u8>, Vec<u8>)>, Vec<u32>);

    fn split(extensions: &[u8]) -> Result<Found> {
        let args = [b"before.", extensions].concat();
        let (before, extensions) = Extensions::split(&args, u16::try_from(extensions.len() / UNIT).unwrap())?;
        assert_eq!(before, b"before.");
        let labels = extensions.labels().map(|label| (label.name.as_bytes().to_vec(), label.value.to_vec()));
        Ok((labels.collect(), extensions.groups().collect()))
    }

    #[test]
    fn labels_and_groups_are_found_among_others() {
        assert_eq!(split(b""), Ok((vec![], vec![])));
        // Linux without a security module sends a header for zero labels.
        assert_eq!(split(&extension(0, b"")), Ok((vec![], vec![])));
        let labels =
            [one_label(b"security.selinux\0", b"a_t:s0\0"), one_label(b"security.b\0", b"")].concat();
        let groups: Vec<u8> = [3u32, 100, 0, u32::MAX].into_iter().flat_map(u32::to_ne_bytes).collect();
        let all = [extension(2, &labels), extension(77, b"news"), extension(32, &groups)].concat();
        let expected = vec![
            (b"security.selinux".to_vec(), b"a_t:s0\0".to_vec()),
            (b"security.b".to_vec(), b"".to_vec()),
        ];
        assert_eq!(split(&all), Ok((expected, vec![100, 0, u32::MAX])));
    }

    #[test]
    fn lengths_are_within_the_request() {
        let numbers = |numbers: &[u32]| numbers.iter().flat_map(|number| number.to_ne_bytes()).collect();
        let broken: [Vec<u8>; 9] = [
            // A size that does not cover the header, one that reaches beyond the request, and the largest one.
            numbers(&[7, 99]),
            numbers(&[0, 99]),
            numbers(&[24, 99, 0, 0]),
            numbers(&[u32::MAX, 32]),
            // Groups that are missing, and a number of groups that exceeds the limit.
            extension(32, &numbers(&[3, 1, 2])),
            extension(32, &numbers(&[u32::MAX, 1])),
            // A label whose name has no end, one whose value is missing, and a missing label.
            extension(1, &numbers(&[4, 0, u32::MAX, u32::MAX])),
            extension(1, &[&one_label(b"security.a\0", b"")[..16], &[1; 8]].concat()[..12]),
            extension(2, &one_label(b"security.a\0", b"")),
        ];
        for bytes in &broken {
            assert_eq!(split(bytes), Err(Errno::EINVAL), "{}", bytes.escape_ascii());
        }
        assert_eq!(split(&extension(1, &one_label(b"\0", b"no name"))), Err(Errno::ERANGE));
        assert_eq!(split(&[extension(0, b""), extension(0, b"")].concat()), Err(Errno::EINVAL));
        assert_eq!(Extensions::split(b"short", 1), Err(Errno::EINVAL));
        assert_eq!(Extensions::split(&[0; 8192], u16::MAX), Err(Errno::E2BIG));
        assert_eq!(split(&extension(99, &[0; MAX_LEN - 8])), Ok((vec![], vec![])));
        assert_eq!(split(&extension(99, &[0; MAX_LEN])), Err(Errno::E2BIG));
    }
}
