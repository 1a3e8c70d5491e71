//! The architecture of a guest, and the names that follow from it.

/// The architecture of a guest, which is its host's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Architecture {
    /// x86-64.
    Amd64,
    /// 64-bit ARM.
    Arm64,
}

impl Architecture {
    /// Every architecture.
    pub(crate) const ALL: [Self; 2] = [Self::Amd64, Self::Arm64];

    /// The architecture of guests on this host.
    #[must_use]
    pub fn host() -> Self {
        if std::env::consts::ARCH == "aarch64" { Self::Arm64 } else { Self::Amd64 }
    }

    /// The name that Debian and OCI share.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Amd64 => "amd64",
            Self::Arm64 => "arm64",
        }
    }

    /// The store's directory for Debian's kernels of this architecture.
    pub(crate) const fn directory(self) -> &'static str {
        match self {
            Self::Amd64 => "debian-amd64",
            Self::Arm64 => "debian-arm64",
        }
    }

    /// Debian's name of its kernel for clouds: small, with all virtio drivers as modules.
    pub(crate) const fn meta_package(self) -> &'static str {
        match self {
            Self::Amd64 => "linux-image-cloud-amd64",
            Self::Arm64 => "linux-image-cloud-arm64",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_from_the_architecture() {
        for (architecture, name) in [(Architecture::Amd64, "amd64"), (Architecture::Arm64, "arm64")] {
            assert_eq!(architecture.name(), name);
            assert_eq!(architecture.directory(), format!("debian-{name}"));
            assert_eq!(architecture.meta_package(), format!("linux-image-cloud-{name}"));
        }
        assert!(Architecture::ALL.contains(&Architecture::host()));
    }
}
