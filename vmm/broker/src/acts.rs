//! Acts that take a privilege, by whichever process has it.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};

use kvm_ioctls::Kvm;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType, netdevice, socket_with};

/// KVM's device.
const KVM: &str = "/dev/kvm";

/// The name of a sandbox's network interface. Linux takes at most 15 bytes.
#[must_use]
pub fn interface(sandbox: u32) -> String {
    format!("ml-{sandbox:08x}")
}

pub(crate) fn open_kvm() -> io::Result<OwnedFd> {
    Ok(File::options().read(true).write(true).open(KVM)?.into())
}

pub(crate) fn kvm_api_version() -> io::Result<i32> {
    let kvm = Kvm::new().map_err(|error| io::Error::from_raw_os_error(error.errno()))?;
    Ok(kvm.get_api_version())
}

/// Deletes a sandbox's network interface; one that is not there is no error.
pub(crate) fn delete_interface(sandbox: u32) -> io::Result<()> {
    let name = interface(sandbox);
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    let is_gone = || match netdevice::name_to_index(&socket, &name) {
        Err(Errno::NODEV) => Ok(true),
        found => found.map(|_| false),
    };
    if is_gone()? {
        return Ok(());
    }
    let ip = process::find_program("ip").ok_or_else(|| io::Error::other("ip (iproute2) is not installed"))?;
    let mut command = Command::new(ip);
    let output = command.args(["link", "delete", "dev", &name]).stdin(Stdio::null()).output()?;
    // The interface may have gone by itself meanwhile, with the process that had it open.
    match output.status.success() || is_gone()? {
        true => Ok(()),
        false => Err(io::Error::other(String::from_utf8_lossy(&output.stderr).trim().to_owned())),
    }
}
