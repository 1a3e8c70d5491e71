//! Names of files and of extended attributes, and targets of symbolic links, in the forms that the decoder accepts.
//!
//! A name or a target is a string with its terminating NUL, as a system call takes it.

use std::ffi::CStr;

use crate::{Errno, Result};

/// Longest name of a file (Linux `NAME_MAX`).
const MAX_NAME_LEN: usize = 255;

/// Longest target of a symbolic link (Linux `PATH_MAX`, less the terminating NUL).
const MAX_TARGET_LEN: usize = 4095;

/// Longest name of an extended attribute (Linux `XATTR_NAME_MAX`).
const MAX_XATTR_NAME_LEN: usize = 255;

/// The name of a file in its directory: one component of a path, neither `.` nor `..`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Name<'a>(&'a CStr);

impl<'a> Name<'a> {
    /// Accepts a name that cannot lead out of its directory.
    pub fn new(name: &'a CStr) -> Result<Self> {
        match name.to_bytes() {
            b"" => Err(Errno::ENOENT),
            b"." | b".." => Err(Errno::EINVAL),
            bytes if bytes.contains(&b'/') => Err(Errno::EINVAL),
            bytes if bytes.len() > MAX_NAME_LEN => Err(Errno::ENAMETOOLONG),
            _ => Ok(Self(name)),
        }
    }

    /// The name with its NUL.
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }

    /// The name without its NUL.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0.to_bytes()
    }
}

/// The target of a symbolic link: any path, which only the guest ever follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinkTarget<'a>(&'a CStr);

impl<'a> LinkTarget<'a> {
    /// Accepts a target that a file system can store.
    pub fn new(target: &'a CStr) -> Result<Self> {
        match target.to_bytes().len() {
            0 => Err(Errno::ENOENT),
            1..=MAX_TARGET_LEN => Ok(Self(target)),
            _ => Err(Errno::ENAMETOOLONG),
        }
    }

    /// The target with its NUL.
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }
}

/// The name of an extended attribute, its namespace included.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct XattrName<'a>(&'a CStr);

impl<'a> XattrName<'a> {
    /// Accepts a name that an attribute can have.
    pub fn new(name: &'a CStr) -> Result<Self> {
        match name.to_bytes().len() {
            1..=MAX_XATTR_NAME_LEN => Ok(Self(name)),
            _ => Err(Errno::ERANGE),
        }
    }

    /// The name with its NUL.
    pub fn as_c_str(self) -> &'a CStr {
        self.0
    }

    /// The name without its NUL.
    pub fn as_bytes(self) -> &'a [u8] {
        self.0.to_bytes()
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use super::*;

    #[test]
    fn names_stay_in_their_directory() {
        let refused = |name: &[u8]| Name::new(&CString::new(name).unwrap()).err();
        assert_eq!(refused(b""), Some(Errno::ENOENT));
        for name in [&b"."[..], b"..", b"/", b"a/b", b"/a", b"a/", b"../a"] {
            assert_eq!(refused(name), Some(Errno::EINVAL), "{}", name.escape_ascii());
        }
        assert_eq!(refused(&[b'a'; 256]), Some(Errno::ENAMETOOLONG));
        for name in [&b"a"[..], b"...", b".a", b"..a", b" ", b"\\", b"\n", b"\xff\xfe", &[b'a'; 255]] {
            assert_eq!(refused(name), None, "{}", name.escape_ascii());
        }
    }

    #[test]
    fn targets_may_say_anything_that_fits() {
        let refused = |target: &[u8]| LinkTarget::new(&CString::new(target).unwrap()).err();
        assert_eq!(refused(b""), Some(Errno::ENOENT));
        assert_eq!(refused(&[b'a'; 4096]), Some(Errno::ENAMETOOLONG));
        for target in [&b"."[..], b"..", b"/", b"../../etc/passwd", &[b'/'; 4095]] {
            assert_eq!(refused(target), None);
        }
    }

    #[test]
    fn attribute_names_have_a_length() {
        let refused = |name: &[u8]| XattrName::new(&CString::new(name).unwrap()).err();
        assert_eq!(refused(b""), Some(Errno::ERANGE));
        assert_eq!(refused(&[b'a'; 256]), Some(Errno::ERANGE));
        assert_eq!(refused(b"user.a/b"), None);
    }
}
