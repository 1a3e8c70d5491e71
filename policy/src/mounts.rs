//! The folders that a guest may have mounted, and their places.
//!
//! A front end fills a [`WantedMounts`] from its own words. Not here: the folders themselves.

/// The place of mounts unless the user says otherwise.
pub const DEFAULT_WORKSPACE: &str = "/workspace";

/// The requested mounts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WantedMounts<'a> {
    /// The folder that programs start in; empty = [`DEFAULT_WORKSPACE`] if there are mounts, else none.
    pub workspace: &'a str,
    /// The mounts.
    pub mounts: Vec<Mount<'a>>,
    /// Whether there are rules for files, or events are wanted.
    pub rules: bool,
}

/// One requested mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount<'a> {
    /// The mount's place in the guest.
    pub guest_path: &'a str,
    /// `memory`, `host_fs` (also called `real_fs`) or `overlay`; empty = `memory`.
    pub kind: &'a str,
    /// Whether every file is to have an owner of the caller's choice.
    pub owned: bool,
}

/// The content of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MountKind {
    /// An empty folder in memory.
    Memory,
    /// A folder of the host.
    Host,
    /// A folder of the host; changes stay in the sandbox.
    Overlay,
}

/// Mounts that are not acceptable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MountError {
    /// There are rules for files, but no mounts.
    #[error("rules need at least one mount")]
    RulesWithoutMounts,
    /// Nothing can be mounted at the workspace.
    #[error("workspace: {0}")]
    Workspace(PathError),
    /// Nothing can be mounted at the place.
    #[error(transparent)]
    Path(PathError),
    /// There is no such kind of mount.
    #[error("{path}: unknown mount type {kind:?}")]
    Kind {
        /// The mount's place.
        path: String,
        /// The requested kind.
        kind: String,
    },
    /// The mount is not the host's, so its files have no owner to choose.
    #[error("{0}: owner_uid/owner_gid are only supported for host_fs mounts")]
    Owner(String),
}

/// The reason why nothing can be mounted at a path of the guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// The path does not begin with a slash.
    #[error("guest path must be absolute: {0:?}")]
    Relative(String),
    /// The path is not `^/[a-zA-Z0-9/_.-]+$`, or has a `..`.
    #[error("invalid guest mount path {0:?}")]
    Shape(String),
}

/// Checks the requested mounts; returns the workspace, if there is to be one.
pub fn check<'a>(request: &WantedMounts<'a>) -> Result<Option<&'a str>, MountError> {
    if request.rules && request.mounts.is_empty() {
        return Err(MountError::RulesWithoutMounts);
    }
    let default = (!request.mounts.is_empty()).then_some(DEFAULT_WORKSPACE);
    let workspace = Some(request.workspace).filter(|workspace| !workspace.is_empty()).or(default);
    workspace.map_or(Ok(()), guest_path).map_err(MountError::Workspace)?;
    for mount in &request.mounts {
        let path = || mount.guest_path.to_owned();
        guest_path(mount.guest_path).map_err(MountError::Path)?;
        let kind = kind(mount.kind);
        let kind = kind.ok_or_else(|| MountError::Kind { path: path(), kind: mount.kind.to_owned() })?;
        if mount.owned && kind != MountKind::Host {
            return Err(MountError::Owner(path()));
        }
    }
    Ok(workspace)
}

fn kind(name: &str) -> Option<MountKind> {
    match name {
        "" | "memory" => Some(MountKind::Memory),
        "host_fs" | "real_fs" => Some(MountKind::Host),
        "overlay" => Some(MountKind::Overlay),
        _ => None,
    }
}

fn guest_path(path: &str) -> Result<(), PathError> {
    let rest = path.strip_prefix('/').ok_or_else(|| PathError::Relative(path.to_owned()))?;
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/_.-".contains(&byte);
    match !rest.is_empty() && rest.bytes().all(plain) && !rest.split('/').any(|part| part == "..") {
        true => Ok(()),
        false => Err(PathError::Shape(path.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount<'a>(guest_path: &'a str, kind: &'a str) -> Mount<'a> {
        Mount { guest_path, kind, owned: false }
    }

    #[test]
    fn the_workspace() {
        let memory = || vec![mount("/a", "")];
        for (workspace, mounts, expected) in [
            ("", vec![], None),
            ("", memory(), Some(DEFAULT_WORKSPACE)),
            ("/w", vec![], Some("/w")),
            ("/w", memory(), Some("/w")),
        ] {
            assert_eq!(check(&WantedMounts { workspace, mounts, rules: false }), Ok(expected));
        }
        for workspace in ["w", "/", "/a b", "/a/../b", "/ä"] {
            let request = WantedMounts { workspace, ..WantedMounts::default() };
            assert!(matches!(check(&request), Err(MountError::Workspace(_))), "{workspace}");
        }
    }

    #[test]
    fn kinds_and_owners() {
        for kind in ["", "memory", "host_fs", "real_fs", "overlay"] {
            let request =
                WantedMounts { mounts: vec![mount("/a", kind)], rules: true, ..WantedMounts::default() };
            assert!(check(&request).is_ok(), "{kind}");
            let owned = Mount { owned: true, ..mount("/a", kind) };
            let result = check(&WantedMounts { mounts: vec![owned], ..WantedMounts::default() });
            assert_eq!(result.is_ok(), kind.ends_with("_fs"), "{kind}");
        }
        let request = WantedMounts { mounts: vec![mount("/a", "nfs")], ..WantedMounts::default() };
        assert_eq!(check(&request).unwrap_err().to_string(), "/a: unknown mount type \"nfs\"");
        let request = WantedMounts { rules: true, ..WantedMounts::default() };
        assert_eq!(check(&request), Err(MountError::RulesWithoutMounts));
        let request = WantedMounts { mounts: vec![mount("a", "")], ..WantedMounts::default() };
        assert_eq!(check(&request), Err(MountError::Path(PathError::Relative("a".into()))));
    }
}
