//! Files of the guest. Paths are the guest's; relative ones start at `/`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Parameters of `list_files`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PathParams {
    /// The path.
    pub path: Option<String>,
}

/// Parameters of `write_file`. Without `offset` and `append` the file's old content is replaced.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WriteFileParams {
    /// The path; missing directories above it are made.
    pub path: Option<String>,
    /// The content.
    #[schemars(extend("contentEncoding" = "base64"))]
    pub content: Option<String>,
    /// Permission bits of a new file; 0 = 0644 (decimal 420).
    pub mode: Option<u32>,
    /// Write from this byte on, and leave the rest unchanged.
    pub offset: Option<u64>,
    /// Write after the file's end.
    pub append: Option<bool>,
}

/// Parameters of `read_file`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadFileParams {
    /// The path.
    pub path: Option<String>,
    /// First byte. With `offset` or `length` a file may be of any size.
    pub offset: Option<u64>,
    /// Most bytes, up to 16 MiB; fewer come only at the file's end.
    pub length: Option<u64>,
}

/// Result of `read_file`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ReadFileResult {
    /// The bytes that were read.
    #[schemars(extend("contentEncoding" = "base64"))]
    pub content: String,
}

/// Result of `list_files`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ListFilesResult {
    /// The files, sorted by name, without `.` and `..`.
    pub files: Vec<FileInfo>,
}

/// A file; the result of `stat`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct FileInfo {
    /// The file's name; U+FFFD for bytes that are not UTF-8.
    pub name: String,
    /// The file's size in bytes.
    pub size: u64,
    /// The mode in Go's form: permissions in the low 9 bits, `0x80000000` a directory, `0x08000000` a symbolic link,
    /// …
    pub mode: u32,
    /// The last change of the content, RFC 3339 in UTC.
    pub mod_time: String,
    /// Whether the file is a directory.
    pub is_dir: bool,
    /// The owner's user id.
    pub uid: u32,
    /// The owner's group id.
    pub gid: u32,
    /// The target of a symbolic link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

/// Parameters of `stat`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct StatParams {
    /// The path.
    pub path: Option<String>,
    /// Whether a symbolic link is followed; default true.
    pub follow: Option<bool>,
}

/// Parameters of `mkdir`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct MkdirParams {
    /// The path.
    pub path: Option<String>,
    /// The directory's permission bits; 0 = 0755 (decimal 493).
    pub mode: Option<u32>,
    /// Make the directories above it as well, and accept one that exists.
    pub parents: Option<bool>,
}

/// Parameters of `remove`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RemoveParams {
    /// The path.
    pub path: Option<String>,
    /// Remove a directory with all its content.
    pub recursive: Option<bool>,
}

/// Parameters of `rename`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RenameParams {
    /// The old path.
    pub from: Option<String>,
    /// The new path, whose file is replaced if it exists.
    pub to: Option<String>,
}

/// Parameters of `watch`, which sends `watch.ready` and then `watch.change` until it is cancelled.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct WatchParams {
    /// The path of a file or directory.
    pub path: Option<String>,
    /// Watch directories below it as well.
    pub recursive: Option<bool>,
}
