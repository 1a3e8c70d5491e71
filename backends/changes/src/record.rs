//! One path in a list.

use serde::{Deserialize, Serialize};

use crate::Place;

/// The type of a file in `st_mode`.
pub mod kind {
    /// The bits of the type.
    pub const MASK: u32 = 0o170_000;
    /// A directory.
    pub const DIRECTORY: u32 = 0o040_000;
    /// A regular file.
    pub const FILE: u32 = 0o100_000;
    /// A symbolic link.
    pub const LINK: u32 = 0o120_000;
}

/// One line of a list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Record {
    /// A path of the directory that leads to its file no more.
    Gone(Gone),
    /// A path that leads to a file because the guest had it so, and to the directories on the way.
    There(There),
    /// So many paths are not in the list, because they are too long.
    LeftOut(u64),
}

/// A path of the directory that leads to its file no more.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gone {
    /// The path in the directory.
    pub place: Place,
    /// The file, when the guest last looked.
    pub was: Base,
}

/// A path as the guest has it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct There {
    /// The path in the guest's view.
    pub place: Place,
    /// The path of the same file in the directory, if the file was there.
    pub origin: Option<Place>,
    /// That file, when the guest's change began; none for a directory of which only what is in it was changed.
    pub was: Option<Base>,
    /// Paths with the same number lead to one file.
    pub file: u64,
    /// Special bits and permissions.
    pub mode: u32,
    /// The time of the contents' last change.
    pub mtime: Time,
    /// The file itself.
    pub what: What,
}

/// A file itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum What {
    /// A directory.
    Directory,
    /// A regular file.
    File(Contents),
    /// A symbolic link, with its target.
    Link(Vec<u8>),
    /// Something that is not made on the host: a device, a FIFO, a socket.
    Special,
}

/// Contents of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contents {
    /// Bytes of the file.
    pub len: u64,
    /// Their place; behind what is there are zeroes.
    pub stored: Stored,
}

/// The place of contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stored {
    /// In the directory's file, as nobody changed them.
    Below,
    /// In the list.
    Inline(Vec<u8>),
    /// In the file of this number beside the list.
    File(u64),
}

/// A file of the directory, as far as it shows whether it was changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Base {
    /// Type, special bits and permissions.
    pub mode: u32,
    /// Number.
    pub ino: u64,
    /// Bytes.
    pub size: u64,
    /// The time of its contents' last change.
    pub mtime: Time,
    /// The time of the last change of anything.
    pub ctime: Time,
}

impl Base {
    /// The type.
    #[must_use]
    pub fn kind(&self) -> u32 {
        self.mode & kind::MASK
    }

    /// Whether it is a directory.
    #[must_use]
    pub fn is_directory(&self) -> bool {
        self.kind() == kind::DIRECTORY
    }
}

/// A point in time, from 1970 on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Time {
    /// Seconds.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanoseconds: u32,
}
