//! AF_VSOCK sockets, which rustix has no addresses for.

use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::addr::{SocketAddrArg, SocketAddrLen, SocketAddrOpaque};
use rustix::net::{AddressFamily, SocketFlags, SocketType};

/// The host's context id.
pub(crate) const HOST_CID: u32 = libc::VMADDR_CID_HOST;

/// Connections that wait to be accepted: as many as the agent may serve, since further ones are reset.
const BACKLOG: i32 = 512;

struct Address(libc::sockaddr_vm);

impl Address {
    fn new(cid: u32, port: u32) -> Self {
        // SAFETY: all-zero is a valid sockaddr_vm.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        address.svm_family = AddressFamily::VSOCK.as_raw();
        address.svm_cid = cid;
        address.svm_port = port;
        Self(address)
    }
}

#[allow(clippy::cast_possible_truncation, reason = "16 bytes")]
const ADDRESS_LEN: SocketAddrLen = size_of::<libc::sockaddr_vm>() as SocketAddrLen;

// SAFETY: the closure gets a pointer to a whole sockaddr_vm and its size.
unsafe impl SocketAddrArg for Address {
    unsafe fn with_sockaddr<R>(&self, f: impl FnOnce(*const SocketAddrOpaque, SocketAddrLen) -> R) -> R {
        f((&raw const self.0).cast(), ADDRESS_LEN)
    }
}

fn socket() -> Result<OwnedFd, Errno> {
    rustix::net::socket_with(AddressFamily::VSOCK, SocketType::STREAM, SocketFlags::CLOEXEC, None)
}

/// Connects to a port of the host.
pub(crate) fn connect(port: u32) -> Result<OwnedFd, Errno> {
    let socket = socket()?;
    rustix::net::connect(&socket, &Address::new(HOST_CID, port))?;
    Ok(socket)
}

/// Listens on a port of the guest.
pub(crate) fn listen(port: u32) -> Result<OwnedFd, Errno> {
    let socket = socket()?;
    rustix::net::bind(&socket, &Address::new(libc::VMADDR_CID_ANY, port))?;
    rustix::net::listen(&socket, BACKLOG)?;
    Ok(socket)
}

/// The next connection, and its peer's context id.
pub(crate) fn accept(listener: &OwnedFd) -> Result<(OwnedFd, u32), Errno> {
    let (stream, peer) = rustix::net::acceptfrom_with(listener, SocketFlags::CLOEXEC)?;
    let peer =
        peer.filter(|peer| peer.address_family() == AddressFamily::VSOCK && peer.addr_len() >= ADDRESS_LEN);
    let peer = peer.ok_or(Errno::AFNOSUPPORT)?;
    // SAFETY: family and length say that a sockaddr_vm was stored there.
    let address = unsafe { peer.as_ptr().cast::<libc::sockaddr_vm>().read_unaligned() };
    Ok((stream, address.svm_cid))
}
