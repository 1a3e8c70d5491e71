//! Linux: KVM as the host shows it, RAM, and sockets below long paths.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use policy::machine::{HostFacts, KvmDevice};
use rustix::fs::OFlags;
use rustix::io::Errno;

use crate::arch::hardware_virtualization;

/// Longest path in a Unix socket's address (unix(7): 108 bytes with the NUL).
const MAX_SOCKET_PATH: usize = 107;

/// Probes the host: opens a device and reads CPUID, so it takes microseconds.
pub(crate) fn facts(qemu: Option<String>) -> HostFacts {
    HostFacts { kvm: kvm(), hardware_virtualization: hardware_virtualization(), hvf: false, qemu }
}

fn kvm() -> KvmDevice {
    match broker::kvm_api_version() {
        Ok(api_version) => KvmDevice::Open { api_version },
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => KvmDevice::Absent,
            io::ErrorKind::PermissionDenied => KvmDevice::Denied,
            // The node exists without a driver behind it.
            _ if matches!(error.raw_os_error(), Some(ENXIO | ENODEV)) => KvmDevice::Absent,
            _ => KvmDevice::Broken(error.to_string()),
        },
    }
}

const ENXIO: i32 = Errno::NXIO.raw_os_error();
const ENODEV: i32 = Errno::NODEV.raw_os_error();

/// The host's RAM.
pub(crate) fn memory_mb() -> u64 {
    let info = rustix::system::sysinfo();
    // The widths of these fields differ between architectures.
    #[allow(clippy::useless_conversion, reason = "u64 on some targets, narrower on others")]
    let bytes = u64::from(info.totalram).saturating_mul(u64::from(info.mem_unit));
    bytes >> 20
}

/// A path that fits into a socket's address, however deep the home directory is.
pub(crate) struct SocketPath {
    path: PathBuf,
    _directory: Option<OwnedFd>,
}

impl SocketPath {
    pub(crate) fn new(path: &Path) -> io::Result<Self> {
        if path.as_os_str().len() <= MAX_SOCKET_PATH {
            return Ok(Self { path: path.to_path_buf(), _directory: None });
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(io::ErrorKind::InvalidInput.into());
        };
        let flags = (OFlags::PATH | OFlags::DIRECTORY).bits();
        let flags = i32::try_from(flags).map_err(io::Error::other)?;
        let directory: File = OpenOptions::new().read(true).custom_flags(flags).open(parent)?;
        let path = Path::new("/proc/self/fd").join(directory.as_raw_fd().to_string()).join(name);
        Ok(Self { path, _directory: Some(directory.into()) })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixListener, UnixStream};

    use super::*;

    #[test]
    fn sockets_below_long_paths() {
        let directory = tempfile::tempdir().unwrap();
        let deep = directory.path().join("d".repeat(100)).join("e".repeat(100));
        std::fs::create_dir_all(&deep).unwrap();
        let path = deep.join("control.sock");
        assert!(UnixListener::bind(&path).is_err());
        let _listener = UnixListener::bind(SocketPath::new(&path).unwrap().path()).unwrap();
        assert!(path.exists());
        UnixStream::connect(SocketPath::new(&path).unwrap().path()).unwrap();
    }

    #[test]
    fn the_probe_agrees_with_the_kernel() {
        let facts = facts(None);
        let exists = Path::new("/dev/kvm").exists();
        assert_eq!(facts.kvm == KvmDevice::Absent, !exists || matches!(facts.kvm, KvmDevice::Absent));
        let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap();
        let flags = cpuinfo.lines().find(|line| line.starts_with("flags"));
        if let Some(flags) = flags {
            let seen = flags.split_whitespace().any(|flag| flag == "vmx" || flag == "svm");
            assert_eq!(facts.hardware_virtualization, Some(seen));
        }
        assert!(memory_mb() > 100);
    }
}
