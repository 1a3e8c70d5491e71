//! Files of the guest. Paths are the guest's; relative ones start at `/`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters of `list_files`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PathParams {
    /// Which.
    pub path: Option<String>,
}

/// Parameters of `write_file`. Without `offset` and `append` the file's old content is replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WriteFileParams {
    /// Which; directories above it are made.
    pub path: Option<String>,
    /// What.
    #[schemars(extend("contentEncoding" = "base64"))]
    pub content: Option<String>,
    /// Permission bits of a new file; 0 = 0644 (decimal 420).
    pub mode: Option<u32>,
    /// Write from this byte on, and leave the rest as it is.
    pub offset: Option<u64>,
    /// Write behind what is there.
    pub append: Option<bool>,
}

/// Parameters of `read_file`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadFileParams {
    /// Which.
    pub path: Option<String>,
    /// First byte. With `offset` or `length` a file may be of any size.
    pub offset: Option<u64>,
    /// Most bytes, up to 16 MiB; fewer come only at the file's end.
    pub length: Option<u64>,
}

/// Result of `read_file`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadFileResult {
    /// What was read.
    #[schemars(extend("contentEncoding" = "base64"))]
    pub content: String,
}

/// Result of `list_files`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListFilesResult {
    /// Sorted by name; without `.` and `..`.
    pub files: Vec<FileInfo>,
}

/// A file; the result of `stat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileInfo {
    /// Its name; U+FFFD for what is not UTF-8.
    pub name: String,
    /// Bytes.
    pub size: u64,
    /// Mode as Go has it: permissions in the low 9 bits, `0x80000000` a directory, `0x08000000` a symbolic link, …
    pub mode: u32,
    /// Last change of the content, RFC 3339 in UTC.
    pub mod_time: String,
    /// Whether it is a directory.
    pub is_dir: bool,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Where a symbolic link points.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Parameters of `stat`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StatParams {
    /// Which.
    pub path: Option<String>,
    /// Whether a symbolic link stands for its target; default true.
    pub follow: Option<bool>,
}

/// Parameters of `mkdir`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MkdirParams {
    /// Which.
    pub path: Option<String>,
    /// Its permission bits; 0 = 0755 (decimal 493).
    pub mode: Option<u32>,
    /// Make those above it as well, and accept one that is there.
    pub parents: Option<bool>,
}

/// Parameters of `remove`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RemoveParams {
    /// Which.
    pub path: Option<String>,
    /// A directory with all its content.
    pub recursive: Option<bool>,
}

/// Parameters of `rename`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RenameParams {
    /// From here.
    pub from: Option<String>,
    /// To here, replacing what is there.
    pub to: Option<String>,
}

/// Parameters of `watch`, which tells `watch.ready` and then `watch.change` until it is cancelled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WatchParams {
    /// Which file or directory.
    pub path: Option<String>,
    /// Directories below it as well.
    pub recursive: Option<bool>,
}
