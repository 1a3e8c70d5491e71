//! Attributes of a file as the kernel is told them, and changes of attributes.

use std::time::Duration;

use crate::NodeId;

/// A moment, since 1970.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Time {
    /// Whole seconds; negative before 1970.
    pub seconds: i64,
    /// Nanoseconds after the whole seconds, under a thousand million.
    pub nanoseconds: u32,
}

/// The numbers of a device node.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Device {
    /// The number of the driver; 12 bits.
    pub major: u32,
    /// The number among the driver's devices; 20 bits.
    pub minor: u32,
}

impl Device {
    /// The numbers in the form that Linux gives to programs with 32 bits (`new_encode_dev`).
    pub(crate) fn packed(self) -> u32 {
        (self.minor & 0xff) | ((self.major & 0xfff) << 8) | ((self.minor & 0xf_ff00) << 12)
    }

    /// The opposite of [`packed`](Self::packed).
    pub(crate) fn unpacked(packed: u32) -> Self {
        Self { major: (packed >> 8) & 0xfff, minor: (packed & 0xff) | ((packed >> 12) & 0xf_ff00) }
    }
}

/// A file's attributes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Attributes {
    /// Number of the file, as programs see it.
    pub ino: u64,
    /// Size in bytes.
    pub size: u64,
    /// Space taken, in units of 512 bytes.
    pub blocks: u64,
    /// Last read.
    pub atime: Time,
    /// Last change of the contents.
    pub mtime: Time,
    /// Last change of anything.
    pub ctime: Time,
    /// Time at which the file was made, if it is known.
    pub btime: Option<Time>,
    /// Type, special bits and permissions: `st_mode`.
    pub mode: u32,
    /// Number of the file's names.
    pub links: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// The device that a device node stands for.
    pub device: Device,
    /// The best number of bytes to move at once.
    pub block_size: u32,
    /// Whether the file is the root of a mount of its own: the kernel then gives it a device number that no other mount
    /// has.
    pub submount: bool,
}

/// Attributes, and how long the kernel may believe them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Stat {
    /// The attributes.
    pub attributes: Attributes,
    /// How long the attributes are valid.
    pub valid: Duration,
}

/// The node to which a name leads. The kernel has one more reference to the node for each entry that it is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry {
    /// The node.
    pub node: NodeId,
    /// A number that differs between nodes that have the same number one after the other.
    pub generation: u64,
    /// How long the name is valid.
    pub valid: Duration,
    /// The node's attributes.
    pub stat: Stat,
}

/// A time to be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The time of the host's clock.
    Now,
    /// A given time.
    At(Time),
}

/// A change of a file's attributes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SetAttributes {
    /// Special bits and permissions: the low 12 bits of `st_mode`.
    pub mode: Option<u32>,
    /// Owner; never 2^32 - 1.
    pub uid: Option<u32>,
    /// Group; never 2^32 - 1.
    pub gid: Option<u32>,
    /// Size in bytes: at most 2^63 - 1.
    pub size: Option<u64>,
    /// Last read.
    pub atime: Option<SetTime>,
    /// Last change of the contents.
    pub mtime: Option<SetTime>,
    /// Last change of anything: only from a kernel that keeps that time itself.
    pub ctime: Option<Time>,
    /// Whether to clear the set-user-ID bit, the set-group-ID bit of a file that its group may run, and capabilities.
    pub kill_privileges: bool,
}

/// The state of a file system.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Size of a block, the unit of the next three fields.
    pub block_size: u32,
    /// All blocks.
    pub blocks: u64,
    /// Free blocks.
    pub free: u64,
    /// Free blocks that users without privilege may have.
    pub available: u64,
    /// How many files the file system has room for.
    pub files: u64,
    /// How many more files the file system has room for.
    pub free_files: u64,
    /// Longest name.
    pub name_len: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_numbers_are_packed_as_linux_packs_them() {
        // mknod(1) of "b 8 1", /dev/pts/300 (136:300), and the largest numbers.
        for (major, minor, packed) in [(8, 1, 0x801), (136, 300, 0x10_882c), (0xfff, 0xf_ffff, u32::MAX)] {
            assert_eq!(Device { major, minor }.packed(), packed);
            assert_eq!(Device::unpacked(packed), Device { major, minor });
        }
    }
}
