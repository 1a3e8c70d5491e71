//! A TAP of Linux as the port of a network device: an interface whose frames are read from a descriptor and written to
//! it, whole, with the header of virtio in front.
//!
//! The interface lives as long as its descriptor is open anywhere, in the network namespace of the thread that made it.
//! Not here: namespaces, addresses and rules of the network behind it.

#![cfg(target_os = "linux")]
#![allow(unsafe_code, reason = "ioctl(2) has no safe wrapper")]

mod ioctl;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use virtio::net::{Frames, HEADER, Offloads};
use vm_memory::VolatileSlice;

/// Requests of ioctl(2) that a TAP takes as a port, when the guest's driver starts and stops; [`Tap::new`] takes more.
pub const IOCTLS: [u32; 1] = [ioctl::TUNSETOFFLOAD];

/// The file that makes interfaces.
const DEVICE: &str = "/dev/net/tun";

/// Most bytes of an interface's name.
const MAX_NAME: usize = 15;

/// A TAP.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    offloads: Offloads,
}

/// Why there is no TAP.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel has no TUN/TAP, or the container does not show it.
    #[error(
        "{DEVICE} does not exist: the kernel's module `tun` is not loaded, or this container has no such device"
    )]
    NoDevice,
    /// The user may not open the device.
    #[error("no permission to open {DEVICE}")]
    NotOpened,
    /// The user may not make interfaces in this network namespace.
    #[error("no permission to make a TAP: that takes CAP_NET_ADMIN in the network namespace")]
    NotAllowed,
    /// The name is none for an interface.
    #[error("`{0}` cannot be the name of an interface")]
    Name(String),
    /// The descriptor is no TAP, or one whose packets have another form.
    #[error("the descriptor is no TAP with virtio headers of {HEADER} bytes")]
    NoTap,
    /// A system call failed.
    #[error("{act}: {source}")]
    System {
        /// The call.
        act: &'static str,
        /// Its error.
        source: io::Error,
    },
}

impl Tap {
    /// Makes interface `name` in this thread's network namespace. It has no offloads, and is down.
    pub fn create(name: &str) -> Result<Self, Error> {
        let sound = (1..=MAX_NAME).contains(&name.len())
            && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_'));
        if !sound {
            return Err(Error::Name(name.to_owned()));
        }
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fd = rustix::fs::open(DEVICE, flags, Mode::empty()).map_err(|error| match error {
            // Without the module, opening a node that is there fails as if there were no device.
            Errno::NOENT | Errno::NODEV | Errno::NXIO => Error::NoDevice,
            Errno::ACCESS | Errno::PERM => Error::NotOpened,
            error => Error::System { act: "open /dev/net/tun", source: error.into() },
        })?;
        ioctl::make(fd.as_fd(), name).map_err(|source| match source.raw_os_error() {
            Some(libc::EPERM) => Error::NotAllowed,
            _ => Error::System { act: "make a TAP", source },
        })?;
        ioctl::set_header_len(fd.as_fd(), HEADER)
            .map_err(|source| Error::System { act: "set the length of a TAP's header", source })?;
        Self::new(fd)
    }

    /// The TAP that another process made by [`Self::create`].
    pub fn new(fd: OwnedFd) -> Result<Self, Error> {
        if !ioctl::is_tap(fd.as_fd()) || ioctl::header_len(fd.as_fd()).ok() != Some(HEADER) {
            return Err(Error::NoTap);
        }
        // Older kernels do not cut datagrams, and refuse what they do not know.
        let offloads = [Offloads::all(), Offloads::all() - Offloads::UDP]
            .into_iter()
            .find(|offloads| ioctl::set_offloads(fd.as_fd(), *offloads).is_ok())
            .unwrap_or_default();
        ioctl::set_offloads(fd.as_fd(), Offloads::empty())
            .map_err(|source| Error::System { act: "set a TAP's offloads", source })?;
        Ok(Self { fd, offloads })
    }
}

impl Frames for Tap {
    fn event(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn offloads(&self) -> Offloads {
        self.offloads
    }

    fn set_offloads(&mut self, taken: Offloads) -> io::Result<()> {
        ioctl::set_offloads(self.fd.as_fd(), taken)
    }

    fn send(&mut self, packet: &[VolatileSlice<'_>]) -> io::Result<()> {
        guest_memory::write_packet(self.fd.as_fd(), packet).map(|_| ())
    }

    fn receive(&mut self, room: &[VolatileSlice<'_>]) -> io::Result<usize> {
        guest_memory::read_packet(self.fd.as_fd(), room)
    }
}

/// The descriptor, for another process.
impl From<Tap> for OwnedFd {
    fn from(tap: Tap) -> Self {
        tap.fd
    }
}
