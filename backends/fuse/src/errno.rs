//! The reason why a request fails, in Linux's numbers.

/// The answer of a file system.
pub type Result<T> = std::result::Result<T, Errno>;

/// The number of an error on Linux (asm-generic/errno.h), whatever the host calls it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Errno(u16);

impl Errno {
    /// Not permitted.
    pub const EPERM: Self = Self(1);
    /// No such file.
    pub const ENOENT: Self = Self(2);
    /// An error that should not happen.
    pub const EIO: Self = Self(5);
    /// No such device.
    pub const ENXIO: Self = Self(6);
    /// Too long a list of arguments, or too large a value.
    pub const E2BIG: Self = Self(7);
    /// No such handle.
    pub const EBADF: Self = Self(9);
    /// No permission.
    pub const EACCES: Self = Self(13);
    /// In use.
    pub const EBUSY: Self = Self(16);
    /// Already there.
    pub const EEXIST: Self = Self(17);
    /// On another file system.
    pub const EXDEV: Self = Self(18);
    /// Not a directory.
    pub const ENOTDIR: Self = Self(20);
    /// A directory.
    pub const EISDIR: Self = Self(21);
    /// Invalid argument.
    pub const EINVAL: Self = Self(22);
    /// Too many open files.
    pub const EMFILE: Self = Self(24);
    /// Not an ioctl of this file.
    pub const ENOTTY: Self = Self(25);
    /// Too large a file.
    pub const EFBIG: Self = Self(27);
    /// No space left.
    pub const ENOSPC: Self = Self(28);
    /// A file system that is read-only.
    pub const EROFS: Self = Self(30);
    /// Too many links.
    pub const EMLINK: Self = Self(31);
    /// Too small a buffer.
    pub const ERANGE: Self = Self(34);
    /// Too long a name.
    pub const ENAMETOOLONG: Self = Self(36);
    /// Not implemented; the kernel does not ask again.
    pub const ENOSYS: Self = Self(38);
    /// Not empty.
    pub const ENOTEMPTY: Self = Self(39);
    /// Too many symbolic links.
    pub const ELOOP: Self = Self(40);
    /// No such attribute.
    pub const ENODATA: Self = Self(61);
    /// Another protocol.
    pub const EPROTO: Self = Self(71);
    /// Not supported.
    pub const EOPNOTSUPP: Self = Self(95);
    /// The file is not the expected one; the kernel looks its name up again.
    pub const ESTALE: Self = Self(116);

    /// The first number that is no error number: from here on numbers have a meaning inside the kernel, which refuses
    /// them in a reply.
    const END: i32 = 512;

    /// The error with a number of Linux's; any other number is an [`EIO`](Self::EIO).
    pub fn from_number(number: i32) -> Self {
        match u16::try_from(number) {
            Ok(small) if (1..Self::END).contains(&number) => Self(small),
            _ => Self::EIO,
        }
    }

    /// The number, above 0.
    pub fn number(self) -> i32 {
        self.0.into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_numbers_that_a_reply_may_have_are_kept() {
        assert_eq!(Errno::from_number(2), Errno::ENOENT);
        assert_eq!(Errno::from_number(511).number(), 511);
        for none in [0, -1, 512, i32::MAX, i32::MIN] {
            assert_eq!(Errno::from_number(none), Errno::EIO);
        }
    }
}
