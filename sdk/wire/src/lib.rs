//! The JSON that programs read and write: the lists and reports of `--json` here, the protocol of `matchlock rpc` in
//! [`rpc`].
//!
//! Names and meaning are a promise to scripts: fields are added, never changed. Not here: the product's own types;
//! each caller converts by hand.

pub mod rpc;
pub mod state;

use serde::Serialize;

/// One sandbox of `matchlock list --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vm {
    /// The sandbox's id.
    pub id: String,
    /// `running`, `stopped`, `crashed`.
    pub status: String,
    /// The sandbox's image, as the user named it.
    pub image: String,
    /// RFC 3339, UTC: `YYYY-MM-DDTHH:MM:SSZ`.
    pub created_at: String,
    /// Owner's process id; 0 = it has ended.
    pub pid: u32,
    /// Directories.
    pub vfs: state::VmVfs,
}

/// One image of `matchlock image ls --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Image {
    /// Tag.
    pub tag: String,
    /// The image's origin.
    pub source: String,
    /// Manifest digest.
    pub digest: String,
    /// Bytes of the image's layers.
    pub size: u64,
    /// RFC 3339, UTC: `YYYY-MM-DDTHH:MM:SSZ`.
    pub created_at: String,
}

/// One kernel of `matchlock kernel ls --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// The kernel's name.
    pub identifier: String,
    /// `amd64`, `arm64`.
    pub arch: String,
    /// Bytes of the kernel's files.
    pub size: u64,
    /// The kernel's origin.
    pub origin: String,
    /// Whether new sandboxes get the kernel by default.
    pub default: bool,
    /// Whether a sandbox runs on the kernel, or is starting on it.
    pub in_use: bool,
}

/// `matchlock kernel rm --json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct KernelsRemoved {
    /// Names of the removed kernels.
    pub removed: Vec<String>,
    /// Bytes of their files.
    pub freed: u64,
}

/// `matchlock image inspect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageDetails {
    /// The image, as in `image ls --json`.
    #[serde(flatten)]
    pub image: Image,
    /// The configuration of the image's programs.
    pub config: ImageExecution,
    /// The image's layers, lowest first.
    pub layers: Vec<ImageLayer>,
}

/// The configuration of an image's programs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageExecution {
    /// User; empty = root.
    pub user: String,
    /// Working directory; empty = none.
    pub working_dir: String,
    /// Words before every command.
    pub entrypoint: Vec<String>,
    /// The command unless another is given.
    pub cmd: Vec<String>,
    /// Variables, each `NAME=VALUE`.
    pub env: Vec<String>,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageLayer {
    /// Digest of the layer's uncompressed tar.
    pub digest: String,
    /// Bytes of the layer's file in the store.
    pub size: u64,
}

/// Output of `image rm`, `image prune` and `image gc` with `--json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImagesRemoved {
    /// Tags.
    pub removed: Vec<String>,
    /// Number of removed layer files.
    pub blobs: u64,
    /// Bytes that were freed.
    pub freed: u64,
}

/// `matchlock volume create --json`, and one volume of `matchlock volume ls --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Volume {
    /// Name.
    pub name: String,
    /// Megabytes with one decimal, such as `16.0 MB`.
    pub size: String,
    /// Path of the ext4 image on the host.
    pub path: String,
}

/// `matchlock diagnose --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Diagnosis {
    /// Whether no check failed.
    pub ok: bool,
    /// The checks.
    pub checks: Vec<Check>,
}

/// One check.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// The subject of the check.
    pub name: String,
    /// The result.
    pub status: CheckStatus,
    /// The finding.
    pub message: String,
    /// The remedy.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// The part works.
    Pass,
    /// The part works, but not as well as it could.
    Warn,
    /// The part is missing or broken, so that sandboxes cannot run.
    Fail,
}

/// The times at which a sandbox reached each step; microseconds since the program's start unless the name says
/// otherwise.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[expect(missing_docs, reason = "named as in the sandbox's own timings")]
pub struct Timings {
    pub start_monotonic_ns: u64,
    pub created_us: Option<u64>,
    pub prepared_us: Option<u64>,
    pub machine_us: Option<u64>,
    pub hello_us: Option<u64>,
    pub ready_us: Option<u64>,
    pub exec_us: Option<u64>,
    pub started_us: Option<u64>,
    pub exited_us: Option<u64>,
    pub stopped_us: Option<u64>,
    pub end_us: u64,
    pub guest_agent_us: Option<u64>,
    pub guest_modules_us: Option<u64>,
    pub guest_root_us: Option<u64>,
    pub guest_ready_us: Option<u64>,
}

/// Whether a number, or a truth value, is left out of JSON.
fn is_zero<T: Default + PartialEq>(number: &T) -> bool {
    *number == T::default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_check_without_a_fix_has_no_member_for_it() {
        let check = Check {
            name: "kvm-device".into(),
            status: CheckStatus::Pass,
            message: "/dev/kvm".into(),
            fix: None,
        };
        let json = serde_json::to_string(&Diagnosis { ok: true, checks: vec![check] }).expect("plain data");
        let expected = r#"{"ok":true,"checks":[{"name":"kvm-device","status":"pass","message":"/dev/kvm"}]}"#;
        assert_eq!(json, expected);
    }
}
