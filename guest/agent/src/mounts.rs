//! The guest's files beside its image: kernel file systems, memory file systems, and three files in /etc.
//!
//! The image is untrusted. All of this happens after the change of root, so no symbolic link leads out of it. A file
//! of the image's at a mount point is replaced by a directory, except a link to a directory where programs keep their
//! own files (`/tmp`, `/run`): that is the image's choice, and nothing is mounted there.

use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;

use guest_protocol::{BootConfig, HostEntry, Network};
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountFlags;

use crate::boot::{AtStep, Failure};
use crate::{files, log, shield};

const NOSUID: MountFlags = MountFlags::NOSUID;
const NOSUID_NODEV: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV);
const NOTHING: MountFlags = NOSUID_NODEV.union(MountFlags::NOEXEC);

/// One mount.
struct Mount {
    place: &'static str,
    kind: &'static str,
    flags: MountFlags,
    options: Option<&'static std::ffi::CStr>,
    /// Whether the guest does without it on a kernel that lacks it.
    optional: bool,
    /// Whether the image may have a link to a directory instead.
    yields: bool,
}

const DEVICES: Mount = mount("/dev", "devtmpfs", NOSUID, Some(c"mode=0755"));

const PROC: Mount = mount("/proc", "proc", NOTHING, None);

const MOUNTS: [Mount; 9] = [
    mount("/sys", "sysfs", NOTHING, None),
    DEVICES,
    // gid 5 is the group `tty` of every distribution.
    mount(
        "/dev/pts",
        "devpts",
        MountFlags::NOSUID.union(MountFlags::NOEXEC),
        Some(c"gid=5,mode=620,ptmxmode=666"),
    ),
    mount("/dev/shm", "tmpfs", NOSUID_NODEV, Some(c"mode=1777")),
    yielding(mount("/run", "tmpfs", NOSUID_NODEV, Some(c"mode=0755"))),
    yielding(mount("/tmp", "tmpfs", NOSUID_NODEV, Some(c"mode=1777"))),
    optional("/dev/mqueue", "mqueue", None),
    // nsdelegate: a program that mounts cgroups in namespaces of its own cannot change the limits that hold for
    // itself (cgroups(7)).
    optional("/sys/fs/cgroup", "cgroup2", Some(c"nsdelegate")),
    optional("/sys/fs/bpf", "bpf", Some(c"mode=0700")),
];

const fn mount(
    place: &'static str,
    kind: &'static str,
    flags: MountFlags,
    options: Option<&'static std::ffi::CStr>,
) -> Mount {
    Mount { place, kind, flags, options, optional: false, yields: false }
}

const fn yielding(mount: Mount) -> Mount {
    Mount { yields: true, ..mount }
}

const fn optional(
    place: &'static str,
    kind: &'static str,
    options: Option<&'static std::ffi::CStr>,
) -> Mount {
    Mount { place, kind, flags: NOTHING, options, optional: true, yields: false }
}

/// Makes the directories that the image names. One that cannot be made, such as one below a file of the image's, is
/// left out.
pub(crate) fn make_directories(paths: &[String]) {
    for path in paths.iter().filter(|path| path.starts_with('/')) {
        if let Err(error) = std::fs::DirBuilder::new().recursive(true).mode(0o755).create(path) {
            log::line(&format!("make {path}: {error}"));
        }
    }
}

impl Mount {
    fn attach(&self) -> Result<(), Failure> {
        let step = || format!("mount {}", self.place);
        if self.yields && files::is_link_to_directory(self.place) {
            return Ok(());
        }
        match files::put_directory(self.place, 0o755) {
            Ok(()) => {}
            // sysfs has mount points for the file systems that the kernel has, and takes no others.
            Err(Errno::PERM) if self.optional => return Ok(()),
            Err(errno) => return Err(Failure::new(step(), errno)),
        }
        match rustix::mount::mount(self.kind, self.place, self.kind, self.flags, self.options) {
            Err(Errno::NODEV) if self.optional => Ok(()),
            mounted => mounted.at(&step()),
        }
    }
}

/// Mounts the devices, in the initramfs.
pub(crate) fn mount_devices() -> Result<(), Failure> {
    DEVICES.attach()
}

/// Mounts everything, in the new root. Returns the root directory of devpts.
pub(crate) fn mount_all() -> Result<OwnedFd, Failure> {
    PROC.attach()?;
    // The kernel asks for modules when it looks for file systems, and the image's programs are within reach by now.
    shield::forget_helpers()?;
    MOUNTS.iter().try_for_each(Mount::attach)?;
    shield::link_standard_streams()?;
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open("/dev/pts", flags, Mode::empty()).at("open /dev/pts")
}

/// Writes /etc/hostname, /etc/hosts and /etc/resolv.conf over the image's.
pub(crate) fn write_network_files(config: &BootConfig) -> Result<(), Failure> {
    if !files::leads_to_directory("/etc") {
        files::put_directory("/etc", 0o755).at("make /etc")?;
    }
    let files = [
        ("/etc/hostname", format!("{}\n", config.hostname)),
        ("/etc/hosts", hosts(&config.hostname, &config.hosts)),
        ("/etc/resolv.conf", resolv_conf(&nameservers(config.network.as_ref(), &config.nameservers))),
    ];
    for (path, contents) in files {
        files::replace(path, contents.as_bytes()).at(&format!("write {path}"))?;
    }
    Ok(())
}

fn hosts(hostname: &str, entries: &[HostEntry]) -> String {
    let mut text = format!("127.0.0.1 localhost localhost.localdomain {hostname}\n");
    for entry in entries {
        text.push_str(&format!("{} {}\n", entry.ip, entry.host));
    }
    text.push_str("::1 localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n");
    text
}

/// The servers that answer names: the host's choice, or the gateway.
fn nameservers(network: Option<&Network>, chosen: &[String]) -> Vec<String> {
    match network {
        Some(network) if chosen.is_empty() => vec![network.v4.gateway.to_string()],
        _ => chosen.to_vec(),
    }
}

fn resolv_conf(nameservers: &[String]) -> String {
    nameservers.iter().map(|server| format!("nameserver {server}\n")).collect()
}

#[cfg(test)]
mod tests {
    use guest_protocol::Ends;

    use super::*;

    #[test]
    fn hosts_file() {
        let entry = HostEntry { host: "db.local".into(), ip: "10.0.0.7".into() };
        assert_eq!(
            hosts("vm-1", &[entry]),
            "127.0.0.1 localhost localhost.localdomain vm-1\n10.0.0.7 db.local\n::1 localhost ip6-localhost ip6-loopback\nff02::1 ip6-allnodes\nff02::2 ip6-allrouters\n"
        );
    }

    #[test]
    fn resolver_file() {
        assert_eq!(
            resolv_conf(&["8.8.8.8".into(), "fe80::1".into()]),
            "nameserver 8.8.8.8\nnameserver fe80::1\n"
        );
        assert_eq!(resolv_conf(&[]), "");
    }

    #[test]
    fn the_gateway_answers_unless_the_host_says_who() {
        let network = Network {
            mtu: 1500,
            gateway_station: [2, 0, 0, 0, 0, 1],
            v4: Ends { guest: [10, 0, 0, 2].into(), prefix: 24, gateway: [10, 0, 0, 1].into() },
            v6: Ends { guest: [0xfd; 16].into(), prefix: 64, gateway: [0xfe; 16].into() },
        };
        let own = [String::from("8.8.8.8")];
        assert_eq!(nameservers(None, &[]), [""; 0]);
        assert_eq!(nameservers(None, &own), own);
        assert_eq!(nameservers(Some(&network), &own), own);
        assert_eq!(nameservers(Some(&network), &[]), ["10.0.0.1"]);
    }
}
