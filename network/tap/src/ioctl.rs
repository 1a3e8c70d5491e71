//! The calls of ioctl(2) that a TAP takes (Linux `if_tun.h`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use virtio::net::Offloads;

/// Makes an interface, or says which one a descriptor has.
const TUNSETIFF: u32 = 0x4004_54ca;
const TUNGETIFF: u32 = 0x8004_54d2;
/// The work that a reader of packets does without.
pub(crate) const TUNSETOFFLOAD: u32 = 0x4004_54d0;
/// The length of the header before each packet.
const TUNGETVNETHDRSZ: u32 = 0x8004_54d7;
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;

/// The flags of a TAP: no header but virtio's.
const FLAGS: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Work that a reader does without (`TUN_F_*`); the last two came with Linux 6.2.
const CHECKSUM: libc::c_ulong = 0x01;
const TCP4: libc::c_ulong = 0x02;
const TCP6: libc::c_ulong = 0x04;
const UDP: libc::c_ulong = 0x20 | 0x40;

fn request(flags: libc::c_int) -> libc::ifreq {
    // SAFETY: a request consists of numbers and characters, of which all zeroes are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or_default();
    request
}

fn done(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Makes TAP `name`, which is short enough, of an open device.
pub(crate) fn make(device: BorrowedFd<'_>, name: &str) -> io::Result<()> {
    let mut request = request(FLAGS);
    // The last byte stays 0.
    let places = request.ifr_name.len() - 1;
    for (place, byte) in request.ifr_name[..places].iter_mut().zip(name.bytes()) {
        *place = libc::c_char::from_ne_bytes([byte]);
    }
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which `request` is.
    done(unsafe { libc::ioctl(device.as_raw_fd(), TUNSETIFF as libc::Ioctl, &raw mut request) })
}

/// Whether the descriptor is that of a TAP with virtio's header.
pub(crate) fn is_tap(fd: BorrowedFd<'_>) -> bool {
    let mut request = request(0);
    // SAFETY: TUNGETIFF writes one `ifreq`, which `request` is.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETIFF as libc::Ioctl, &raw mut request) };
    // SAFETY: the union holds what TUNGETIFF wrote, or zeroes.
    let flags = libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    result == 0 && flags & FLAGS == FLAGS
}

/// The length of the header before each packet.
pub(crate) fn header_len(fd: BorrowedFd<'_>) -> io::Result<usize> {
    let mut len: libc::c_int = 0;
    // SAFETY: TUNGETVNETHDRSZ writes one `int`, which `len` is.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), TUNGETVNETHDRSZ as libc::Ioctl, &raw mut len) })?;
    Ok(usize::try_from(len).unwrap_or_default())
}

/// Sets the length of the header before each packet.
pub(crate) fn set_header_len(fd: BorrowedFd<'_>, len: usize) -> io::Result<()> {
    let len = libc::c_int::try_from(len).map_err(|_| io::ErrorKind::InvalidInput)?;
    // SAFETY: TUNSETVNETHDRSZ reads one `int`, which `len` is.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETVNETHDRSZ as libc::Ioctl, &raw const len) })
}

/// Says what the reader of packets does without.
pub(crate) fn set_offloads(fd: BorrowedFd<'_>, offloads: Offloads) -> io::Result<()> {
    let bits = [
        (Offloads::CHECKSUM, CHECKSUM),
        (Offloads::TCP4, TCP4),
        (Offloads::TCP6, TCP6),
        (Offloads::UDP, UDP),
    ];
    let bits =
        bits.iter().filter(|(offload, _)| offloads.contains(*offload)).fold(0, |all, (_, bit)| all | bit);
    // SAFETY: TUNSETOFFLOAD takes a number, and no address.
    done(unsafe { libc::ioctl(fd.as_raw_fd(), TUNSETOFFLOAD as libc::Ioctl, bits) })
}
