//! The JSON that programs read and write: the lists and reports of `--json` here, the protocol of `matchlock rpc` in
//! [`rpc`].
//!
//! Names and meaning are a promise to scripts: fields are added, never changed. Not here: the types the product works
//! with; each caller converts by hand.

pub mod rpc;
pub mod state;

use serde::Serialize;

/// One sandbox of `matchlock list --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Vm {
    /// Its id.
    pub id: String,
    /// `running`, `stopped`, `crashed`.
    pub status: String,
    /// Image, as asked for.
    pub image: String,
    /// RFC 3339, UTC: `YYYY-MM-DDTHH:MM:SSZ`.
    pub created_at: String,
    /// Owner's process id; 0 = it has ended.
    pub pid: u32,
}

/// One image of `matchlock image ls --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Image {
    /// Tag.
    pub tag: String,
    /// Where it came from.
    pub source: String,
    /// Manifest digest.
    pub digest: String,
    /// Bytes of its layers.
    pub size: u64,
    /// RFC 3339, UTC: `YYYY-MM-DDTHH:MM:SSZ`.
    pub created_at: String,
}

/// One kernel of `matchlock kernel ls --json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Kernel {
    /// What it is called.
    pub identifier: String,
    /// `amd64`, `arm64`.
    pub arch: String,
    /// Bytes of its files.
    pub size: u64,
    /// What it was made from.
    pub origin: String,
    /// Whether new sandboxes get it when they ask for none.
    pub default: bool,
    /// Whether a sandbox runs on it, or is being started on it.
    pub in_use: bool,
}

/// `matchlock kernel rm --json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct KernelsRemoved {
    /// What they were called.
    pub removed: Vec<String>,
    /// Bytes of their files.
    pub freed: u64,
}

/// `matchlock image inspect`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageDetails {
    /// What `image ls --json` says of it.
    #[serde(flatten)]
    pub image: Image,
    /// How its programs are run.
    pub config: ImageExecution,
    /// Its layers, lowest first.
    pub layers: Vec<ImageLayer>,
}

/// How an image's programs are run.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageExecution {
    /// User; empty = root.
    pub user: String,
    /// Working directory; empty = none.
    pub working_dir: String,
    /// What is put before every command.
    pub entrypoint: Vec<String>,
    /// The command when none is given.
    pub cmd: Vec<String>,
    /// Variables, each `NAME=VALUE`.
    pub env: Vec<String>,
}

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ImageLayer {
    /// Digest of its uncompressed tar.
    pub digest: String,
    /// Bytes of its file in the store.
    pub size: u64,
}

/// What `image rm`, `image prune` and `image gc` say with `--json`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ImagesRemoved {
    /// Tags.
    pub removed: Vec<String>,
    /// Layer files that nothing needed any more.
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
    /// The ext4 image on the host.
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
    /// What was looked at.
    pub name: String,
    /// How it is.
    pub status: CheckStatus,
    /// What was found.
    pub message: String,
    /// What to do about it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fix: Option<String>,
}

/// How a check came out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum CheckStatus {
    /// Fine.
    Pass,
    /// It works, but not as well as it could.
    Warn,
    /// Sandboxes cannot run.
    Fail,
}

/// When a sandbox got where; microseconds since the program's start unless the name says otherwise.
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
